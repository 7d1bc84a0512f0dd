r"""Writes a checkpoint out as a new TensorFlow checkpoint of another model, tensor by tensor, without restoring it.

    python scripts/convert_checkpoint.py --from=/runs/v1 --rules=configs/rules/lm_v1_to_v2.toml \
        --target=lm.targets:version_2 --to=/runs/v2/ckpt-1

Plain tf.train.Checkpoint(...).restore() reads what it writes. --from is never written to, and --to appears only when
all of it has been read, checked and written; an error or Ctrl-C leaves nothing behind.

Exit code 0: it was written, or, with --dry_run, it would be. 1: it was refused, or failed. 2: there is no plan, because
a flag, the rules, the target or a checkpoint is bad. 130: Ctrl-C.
"""

from __future__ import annotations

import pathlib
import signal
import sys

import tensorflow as tf
from absl import app, flags

import dist_restore as dr
from target_function import HELP as TARGET_HELP
from target_function import TargetError, flags_parser, load_target

_FROM = flags.DEFINE_string(
    "from",
    None,
    "What is converted: a checkpoint prefix such as /runs/v1/ckpt-40, a directory, for its latest one, or a file of "
    "another format (.safetensors, .npz, .keras, .weights.h5, .h5).",
    required=True,
)
_TO = flags.DEFINE_string(
    "to",
    None,
    "Prefix of the new checkpoint, such as /runs/v2/ckpt-1. Directories are made. Not needed with --dry_run.",
)
_TARGET = flags.DEFINE_string(
    "target",
    None,
    f"{TARGET_HELP} It is built on the CPU. Of the variables that are kept, the values that it gives them are written. "
    "Either this or --like.",
)
_LIKE = flags.DEFINE_string(
    "like",
    None,
    "Another TensorFlow checkpoint, in place of --target: the new one gets its names, shapes, dtypes and object graph, "
    "and of the variables that are kept, its values. No model code runs. Rules can use only names that this "
    "checkpoint has (layers in a plain list of Keras 3 have none; use --target for these).",
)
_RULES = flags.DEFINE_string("rules", None, "TOML file with the rules (see configs/rules).")
_INVERT_RULES = flags.DEFINE_bool(
    "invert_rules",
    False,
    "Run the rules backwards: they lead from --target or --like to --from. Refused where something was lost on the way "
    "there, or would be rounded. (scripts/invert_rules.py writes a rule file instead, as far as its text alone tells.)",
)
_UNMATCHED = flags.DEFINE_enum(
    "unmatched", "error", ["error", "keep"], "What becomes of a variable that nothing fills: an error, or it is kept."
)
_ORDER = flags.DEFINE_enum(
    "order",
    "accept",
    ["accept", "refuse"],
    "What becomes of variables for which nothing but the order of equal layers speaks: filled and named, or refused.",
)
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace a checkpoint that has the prefix --to already.")
_UPDATE_LATEST = flags.DEFINE_bool(
    "update_latest",
    False,
    "Also write the file `checkpoint` beside --to, so that tf.train.latest_checkpoint and CheckpointManager find the "
    "new one, as Checkpoint.save does. Without it that file is left alone, as by Checkpoint.write: name the prefix to "
    "restore it.",
)
_MEMORY_BUDGET = flags.DEFINE_integer(
    "memory_budget", 256, "MiB of tensors in flight. A larger tensor passes alone.", lower_bound=1
)
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Show the plan, and write nothing.")
_PLAN = flags.DEFINE_string(
    "plan",
    None,
    "Carry out the plan in this file, from --json or plan_restore.py --json, in place of making one by --rules.",
)
_JSON = flags.DEFINE_string("json", None, "File to write the plan to, as JSON; RestorePlan.from_json reads it.")


def main(argv: list[str]) -> int:
    del argv
    signal.signal(signal.SIGTERM, _interrupt)  # the same as Ctrl-C: nothing is left behind
    try:
        return _run()
    except KeyboardInterrupt:
        print("convert_checkpoint: interrupted; nothing was written", file=sys.stderr)
        return 130


def _run() -> int:
    try:
        converter = _make_converter()
        plan = _make_plan(converter)
    except (dr.RestoreError, TargetError, OSError, ValueError) as error:
        return _failed(error, 2)
    if _DRY_RUN.value:
        print(plan.summary())
        return _verdict(plan)
    try:
        report = converter.apply(plan, _FROM.value, _TO.value)
    except (dr.RestoreError, tf.errors.OpError, OSError) as error:
        return _failed(error, 1)
    print(report.summary())
    return 0


def _make_converter() -> dr.CheckpointConverter:
    if not _TO.value and not _DRY_RUN.value:
        raise ValueError("--to must say where the new checkpoint goes")
    if bool(_TARGET.value) == bool(_LIKE.value):
        raise ValueError("give either --target or --like")
    return dr.CheckpointConverter(
        _build_target() if _TARGET.value else None,
        like=_LIKE.value,
        rules=_RULES.value,
        invert_rules=_INVERT_RULES.value,
        unmatched=_UNMATCHED.value,
        order=_ORDER.value,
        memory_budget=_MEMORY_BUDGET.value << 20,
        overwrite=_OVERWRITE.value,
        latest=_UPDATE_LATEST.value,
    )


def _build_target() -> object:
    """Builds the target where there is most memory: nothing is computed with it."""
    tf.config.set_visible_devices([], "GPU")
    return load_target(_TARGET.value)


def _make_plan(converter: dr.CheckpointConverter) -> dr.RestorePlan:
    if _PLAN.value:
        plan = dr.RestorePlan.from_json(pathlib.Path(_PLAN.value).read_text())
    else:
        plan = converter.plan(_FROM.value)
    if _JSON.value:
        pathlib.Path(_JSON.value).write_text(plan.to_json())
    return plan


def _verdict(plan: dr.RestorePlan) -> int:
    """Says whether it would be written."""
    for entry in plan.problems:
        print(f"convert_checkpoint would refuse {entry.target}: {entry.reason}", file=sys.stderr)
    if plan.suggestions:
        print(f"\nRules to paste for what is unmatched:\n\n{plan.suggestions}")
    return 1 if plan.problems else 0


def _failed(error: Exception, code: int) -> int:
    print(f"convert_checkpoint: {type(error).__name__}: {error}", file=sys.stderr)
    return code


def _interrupt(number: int, frame: object) -> None:
    del number, frame
    raise KeyboardInterrupt


if __name__ == "__main__":
    app.run(main, flags_parser=flags_parser("convert_checkpoint"))
