"""What workers of a real cluster run in tests: functions that `run_cluster` calls by name, with JSON arguments."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import signal
import time
from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np
import tensorflow as tf

import dist_restore as dr
from cluster import describe
from dist_restore import ops as transforms
from dist_restore.checkpoints.tf.checkpoint import TfCheckpoint
from dist_restore.distribute import read_mode as read_modes
from dist_restore.engine import values as engine_values
from dist_restore.ops.arithmetic import Scale
from dist_restore.restore import agreement
from dist_restore.restore import run as session
from dist_restore.targets.assigner import Assigner

WIDTH = 96


def build(strategy: tf.distribute.Strategy, names: tuple[str, ...] = ("first", "second")) -> tf.train.Checkpoint:
    """A model with large and small variables, moments, and a counter that workers add up."""
    import keras

    with strategy.scope():
        inputs = keras.Input((WIDTH,))
        x = keras.layers.Dense(8 * WIDTH, activation="relu", name=names[0])(inputs)
        x = keras.layers.LayerNormalization(name="norm")(x)
        model = keras.Model(inputs, keras.layers.Dense(1, name=names[1])(x))
        optimizer = keras.optimizers.Adam(1e-2)
        optimizer.build(model.trainable_variables)
        seen = tf.Variable(
            0,
            dtype=tf.int64,
            trainable=False,
            synchronization=tf.VariableSynchronization.ON_READ,
            aggregation=tf.VariableAggregation.SUM,
        )
    return tf.train.Checkpoint(model=model, optimizer=optimizer, seen=seen)


def fill(checkpoint: tf.train.Checkpoint, seed: int) -> None:
    """Random values for everything but counters."""
    rng = np.random.default_rng(seed)
    for variable in [*checkpoint.model.variables, *checkpoint.optimizer.variables]:
        if np.issubdtype(variable.dtype, np.floating) and variable.shape:
            variable.assign(np.abs(rng.normal(size=variable.shape)).astype(variable.dtype))
    checkpoint.optimizer.iterations.assign(7)
    checkpoint.seen.assign(11)


def step(strategy: tf.distribute.Strategy, checkpoint: tf.train.Checkpoint) -> float:
    """One training step on the same global batch; returns its loss, which is the same on all workers."""
    rng = np.random.default_rng(5)
    batch = rng.normal(size=(12, WIDTH)).astype(np.float32)
    model, optimizer, replicas = checkpoint.model, checkpoint.optimizer, strategy.num_replicas_in_sync
    part = strategy.experimental_distribute_values_from_function(
        lambda to: tf.constant(np.split(batch, replicas)[to.replica_id_in_sync_group])
    )

    @tf.function
    def train(features: tf.Tensor) -> tf.Tensor:
        def replica(x: tf.Tensor) -> tf.Tensor:
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(model(x, training=True) ** 2) / 12
            gradients = tape.gradient(loss, model.trainable_variables)
            optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
            return loss

        return strategy.reduce(tf.distribute.ReduceOp.SUM, strategy.run(replica, args=(features,)), axis=None)

    return float(train(part))


def held(checkpoint: tf.train.Checkpoint) -> list[float]:
    """A sum that every element of every variable of this worker's replica changes."""
    variables = [*checkpoint.model.variables, *checkpoint.optimizer.variables]
    return [float(np.sum(np.abs(np.asarray(v).astype(np.float64)))) for v in variables]


def restores(strategy: tf.distribute.Strategy, *, path: str, reads: list[str]) -> list[dict[str, Any]]:
    """Restores in each mode into a model that holds other values on every worker, and takes one step."""
    checkpoint = build(strategy)
    found = []
    for mode in reads:
        fill(checkpoint, 100 + strategy.cluster_resolver.task_id)
        found.append(restore(strategy, checkpoint, path, reads=mode))
    return found


def restore(
    strategy: tf.distribute.Strategy, checkpoint: tf.train.Checkpoint, path: str, **options: Any
) -> dict[str, Any]:
    """What a restore did and left, and the loss of the step after it."""
    before = _read_bytes()
    report = dr.DistributedRestorer(checkpoint, progress=False, **options).restore(path)
    return {
        "rchar": _read_bytes() - before,
        "held": held(checkpoint),
        "iterations": int(checkpoint.optimizer.iterations.numpy()),
        "seen": int(checkpoint.seen.read_value().numpy()),
        "loss": step(strategy, checkpoint),
        "reads": report.reads,
        "reason": report.reads_reason,
        "report": json.loads(report.to_json()),
    }


def restore_where_they_are(
    strategy: tf.distribute.Strategy, *, folders: list[str], path: str, **options: Any
) -> dict[str, Any]:
    """Each worker has a directory of its own, and a path that is relative to it: as if on machines of their own."""
    os.chdir(folders[strategy.cluster_resolver.task_id])
    return restore(strategy, build(strategy), path, **options)


def restore_as_they_like(strategy: tf.distribute.Strategy, *, path: str, each: list[dict[str, Any]]) -> dict[str, Any]:
    """Each worker has options of its own, and names of its own for the layers."""
    mine = dict(each[strategy.cluster_resolver.task_id])
    checkpoint = build(strategy, tuple(mine.pop("names", ("first", "second"))))
    before = held(checkpoint)
    try:
        return restore(strategy, checkpoint, path, **mine)
    except dr.RestoreError as error:
        classes = [kind.__name__ for kind in type(error).__mro__]
        return {**describe(error), "is": classes, "changed": held(checkpoint) != before, "names": list(error.names)}


def restore_after_measuring(
    strategy: tf.distribute.Strategy, *, path: str, storage: float, exchange: float
) -> dict[str, Any]:
    """What `auto` does where storage gives so many bytes per second; it measures an exchange that may be slow."""
    with (
        mock.patch.object(read_modes, "storage_rate", lambda *args: storage),
        mock.patch.object(read_modes, "_LITTLE", 0),
        mock.patch.object(read_modes, "SLOWEST_EXCHANGE", exchange),
        mock.patch.object(read_modes, "are_local", lambda paths: False),
    ):
        return restore(strategy, build(strategy), path)


def restore_with_a_bad_memory(strategy: tf.distribute.Strategy, *, path: str, culprit: int) -> None:
    """One worker computes something else than the others."""
    checkpoint = build(strategy)
    wrong = mock.patch.object(engine_values, "apply", lambda *args, **kwargs: transforms.apply(*args, **kwargs) + 1)
    with wrong if strategy.cluster_resolver.task_id == culprit else contextlib.nullcontext():
        _restorer(checkpoint, "every_worker", 60.0).restore(path)


PHASES = ("resolve", "broadcast", "agree", "read", "transform", "assign", "verify")
RULES = [dr.Rule(from_="model/first/kernel", to="model/first/kernel", ops=(Scale(0.5),))]


def fault(
    strategy: tf.distribute.Strategy,
    *,
    path: str,
    kind: str,
    phase: str,
    culprit: int,
    reads: str,
    timeout: float,
    folder: str,
) -> None:
    """Restores, while something happens to one worker in one phase; whoever gets through trains on, and says so."""
    checkpoint = build(strategy)
    _wait_for_all(strategy, pathlib.Path(folder))
    with _trouble(strategy, kind, phase, culprit):
        _restorer(checkpoint, reads, timeout).restore(path)
    print(f"TRAINS ON {step(strategy, checkpoint)}", flush=True)


def _wait_for_all(strategy: tf.distribute.Strategy, folder: pathlib.Path) -> None:
    """Until all workers have built their variables: by files, which outlive a worker that is killed.

    The chief broadcasts first values, and a chief that is killed at once may take the last of them along.
    """
    resolver = strategy.cluster_resolver
    (folder / str(resolver.task_id)).touch()
    while len(list(folder.iterdir())) < resolver.cluster_spec().num_tasks("worker"):
        time.sleep(0.01)


def exceptions(strategy: tf.distribute.Strategy, *, path: str, reads: list[str]) -> list[dict[str, Any]]:
    """One exception after the other, at each phase and on each worker; in the end a restore that nothing happens to."""
    checkpoint = build(strategy)
    found = []
    for mode in reads:
        for phase in PHASES:
            for culprit in range(strategy.cluster_resolver.cluster_spec().num_tasks("worker")):
                before = held(checkpoint)
                try:
                    with _trouble(strategy, "exception", phase, culprit):
                        _restorer(checkpoint, mode, 60.0).restore(path)
                    raised: dict[str, Any] = {}
                except dr.RestoreError as error:
                    raised = describe(error)
                raised["case"] = [mode, phase, culprit]
                raised["changed"] = phase in PHASES[:3] and held(checkpoint) != before
                found.append(raised)
    report = _restorer(checkpoint, "sharded", 60.0).restore(path)
    return [*found, {"verified": report.verified, "loss": step(strategy, checkpoint)}]


def _restorer(checkpoint: tf.train.Checkpoint, reads: str, timeout: float) -> dr.DistributedRestorer:
    return dr.DistributedRestorer(checkpoint, rules=RULES, reads=reads, timeout=timeout, progress=False)


# What a worker calls in each phase.
_CALLS: dict[str, tuple[object, str]] = {
    "resolve": (session, "find_targets"),
    "broadcast": (session.Decision, "unpack"),
    "agree": (agreement, "require_targets"),
    "read": (TfCheckpoint, "read_stored"),
    "transform": (engine_values, "apply"),
    "assign": (Assigner, "assign_many"),
    "verify": (session, "verify_replicas"),
}


@contextlib.contextmanager
def _trouble(strategy: tf.distribute.Strategy, kind: str, phase: str, culprit: int) -> Iterator[None]:
    """One worker gets into trouble when it comes to a phase."""
    if strategy.cluster_resolver.task_id != culprit:
        yield
        return
    owner, name = _CALLS[phase]
    with mock.patch.object(owner, name, lambda *args, **kwargs: _happen(kind)):
        yield


def _happen(kind: str) -> None:
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    while kind == "stall":
        time.sleep(1)
    raise OSError("disk on fire")


def _read_bytes() -> int:
    with open(f"/proc/{os.getpid()}/io") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("rchar"))


def restore_objects(strategy: tf.distribute.Strategy, *, folders: list[str], path: str, **options: Any) -> list[Any]:
    """A table and a generator, where each worker has a directory of its own; what they hold afterwards."""
    os.chdir(folders[strategy.cluster_resolver.task_id])
    table = tf.lookup.experimental.MutableHashTable(tf.string, tf.int64, -1)
    table.insert(["mine"], [strategy.cluster_resolver.task_id])
    with strategy.scope():
        v, rng = tf.Variable([0.0, 0.0]), tf.random.Generator.from_seed(99)
    root = {"v": v, "rng": rng, "table": table, "it": iter(tf.data.Dataset.range(9))}
    errors = []
    for rules in ([], [dr.Rule(keep="it")]):
        try:
            dr.DistributedRestorer(root, rules=rules, progress=False, **options).restore(path)
        except dr.RestoreError as error:
            errors.append(str(error))
        keys, values = table.export()
        errors.append([keys.numpy().tolist()[0].decode(), int(values[0]), v.numpy().tolist()])
    drawn = strategy.run(lambda: rng.uniform((2,)))
    return [*errors, [x.numpy().tolist() for x in strategy.experimental_local_results(drawn)]]
