"""Which kind of read each unit becomes, that this is decided once, and what the first pass does of each."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest
import tensorflow as tf

import build
from dist_restore import DistributedRestorer
from dist_restore.engine import assign_pass, check_pass
from dist_restore.engine.checksums import Checksums
from dist_restore.engine.chunks import SCRATCH
from dist_restore.engine.lossy import Lossy
from dist_restore.engine.read_task import ReadTask
from dist_restore.engine.read_tasks import make_tasks
from dist_restore.engine.units import Unit, make_units
from placed import Placed

KB = 256  # elements of float32
SLICE, WIDER = [{"slice": {"begin": [0], "size": [1]}}], [{"cast": {"dtype": "float64"}}]


def units_of(rows: str, targets: str, rules: list[dict[str, object]] | None = None) -> tuple[Unit, ...]:
    return make_units(build.plan(rows, targets, {"rule": rules or []}).entries)


def sizes_of(units: tuple[Unit, ...]) -> dict[str, int]:
    return dict(sorted((read.name, read.spec.nbytes) for unit in units for read in unit.reads))


def kinds(tasks: list[ReadTask]) -> list[tuple[str, list[str]]]:
    return [(type(task).__name__, [entry.target for entry in task.entries]) for task in tasks]


def test_small_neighbours_are_one_task_and_large_tensors_stand_between_them() -> None:
    rows = f"a 3\nb 5\nc {300 * KB}\nd 7\ne -"
    units = units_of(rows, rows)
    tasks = make_tasks(units, Placed(sizes_of(units)))
    assert kinds(tasks) == [("SmallBatch", ["a", "b"]), ("DirectTask", ["c"]), ("SmallBatch", ["d", "e"])]


def test_neighbours_fill_one_request_at_most() -> None:
    rows = "\n".join(f"v{number} {200 * KB}" for number in range(6))
    units = units_of(rows, rows)
    found = kinds(make_tasks(units, Placed(sizes_of(units))))
    assert found == [("SmallBatch", [f"v{number}" for number in range(5)]), ("SmallBatch", ["v5"])]
    assert SCRATCH >= (5 * 200) << 10


@pytest.mark.parametrize(
    ("rows", "targets", "rule", "kind"),
    [
        ("a 2\nb 2", "out 4", {"from": ["a", "b"], "to": "out", "ops": [{"concat": {"axis": 0}}]}, "JoinedTask"),
        ("a 2\nb 2", "out 2x2", {"from": ["a", "b"], "to": "out", "ops": [{"stack": {"axis": 0}}]}, "JoinedTask"),
        ("a 2\nb 2", "out 2", {"from": ["a", "b"], "to": "out", "ops": [{"mean": {}}]}, "PiecewiseTask"),
        ("a 3", "out 1", {"from": "a", "to": "out", "ops": SLICE}, "SingleTask"),  # reads a part of it
        ("a 3", "out 3 float64", {"from": "a", "to": "out", "ops": WIDER}, "SmallBatch"),
        (f"a {300 * KB}", f"out {300 * KB} float64", {"from": "a", "to": "out", "ops": WIDER}, "SingleTask"),
    ],
)
def test_what_goes_through_ops_has_a_kind_too(rows: str, targets: str, rule: dict[str, object], kind: str) -> None:
    units = units_of(rows, targets, [rule])
    assert kinds(make_tasks(units, Placed(sizes_of(units)))) == [(kind, ["out"])]


def test_what_has_no_place_is_read_by_itself_and_first() -> None:
    rows = f"a 3\nb {300 * KB}\nc 5"
    units = units_of(rows, rows)
    sizes = {name: size for name, size in sizes_of(units).items() if name != "c"}
    found = kinds(make_tasks(units, Placed(sizes)))
    assert found == [("SingleTask", ["c"]), ("SmallBatch", ["a"]), ("DirectTask", ["b"])]


# The first pass.


def checks(units: tuple[Unit, ...], source: Placed) -> int:
    """How many pieces of work the first pass has."""
    checksums, lossy = Checksums(source), Lossy()
    works = [work for task in make_tasks(units, source) for work in task.check(checksums, lossy)]
    return len([*works, *checksums.rest()])


@pytest.mark.parametrize(("crc32c", "count"), [(1, 2), (None, 0)])
def test_neighbours_are_checked_at_once_and_nothing_is_without_checksums(crc32c: int | None, count: int) -> None:
    # What stands between them in the second pass is small enough to be their neighbour in the first.
    rows = f"a 3\nb {300 * KB}\nc 5\nd {2000 * KB}"
    units = units_of(rows, rows)
    assert checks(units, Placed(sizes_of(units), crc32c)) == count


@pytest.mark.parametrize("crc32c", [1, None])
def test_a_cast_that_may_lose_a_value_is_tried_by_itself(crc32c: int | None) -> None:
    rule = {"from": "b", "to": "b", "ops": [{"cast": {"dtype": "float16"}}]}
    units = units_of("a 3\nb 5\nc 7", "a 3\nb 5 float16\nc 7", [rule])
    neighbours = 0 if crc32c is None else 1
    assert checks(units, Placed(sizes_of(units), crc32c)) == 1 + neighbours


def test_a_restore_tells_kinds_apart_once(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[list[ReadTask]] = []
    original = check_pass.make_tasks
    monkeypatch.setattr(check_pass, "make_tasks", lambda *args: made.append(original(*args)) or made[-1])
    monkeypatch.setattr(assign_pass, "make_tasks", lambda *args: pytest.fail("told apart again"))
    saved = {"small": tf.Variable(tf.ones([3])), "large": tf.Variable(tf.ones([600, 600]))}
    path = tf.train.Checkpoint(**saved).write(str(tmp_path / "ckpt"))
    live = {name: tf.Variable(tf.zeros_like(variable)) for name, variable in saved.items()}
    assert DistributedRestorer(tf.train.Checkpoint(**live)).restore(path).verified
    assert all(np.array_equal(live[name], saved[name]) for name in saved)
    assert len(made) == 1
