"""Sharded variables on real parameter servers: 3 shards become 2 with more rows, and the slots go with them.

A chief (the client), a worker and two parameter servers are processes of their own. The chief saves under one
partitioner; a second chief, of a new cluster, restores under another.
"""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import pytest

from servers import Cluster, run_client

pytestmark = pytest.mark.slow

OLD_ROWS, NEW_ROWS, WIDTH = 30, 33, 4
JOBS = {"worker": 1, "ps": 2}


# ---- What chiefs do --------------------------------------------------------------------------------------


def strategy_of(cluster: Cluster, shards: int) -> Any:
    import tensorflow as tf

    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec(cluster.jobs), rpc_layer="grpc"
    )
    partitioner = tf.distribute.experimental.partitioners.FixedShardsPartitioner(shards)
    return tf.distribute.ParameterServerStrategy(resolver, variable_partitioner=partitioner)


def build(strategy: Any, rows: int, optimizer: str) -> tuple[Any, Any]:
    """A table in shards, a plain kernel, and Adam."""
    import tensorflow as tf
    import tf_keras

    with strategy.scope():
        model = tf.Module()
        model.table = tf.Variable(tf.zeros((rows, WIDTH)), name="table")
        model.kernel = tf.Variable(tf.zeros(()), name="kernel")
        library = tf_keras.optimizers.legacy if optimizer == "legacy" else tf_keras.optimizers
        adam = library.Adam(0.25)
        if optimizer == "new":
            adam.build(variables_of(model))
    return model, adam


def variables_of(model: Any) -> list[Any]:
    return [*model.table.variables, model.kernel]


def train(strategy: Any, model: Any, adam: Any, steps: int) -> None:
    """Steps on the worker, whose gradients differ in every element."""
    import tensorflow as tf

    def replica(scale: tf.Tensor) -> None:
        gradients = [
            tf.reshape(tf.range(tf.size(v), dtype=tf.float32) + scale * (i + 1), tf.shape(v))
            for i, v in enumerate(variables_of(model))
        ]
        adam.apply_gradients(zip(gradients, variables_of(model), strict=True))

    @tf.function
    def step(scale: tf.Tensor) -> None:
        strategy.run(replica, args=(scale,))

    coordinator = tf.distribute.coordinator.ClusterCoordinator(strategy)
    for number in range(steps):
        coordinator.schedule(step, args=(tf.constant(100.0 + number),))
        coordinator.join()


def state_of(model: Any, adam: Any, optimizer: str) -> dict[str, Any]:
    """What the table, its moments and the kernel hold, part by part."""
    table = list(model.table.variables)
    if optimizer == "legacy":
        slots = {name: [adam.get_slot(part, name) for part in table] for name in "mv"}
    else:
        slots = {"m": adam._momentums[: len(table)], "v": adam._velocities[: len(table)]}
    found = {"table": table, **slots, "kernel": [model.kernel], "step": [adam.iterations]}
    return {name: [part.numpy().tolist() for part in parts] for name, parts in found.items()}


def devices_of(model: Any) -> list[str]:
    return [part.device for part in model.table.variables]


def save(cluster: Cluster, prefix: str, optimizer: str) -> dict[str, Any]:
    import tensorflow as tf

    strategy = strategy_of(cluster, 3)
    model, adam = build(strategy, OLD_ROWS, optimizer)
    train(strategy, model, adam, 3)
    path = tf.train.Checkpoint(model=model, optimizer=adam).save(prefix)
    return {"path": path, "devices": devices_of(model), **state_of(model, adam, optimizer)}


def restore(cluster: Cluster, path: str, optimizer: str) -> dict[str, Any]:
    import tensorflow as tf

    import dist_restore as dr

    strategy = strategy_of(cluster, 2)
    model, adam = build(strategy, NEW_ROWS, optimizer)
    train(strategy, model, adam, 1)
    root = tf.train.Checkpoint(model=model, optimizer=adam)
    before = state_of(model, adam, optimizer)
    try:
        dr.DistributedRestorer(root).restore(path)
        refused = ""
    except dr.ShapeMismatchError as error:
        refused = str(error)
    unchanged = state_of(model, adam, optimizer) == before
    rules = [dr.Rule("model/table", "model/table", (dr.ops.Fit(dr.ops.Fill.MEAN),))]
    report = dr.DistributedRestorer(root, rules=rules).restore(path)
    said = {"refused": refused, "unchanged": unchanged, "verified": report.verified, "devices": devices_of(model)}
    return {**said, **state_of(model, adam, optimizer)}


# ---- What they must have seen ----------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["legacy", "new"])
def test_three_shards_become_two_with_more_rows_and_their_slots(optimizer: str, tmp_path: pathlib.Path) -> None:
    old = run_client(save, JOBS, prefix=str(tmp_path / "ckpt"), optimizer=optimizer)
    new = run_client(restore, JOBS, path=old["path"], optimizer=optimizer)
    assert [len(part) for part in old["table"]] == [10, 10, 10]
    assert [len(part) for part in new["table"]] == [17, 16]
    assert {device.split("/task:")[1][0] for device in new["devices"]} == {"0", "1"}
    assert "model/table" in new["refused"] and new["unchanged"] and new["verified"]
    whole = {name: np.concatenate(old[name]) for name in ("table", "m", "v")}
    found = {name: np.concatenate(new[name]) for name in whole}
    for name, values in whole.items():
        assert len(np.unique(values)) > OLD_ROWS  # a row in a wrong place would be seen
        np.testing.assert_array_equal(found[name][:OLD_ROWS], values)
    np.testing.assert_allclose(found["table"][OLD_ROWS:], whole["table"].mean(), rtol=1e-6)
    assert not found["m"][OLD_ROWS:].any() and not found["v"][OLD_ROWS:].any()
    assert new["kernel"] == old["kernel"] and new["step"] == old["step"]
