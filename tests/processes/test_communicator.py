"""Real processes talk through TensorFlow, and what happens to one of them ends the others with its rank and phase."""

from __future__ import annotations

import itertools
import os
import signal
import time
from typing import Any

import pytest
import tensorflow as tf

import dist_restore as dr
from cluster import Outcome, describe, run_cluster
from conftest import STRATEGIES, make_strategy
from dist_restore.distribute import communicator as communicators
from dist_restore.distribute.communicator import Communicator, LocalCommunicator, communicator_for
from fake_cluster import in_phase

MEGABYTE = 1 << 20


def talk(strategy: tf.distribute.Strategy) -> dict[str, Any]:
    """All calls, with failures between them: several restores in one process."""
    said: dict[str, Any] = {}
    with communicator_for(strategy, 60) as c:
        said["place"] = [c.rank, c.world_size]
        said["broadcast"] = c.broadcast(b"from %d" % c.rank, "plan").decode()
        said["gather"] = [p.decode() for p in c.gather(b"from %d" % c.rank, "agree")]
        said["everywhere"] = in_phase(c, "assign", lambda: 10 * c.rank)
    said["failures"] = [fail(communicator_for(strategy, 60), culprit) for culprit in range(said["place"][1])]
    with communicator_for(strategy, 60) as c:
        plan = bytes(itertools.islice(itertools.cycle(range(251)), 8 * MEGABYTE)) if c.rank == 0 else b""
        random = tf.random.stateless_uniform([2 * MEGABYTE], [1, 2], maxval=1 << 30, dtype=tf.int32).numpy().tobytes()
        said["plan"] = c.broadcast(plan, "plan") == bytes(itertools.islice(itertools.cycle(range(251)), 8 * MEGABYTE))
        said["incompressible"] = c.broadcast(random if c.rank == 0 else b"", "plan") == random
        said["everybody's"] = set(c.gather(random[: MEGABYTE // 2], "verify")) == {random[: MEGABYTE // 2]}
    return said


def fail(communicator: Communicator, culprit: int) -> dict[str, Any] | None:
    try:
        with communicator as c:
            c.gather(b"", "agree")
            in_phase(c, "read", lambda: os.stat("/no/such/file") if c.rank == culprit else None)
    except dr.WorkerError as error:
        return describe(error)
    return None


def talk_and_stumble(strategy: tf.distribute.Strategy) -> dict[str, Any]:
    return {"talk": talk(strategy), "stumbles": stumble(strategy), "failure": fail(communicator_for(strategy, 60), 2)}


def stumble(strategy: tf.distribute.Strategy) -> list[dict[str, Any]]:
    """One mishap after the other that a cluster survives, each in a restore of its own: what each worker raised."""
    return [one_ends_and_is_caught(strategy, *mishap) for mishap in STUMBLES]


def one_ends_and_is_caught(strategy: tf.distribute.Strategy, culprit: int, how: str, timeout: float) -> dict[str, Any]:
    with communicator_for(strategy, 60) as c:
        c.gather(b"", "wait until the last culprit is back")
    try:
        one_ends(strategy, culprit, how, timeout)
    except (dr.WorkerError, KeyboardInterrupt) as error:
        return describe(error)
    return {}


def one_ends(strategy: tf.distribute.Strategy, culprit: int, how: str, timeout: float) -> None:
    """One worker comes to nothing in phase `read`."""
    with communicator_for(strategy, timeout) as c:
        c.gather(b"", "agree")
        # The others have read what the chief said last: else they would still take it to be in that phase.
        time.sleep(0.5)
        in_phase(c, "read", lambda: END[how]() if c.rank == culprit else None)


def pause() -> None:
    """Stops this process for so long that the others give it up, but TensorFlow does not."""
    if os.fork() == 0:
        time.sleep(4)
        os.kill(os.getppid(), signal.SIGCONT)
        os._exit(0)
    os.kill(os.getpid(), signal.SIGSTOP)


END = {
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "pause": pause,
    "stick": lambda: time.sleep(4),
    "interrupt": lambda: signal.raise_signal(signal.SIGINT),
}
STUMBLES = [(0, "pause", 1.5), (1, "pause", 1.5), (1, "stick", 1.5), (1, "interrupt", 60)]


def named(outcomes: list[Outcome], culprit: int) -> list[tuple[int | None, str, int, str]]:
    """Exit code, class, rank and phase of each of the others."""
    others = [o for rank, o in enumerate(outcomes) if rank != culprit]
    assert all(o.error for o in others), "\n".join(o.output for o in outcomes)
    return [(o.code, o.error["kind"], o.error["rank"], o.error["phase"]) for o in others if o.error]


@pytest.mark.slow
def test_three_workers_talk_and_stumble_and_talk_again() -> None:
    outcomes = run_cluster(talk_and_stumble, 3)
    assert [o.code for o in outcomes] == [0, 0, 0], "\n".join(o.output for o in outcomes)
    check_talk([o.value["talk"] for o in outcomes])
    check_stumbles([o.value["stumbles"] for o in outcomes])
    assert [(o.value["failure"]["rank"], o.value["failure"]["phase"]) for o in outcomes] == [(2, "read")] * 3


def check_talk(said_by_rank: list[dict[str, Any]]) -> None:
    for rank, said in enumerate(said_by_rank):
        assert said["place"] == [rank, 3]
        assert said["broadcast"] == "from 0"
        assert said["gather"] == ["from 0", "from 1", "from 2"]
        assert said["everywhere"] == 10 * rank
        assert [(f["kind"], f["rank"], f["phase"]) for f in said["failures"]] == [
            ("WorkerError", culprit, "read") for culprit in range(3)
        ]
        assert all("FileNotFoundError" in f["text"] and "/no/such/file" in f["text"] for f in said["failures"])
        assert [f["cause"] == "FileNotFoundError" for f in said["failures"]] == [rank == c for c in range(3)]
        assert said["plan"] and said["incompressible"] and said["everybody's"]


def check_stumbles(said_by_rank: list[list[dict[str, Any]]]) -> None:
    """Who was paused, stuck or interrupted ended all, and did not go on alone."""
    words = {"pause": "does not answer", "stick": "answers", "interrupt": "KeyboardInterrupt"}
    for place, (culprit, how, _) in enumerate(STUMBLES):
        said = [raised[place] for raised in said_by_rank]
        own = said.pop(culprit)
        assert own["kind"] == ("KeyboardInterrupt" if how == "interrupt" else "WorkerError")
        assert [(o["kind"], o["rank"], o["phase"]) for o in said] == [("WorkerError", culprit, "read")] * 2
        assert all(words[how] in o["text"] for o in said)


@pytest.mark.slow
@pytest.mark.parametrize("culprit", [0, 1])
@pytest.mark.parametrize(("how", "why"), [("kill", "its process has ended"), ("stop", "its process does not answer")])
def test_a_worker_that_is_killed_or_stopped_ends_the_others(culprit: int, how: str, why: str) -> None:
    timeout = 60 if how == "kill" else 4
    outcomes = run_cluster(one_ends, 2, survivors=1 + (how == "kill"), culprit=culprit, how=how, timeout=timeout)
    assert named(outcomes, culprit) == [(1, "WorkerError", culprit, "read")]
    assert outcomes[culprit].code == (-signal.SIGKILL if how == "kill" else None)
    assert why in outcomes[1 - culprit].error["text"]


@pytest.mark.parametrize("name", STRATEGIES)
def test_one_process_talks_to_nobody(name: str) -> None:
    with communicator_for(make_strategy(name)) as communicator:
        assert isinstance(communicator, LocalCommunicator)
        assert (communicator.rank, communicator.world_size) == (0, 1)
        assert communicator.broadcast(b"plan", "plan") == b"plan"
        assert communicator.gather(b"plan", "agree") == (b"plan",)
        with pytest.raises(OSError, match="as it is"):
            in_phase(communicator, "read", lambda: (_ for _ in ()).throw(OSError("as it is")))


@pytest.mark.parametrize(
    ("jobs", "task", "rank", "world_size"),
    [
        ({}, (None, None), 0, 0),
        ({"worker": 1}, ("worker", 0), 0, 1),
        ({"worker": 3}, ("worker", 2), 2, 3),
        ({"chief": 1, "worker": 2}, ("chief", 0), 0, 3),
        ({"chief": 1, "worker": 2}, ("worker", 1), 2, 3),
        ({"chief": 1, "worker": 2, "evaluator": 1}, ("worker", 0), 1, 3),
        ({"chief": 1, "worker": 2, "evaluator": 1}, ("evaluator", 0), 0, 1),
        ({"worker": 2, "ps": 2}, ("worker", 1), 1, 2),
    ],
)
def test_ranks_are_counted_as_tensorflow_does(
    jobs: dict[str, int], task: tuple[str | None, int | None], rank: int, world_size: int
) -> None:
    spec = tf.train.ClusterSpec({job: [f"host{i}:1" for i in range(count)] for job, count in jobs.items()})
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(spec, task_type=task[0], task_id=task[1])
    found, tasks = communicators._place(resolver)
    assert (found, len(tasks)) == (rank, world_size)
    if world_size > 1:
        assert tasks[rank] == f"/job:{task[0]}/replica:0/task:{task[1]}"
