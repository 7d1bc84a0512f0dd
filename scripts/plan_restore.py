r"""The dry run: shows what a restore would put where, without reading tensor data or changing anything.

    python scripts/plan_restore.py --restore_from=/runs/v1 --rules=configs/rules/lm_v1_to_v2.toml \
        --target=lm.targets:version_2

Exit code 0: restore() would do it, and fill enough. 1: it would refuse, or too little would be filled. 2: there is no
plan, because a flag, the rules, the target or the checkpoint is bad.
"""

from __future__ import annotations

import math
import pathlib
import sys

from absl import app, flags
from tabulate import tabulate

import dist_restore as dr
from dist_restore.distribute.forecast import Rates, best, forecast, load_of
from dist_restore.engine.units import make_units
from lm.paths import parse_paths
from target_function import HELP as TARGET_HELP
from target_function import TargetError, flags_parser, load_target

_RESTORE_FROM = flags.DEFINE_multi_string(
    "restore_from",
    None,
    "The checkpoint: a prefix such as /runs/v1/ckpt-40, a file, or a directory, for its latest one. Several into one "
    "model: --restore_from=encoder=/runs/enc --restore_from=decoder=/runs/dec; rules then say encoder:model/...",
    required=True,
)
_TARGET = flags.DEFINE_string(
    "target",
    None,
    TARGET_HELP,
    required=True,
)
_RULES = flags.DEFINE_string("rules", None, "TOML file with the rules (see configs/rules).")
_MATCHING = flags.DEFINE_enum(
    "matching",
    "exact",
    ["exact", "auto"],
    "exact: only rules and equal names count. auto (whole families of names matched by their shapes and order) is not "
    "built yet and is refused; the suggestions that are printed are what it would begin from.",
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
_MIN_COVERAGE = flags.DEFINE_float(
    "min_coverage",
    1.0,
    "Exit with 1 when less than this fraction of the target's variables is filled.",
    lower_bound=0.0,
    upper_bound=1.0,
)
_FORECAST = flags.DEFINE_bool(
    "forecast",
    False,
    "Also predict how long reading would take with 1 to 512 workers, in each read mode, from the rates below. The "
    "fastest mode is marked; reads='auto' measures the rates itself when it restores.",
)
_STORAGE = flags.DEFINE_float(
    "storage_mb_s",
    1000.0,
    "For --forecast: MB/s that the storage gives to all workers together. 0: each worker has a disk of its own.",
    lower_bound=0.0,
)
_STORAGE_EACH = flags.DEFINE_float(
    "storage_each_mb_s", 1000.0, "For --forecast: MB/s that one worker can read.", lower_bound=0.001
)
_NETWORK = flags.DEFINE_float(
    "network_mb_s",
    500.0,
    "For --forecast: MB/s that one worker receives from others while it sends as much. 300 to 500 were measured for "
    "TensorFlow's collectives between two processes of one machine.",
    lower_bound=0.001,
)
_JSON = flags.DEFINE_string("json", None, "File to write the plan to, as JSON; RestorePlan.from_json reads it.")


def main(argv: list[str]) -> int:
    del argv
    try:
        plan = _make_plan()
    except (dr.RestoreError, TargetError, OSError, ValueError) as error:
        print(f"plan_restore: {type(error).__name__}: {error}", file=sys.stderr)
        return 2
    print(plan.summary())
    if plan.suggestions:
        print(f"\nRules to paste for what is unmatched:\n\n{plan.suggestions}")
    if _FORECAST.value:
        print(f"\n{_forecasts(plan)}")
    return _verdict(plan)


def _make_plan() -> dr.RestorePlan:
    restorer = dr.DistributedRestorer(
        load_target(_TARGET.value),
        rules=_RULES.value,
        matching=_MATCHING.value,
        unmatched=_UNMATCHED.value,
        order=_ORDER.value,
    )
    paths = parse_paths(_RESTORE_FROM.value)
    assert paths is not None  # the flag is required
    plan = restorer.plan(paths)
    if _JSON.value:
        pathlib.Path(_JSON.value).write_text(plan.to_json())
    return plan


def _forecasts(plan: dr.RestorePlan) -> str:
    """The table of --forecast."""
    load = load_of(make_units(plan.entries))
    rates = Rates(
        storage_each=_STORAGE_EACH.value * 1e6,
        storage_all=_STORAGE.value * 1e6 or math.inf,
        exchange_each=_NETWORK.value * 1e6,
    )
    lines = []
    for workers in _WORKER_COUNTS:
        found = forecast(load, workers, rates)
        fastest = best(found)
        lines.append([workers, *(f"{f.seconds:.2f} s{' *' if f is fastest else ''}" for f in found)])
    head = f"Predicted seconds to read {load.read / 1e6:.0f} MB and fill {load.made / 1e6:.0f} MB on every worker:"
    return f"{head}\n\n{tabulate(lines, ['workers', 'every_worker', 'chief', 'sharded'])}"


_WORKER_COUNTS = (1, 2, 3, 4, 8, 16, 32, 64, 128, 256, 512)


def _verdict(plan: dr.RestorePlan) -> int:
    """Says whether restore() would go through, and fill enough."""
    for entry in plan.problems:
        print(f"restore() would refuse {entry.target}: {entry.reason}", file=sys.stderr)
    # The counter of saves alone is no restore.
    something = any(entry.filled and entry.target != "save_counter" for entry in plan.entries)
    if not something:
        print("restore() would refuse: nothing would be filled", file=sys.stderr)
    filled, wanted = plan.coverage.variables, _MIN_COVERAGE.value
    print(f"\nFilled: {filled:.2%} of the variables; --min_coverage asks for {wanted:.2%}.")
    return 0 if something and not plan.problems and filled >= wanted else 1


if __name__ == "__main__":
    app.run(main, flags_parser=flags_parser("plan_restore"))
