"""Who hears of a restore that is done: the log, and TensorBoard. Called by the chief alone."""

from __future__ import annotations

from collections.abc import Mapping

import tensorflow as tf
from absl import logging

from dist_restore.planning.plan import RestorePlan
from dist_restore.report import tensorboard
from dist_restore.report.report import RestoreReport
from dist_restore.targets.assigner import Assigner


def announce(report: RestoreReport, log_dir: str, handles: Mapping[str, tf.Variable], assigner: Assigner) -> None:
    """Logs a line, and writes the summaries where there is a directory for them."""
    coverage = report.coverage
    logging.info(
        "dist_restore: filled %d of %d variables (%.1f%% of the bytes) from %s in %.2f s",
        coverage.filled().variables,
        coverage.total().variables,
        100 * coverage.bytes,
        report.plan.checkpoint,
        report.seconds.total,
    )
    if log_dir:
        tensorboard.write(report, log_dir, _step(report.plan, handles, assigner))


def _step(plan: RestorePlan, handles: Mapping[str, tf.Variable], assigner: Assigner) -> int:
    """The largest number of steps that was restored, so that the restores of one run are points of one curve."""
    names = [e.target for e in plan.entries if e.filled and e.target.split("/")[-1] == "iterations"]
    found = [handles[name] for name in names if name in handles]
    # What all workers must read together is left out, for the chief is alone here.
    return max((int(assigner.live_value(v)) for v in found if not assigner.is_read_together(v)), default=0)
