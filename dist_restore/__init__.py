"""Restore refactored models under `tf.distribute`: planned once, checked, exact or refused.

    import dist_restore as dr

    with strategy.scope():
        model, optimizer = build()
    restorer = dr.DistributedRestorer(
        tf.train.Checkpoint(model=model, optimizer=optimizer), rules="rules.toml", log_dir="logs"
    )
    print(restorer.plan("old_run/ckpt-1000").summary())  # the dry run: reads no weights, changes nothing
    report = restorer.restore("old_run/ckpt-1000")       # exact on every replica, or a RestoreError

README.md takes it from there; every error is a `RestoreError` that says what to do.
"""

from dist_restore.entries import Coverage, PlanEntry, Proof, Status
from dist_restore.errors import (
    AmbiguousMatchError,
    CheckpointCorruptError,
    CheckpointNotFoundError,
    DtypeMismatchError,
    PlanMismatchError,
    RestoreError,
    RuleError,
    ShapeMismatchError,
    UnbuiltModelError,
    UnmatchedError,
    UnsupportedFormatError,
    VerificationError,
    WorkerError,
)
from dist_restore.export.converter import CheckpointConverter
from dist_restore.export.report import ConversionReport
from dist_restore.plan import RestorePlan
from dist_restore.report.report import RestoreReport
from dist_restore.resolve.rules import Rule, RuleSet
from dist_restore.restorer import DistributedRestorer
from dist_restore.sources.open import open_checkpoint

__version__ = "0.1.0"

__all__ = [
    "AmbiguousMatchError",
    "CheckpointConverter",
    "CheckpointCorruptError",
    "CheckpointNotFoundError",
    "ConversionReport",
    "Coverage",
    "DistributedRestorer",
    "DtypeMismatchError",
    "PlanEntry",
    "PlanMismatchError",
    "Proof",
    "RestoreError",
    "RestorePlan",
    "RestoreReport",
    "Rule",
    "RuleError",
    "RuleSet",
    "ShapeMismatchError",
    "Status",
    "UnbuiltModelError",
    "UnmatchedError",
    "UnsupportedFormatError",
    "VerificationError",
    "WorkerError",
    "open_checkpoint",
]
