"""What the benchmarks share: fresh processes in turn, medians, memory, the machine's facts, tables.

A benchmark is a list of cases. Each case is measured in a process of its own; the cases take turns (A B C A B C), so
that what the machine does meanwhile meets all of them alike. Run as a program, this module is such a process: it takes
a case as JSON and prints a measurement as JSON.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
RESULTS = HERE / "RESULTS.md"
# Before each measurement a process touches so much memory and gives it back: the first touch of memory that the
# host has to find for a virtual machine costs many times what any other costs, and belongs to no restore.
TOUCH = 1 << 30

# Where our own first restores spend their time.
PHASES = ("plan s", "check s", "assign s", "verify s")

Case = Mapping[str, object]
Measurement = Mapping[str, float]


@dataclasses.dataclass(frozen=True, slots=True)
class Result:
    """The measurements of one case, one for each process."""

    case: Case
    runs: tuple[Measurement, ...]

    def median(self, key: str = "seconds") -> float:
        """The median of one figure over the runs; NaN where no run has it."""
        values = [run[key] for run in self.runs if key in run]
        return statistics.median(values) if values else float("nan")


def data_root() -> pathlib.Path:
    """Where checkpoints are kept between runs; `DIST_RESTORE_BENCH` names another place."""
    default = os.path.join(tempfile.gettempdir(), "dist_restore_bench")
    path = pathlib.Path(os.environ.get("DIST_RESTORE_BENCH", default))
    path.mkdir(parents=True, exist_ok=True)
    return path


def read_config(name: str, *, quick: bool) -> dict[str, object]:
    """`configs/benchmarks/<name>.toml`; its table `quick` replaces values of the same name with `--quick`."""
    config = tomllib.loads((ROOT / "configs" / "benchmarks" / f"{name}.toml").read_text())
    overrides = config.pop("quick", {})
    return {**config, **(overrides if quick else {})}


def run_in_turn(
    cases: Sequence[Case], repeats: int, measure: Callable[[Case], Measurement] | None = None
) -> list[Result]:
    """Measures all cases `repeats` times, in turn, each time in a fresh process or as `measure` does it."""
    measure = measure or in_process
    runs: list[list[Measurement]] = [[] for _ in cases]
    for turn in range(repeats):
        for case, found in zip(cases, runs, strict=True):
            print(f"  {turn + 1}/{repeats} {label(case)}", end="", file=sys.stderr, flush=True)
            found.append(measure(case))
            print(f"  {found[-1].get('seconds', 0):.3f} s", file=sys.stderr)
    return [Result(case, tuple(found)) for case, found in zip(cases, runs, strict=True)]


def in_process(case: Case) -> Measurement:
    """Runs one case in a fresh process."""
    environment = {
        **os.environ,
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(HERE), os.environ.get("PYTHONPATH", "")]),
    }
    command = [sys.executable, str(HERE / "cases.py"), json.dumps(case)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{label(case)} failed:\n{done.stderr[-4000:]}")
    measurement: Measurement = json.loads(done.stdout.strip().splitlines()[-1])
    return measurement


def label(case: Case) -> str:
    """A case in a few words."""
    return " ".join(str(value) for value in case.values())


def facts() -> list[tuple[str, str]]:
    """What the figures depend on."""
    import keras
    import numpy as np
    import tensorflow as tf

    pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    huge = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return [
        ("date", datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")),
        ("CPU", _cpu_model()),
        ("cores", str(os.cpu_count())),
        ("memory", f"{pages / 2**30:.0f} GiB"),
        ("load before", load),
        ("kernel", platform.release()),
        ("huge pages", huge.read_text().strip() if huge.exists() else "unknown"),
        ("C library", " ".join(platform.libc_ver())),
        ("Python", platform.python_version()),
        ("TensorFlow, Keras, NumPy", f"{tf.__version__}, {keras.__version__}, {np.__version__}"),
    ]


def _cpu_model() -> str:
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def phase_cells(result: Result) -> list[str]:
    """The cells below `PHASES`; empty for what is not ours."""
    values = (result.median(name.replace(" ", "_")) for name in PHASES)
    return ["" if math.isnan(value) else f"{value:.3f}" for value in values]


def write_results(title: str, text: str) -> None:
    """Puts a benchmark's section into RESULTS.md, in place of what it wrote before."""
    begin, end = f"<!-- begin {title} -->", f"<!-- end {title} -->"
    old = RESULTS.read_text() if RESULTS.exists() else "# Benchmarks: results\n"
    section = f"{begin}\n{text.rstrip()}\n{end}"
    if begin in old and end in old:
        head, tail = old.split(begin, 1)[0], old.split(end, 1)[1]
        RESULTS.write_text(f"{head}{section}{tail}")
    else:
        RESULTS.write_text(f"{old.rstrip()}\n\n{section}\n")


def finish(title: str, text: str, ratios: Mapping[str, float], *, write: bool) -> None:
    """Prints a benchmark's table, keeps it if asked, and ends with a line of ratios."""
    line = " ".join(f"{key}={value:.3g}" for key, value in ratios.items())
    fact_table = table(("fact", "value"), facts())
    if write:
        write_results(title, f"## {title}\n\n{fact_table}\n\n{text}\n\n`{line}`")
    print(text)
    print(line)


def main(title: str, run: Callable[[bool], tuple[str, Mapping[str, float]]]) -> None:
    """The program of one benchmark: `[--quick] [--no-write]`."""
    quick = "--quick" in sys.argv
    text, ratios = run(quick)
    finish(title, text, ratios, write=not quick and "--no-write" not in sys.argv)
