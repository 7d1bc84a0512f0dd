"""One worker of one measurement: takes a case as JSON and a folder to meet the others in, and leaves figures there.

The workers meet by files, so that the cluster's own means stay as they are before the clock starts: each says that it
is ready, the benchmark answers with a moment that lies a little ahead, and all begin at that moment.

Memory is touched as in meter.py, but held until all are ready: a virtual machine's host takes free memory back within
seconds (`page_reporting`; 1 GB was touched in 0.2 s of processor time at once, in 1.7 s after 5 s), and workers wait
for each other as long as that.
"""

from __future__ import annotations

import json
import os
import pathlib
import sys
import time
from collections import Counter

import meter
import models
import numpy as np
import tensorflow as tf

from dist_restore import DistributedRestorer, RestoreReport

POLL_SECONDS = 0.01


def write(path: pathlib.Path, value: object) -> None:
    """Writes JSON so that who finds the file finds all of it."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(value))
    part.rename(path)


def meet(folder: pathlib.Path, rank: int, size: int) -> float:
    """Waits for all others with so much memory touched; returns the moment at which all begin, on the shared clock."""
    held = np.ones(size, np.uint8)
    write(folder / f"ready_{rank}", rank)
    begin = folder / "begin"
    while not begin.exists():
        time.sleep(POLL_SECONDS)
    del held
    start = float(json.loads(begin.read_text()))
    time.sleep(max(0.0, start - time.monotonic()))
    return start


def restore(case: dict, target: tf.train.Checkpoint) -> RestoreReport | None:
    """The restore that the case asks for; its report, where it is ours."""
    if case["reads"] == "native":
        target.read(case["prefix"]).assert_consumed()
        return None
    return DistributedRestorer(target, reads=case["reads"], verify="checksum").restore(case["prefix"])


def figures_of(report: RestoreReport) -> dict[str, float]:
    """Which mode was taken, and the seconds of each phase."""
    phases: Counter[str] = Counter()
    for name, seconds in report.seconds.items():
        phases[f"phase_{name}"] += seconds
    return {f"took_{report.reads}": 1.0, **phases}


def check(model: tf.Module, prefix: str) -> None:
    """Compares some tensors of every worker with the file's, among them the largest and the last."""
    reader = tf.train.load_checkpoint(prefix)
    pairs = [("embedding", model.embedding), ("blocks/0/q", model.blocks[0].q), ("blocks/9/up", model.blocks[9].up)]
    for key, variable in [*pairs, (f"blocks/{models.BLOCKS - 1}/scale", model.blocks[-1].scale)]:
        np.testing.assert_array_equal(variable.numpy(), reader.get_tensor(f"model/{key}/.ATTRIBUTES/VARIABLE_VALUE"))


def main(case: dict, folder: pathlib.Path) -> None:
    rank = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    with strategy.scope():
        model = models.Model(models.width_for(case["gb"]))
    target = tf.train.Checkpoint(model=model)
    reports: list[RestoreReport | None] = []
    ended: list[float] = []
    # Twice what the weights take: native holds old and new values at once.
    start = meet(folder, rank, int(2.2e9 * case["gb"]))
    found = meter.measure(lambda: (reports.append(restore(case, target)), ended.append(time.monotonic())))
    ours = figures_of(reports[0]) if reports[0] else {}
    write(folder / f"done_{rank}", {**found, **ours, "seconds": ended[0] - start})
    check(model, case["check"])
    write(folder / f"checked_{rank}", rank)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), pathlib.Path(sys.argv[2]))
