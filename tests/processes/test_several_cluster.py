"""Several checkpoints on several workers: every read mode leaves the same weights everywhere."""

from __future__ import annotations

import os
import pathlib
import shutil
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import dist_restore as dr
from cluster import describe, run_cluster
from dist_restore.ops import Mean

pytestmark = pytest.mark.slow
MODES = ["every_worker", "chief", "sharded", "auto"]
LARGE = 200_000
PATHS = {"one": "one/ckpt", "two": "two.npz"}


def build() -> dict[str, tf.Variable]:
    """What comes from the one, from the other, and from both."""
    return {name: tf.Variable(tf.zeros(size)) for name, size in (("a", LARGE), ("b", LARGE), ("mean", LARGE), ("c", 3))}


RULES = [
    dr.Rule(from_="one:v", to="a"),
    dr.Rule(from_="two:v", to="b"),
    dr.Rule(from_=("one:v", "two:v"), to="mean", ops=(Mean((1.0, 3.0)),)),
]


def restores(strategy: tf.distribute.Strategy, *, folders: list[str], modes: list[str]) -> list[dict[str, Any]]:
    """Restores what each worker sees in its own directory, in each mode."""
    os.chdir(folders[strategy.cluster_resolver.task_id])
    with strategy.scope():
        target = build()
    found = []
    for mode in modes:
        for variable in target.values():
            variable.assign(tf.fill(variable.shape, -1.0))
        try:
            report = dr.DistributedRestorer(target, rules=RULES, reads=mode, progress=False).restore(PATHS)
            held = {name: [float(x) for x in variable.numpy()[[0, 1, -1]]] for name, variable in target.items()}
            reason, checkpoints = report.reads_reason, [list(pair) for pair in report.plan.checkpoints]
            found.append({"mode": report.reads, "reason": reason, "held": held, "checkpoints": checkpoints})
        except dr.RestoreError as error:
            found.append({**describe(error), "held": {n: float(v.numpy()[0]) for n, v in target.items()}})
    return found


def write(folder: pathlib.Path) -> dict[str, list[float]]:
    generator = np.random.default_rng(3)
    one, two = (generator.normal(size=LARGE).astype(np.float32) for _ in range(2))
    tf.train.Checkpoint(v=tf.Variable(one), c=tf.Variable([1.0, 2.0, 3.0])).write(os.fspath(folder / PATHS["one"]))
    np.savez(folder / PATHS["two"], v=two)
    mean = ((one.astype(np.float64) + 3 * two.astype(np.float64)) / 4).astype(np.float32)
    arrays = {"a": one, "b": two, "mean": mean, "c": np.array([1, 2, 3], np.float32)}
    return {name: [float(x) for x in array[[0, 1, -1]]] for name, array in arrays.items()}


def test_every_mode_leaves_the_same_on_all_workers(tmp_path: pathlib.Path) -> None:
    folders = [tmp_path / str(rank) for rank in range(2)]
    folders[0].mkdir()
    expected = write(folders[0])
    shutil.copytree(folders[0], folders[1])
    for outcome in run_cluster(restores, 2, folders=[*map(str, folders)], modes=MODES):
        assert outcome.code == 0, outcome.output[-3000:]
        assert [item["mode"] for item in outcome.value[:3]] == MODES[:3]
        for item in outcome.value:
            assert item["held"] == expected
            assert item["checkpoints"] == [[name, PATHS[name]] for name in sorted(PATHS)]


def test_a_worker_that_sees_some_of_the_files_only_does_not_read(tmp_path: pathlib.Path) -> None:
    folders = [tmp_path / str(rank) for rank in range(2)]
    folders[0].mkdir()
    expected = write(folders[0])
    shutil.copytree(folders[0], folders[1])
    (folders[1] / PATHS["two"]).unlink()
    modes = ["auto", "sharded", "every_worker"]
    for outcome in run_cluster(restores, 2, folders=[*map(str, folders)], modes=modes):
        assert outcome.code == 0, outcome.output[-3000:]
        auto, sharded, every = outcome.value
        assert auto["held"] == sharded["held"] == expected
        assert auto["mode"] == "chief" and "only the chief sees" in auto["reason"]
        assert (every["rank"], every["phase"]) == (1, "agree") and set(every["held"].values()) == {-1.0}
        assert "checkpoint 'two': two.npz: no such" in every["text"]
