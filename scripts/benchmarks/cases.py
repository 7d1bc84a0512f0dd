"""One measurement in a process of its own: takes a case as JSON, prints figures as JSON."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable

import harness
import meter
import models
import numpy as np
import tensorflow as tf
from fastcrc import crc32

from dist_restore import DistributedRestorer, RestoreReport

RULES = {
    "exact": None,
    "renamed": [{"from": "model/blocks/{i}/{name}", "to": "model/blocks/{i}/new_{name}"}],
    "fused": [
        {
            "from": [f"model/blocks/{{i}}/{n}" for n in "qkv"],
            "to": "model/blocks/{i}/qkv",
            "ops": [{"concat": {"axis": -1}}],
        }
    ],
}


def rules_file(names: str) -> str | None:
    rules = RULES[names]
    if rules is None:
        return None
    lines = [f"[[rule]]\n{_toml(rule)}" for rule in rules]
    path = harness.data_root() / f"{names}.toml"
    path.write_text("\n".join(lines))
    return str(path)


def _toml(rule: dict[str, object]) -> str:
    parts = [f"{key} = {json.dumps(value)}" for key, value in rule.items() if key != "ops"]
    return "\n".join([*parts, *(["ops = [{ concat = { axis = -1 } }]"] if "ops" in rule else [])])


def live_model(case: dict, replicas: int) -> tuple[tf.Module, tf.distribute.Strategy]:
    strategy = models.strategy(replicas)
    with strategy.scope():
        if "count" in case:
            return models.Many(case["count"]), strategy
        names = case.get("names", "exact")
        prefix = "new_" if names == "renamed" else ""
        return models.Model(models.width_for(case["gb"]), fused=names == "fused", prefix=prefix), strategy


def prefix_of(case: dict) -> str:
    if "count" in case:
        return str(harness.data_root() / f"many_{case['count']}" / "ckpt")
    return str(harness.data_root() / f"single_{case['gb']}" / "ckpt")


def prepare(case: dict) -> dict[str, float]:
    """Writes the checkpoint that cases of this size read."""
    if "count" in case:
        models.saved(f"many_{case['count']}", lambda: models.Many(case["count"]))
    else:
        models.saved(f"single_{case['gb']}", lambda: models.Model(models.width_for(case["gb"])))
        _save_keras(case)
    return {}


def ours(case: dict) -> dict[str, float]:
    model, _ = live_model(case, case.get("replicas", 1))
    target = tf.train.Checkpoint(model=model)
    rules = rules_file(case.get("names", "exact"))
    options = {"memory_budget": case["budget"]} if "budget" in case else {}

    reports: list[RestoreReport] = []

    def work() -> None:
        restorer = DistributedRestorer(target, rules=rules, verify=case["verify"], **options)
        reports.append(restorer.restore(prefix_of(case)))

    found = _twice(case, work, lambda: _check(model, case))
    return {**found, **_phases(reports[0])}


def _phases(report: RestoreReport) -> dict[str, float]:
    """Seconds of the first restore: checking, assigning, verifying, and everything before."""
    found = dict.fromkeys(("plan_s", "check_s", "assign_s", "verify_s"), 0.0)
    for phase, seconds in report.seconds.phases:
        name = f"{phase}_s"
        found[name if name in found else "plan_s"] += seconds
    return found


def native(case: dict) -> dict[str, float]:
    model, _ = live_model(case, case.get("replicas", 1))
    target = tf.train.Checkpoint(model=model)
    return _twice(case, lambda: target.read(prefix_of(case)).assert_consumed(), lambda: _check(model, case))


def loop(case: dict) -> dict[str, float]:
    """What users write today, with the names already known."""
    model, strategy = live_model(case, case.get("replicas", 1))
    pairs = list(_key_pairs(model))

    def work() -> None:
        reader = tf.train.load_checkpoint(prefix_of(case))
        with strategy.scope():
            for key, variable in pairs:
                variable.assign(reader.get_tensor(f"model/{key}/.ATTRIBUTES/VARIABLE_VALUE"))

    return _twice(case, work, lambda: _check(model, case))


def _key_pairs(model: tf.Module) -> list[tuple[str, tf.Variable]]:
    found = [("embedding", model.embedding)] if hasattr(model, "embedding") else []
    for number, block in enumerate(model.blocks):
        found += [(f"blocks/{number}/{n}", v) for n, v in vars(block).items() if isinstance(v, tf.Variable)]
    return found


def _check(model: tf.Module, case: dict) -> None:
    """That the figures are of restores: some values are compared, among them all of the first and the last variable."""
    if case.get("names", "exact") != "exact":
        return
    reader = tf.train.load_checkpoint(prefix_of(case))
    pairs = _key_pairs(model)
    for key, variable in [*pairs[:: max(1, len(pairs) // 10)], pairs[-1]]:
        np.testing.assert_array_equal(variable.numpy(), reader.get_tensor(f"model/{key}/.ATTRIBUTES/VARIABLE_VALUE"))


def touched(case: dict) -> int:
    """Twice what the weights take: native holds old and new values at once."""
    return max(harness.TOUCH, int(2.2e9 * case.get("gb", 0)))


def _twice(case: dict, work: Callable[[], None], check: Callable[[], None]) -> dict[str, float]:
    meter.touch(touched(case))
    meter.warm(models.files_of(prefix_of(case)))
    first = meter.measure(work)
    check()
    again = meter.measure(work, "again_") if case.get("again") else {}
    return {**first, **again}


def floor(case: dict) -> dict[str, float]:
    """The bytes alone: read into warm memory, CRC32C, one copy into warm memory; nothing is named or assigned."""
    (path,) = [p for p in models.files_of(prefix_of(case)) if ".data-" in p]
    size, threads, chunk = os.path.getsize(path), case["threads"], 1 << 20
    target = np.ones(size, np.uint8)
    handle = os.open(path, os.O_RDONLY)

    def part(number: int) -> None:
        buffer = np.ones(chunk, np.uint8)
        crc, step = 0, -(-size // threads)
        for begin in range(number * step, min(size, (number + 1) * step), chunk):
            count = os.preadv(handle, [buffer.data], begin)
            crc = crc32.iscsi(buffer[:count], crc)
            target[begin : begin + count] = buffer[:count]

    def work() -> None:
        workers = [threading.Thread(target=part, args=(i,)) for i in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()

    meter.warm([path])
    return meter.measure(work)


def _keras_model(case: dict) -> object:
    """The same bytes in Keras layers: one weight each of the same shapes."""
    import keras

    class Weights(keras.layers.Layer):
        def __init__(self, shapes: list[tuple[int, ...]]) -> None:
            super().__init__()
            for i, shape in enumerate(shapes):
                setattr(self, f"w{i}", self.add_weight(shape=shape, initializer="zeros", name=f"w{i}"))
            self.built = True

    width = models.width_for(case["gb"])
    square = (width, width)
    block = [square] * 4 + [(width, 4 * width), (4 * width, width), (4 * width,), (width,)]
    inputs = keras.Input((1,))

    class Net(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = Weights([(models.VOCABULARY, width)])
            self.blocks = [Weights(block) for _ in range(models.BLOCKS)]
            self.built = True

    del inputs
    return Net()


def _h5(case: dict) -> str:
    return str(harness.data_root() / f"single_{case['gb']}" / "keras.weights.h5")


def _save_keras(case: dict) -> None:
    if not os.path.exists(_h5(case)):
        _keras_model(case).save_weights(_h5(case))


def keras_weights(case: dict) -> dict[str, float]:
    models.strategy(1)
    model = _keras_model(case)
    meter.touch(touched(case))
    meter.warm([_h5(case)])
    first = meter.measure(lambda: model.load_weights(_h5(case)))
    again = meter.measure(lambda: model.load_weights(_h5(case)), "again_") if case.get("again") else {}
    return {**first, **again}


def slice_ours(case: dict) -> dict[str, float]:
    """Reads some rows of a large tensor."""
    from dist_restore.checkpoints.open import open_checkpoint
    from dist_restore.core.tensors import Box

    prefix = prefix_of(case)
    source = open_checkpoint(prefix)
    shape = next(t.spec.shape for t in source.index().tensors if t.name == "model/embedding")
    rows = max(1, round(shape[0] * case["fraction"]))
    begin = case.get("begin", shape[0] // 3)
    meter.warm(models.files_of(prefix))
    before = source.bytes_read
    found = meter.measure(lambda: source.read("model/embedding", Box((begin, 0), (rows, shape[1]))))
    needed = rows * shape[1] * 4
    return {**found, "needed_mb": needed / 1e6, "ratio": (source.bytes_read - before) / needed}


def slice_native(case: dict) -> dict[str, float]:
    """The same rows through RestoreV2's slice specification."""
    prefix = prefix_of(case)
    key = "model/embedding/.ATTRIBUTES/VARIABLE_VALUE"
    shape = tf.train.load_checkpoint(prefix).get_variable_to_shape_map()[key]
    rows = max(1, round(shape[0] * case["fraction"]))
    text = f"{shape[0]} {shape[1]} {case.get('begin', shape[0] // 3)},{rows}:-"
    meter.warm(models.files_of(prefix))
    found = meter.measure(
        lambda: tf.raw_ops.RestoreV2(prefix=prefix, tensor_names=[key], shape_and_slices=[text], dtypes=[tf.float32])
    )
    needed = rows * shape[1] * 4
    return {**found, "needed_mb": needed / 1e6, "ratio": found["read_mb"] * 1e6 / needed}


def plan_case(case: dict) -> dict[str, float]:
    """Plans two indexes of many names with 20 rules against each other; no files, no TensorFlow objects."""
    from dist_restore.core.index import CheckpointIndex, SourceTensor, TargetIndex, TargetVariable
    from dist_restore.core.tensors import TensorSpec
    from dist_restore.planning.planner import Options, resolve
    from dist_restore.planning.rules.rule_set import RuleSet

    def names(part: str) -> list[str]:
        blocks = case["count"] // 20
        return [f"model/{part}/{i}/layer_{k}/kernel" for i in range(blocks) for k in range(20)]

    spec = TensorSpec((4, 8), "float32")
    source = CheckpointIndex(
        "p", "tf2", tuple(sorted((SourceTensor(n, spec, key=n) for n in names("old")), key=lambda t: t.name))
    )
    target = TargetIndex(tuple(TargetVariable(n.replace("kernel", "weight"), spec) for n in names("new")))
    lines = [
        f'[[rule]]\nfrom = "model/old/{{i}}/layer_{k}/kernel"\nto = "model/new/{{i}}/layer_{k}/weight"'
        for k in range(20)
    ]
    path = harness.data_root() / "plan.toml"
    path.write_text("\n".join(lines))

    def work() -> None:
        plan = resolve(source, target, RuleSet.of(str(path)), Options())
        assert len(plan.mapping()) == case["count"], plan.coverage

    return meter.measure(work)


KINDS: dict[str, Callable[[dict], dict[str, float]]] = {
    "prepare": prepare,
    "ours": ours,
    "native": native,
    "loop": loop,
    "floor": floor,
    "keras": keras_weights,
    "slice_ours": slice_ours,
    "slice_native": slice_native,
    "plan": plan_case,
}

if __name__ == "__main__":
    request = json.loads(sys.argv[1])
    print(json.dumps(KINDS[request["kind"]](request)))
