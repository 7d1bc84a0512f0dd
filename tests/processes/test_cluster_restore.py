"""Restores on several workers: real processes, TensorFlow's own cluster, faults at every phase."""

from __future__ import annotations

import pathlib
import re
import tempfile
from typing import Any

import pytest
import tensorflow as tf

import cluster_programs as programs
from cluster import Outcome, run_cluster

pytestmark = pytest.mark.slow

MODES = ["every_worker", "chief", "sharded", "auto"]
# Waits for others in faulty clusters: longer than the slowest step takes beside other tests.
TIMEOUT = 5.0


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, tf.train.Checkpoint]:
    """A checkpoint that one process wrote, and what it holds."""
    checkpoint = programs.build(tf.distribute.get_strategy())
    programs.fill(checkpoint, 1)
    return checkpoint.save(str(tmp_path_factory.mktemp("saved") / "ckpt")), checkpoint


def values(outcomes: list[Outcome]) -> list[Any]:
    for outcome in outcomes:
        assert outcome.code == 0, outcome.output[-3000:]
    return [outcome.value for outcome in outcomes]


def same(items: list[Any]) -> Any:
    """What all have; fails where they differ."""
    assert all(item == items[0] for item in items), items
    return items[0]


@pytest.mark.parametrize("workers", [2, 3, 4])
def test_every_mode_leaves_the_same_on_all_workers(workers: int, saved: tuple[str, tf.train.Checkpoint]) -> None:
    path, checkpoint = saved
    found = values(run_cluster(programs.restores, workers, path=path, reads=MODES))
    for number, mode in enumerate(MODES):
        mine = [worker[number] for worker in found]
        report = same([worker["report"] for worker in mine])
        assert same([worker["held"] for worker in mine]) == programs.held(checkpoint)
        assert same([worker["iterations"] for worker in mine]) == 7
        assert same([worker["seen"] for worker in mine]) == 11
        same([worker["loss"] for worker in mine])
        assert report["verified"] and report["world_size"] == workers and len(report["bytes_read"]) == workers
        assert mode == "auto" or report["reads"] == mode
        if mode == "sharded":
            once = sum(entry["bytes"] for entry in report["plan"]["entries"])
            assert sum(report["bytes_read"]) <= 1.05 * once
            assert sum(worker["rchar"] for worker in mine) <= 1.05 * once
            # Three large tensors: a fourth worker has little to read.
            assert sorted(report["bytes_read"])[-min(workers, 3)] > once / max(workers, 3) / 2
    losses = {tuple(worker[number]["loss"] for number in range(len(MODES))) for worker in found}
    assert len(set(losses.pop())) == 1 and not losses


@pytest.mark.parametrize(("exchange", "text"), [(1e8, "was not measured"), (1e3, "sharded [\\d.]+ s, at 97")])
def test_auto_shares_reads_of_slow_storage_and_says_why(
    saved: tuple[str, tf.train.Checkpoint], exchange: float, text: str
) -> None:
    path, checkpoint = saved
    found = values(run_cluster(programs.restore_after_measuring, 3, path=path, storage=1e5, exchange=exchange))
    assert same([worker["held"] for worker in found]) == programs.held(checkpoint)
    assert same([worker["reads"] for worker in found]) == "sharded"
    assert re.search(text, found[0]["reason"]), found[0]["reason"]


def test_only_the_chief_sees_the_files(saved: tuple[str, tf.train.Checkpoint], tmp_path: pathlib.Path) -> None:
    path, checkpoint = saved
    folders = [tmp_path / str(rank) for rank in range(3)]
    for folder in folders:
        folder.mkdir()
    copy(path, folders[0])
    found = values(run_cluster(programs.restore_where_they_are, 3, folders=[*map(str, folders)], path="ckpt-1"))
    assert same([worker["held"] for worker in found]) == programs.held(checkpoint)
    assert same([worker["reads"] for worker in found]) == "chief"
    assert "only the chief sees" in found[0]["reason"]
    assert found[0]["report"]["bytes_read"][1:] == [0, 0]


def test_one_worker_does_not_see_the_files(saved: tuple[str, tf.train.Checkpoint], tmp_path: pathlib.Path) -> None:
    path, checkpoint = saved
    folders = [tmp_path / str(rank) for rank in range(3)]
    for folder in folders:
        folder.mkdir()
    copy(path, folders[0])
    copy(path, folders[2])
    arguments = {"folders": [*map(str, folders)], "path": "ckpt-1"}
    found = values(run_cluster(programs.restore_where_they_are, 3, **arguments))
    assert same([worker["held"] for worker in found]) == programs.held(checkpoint)
    assert found[0]["reads"] == "sharded" and "1 do not see" in found[0]["reason"]
    for outcome in run_cluster(programs.restore_where_they_are, 3, **arguments, reads="every_worker"):
        assert outcome.error is not None and (outcome.error["rank"], outcome.error["phase"]) == (1, "agree")
        assert "CheckpointNotFoundError" in outcome.error["text"]


@pytest.mark.parametrize("reads", ["every_worker", "sharded", "auto"])
def test_different_files_on_different_workers_are_refused(
    saved: tuple[str, tf.train.Checkpoint], tmp_path: pathlib.Path, reads: str
) -> None:
    path, _ = saved
    other = programs.build(tf.distribute.get_strategy())
    programs.fill(other, 2)
    folders = [tmp_path / str(rank) for rank in range(2)]
    folders[0].mkdir()
    copy(path, folders[0])
    other.save(str(folders[1] / "ckpt"))
    arguments = {"folders": [*map(str, folders)], "path": "ckpt-1", "reads": reads}
    for outcome in run_cluster(programs.restore_where_they_are, 2, **arguments):
        assert outcome.error is not None and (outcome.error["rank"], outcome.error["phase"]) == (1, "agree")
        assert "other files under this path" in outcome.error["text"]


def copy(prefix: str, folder: pathlib.Path) -> None:
    for file in pathlib.Path(prefix).parent.glob(f"{pathlib.Path(prefix).name}.*"):
        (folder / file.name).write_bytes(file.read_bytes())


@pytest.mark.parametrize(
    ("odd", "kind", "text"),
    [
        ({"names": ["first", "other"]}, "PlanMismatchError", "'model/other/bias' is absent in the plan"),
        ({"verify": "checksum"}, "PlanMismatchError", "verify=checksum"),
        ({"reads": "chief"}, "PlanMismatchError", "reads=chief"),
    ],
)
def test_a_worker_that_differs_is_refused_by_name(
    saved: tuple[str, tf.train.Checkpoint], odd: dict[str, Any], kind: str, text: str
) -> None:
    for found in values(run_cluster(programs.restore_as_they_like, 3, path=saved[0], each=[{}, {}, odd])):
        assert (found["rank"], found["phase"]) == (2, "agree")
        assert {"WorkerError", kind} <= {*found["is"]} and not found["changed"]
        assert text in found["text"]


def test_what_cannot_be_restored_is_refused_everywhere(saved: tuple[str, tf.train.Checkpoint]) -> None:
    each = [{"names": ["first", "new"]}] * 2
    for found in values(run_cluster(programs.restore_as_they_like, 2, path=saved[0], each=each)):
        assert "UnmatchedError" in found["is"] and not found["changed"]
        assert "model/new/kernel" in found["names"]


@pytest.mark.parametrize("culprit", [0, 1])
def test_rules_that_one_worker_cannot_read_are_refused_everywhere(
    saved: tuple[str, tf.train.Checkpoint], tmp_path: pathlib.Path, culprit: int
) -> None:
    each: list[dict[str, Any]] = [{}, {}]
    each[culprit] = {"rules": str(tmp_path / "lost.toml")}
    for found in values(run_cluster(programs.restore_as_they_like, 2, path=saved[0], each=each)):
        assert (found["rank"], found["phase"]) == (culprit, "resolve")
        assert {"WorkerError", "RuleError"} <= {*found["is"]} and not found["changed"]
        assert "lost.toml" in found["text"]


def test_workers_that_end_up_with_different_values_hear_of_it(saved: tuple[str, tf.train.Checkpoint]) -> None:
    for outcome in run_cluster(programs.restore_with_a_bad_memory, 2, path=saved[0], culprit=1):
        assert outcome.error is not None and (outcome.error["rank"], outcome.error["phase"]) == (1, "verify")
        assert "VerificationError" in outcome.error["text"] and "model/first/kernel" in outcome.error["text"]


def test_an_exception_at_any_phase_is_raised_everywhere_and_the_next_restore_works(
    saved: tuple[str, tf.train.Checkpoint],
) -> None:
    reads = ["every_worker", "sharded"]
    for found in values(run_cluster(programs.exceptions, 3, path=saved[0], reads=reads)):
        *cases, last = found
        assert len(cases) == len(reads) * len(programs.PHASES) * 3
        for case in cases:
            _, phase, culprit = case["case"]
            assert (case.get("rank"), case.get("phase")) == (culprit, phase), case
            assert "disk on fire" in case["text"] and not case["changed"]
        assert last["verified"]


@pytest.mark.parametrize("culprit", [0, 1])
@pytest.mark.parametrize("phase", programs.PHASES)
def test_a_worker_that_is_killed_ends_the_others(
    phase: str, culprit: int, saved: tuple[str, tf.train.Checkpoint]
) -> None:
    outcomes = run_fault("kill", phase, culprit, saved[0], survivors=3)
    assert outcomes[culprit].code == -9
    require_ended(outcomes, culprit, phase)


@pytest.mark.parametrize("culprit", [0, 1])
@pytest.mark.parametrize("phase", programs.PHASES)
def test_a_worker_that_is_stuck_ends_the_others(
    phase: str, culprit: int, saved: tuple[str, tf.train.Checkpoint]
) -> None:
    require_ended(run_fault("stall", phase, culprit, saved[0], survivors=2), culprit, phase)


def run_fault(kind: str, phase: str, culprit: int, path: str, survivors: int) -> list[Outcome]:
    # In turn both modes that read on every worker, so that each fault meets both on some worker.
    reads = "sharded" if (programs.PHASES.index(phase) + culprit) % 2 else "every_worker"
    reads = "sharded" if phase in ("read", "transform", "assign") else reads
    arguments = {"path": path, "kind": kind, "phase": phase, "culprit": culprit, "reads": reads, "timeout": TIMEOUT}
    with tempfile.TemporaryDirectory() as folder:
        return run_cluster(programs.fault, 3, survivors=survivors, folder=folder, **arguments)


# Reading, transforming and assigning overlap: who hears nothing more of a worker cannot say in which it was, and one
# worker may begin to read while another still learns who is to.
SEEN_AS = {phase: {"choose", "assign"} for phase in ("read", "transform", "assign")}
# With the chief goes the store, and what it had said last before that may not have been read.
BEFORE = {"agree": {"broadcast"}, "verify": {"assign"}}


def require_ended(outcomes: list[Outcome], culprit: int, phase: str) -> None:
    """All others ended by themselves, with an error that names rank and phase; none trained on."""
    allowed = SEEN_AS.get(phase, {phase}) | (BEFORE.get(phase, set()) if culprit == 0 else set())
    for rank, outcome in enumerate(outcomes):
        assert not re.search("TRAINS ON", outcome.output), outcome.output[-2000:]
        if rank != culprit:
            assert outcome.code == 1 and outcome.error is not None, outcome.output[-3000:]
            assert outcome.error["kind"] == "WorkerError" and outcome.error["rank"] == culprit, outcome.error
            assert outcome.error["phase"] in allowed, outcome.error


@pytest.mark.parametrize("seen_by", ["all", "chief"])
def test_tables_are_the_chiefs_on_all_workers_and_iterators_are_refused_by_name(
    tmp_path: pathlib.Path, seen_by: str
) -> None:
    table = tf.lookup.experimental.MutableHashTable(tf.string, tf.int64, -1)
    table.insert(["saved"], [7])
    rng = tf.random.Generator.from_seed(3)
    root = tf.train.Checkpoint(v=tf.Variable([1.0, 2.0]), rng=rng, table=table, it=iter(tf.data.Dataset.range(9)))
    folders = [tmp_path / str(rank) for rank in range(2)]
    for folder in folders if seen_by == "all" else folders[:1]:
        root.write(str(folder / "ckpt"))
    for folder in folders:
        folder.mkdir(exist_ok=True)
    found = values(run_cluster(programs.restore_objects, 2, folders=[str(f) for f in folders], path="ckpt"))
    for rank, (error, before, after, _) in enumerate(found):
        assert "2 workers" in error and 'keep = "it"' in error and "'it'" in error
        assert before == ["mine", rank, [0, 0]] and after == ["saved", 7, [1, 2]]
    draws = {tuple(x) for *_, local in found for x in local}
    # One state on all workers, of which each replica makes numbers of its own.
    assert len(draws) == 2
