"""Random programs, random refactors, and the truth by role: `python tests/differential/run.py --cases=500`.

`--seed=N --show` runs one case and prints all that is known of it.
"""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

import argparse
import collections
import concurrent.futures
import logging
import multiprocessing
import pathlib
import sys
import time
import traceback
from collections.abc import Iterable, Sequence

# A script of its own, and a module of the tests.
sys.path[:0] = [str(pathlib.Path(__file__).parent), str(pathlib.Path(__file__).parents[2])]

from outcomes import Outcome, case_of, run  # noqa: E402
from programs import listing  # noqa: E402

logging.getLogger("tensorflow").setLevel(logging.ERROR)

KINDS = ("right", "marked", "unknowable", "refused", "refused_needless", "quietly_wrong", "crashed", "impossible")
BAD = ("quietly_wrong", "crashed")


def run_all(seeds: Sequence[int], workers: int = 1, kind: str = "") -> list[Outcome]:
    """Runs the cases of these seeds; those of one kind of refactor where one is given."""
    if workers < 2:
        return [_run(seed, kind) for seed in seeds]
    context = multiprocessing.get_context("spawn")
    parts = [seeds[i : i + 25] for i in range(0, len(seeds), 25)]
    others = [1] * len(parts), [kind] * len(parts)
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context) as pool:
        return [outcome for part in pool.map(run_all, parts, *others) for outcome in part]


def _run(seed: int, kind: str) -> Outcome:
    case = case_of(seed, kind)
    try:
        return run(case)
    except Exception:  # a mistake of the test's own is to be seen, and is not to end the other cases
        return Outcome(case, "crashed", "", message=traceback.format_exc())


def table(outcomes: Iterable[Outcome]) -> str:
    """How many of each kind came out how."""
    counts: dict[str, dict[str, collections.Counter[str]]] = {}
    for outcome in outcomes:
        for label, value in {**outcome.labels, "all": "all"}.items():
            row = counts.setdefault(label, {}).setdefault(value, collections.Counter())
            row[outcome.kind] += 1
            row[f"native {outcome.native}"] += 1
    columns = (*KINDS, "native right", "native wrong", "native error")
    lines = [f"{'':34}" + "".join(f"{c.replace('_', ' '):>18}" for c in columns)]
    for label, rows in counts.items():
        lines += [f"-- {label}"]
        lines += [
            f"{value:34}" + "".join(f"{row[c] or '':>18}" for c in columns) for value, row in sorted(rows.items())
        ]
    return "\n".join(lines)


def shown(outcome: Outcome) -> str:
    """All that is known of one case."""
    refactor = outcome.case.refactor
    parts = [
        "-- old program",
        listing(refactor.old),
        f"-- {', '.join(refactor.steps)}: new program",
        listing(refactor.new),
        f"-- plan\n{outcome.summary}",
        *outcome.wrong,
        outcome.message,
        line(outcome),
    ]
    return "\n".join(parts)


def line(outcome: Outcome) -> str:
    """One case in one line."""
    unseen = ", the new program writes the same file" * outcome.unseen
    text = ", ".join(outcome.labels.values())
    return f"seed {outcome.case.seed}: {outcome.kind} (native {outcome.native}{unseen}); {text}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=500)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seed", type=int, help="one case")
    parser.add_argument("--show", action="store_true", help="print all that is known of it")
    parser.add_argument("--list", default=",".join(BAD), help="kinds whose seeds are listed")
    parser.add_argument("--refactor", default="", help="only refactors of this kind, without rules")
    options = parser.parse_args(arguments)
    begin = time.time()
    seeds = [options.seed] if options.seed is not None else range(options.start, options.start + options.cases)
    outcomes = run_all(seeds, options.workers, options.refactor)
    if options.show:
        print("\n\n".join(shown(outcome) for outcome in outcomes))
    print("\n".join(line(o) for o in outcomes if o.kind in options.list.split(",")))
    print(table(outcomes))
    print(f"{time.time() - begin:.0f} s")
    return int(any(outcome.kind in BAD for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
