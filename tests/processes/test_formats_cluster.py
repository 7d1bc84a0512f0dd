"""Other formats on several workers: every read mode leaves the same weights everywhere."""

from __future__ import annotations

import os
import pathlib
import shutil
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import dist_restore as dr
from cluster import run_cluster
from format_files import WRITERS, build, weights_of
from live import scramble

pytestmark = pytest.mark.slow
MODES = ["every_worker", "chief", "sharded"]
NAMES = ["safetensors", "sharded", "npz", "weights", "keras", "legacy", "saved_model"]


def restores(strategy: tf.distribute.Strategy, *, folders: list[str], names: list[str]) -> list[dict[str, Any]]:
    """Restores each worker's own copy of each file in each mode: paths are relative, as on machines of their own."""
    os.chdir(folders[strategy.cluster_resolver.task_id])
    with strategy.scope():
        model = build()
    found = []
    for path in names:
        for mode in MODES:
            scramble(model, seed=strategy.cluster_resolver.task_id)
            report = dr.DistributedRestorer(model, reads=mode, progress=False).restore(path)
            held = {name: value.tolist() for name, value in weights_of(model).items()}
            found.append({"mode": report.reads, "held": held})
    return found


def test_every_mode_leaves_the_same_on_all_workers(tmp_path: pathlib.Path) -> None:
    model = build()
    scramble(model)
    folders = [tmp_path / str(rank) for rank in range(2)]
    folders[0].mkdir()
    names = [WRITERS[name](model, folders[0]).name for name in NAMES]
    shutil.copytree(folders[0], folders[1])  # other inodes and times, the same bytes
    outcomes = run_cluster(restores, 2, folders=[*map(str, folders)], names=names)
    for outcome in outcomes:
        assert outcome.code == 0, outcome.output[-3000:]
        assert [item["mode"] for item in outcome.value] == MODES * len(NAMES)
        for item in outcome.value:
            for name, value in weights_of(model).items():
                np.testing.assert_array_equal(np.asarray(item["held"][name], value.dtype), value)


def test_workers_that_see_other_files_are_told(tmp_path: pathlib.Path) -> None:
    folders = [tmp_path / str(rank) for rank in range(2)]
    for rank, folder in enumerate(folders):
        model = build()
        scramble(model, seed=rank)
        folder.mkdir()
        name = WRITERS["weights"](model, folder).name
    for outcome in run_cluster(restores, 2, folders=[*map(str, folders)], names=[name]):
        assert outcome.error is not None and outcome.error["rank"] == 1
        assert "other files" in str(outcome.error)
