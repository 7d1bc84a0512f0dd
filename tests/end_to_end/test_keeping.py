"""One large tensor is read once: by the first pass, to where it stays. All others twice."""

from __future__ import annotations

import contextlib
import gc
import os
import pathlib
import subprocess
import sys
import threading
import weakref
from collections.abc import Sequence

import numpy as np
import pytest
import tensorflow as tf

import build
from dist_restore import DistributedRestorer
from dist_restore.checkpoints.open import open_checkpoint
from dist_restore.core.errors import CheckpointCorruptError
from dist_restore.engine import budget as budgets
from dist_restore.engine.assign_pass import assign_units
from dist_restore.engine.check_pass import Checked, check_sources
from dist_restore.engine.ledger import Ledger
from dist_restore.engine.prefetch import worth_prefetching
from dist_restore.engine.read_tasks import make_tasks
from dist_restore.engine.units import make_units
from dist_restore.report.progress import progress
from dist_restore.restore import run as session
from dist_restore.targets.assigner import Assigner
from dist_restore.tf_internals import host_memory
from memory import anonymous
from placed import Placed
from places import IMPORTS

SIZES = {"bias": 1000, "large": 3_000_000, "larger": 4_000_000, "kernel": 500_000}  # elements of float32
NBYTES = {name: 4 * size for name, size in SIZES.items()}
AHEAD = 8 << 20


# Which one. Pure.


def chosen(rows: str, targets: str, above: int, limit: int, rules: object = None, *, placed: bool = True) -> str | None:
    units = make_units(build.plan(rows, targets, rules).entries)
    sizes = {read.name: read.spec.nbytes for unit in units for read in unit.reads}
    found = worth_prefetching(make_tasks(units, Placed(sizes if placed else {})), above << 10, limit << 10)
    return found and next(found.entries).target


KB = 256  # elements


@pytest.mark.parametrize(
    ("above", "limit", "name"),
    [(0, 10_000, "b"), (0, 800, "b"), (0, 799, "c"), (400, 799, None), (800, 10_000, None), (399, 400, "c")],
)
def test_the_largest_within_the_bounds_is_kept(above: int, limit: int, name: str | None) -> None:
    rows = f"a {40 * KB}\nb {800 * KB}\nc {400 * KB}"
    assert chosen(rows, rows, above, limit) == name


def test_what_has_no_place_is_not_kept() -> None:
    rows = f"a {40 * KB}\nb {800 * KB}"
    assert chosen(rows, rows, 0, 10_000, placed=False) is None


def test_what_goes_through_an_op_is_not_kept() -> None:
    rules = {"rule": [{"from": "b", "to": "b", "ops": [{"slice": {"begin": [0], "size": [400 * KB]}}]}]}
    rows, targets = f"a {300 * KB}\nb {800 * KB}", f"a {300 * KB}\nb {400 * KB}"
    assert chosen(rows, targets, 0, 10_000, rules) == "a"


# What is read.


@pytest.fixture
def prefix(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(budgets, "USEFUL", AHEAD)
    rng = np.random.default_rng(0)
    values = {name: tf.Variable(rng.standard_normal(size, np.float32)) for name, size in SIZES.items()}
    return tf.train.Checkpoint(**values).write(str(tmp_path / "ckpt"))


def live() -> dict[str, tf.Variable]:
    return {name: tf.Variable(tf.zeros([size])) for name, size in SIZES.items()}


def assert_restored(variables: dict[str, tf.Variable], prefix: str) -> None:
    for name, variable in variables.items():
        saved = tf.train.load_variable(prefix, f"{name}/.ATTRIBUTES/VARIABLE_VALUE")
        np.testing.assert_array_equal(variable.numpy(), saved)


@pytest.mark.parametrize(
    ("budget", "verify", "once"),
    [
        (256 << 20, "checksum", "larger"),
        (256 << 20, "replicas", "larger"),
        (AHEAD + NBYTES["larger"] + (1 << 19), "checksum", "large"),  # for the allocator's table takes 0.9 MB
        (AHEAD, "checksum", None),
    ],
)
def test_one_is_read_once_and_the_others_twice(prefix: str, budget: int, verify: str, once: str | None) -> None:
    variables = live()
    report = DistributedRestorer(tf.train.Checkpoint(**variables), memory_budget=budget, verify=verify).restore(prefix)
    assert_restored(variables, prefix)
    expected = sum(n * (1 if name == once else 2) for name, n in NBYTES.items())
    assert abs(sum(report.bytes_read) - expected) < 1000  # the graph and the counter


def test_a_restore_that_checks_nothing_first_keeps_nothing(prefix: str) -> None:
    variables = live()
    report = DistributedRestorer(tf.train.Checkpoint(**variables), verify="none").restore(prefix)
    assert_restored(variables, prefix)
    assert abs(sum(report.bytes_read) - sum(NBYTES.values())) < 1000


def test_what_is_kept_has_its_checksum_before_anything_changes(prefix: str) -> None:
    with contextlib.closing(open_checkpoint(prefix)) as source:
        place = source.stored("larger")
    file = pathlib.Path(f"{prefix}.data-00000-of-00001")
    data = bytearray(file.read_bytes())
    data[place.offset + place.size // 2] ^= 1
    file.write_bytes(data)
    variables = live()
    with pytest.raises(CheckpointCorruptError, match="larger"):
        DistributedRestorer(tf.train.Checkpoint(**variables)).restore(prefix)
    assert not any(variable.numpy().any() for variable in variables.values())


@pytest.mark.parametrize("replicas", [1, 2])
def test_what_is_kept_becomes_the_variables_own_and_nobody_elses(prefix: str, replicas: int) -> None:
    devices = [f"CPU:{i}" for i in range(replicas)]
    strategy = tf.distribute.MirroredStrategy(devices) if replicas > 1 else tf.distribute.get_strategy()
    with strategy.scope():
        variables = live()
    restorer = DistributedRestorer(tf.train.Checkpoint(**variables))
    for _ in range(3):
        restorer.restore(prefix)
        assert_restored(variables, prefix)
        # TensorFlow updates the last of a variable's components in place once nobody else holds its memory.
        component = host_memory.plain_components(variables["larger"])[-1]
        place = host_memory.view(component).ctypes.data
        with strategy.scope():
            for variable in variables.values():
                variable.assign_add(tf.ones_like(variable))
        assert host_memory.view(component).ctypes.data == place


def test_what_is_kept_is_assigned_where_it_is_wanted_only(prefix: str) -> None:
    variables = live()
    plan = DistributedRestorer(tf.train.Checkpoint(**variables)).plan(prefix)
    units = make_units(plan.entries)
    with contextlib.closing(open_checkpoint(prefix)) as source, progress(0, False) as bar:
        checked = check_sources(units, source, bar, 256 << 20)
        assert checked.prefetched is not None
        (wanted,) = [unit for unit in units if unit.entries[0].target == "kernel"]
        ledger = Ledger(variables, Assigner(tf.distribute.get_strategy()), bar)
        assign_units((wanted,), source, ledger, lambda entry: None, 256 << 20, checked)
    assert [item.name for item in ledger.assigned] == ["kernel"]
    assert not variables["larger"].numpy().any()


def test_a_failure_after_the_first_pass_changes_nothing_and_lets_go(
    prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[weakref.ref[np.ndarray]] = []
    original = session.check_sources

    def noting(*args: object, **options: object) -> Checked:
        checked = original(*args, **options)
        held.append(weakref.ref(checked.prefetched.values[0].buffer.array))
        return checked

    def fails(*args: object) -> None:
        raise KeyboardInterrupt

    variables = live()
    monkeypatch.setattr(session, "check_sources", noting)
    monkeypatch.setattr(session, "live_values", fails)
    with pytest.raises(KeyboardInterrupt):
        DistributedRestorer(tf.train.Checkpoint(**variables)).restore(prefix)
    assert not any(variable.numpy().any() for variable in variables.values())
    gc.collect()
    assert held[0]() is None
    monkeypatch.undo()
    DistributedRestorer(tf.train.Checkpoint(**variables)).restore(prefix)
    assert_restored(variables, prefix)


def test_where_other_hosts_or_workers_assign_nothing_is_kept(prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Checked] = []
    original = session.check_sources
    monkeypatch.setattr(session, "check_sources", lambda *a, **o: found.append(original(*a, **o)) or found[-1])
    monkeypatch.setattr(session.Remote, "is_needed", property(lambda self: True))
    monkeypatch.setattr(session.Remote, "assign", lambda self, ledger: None)
    DistributedRestorer(tf.train.Checkpoint(**live())).restore(prefix)
    assert [checked.prefetched for checked in found] == [None]


@pytest.mark.parametrize("sizes", [(39, 40), (40, 39), (30, 31, 20)])
def test_the_budget_holds_with_several_large_tensors(sizes: Sequence[int], tmp_path: pathlib.Path) -> None:
    budget = 51 << 20
    saved = [tf.Variable(tf.fill([size << 18], float(i + 1))) for i, size in enumerate(sizes)]
    path = tf.train.Checkpoint(weights=saved).write(str(tmp_path / "ckpt"))
    del saved
    code = "import sys, test_keeping; test_keeping.print_peak(sys.argv[1], *map(int, sys.argv[2:]))"
    arguments = [sys.executable, "-c", code, path, str(budget), *map(str, sizes)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(IMPORTS)}
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=True)
    # Threads' buffers and TensorFlow's first ops take some MB.
    assert 25 << 20 < int(done.stdout.split()[-1]) < budget + (12 << 20)


def print_peak(path: str, budget: int, *sizes: int) -> None:
    """Restores, and prints the anonymous memory that it took at most beyond what there was."""
    budgets.USEFUL = AHEAD  # so that one of them is kept
    live = [tf.Variable(tf.zeros([size << 18])) for size in sizes]
    restorer = DistributedRestorer(tf.train.Checkpoint(weights=live), memory_budget=budget, progress=False)
    stopped, before = threading.Event(), anonymous()
    peak = [before]

    def sample() -> None:
        while not stopped.wait(0.001):
            peak.append(max(peak.pop(), anonymous()))

    thread = threading.Thread(target=sample)
    thread.start()
    restorer.restore(path)
    stopped.set()
    thread.join()
    assert all((variable.numpy() == i + 1).all() for i, variable in enumerate(live))
    print(peak[0] - before)


def test_a_file_that_changes_between_the_passes_is_found_for_what_is_read_again(
    prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = session.live_values

    def change(*args: object) -> object:
        file = pathlib.Path(f"{prefix}.data-00000-of-00001")
        data = bytearray(file.read_bytes())
        place = located["kernel"]
        data[place.offset] ^= 1
        file.write_bytes(data)
        return original(*args)

    with contextlib.closing(open_checkpoint(prefix)) as source:
        located = {name: source.stored(name) for name in SIZES}
    monkeypatch.setattr(session, "live_values", change)
    variables = live()
    with pytest.raises(CheckpointCorruptError, match="kernel"):
        DistributedRestorer(tf.train.Checkpoint(**variables)).restore(prefix)
    assert not variables["kernel"].numpy().any()
