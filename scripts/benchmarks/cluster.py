"""Several workers: our read modes beside native restore, on a page-cached disk and on storage of a limited rate.

The workers are processes of this machine under MultiWorkerMirroredStrategy. A restore takes from the moment at which
all begin (their variables are built, and their memory was touched) until the last worker is done. What the limited
storage is, and why it has no page cache, says limited_storage.py.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import pathlib
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping

import harness
import limited_storage
import meter
import models
from harness import Case, Measurement, Result

sys.path.insert(0, str(harness.HERE.parent))
from lm.local_cluster import LocalCluster

HEADERS = (
    *("storage", "workers", "reads", "seconds", "/ native", "served"),
    *("read MB, a worker", "read MB, all", "extra MB, a worker", "CPU s, all"),
)
AHEAD_SECONDS = 0.2
OTHERS_SECONDS = 0.2
LIMIT_SECONDS = 180.0


def cases_of(config: Mapping[str, object], storages: Mapping[str, str]) -> Iterator[Case]:
    for storage in storages:
        for workers in config["workers"]:
            for reads in ("native", *(config["reads"] if workers > 1 else ["auto"])):
                yield {"storage": storage, "workers": workers, "reads": reads}


def measure(case: Case, gb: float, prefixes: Mapping[str, str], served: Callable[[], int]) -> Measurement:
    """Runs one case in a new cluster.

    Args:
      case: storage, workers and reads.
      gb: how large the model is.
      prefixes: where the checkpoint is, by storage; on `disk` it is read directly.
      served: bytes that have left the limited storage.
    """
    files = models.files_of(prefixes["disk"])
    meter.warm(files)
    request = {**case, "gb": gb, "prefix": prefixes[case["storage"]], "check": prefixes["disk"]}
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        command = [sys.executable, str(harness.HERE / "cluster_worker.py"), json.dumps(request), name]
        with LocalCluster(command, case["workers"], environment()) as cluster:
            files_appear(cluster, folder, "ready")
            others, before = busy_cores(), served()
            begin(folder)
            files_appear(cluster, folder, "done")
            bytes_served = served() - before
            files_appear(cluster, folder, "checked")
        figures = [json.loads((folder / f"done_{rank}").read_text()) for rank in range(case["workers"])]
    return together(figures) | {"served": bytes_served / sum(map(os.path.getsize, files)), "others": others}


def environment() -> dict[str, str]:
    paths = [str(harness.ROOT), str(harness.HERE), os.environ.get("PYTHONPATH", "")]
    return {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1", "PYTHONPATH": os.pathsep.join(paths)}


def busy_cores() -> float:
    """Processors that are in use while all our workers wait: what else the machine does."""
    ticks, start = _busy_ticks(), time.monotonic()
    time.sleep(OTHERS_SECONDS)
    return (_busy_ticks() - ticks) / os.sysconf("SC_CLK_TCK") / (time.monotonic() - start)


def _busy_ticks() -> int:
    """Processor time of all processes so far; idle time and waiting for disks are its fourth and fifth figures."""
    figures = [int(f) for f in pathlib.Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return sum(figures) - sum(figures[3:5])


def begin(folder: pathlib.Path) -> None:
    """Tells all workers the moment at which they begin."""
    part = folder / "begin.part"
    part.write_text(json.dumps(time.monotonic() + AHEAD_SECONDS))
    part.rename(folder / "begin")


def files_appear(cluster: LocalCluster, folder: pathlib.Path, name: str) -> None:
    """Waits until every worker has left a file of this name."""
    deadline = time.monotonic() + LIMIT_SECONDS
    while missing := [p for r, p in enumerate(cluster.processes) if not (folder / f"{name}_{r}").exists()]:
        if any(cluster.codes) or time.monotonic() > deadline:
            cluster.kill()
            said = b"\n".join(p.stdout.read()[-4000:] for p in missing if p.stdout)
            raise RuntimeError(f"{len(missing)} of {len(cluster.processes)} not {name}:\n{said.decode()}")
        time.sleep(0.01)


def together(figures: list[Measurement]) -> dict[str, float]:
    """One measurement of all workers: the slowest one's time, the largest one's memory and bytes, sums; its chief's."""
    chiefs = {key: value for key, value in figures[0].items() if key.startswith(("took_", "phase_"))}
    return {
        **chiefs,
        "seconds": max(f["seconds"] for f in figures),
        "read_mb": max(f["read_mb"] for f in figures),
        "all_read_mb": sum(f["read_mb"] for f in figures),
        "peak_mb": max(f["peak_mb"] for f in figures),
        "cpu": sum(f["cpu"] for f in figures),
    }


def of(results: list[Result], **wanted: object) -> Result:
    return next(r for r in results if all(r.case[k] == v for k, v in wanted.items()))


def taken(result: Result) -> str:
    """What `auto` took, and how often."""
    modes = Counter(key.removeprefix("took_") for run in result.runs for key in run if key.startswith("took_"))
    return f": {', '.join(f'{mode} {count}x' for mode, count in modes.most_common())}"


def phases(results: list[Result]) -> str:
    """A table of the chief's seconds by phase, of our modes."""
    ours = [result for result in results if result.case["reads"] != "native"]
    names = list(dict.fromkeys(key for r in ours for run in r.runs for key in run if key.startswith("phase_")))
    keys = ("storage", "workers", "reads")
    lines = [[*(str(r.case[k]) for k in keys), *(f"{r.median(n):.3f}".replace("nan", "") for n in names)] for r in ours]
    return harness.table([*keys, *(name.removeprefix("phase_") for name in names)], lines)


def rows(results: list[Result]) -> Iterator[list[str]]:
    for result in results:
        case = result.case
        native = of(results, storage=case["storage"], workers=case["workers"], reads="native")
        yield [
            *(str(case[key]) for key in ("storage", "workers")),
            f"{case['reads']}{taken(result) if case['reads'] == 'auto' else ''}",
            f"{result.median():.3f}",
            f"{result.median() / native.median():.2f}",
            f"{result.median('served'):.2f}" if case["storage"] == "limited" else "",
            *(f"{result.median(key):.0f}" for key in ("read_mb", "all_read_mb", "peak_mb")),
            f"{result.median('cpu'):.2f}",
        ]


def ratios_of(results: list[Result]) -> dict[str, float]:
    """Our modes beside native, `auto` beside the better of two, and how often the limited storage was read."""
    found: dict[str, float] = {}
    for result in results:
        storage, workers, reads = (result.case[key] for key in ("storage", "workers", "reads"))
        same = functools.partial(of, results, storage=storage, workers=workers)
        if reads == "native":
            continue
        found[f"{storage}_{workers}_{reads}_vs_native"] = result.median() / same(reads="native").median()
        if storage == "limited":
            found[f"{storage}_{workers}_{reads}_served"] = result.median("served")
        if reads == "auto" and workers > 1:
            best = min(same(reads=mode).median() for mode in ("every_worker", "sharded"))
            found[f"{storage}_{workers}_auto_vs_best"] = result.median() / best
    return found


def unlimited_rates(folder: pathlib.Path, readers: list[int]) -> str:
    """How fast the storage is without its limit, by readers at once: it is the limit that is to be measured."""
    with limited_storage.mounted(folder, float("inf"), 0) as storage:
        found = {count: limited_storage.rate_of(storage, count) for count in readers}
    return ", ".join(f"{rate / 1e6:.0f} MB/s by {count}" for count, rate in found.items())


@contextlib.contextmanager
def storages_of(config: Mapping[str, object], prefix: str) -> Iterator[tuple[dict[str, str], Callable[[], int], str]]:
    """The checkpoint's prefix by storage, the bytes that have left the limited one, and what to say about it."""
    folder, name = os.path.split(prefix)
    meter.warm([entry.path for entry in os.scandir(folder)])
    with contextlib.ExitStack() as stack:
        prefixes, served, note = {"disk": prefix}, lambda: 0, ""
        if "limited" in config["storages"]:
            try:
                speeds = unlimited_rates(pathlib.Path(folder), config["workers"])
                storage = stack.enter_context(limited_storage.mounted(folder, config["rate"], config["burst"]))
                prefixes["limited"] = os.path.join(storage.path, name)
                served = lambda: storage.served().total  # noqa: E731
                note = f"Limited storage: {config['rate'] / 1e6:g} MB/s for all; without the limit {speeds} at once."
            except limited_storage.UnavailableError as error:
                note = f"Limited storage: left out, for it cannot be mounted here: {error}"
        print(note, file=sys.stderr)
        yield {name: p for name, p in prefixes.items() if name in config["storages"]}, served, note


def run(quick: bool) -> tuple[str, Mapping[str, float]]:
    config = harness.read_config("cluster", quick=quick)
    gb = config["gigabytes"]
    harness.in_process({"kind": "prepare", "gb": gb})
    prefix = str(harness.data_root() / f"single_{gb}" / "ckpt")
    with storages_of(config, prefix) as (prefixes, served, note):
        one = functools.partial(measure, gb=gb, prefixes={"disk": prefix, **prefixes}, served=served)
        results = harness.run_in_turn(list(cases_of(config, prefixes)), config["repeats"], one)
    others = sorted(run["others"] for result in results for run in result.runs)
    note += f"\n\nProcessors used by others just before a restore: {statistics.median(others):.1f} (median), "
    note += f"{others[-1]:.1f} (most)."
    text = f"{harness.table(HEADERS, rows(results))}\n\nThe chief's seconds by phase:\n\n{phases(results)}\n\n{note}"
    return text, ratios_of(results)


if __name__ == "__main__":
    harness.main("cluster: several workers", run)
