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

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dist_restore.checkpoints.open import open_checkpoint
    from dist_restore.core.errors import (
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
    from dist_restore.planning.entries import Coverage, PlanEntry, Proof, Status
    from dist_restore.planning.plan import RestorePlan
    from dist_restore.planning.rules.rule import Rule
    from dist_restore.planning.rules.rule_set import RuleSet
    from dist_restore.report.conversion import ConversionReport
    from dist_restore.report.report import RestoreReport
    from dist_restore.restore.converter import CheckpointConverter
    from dist_restore.restore.restorer import DistributedRestorer

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

# Module -> the public names in it. Loaded when they are asked for: `import dist_restore` alone loads no TensorFlow.
_HOMES = {
    "planning.entries": "Coverage PlanEntry Proof Status",
    "core.errors": "AmbiguousMatchError CheckpointCorruptError CheckpointNotFoundError DtypeMismatchError "
    "PlanMismatchError RestoreError RuleError ShapeMismatchError UnbuiltModelError UnmatchedError "
    "UnsupportedFormatError VerificationError WorkerError",
    "restore.converter": "CheckpointConverter",
    "report.conversion": "ConversionReport",
    "planning.plan": "RestorePlan",
    "report.report": "RestoreReport",
    "planning.rules.rule": "Rule",
    "planning.rules.rule_set": "RuleSet",
    "restore.restorer": "DistributedRestorer",
    "checkpoints.open": "open_checkpoint",
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names.split()}

if not TYPE_CHECKING:  # a checker would take every name for one that exists

    def __getattr__(name: str) -> object:
        home = _HOME_OF.get(name)
        if home is not None:
            value = globals()[name] = getattr(importlib.import_module(f"{__name__}.{home}"), name)
            return value
        module = f"{__name__}.{name}"
        if name.startswith("_") or importlib.util.find_spec(module) is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return importlib.import_module(module)

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
