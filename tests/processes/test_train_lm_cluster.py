"""The launch script on several workers, each a real process: they train as one would, and start and stop together."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import tensorflow as tf

import dist_restore as dr
from cluster import run_cluster
from lm import clusters, data, loss_log, slurm
from lm.interrupt import StopRequest
from lm.local_cluster import LocalCluster, free_ports
from lm.saver import Saver
from lm.sizes import Sizes
from lm.state import State, build
from lm.training import steps
from lm.workers import Workers
from places import ROOT
from warm import Warm

LIMIT = 100
SMALL = Sizes(layers=1, width=16, heads=2, context=16)
FLAGS = ["--layers=1", "--width=16", "--heads=2", "--context=16", "--batch_size=8", "--log_every=1"]
STEPS = 6


def command(*flags: str) -> list[str]:
    return [sys.executable, str(ROOT / "scripts" / "train_lm.py"), "--strategy=multiworker", *FLAGS, *flags]


@contextlib.contextmanager
def started(command: Callable[[int], list[str]], workers: int, tmp_path: pathlib.Path) -> Iterator[LocalCluster]:
    """Workers with their own temporary directories, and without one that they leave behind."""
    (tmp_path / "temporary").mkdir(exist_ok=True)
    environment = {
        "PYTHONPATH": str(ROOT),
        "CUDA_VISIBLE_DEVICES": "-1",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "TMPDIR": str(tmp_path / "temporary"),
    }
    with LocalCluster(command, workers, environment) as cluster:
        yield cluster


def train(command: Callable[[int], list[str]], tmp_path: pathlib.Path, *, workers: int = 2, code: int = 0) -> list[str]:
    """Runs all workers to their end and returns what each has printed."""
    (tmp_path / "temporary").mkdir(exist_ok=True)
    addresses = [f"localhost:{port}" for port in free_ports(workers)]
    with contextlib.ExitStack() as stack:
        processes = [_warm(command(rank), rank, addresses, tmp_path) for rank in range(workers)]
        for process in processes:
            stack.callback(process.kill)
        deadline = time.monotonic() + LIMIT
        codes = [process.wait(deadline - time.monotonic()) for process in processes]
        said = [process.text for process in processes]
    assert codes == [code] * workers, (codes, said)
    assert list((tmp_path / "temporary").iterdir()) == []
    return said


def _warm(words: list[str], rank: int, addresses: list[str], tmp_path: pathlib.Path) -> Warm:
    """Starts what `env` would: `env -u NAME -C FOLDER NAME=VALUE python script ...`."""
    environment = {
        "PYTHONPATH": str(ROOT),
        "CUDA_VISIBLE_DEVICES": "-1",
        "TMPDIR": str(tmp_path / "temporary"),
        "TF_CONFIG": json.dumps({"cluster": {"worker": addresses}, "task": {"type": "worker", "index": rank}}),
    }
    folder, left = None, words[1:] if words[0] == "env" else words
    while left[0] != sys.executable:
        if left[0] == "-u":
            environment.pop(left[1])
            left = left[2:]
        elif left[0] == "-C":
            folder, left = pathlib.Path(left[1]), left[2:]
        else:
            name, _, value = left[0].partition("=")
            environment[name], left = value, left[1:]
    return Warm(left[1:], output=tmp_path / f"said{rank}", environment=environment, folder=folder)


def logs(tmp_path: pathlib.Path, workers: int = 2) -> list[dict[int, float]]:
    """The losses that each worker has computed, where --loss_log was `log`."""
    return [loss_log.read(tmp_path / f"log{f'.worker{rank}' * (rank > 0)}") for rank in range(workers)]


def checkpoints(directory: pathlib.Path) -> list[str]:
    return sorted(path.stem for path in directory.glob("*.index"))


@pytest.fixture(scope="module")
def alone() -> dict[int, float]:
    """The losses of one process with one replica."""
    return train_here(build(1, SMALL), 0)


def train_here(state: State, first: int) -> dict[int, float]:
    batches = data.batches(data.read_corpus(), context=16, batch_size=8, seed=0, first_step=first, last_step=STEPS)
    done = steps(state, tf.distribute.get_strategy(), batches, StopRequest())
    return {step.number: step.loss for step in done}


def assert_as_alone(tmp_path: pathlib.Path, alone: Mapping[int, float], workers: int = 2) -> None:
    chief, *others = logs(tmp_path, workers)
    assert others == [chief] * (workers - 1)
    assert chief == pytest.approx(alone, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("replicas", [1, 2])
def test_losses_are_those_of_one_worker(tmp_path: pathlib.Path, alone: dict[int, float], replicas: int) -> None:
    """Two replicas a worker are through private API of TensorFlow 2.21, in `lm/cpu_workers.py`."""
    flags = command(f"--steps={STEPS}", f"--replicas={replicas}", f"--loss_log={tmp_path}/log")
    chief, other = train(lambda rank: flags, tmp_path)
    assert_as_alone(tmp_path, alone)
    assert f"step      {STEPS} " in chief and "step" not in other


def kubernetes(rank: int, ports: list[int]) -> str:
    """TF_CONFIG as a TFJob with a chief, a worker and an evaluator has it."""
    jobs = {kind: [f"localhost:{port}"] for kind, port in zip(("chief", "worker", "evaluator"), ports, strict=True)}
    task = {"type": ("chief", "worker")[rank], "index": 0}
    return json.dumps({"cluster": jobs, "task": task, "environment": "cloud"})


@pytest.mark.slow
def test_a_job_called_chief_is_the_chief_and_alone_sees_the_directory(
    tmp_path: pathlib.Path, alone: dict[int, float]
) -> None:
    ports = free_ports(3)
    (tmp_path / "no directory").touch()
    directories = [tmp_path / "own", tmp_path / "no directory"]

    def start(rank: int) -> list[str]:
        flags = [f"--steps={STEPS}", f"--checkpoint_dir={directories[rank]}", f"--loss_log={tmp_path}/log"]
        return ["env", f"TF_CONFIG={kubernetes(rank, ports)}", *command(*flags, "--checkpoint_every=4", "--keep=2")]

    chief, other = train(start, tmp_path)
    assert_as_alone(tmp_path, alone)
    assert checkpoints(tmp_path / "own") == ["ckpt-4", f"ckpt-{STEPS}"]
    assert f"saved {tmp_path}/own/ckpt-{STEPS}" in chief and "saved" not in other


def slurm_step(rank: int) -> dict[str, str]:
    """What srun says to a task of two on one node."""
    return {
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_PROCID": str(rank),
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_STEP_TASKS_PER_NODE": "2",
        "SLURMD_NODENAME": "localhost",
    }


@pytest.mark.slow
def test_slurm_says_who_the_workers_are(tmp_path: pathlib.Path, alone: dict[int, float]) -> None:
    flags = command(f"--steps={STEPS}", f"--loss_log={tmp_path}/log", f"--slurm_port={free_pair()}")
    train(lambda r: ["env", "-u", "TF_CONFIG", *(f"{k}={v}" for k, v in slurm_step(r).items()), *flags], tmp_path)
    assert_as_alone(tmp_path, alone)


def free_pair() -> int:
    """A port that nobody listens at, and nobody at the next one."""
    free = set(free_ports(1000))
    return next(port for port in free if port + 1 in free)


@contextlib.contextmanager
def limited(cluster: LocalCluster) -> Iterator[None]:
    """Kills workers that do not end, so that who reads what they print does not wait for ever."""
    watchdog = threading.Timer(LIMIT, cluster.signal, [signal.SIGKILL])
    watchdog.start()
    try:
        yield
    finally:
        watchdog.cancel()


def stop(tmp_path: pathlib.Path, rank: int, number: int) -> tuple[list[int | None], list[str]]:
    """Sends a signal to one worker in the middle of a run; returns how each ended, and the last that each said."""
    flags = command("--steps=1000000", f"--checkpoint_dir={tmp_path}/own", f"--loss_log={tmp_path}/log")
    with started(lambda rank: flags, 2, tmp_path) as cluster, limited(cluster):
        chief = cluster.processes[0].stdout
        assert chief is not None
        assert any(line.startswith(b"step      3 ") for line in chief), "the chief has ended"
        cluster.processes[rank].send_signal(number)
        said = [process.stdout.read().decode() for process in cluster.processes if process.stdout]
        cluster.wait(LIMIT)
        return cluster.codes, said


@pytest.mark.slow
@pytest.mark.parametrize(("rank", "number"), [(1, signal.SIGINT), (0, signal.SIGTERM)])
def test_who_is_stopped_stops_all_after_the_same_step(tmp_path: pathlib.Path, rank: int, number: int) -> None:
    codes, said = stop(tmp_path, rank, number)
    assert codes == [128 + number] * 2, said
    chief, other = logs(tmp_path)
    assert chief == other
    assert checkpoints(tmp_path / "own") == [f"ckpt-{max(chief)}"]
    assert re.search(rf"stopped after step {max(chief)}: saved .*ckpt-{max(chief)}; the same command", said[0])


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_when_one_is_killed_the_other_says_so_in_one_line(tmp_path: pathlib.Path, rank: int) -> None:
    codes, said = stop(tmp_path, rank, signal.SIGKILL)
    assert codes[rank] == -signal.SIGKILL and codes[1 - rank] == 1
    assert "train_lm: another worker has ended" in said[1 - rank] and "Traceback" not in said[1 - rank], said


@pytest.mark.slow
def test_flags_that_differ_end_all(tmp_path: pathlib.Path) -> None:
    said = train(lambda rank: command("--steps=1", f"--seed={rank}"), tmp_path, code=1)
    assert all("--seed is 0 on worker 0 and 1 on worker 1" in each and "Traceback" not in each for each in said), said


@pytest.mark.slow
def test_what_the_chief_refuses_ends_all(tmp_path: pathlib.Path) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "ckpt-1.index").touch()
    directories = [tmp_path / "used", tmp_path / "unused"]
    said = train(
        lambda rank: command("--steps=1", "--restore=never", f"--checkpoint_dir={directories[rank]}"), tmp_path, code=1
    )
    assert all("another run's checkpoints" in each and "Traceback" not in each for each in said), said


@pytest.mark.slow
def test_a_run_goes_on_where_only_the_chief_sees_it_and_then_in_one_process(
    tmp_path: pathlib.Path, alone: dict[int, float]
) -> None:
    """The other worker is told of a directory that holds nothing: it must not start from scratch."""
    own = [f"--checkpoint_dir={tmp_path}/own", f"--loss_log={tmp_path}/log"]
    blind = [f"--checkpoint_dir={tmp_path}/nothing", f"--loss_log={tmp_path}/log"]
    train(lambda rank: command(*own, "--steps=2"), tmp_path)
    said = train(lambda rank: command(*(blind if rank else own), "--steps=4"), tmp_path)
    assert "the run's own checkpoint" in said[0] and checkpoints(tmp_path / "own") == ["ckpt-2", "ckpt-4"]
    assert not (tmp_path / "nothing").exists()
    chief, other = logs(tmp_path)
    assert chief == other
    state = build(1, SMALL, seed=1)
    dr.DistributedRestorer(state.checkpoint()).restore(tmp_path / "own")
    assert chief | train_here(state, 4) == pytest.approx(alone, rel=1e-5)


@pytest.mark.slow
def test_a_refactored_model_goes_on_and_only_the_chief_sees_checkpoint_and_rules(
    tmp_path: pathlib.Path, alone: dict[int, float]
) -> None:
    v1 = command("--steps=3", f"--checkpoint_dir={tmp_path}/v1", f"--loss_log={tmp_path}/log")
    train(lambda rank: v1, tmp_path)
    (tmp_path / "rules.toml").write_text((ROOT / "configs" / "rules" / "lm_v1_to_v2.toml").read_text())
    (tmp_path / "elsewhere").mkdir()
    v2 = ["--model_version=2", "--checkpoint_dir=v2", "--log_dir=board", "--restore_from=v1", "--rules=rules.toml"]
    more = command(f"--steps={STEPS}", f"--loss_log={tmp_path}/log", *v2)
    chief, other = train(lambda rank: ["env", "-C", str(tmp_path / "elsewhere" if rank else tmp_path), *more], tmp_path)
    assert "(100.0%)" in chief and "restor" not in other
    assert_as_alone(tmp_path, alone)
    assert list((tmp_path / "elsewhere").iterdir()) == []


def save_a_sum(strategy: tf.distribute.Strategy, directory: str) -> dict[str, Any]:
    """Each worker has a share of a sum; the directory is the chief's alone."""
    workers = Workers(strategy)
    with strategy.scope():
        total = tf.Variable(
            0.0,
            synchronization=tf.VariableSynchronization.ON_READ,
            aggregation=tf.VariableAggregation.SUM,
        )
    strategy.run(lambda: total.assign_add(1.0 + workers.rank))
    own = directory if workers.is_chief else "/dev/null/nowhere"
    saver = Saver(tf.train.Checkpoint(total=total), own, 1, workers)
    saver.save(3)
    return {"rank": workers.rank, "summary": saver.summary(0)}


@pytest.mark.slow
def test_a_sum_over_workers_is_saved_whole(tmp_path: pathlib.Path) -> None:
    chief, other = run_cluster(save_a_sum, 2, directory=str(tmp_path))
    assert (chief.code, other.code) == (0, 0), chief.output + other.output
    assert tf.train.load_variable(str(tmp_path), "total/.ATTRIBUTES/VARIABLE_VALUE") == 3.0


def config(**parts: object) -> str:
    return json.dumps({"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 1}, **parts})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "nothing says who the workers are"),
        ("{", "be JSON"),
        ("[]", "JSON object"),
        ("{}", "must have 'cluster' and 'task'"),
        (config(task={"type": "worker", "index": 2}), "makes this process worker 2, and names 2"),
        (config(task={"type": "worker"}), "makes this process worker None"),
        (config(task={"type": "chief", "index": 0}), "names 0 of that job"),
        (config(task={"type": "evaluator", "index": 0}), "an evaluator"),
        (config(cluster={"worker": ["a:1", "b:1"], "ps": ["c:1"]}), "jobs worker, ps"),
        (config(cluster={"master": ["a:1"]}, task={"type": "master", "index": 0}), "is of 'master'"),
    ],
)
def test_a_cluster_without_a_place_for_this_process_is_refused(
    monkeypatch: pytest.MonkeyPatch, text: str | None, message: str
) -> None:
    monkeypatch.delenv("SLURM_PROCID", raising=False)
    monkeypatch.delenv("TF_CONFIG", raising=False)
    if text is not None:
        monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(ValueError, match=message):
        clusters.find("auto")


def test_tf_config_goes_before_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in slurm_step(0).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("TF_CONFIG", raising=False)
    assert clusters.find("auto", slurm_port=7000).cluster_spec().as_dict() == {
        "worker": ["localhost:7000", "localhost:7001"]
    }
    monkeypatch.setenv("TF_CONFIG", config())
    assert clusters.find("auto").cluster_spec().as_dict() == {"worker": ["a:1", "b:1"]}


def resolve_slurm(monkeypatch: pytest.MonkeyPatch, changed: dict[str, str], port: int = 7000) -> tuple[list[str], int]:
    """Five tasks on three nodes whose order is not that of their names as text, as seen by the third."""
    step = {
        "SLURM_JOB_ID": "77",
        "SLURM_PROCID": "2",
        "SLURM_STEP_NUM_TASKS": "5",
        "SLURM_STEP_NODELIST": "n[9-11]",
        "SLURM_STEP_TASKS_PER_NODE": "2(x2),1",
        "SLURMD_NODENAME": "n10",
    }
    for name, value in (step | changed).items():
        monkeypatch.setenv(name, value)
    found = slurm.resolver(os.environ, port)
    assert found.task_type == "worker"
    return found.cluster_spec().as_dict()["worker"], found.task_id


def test_slurm_tasks_are_in_the_order_of_its_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorFlow 2.21's resolver alone has n10 before n9, and divides by zero where there are no GPUs."""
    workers, task = resolve_slurm(monkeypatch, {})
    assert workers == ["n9:7000", "n9:7001", "n10:7000", "n10:7001", "n11:7000"]
    assert task == 2


def test_slurm_tasks_that_were_dealt_out_otherwise_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"task 2 runs on node n11, but is expected at n10:7000.*distribution=block"):
        resolve_slurm(monkeypatch, {"SLURMD_NODENAME": "n11"})


def test_slurm_jobs_on_one_node_have_ports_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = [resolve_slurm(monkeypatch, {"SLURM_JOB_ID": job}, port=0)[0] for job in ("77", "78")]
    assert len({*jobs[0], *jobs[1]}) == 10


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"SLURM_STEP_NODELIST": "n[9-"}, "n\\[9-"),
        ({"SLURM_STEP_NUM_TASKS": "6"}, "6 tasks"),
        ({"SLURM_STEP_TASKS_PER_NODE": "many"}, "many"),
        ({"SLURM_PROCID": "5"}, "task 5"),
    ],
)
def test_slurm_variables_that_contradict_each_other_are_refused(
    monkeypatch: pytest.MonkeyPatch, changed: dict[str, str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        resolve_slurm(monkeypatch, changed)


def test_outside_srun_there_is_no_slurm_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_STEP_NUM_TASKS", raising=False)
    monkeypatch.setenv("SLURM_PROCID", "0")
    with pytest.raises(ValueError, match=r"SLURM_STEP_NUM_TASKS.* not set.*start the program with srun"):
        clusters.find("slurm")
