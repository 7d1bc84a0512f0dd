"""Workers agree, or all end with the same error: every world without a process, by threads over a fake store."""

from __future__ import annotations

import threading
import time

import pytest

import dist_restore as dr
from dist_restore.distribute.messaging import liveness as waiting
from dist_restore.distribute.messaging import mailbox, messages
from dist_restore.distribute.messaging import protocol as cluster
from dist_restore.distribute.messaging.messages import Failure, Message
from dist_restore.distribute.messaging.protocol import ClusterCommunicator
from dist_restore.distribute.messaging.store import Answer
from fake_cluster import FakeStore, in_phase, run_workers


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shortens what real clusters need their time for."""
    monkeypatch.setattr(waiting, "TICK_SECONDS", 0.02)
    monkeypatch.setattr(waiting, "GRACE", {Answer.GONE: 0.1, Answer.SILENT: 0.3, Answer.REPLACED: 0.0})
    monkeypatch.setattr(mailbox, "RETRY_SECONDS", 0.02)
    monkeypatch.setattr(cluster, "MARGIN_SECONDS", 1.0)
    monkeypatch.setattr(cluster, "PARTING_SECONDS", 0.1)
    monkeypatch.setattr(cluster, "LINGER_SECONDS", 0.5)


def failures(results: list[object]) -> list[tuple[int, str]]:
    """Rank and phase that every worker's error names; fails unless all raised a `WorkerError`."""
    assert all(isinstance(r, dr.WorkerError) for r in results), results
    return [(r.rank, r.phase) for r in results if isinstance(r, dr.WorkerError)]


def boom(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize("world_size", range(1, 10))
def test_all_get_the_chiefs_payload_and_those_of_all(world_size: int) -> None:
    def program(communicator: ClusterCommunicator) -> list[object]:
        mine = f"from {communicator.rank}".encode()
        return [
            communicator.broadcast(mine, "plan"),
            communicator.broadcast(mine + b"\0", "plan"),
            communicator.gather(mine, "agree"),
            in_phase(communicator, "assign", lambda: communicator.rank),
            communicator.gather(mine * 2, "verify"),
        ]

    everybody = tuple(f"from {rank}".encode() for rank in range(world_size))
    for rank, result in enumerate(run_workers(world_size, program)):
        assert result == [b"from 0", b"from 0\0", everybody, rank, tuple(p * 2 for p in everybody)]


def test_nothing_is_left_in_the_store() -> None:
    store = FakeStore()
    for talk in range(3):
        run_workers(3, lambda c: [c.gather(b"x", "agree") for _ in range(5)], store=store, name=f"talk/{talk}")
    assert store.values == {}


def test_what_everybody_has_read_goes_at_once() -> None:
    store = FakeStore()
    seen: list[int] = []

    def program(communicator: ClusterCommunicator) -> None:
        for _ in range(20):
            communicator.broadcast(b"plan", "plan")
            communicator.gather(b"", "agree")
            seen.append(len(store.values))

    run_workers(3, program, store=store)
    assert max(seen) <= 3 * 5  # Three rounds at most, of two messages down and three up.


@pytest.mark.parametrize("culprit", [0, 1, 2])
def test_an_exception_on_one_is_raised_on_all(culprit: int) -> None:
    def program(communicator: ClusterCommunicator) -> None:
        communicator.gather(b"", "agree")
        in_phase(
            communicator, "assign", lambda: boom(OSError("disk on fire")) if communicator.rank == culprit else None
        )

    results = run_workers(3, program)
    assert failures(results) == [(culprit, "assign")] * 3
    assert all("OSError: disk on fire" in str(r) and f"Worker {culprit}" in str(r) for r in results)
    causes = [r.__cause__ for r in results if isinstance(r, dr.WorkerError)]
    assert [type(cause) for cause in causes] == [OSError if rank == culprit else type(None) for rank in range(3)]


def test_the_lowest_rank_that_failed_is_named_and_the_others_mentioned() -> None:
    def program(communicator: ClusterCommunicator) -> None:
        in_phase(communicator, "read", lambda: boom(OSError(communicator.rank)) if communicator.rank else None)

    results = run_workers(4, program)
    assert failures(results) == [(1, "read")] * 4
    assert all("so did workers 2, 3" in str(r) for r in results)


def test_an_error_of_the_tree_keeps_its_class_and_names_everywhere() -> None:
    error = dr.CheckpointNotFoundError("no checkpoint at /runs", names=("model/kernel",))

    def program(communicator: ClusterCommunicator) -> None:
        in_phase(communicator, "locate", lambda: boom(error) if communicator.rank == 0 else None)

    for result in run_workers(3, program):
        assert isinstance(result, dr.WorkerError) and isinstance(result, dr.CheckpointNotFoundError)
        assert not isinstance(result, dr.CheckpointCorruptError)
        assert result.names == ("model/kernel",) and "CheckpointNotFoundError: no checkpoint at /runs" in str(result)


def test_a_failure_reaches_those_who_are_inside_another_call() -> None:
    def program(communicator: ClusterCommunicator) -> None:
        def work() -> None:
            if communicator.rank == 1:
                raise OSError("early")
            communicator.broadcast(b"bucket", "assign")
            communicator.broadcast(b"bucket", "assign")
            communicator.gather(b"", "assign")

        in_phase(communicator, "assign", work)

    assert failures(run_workers(3, program)) == [(1, "assign")] * 3


def test_an_exception_between_calls_ends_the_others_too() -> None:
    def program(communicator: ClusterCommunicator) -> None:
        communicator.gather(b"", "agree")
        if communicator.rank == 2:
            raise KeyboardInterrupt
        communicator.gather(b"", "read")

    *others, interrupted = run_workers(3, program)
    assert isinstance(interrupted, KeyboardInterrupt)
    assert [rank for rank, _ in failures(others)] == [2, 2]
    assert all("KeyboardInterrupt" in str(other) for other in others)


def test_an_exception_of_the_chief_between_calls_ends_the_others_too() -> None:
    def program(communicator: ClusterCommunicator) -> None:
        communicator.gather(b"", "agree")
        if communicator.rank == 0:
            raise KeyboardInterrupt
        communicator.gather(b"", "read")

    _, *others = run_workers(3, program)
    assert [rank for rank, _ in failures(others)] == [0, 0]


def test_after_a_failure_every_further_call_raises_it_again() -> None:
    def program(communicator: ClusterCommunicator) -> list[str]:
        texts = []
        for phase in ("read", "assign"):
            try:
                in_phase(communicator, phase, lambda: boom(OSError("disk on fire")))
            except dr.WorkerError as error:
                texts.append(str(error))
        return texts

    for texts in run_workers(2, program):
        assert isinstance(texts, list) and len(texts) == 2 and texts[0] == texts[1]


def test_calls_in_another_order_are_an_error() -> None:
    def program(communicator: ClusterCommunicator) -> None:
        communicator.gather(b"", "read" if communicator.rank == 1 else "assign")

    results = run_workers(3, program)
    assert failures(results) == [(1, "assign")] * 3
    assert "same calls in the same order" in str(results[0])


@pytest.mark.parametrize("culprit", [0, 1])
@pytest.mark.parametrize("answer", [Answer.GONE, Answer.SILENT, Answer.REPLACED])
def test_a_worker_that_is_dead_ends_the_others(culprit: int, answer: Answer) -> None:
    store = FakeStore()
    agreed = threading.Barrier(3)  # Who has not read the end of a phase still takes the chief to be in it.

    def program(communicator: ClusterCommunicator) -> None:
        communicator.gather(b"", "agree")
        agreed.wait()
        if communicator.rank == culprit:
            store.die(culprit, answer)
        communicator.gather(b"", "read")

    results = run_workers(3, program, store=store)
    others = [result for rank, result in enumerate(results) if rank != culprit]
    assert failures(others) == [(culprit, "read")] * 2
    assert all(answer.value in str(other) for other in others)


@pytest.mark.parametrize("culprit", [0, 1])
def test_a_worker_that_is_stuck_ends_all_and_cannot_go_on_alone_later(culprit: int) -> None:
    def program(communicator: ClusterCommunicator) -> None:
        communicator.gather(b"", "agree")
        in_phase(communicator, "read", lambda: time.sleep(1.0 if communicator.rank == culprit else 0))
        communicator.gather(b"", "assign")

    results = run_workers(3, program, timeout=0.5)
    assert all(isinstance(result, dr.WorkerError) for result in results)
    others = [result for rank, result in enumerate(results) if rank != culprit]
    assert failures(others) == [(culprit, "read")] * 2
    assert all("did not come this far" in str(other) and "process answers" in str(other) for other in others)


def test_the_chief_names_the_culprit_even_when_it_comes_late_itself() -> None:
    store = FakeStore()

    def program(communicator: ClusterCommunicator) -> None:
        if communicator.rank == 0:
            time.sleep(0.5)
        elif communicator.rank == 1:
            store.die(1, Answer.ALIVE)
        communicator.gather(b"", "read")

    chief, _, other = run_workers(3, program, store=store, timeout=1.5)
    assert failures([chief, other]) == [(1, "read")] * 2


def test_bytes_at_stake_make_waits_longer() -> None:
    def program(communicator: ClusterCommunicator) -> str:
        work = lambda: time.sleep(1.0 if communicator.rank else 0)  # noqa: E731
        in_phase(communicator, "read", work, nbytes=100 << 20)
        return "done"

    assert run_workers(2, program, timeout=0.3) == ["done", "done"]


def test_a_hiccup_of_the_network_is_no_failure() -> None:
    store = FakeStore()

    def program(communicator: ClusterCommunicator) -> str:
        if communicator.rank == 0:
            store.hiccups = 3
        communicator.gather(b"", "agree")
        return "done"

    assert run_workers(3, program, store=store) == ["done"] * 3


def test_a_chief_that_is_stopped_does_not_block_those_who_write_to_it() -> None:
    store = FakeStore()
    agreed = threading.Barrier(3)

    def program(communicator: ClusterCommunicator) -> None:
        communicator.gather(b"", "agree")
        agreed.wait()
        if communicator.rank == 0:
            store.chief_is_stopped = True
            time.sleep(1.0)
            store.chief_is_stopped = False
        communicator.gather(b"", "read")

    assert set(failures(run_workers(3, program, store=store, timeout=0.5))) == {(0, "read")}


def test_a_worker_that_ends_well_before_the_others_is_not_missed() -> None:
    store = FakeStore()

    def program(communicator: ClusterCommunicator) -> str:
        communicator.gather(b"", "verify")
        if communicator.rank == 1:
            time.sleep(0.5)
        elif communicator.rank == 2:
            communicator.close()
            store.die(2, Answer.GONE)
        return "done"

    assert run_workers(3, program, store=store)[:2] == ["done"] * 2


def test_one_that_dies_at_the_very_end_is_noticed_by_the_chief() -> None:
    store = FakeStore()

    def program(communicator: ClusterCommunicator) -> None:
        communicator.gather(b"", "verify")
        if communicator.rank == 1:
            store.die(1, Answer.GONE)

    assert failures(run_workers(2, program, store=store)[:1]) == [(1, "end")]


def test_messages_survive_the_store() -> None:
    failure = Failure(3, "phase \0 \u00e9", "text \U0001f600 \0", "OSError", ("a/b", "\u00fc"), (4, 5))
    for message in (Message("x", (b"", b"\0\xff" * 1000)), Message("y", failure=failure)):
        text = message.pack()
        assert text.isascii() and "\0" not in text
        assert Message.unpack(text) == message


def test_a_plan_is_sent_compressed() -> None:
    plan = b'{"target": "model/blocks/1/kernel", "status": "renamed"}' * 20_000
    assert len(Message("plan", (plan,)).pack()) < len(plan) / 10


@pytest.mark.parametrize("kind", ["OSError", "", "WorkerError", "RestoreError", "annotations", "RestoreError.__doc__"])
def test_only_errors_of_the_tree_lend_their_class(kind: str) -> None:
    assert type(Failure(0, "x", "text", kind).error()) is messages.WorkerError


def test_who_says_why_comes_before_those_who_only_noticed() -> None:
    def program(communicator: ClusterCommunicator) -> None:
        error = OSError("disk on fire") if communicator.rank == 2 else waiting.BrokenExchangeError("nobody came")
        in_phase(communicator, "assign", lambda: boom(error))

    results = run_workers(3, program)
    assert failures(results) == [(2, "assign")] * 3
    assert all("disk on fire" in str(r) and "so did workers 0, 1" in str(r) for r in results)
