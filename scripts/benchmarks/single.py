"""One process, large tensors: our restore beside TensorFlow's, Keras's, the loop that users write, and the floor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import harness
from harness import Case, Result

FIGURES = ("first s", "again s", "first / native", "extra MB", "read MB", "CPU s")
HEADERS = ("GB", "replicas", "what", *FIGURES, *harness.PHASES)


def cases_of(config: Mapping[str, object], gb: float) -> Iterator[Case]:
    for replicas in config["replicas"]:
        base = {"gb": gb, "replicas": replicas, "again": True}
        yield {"kind": "native", **base}
        # It makes a copy for each replica: with 4 GB on 4 replicas, 13 GB and half a minute.
        if replicas * gb <= config["loop_gigabytes"]:
            yield {"kind": "loop", **base}
        for verify in config["verify"]:
            yield {"kind": "ours", **base, "verify": verify}
    base = {"gb": gb, "replicas": 1, "again": True}
    for names in config["names"]:
        yield {"kind": "ours", **base, "verify": "checksum", "names": names}
    yield {"kind": "ours", **base, "verify": "checksum", "budget": config["small_budget"]}
    yield {"kind": "keras", **base}
    for threads in config["threads"]:
        yield {"kind": "floor", "gb": gb, "replicas": 1, "threads": threads}


def what(case: Case) -> str:
    words = [str(case["kind"]), *(str(case[k]) for k in ("verify", "names") if k in case)]
    words += [f"{case['threads']} threads"] if "threads" in case else []
    return " ".join(words + ([f"budget {case['budget'] >> 20} MiB"] if "budget" in case else []))


def find(results: list[Result], **wanted: object) -> Result:
    """The first result whose case has these values, and no other of the optional ones."""
    optional = {"names", "budget", "threads", "verify"} - wanted.keys()
    return next(
        r for r in results if all(r.case.get(k) == v for k, v in wanted.items()) and not optional & r.case.keys()
    )


def rows(results: list[Result]) -> Iterator[list[str]]:
    for result in results:
        case = result.case
        native = find(results, kind="native", replicas=case["replicas"])
        yield [
            f"{case['gb']}",
            str(case["replicas"]),
            what(case),
            f"{result.median():.3f}",
            f"{result.median('again_seconds'):.3f}",
            f"{result.median() / native.median():.2f}",
            f"{result.median('peak_mb'):.0f}",
            f"{result.median('read_mb'):.0f}",
            f"{result.median('cpu'):.2f}",
            *harness.phase_cells(result),
        ]


def ratios_of(results: list[Result], config: Mapping[str, object], gb: float) -> dict[str, float]:
    found: dict[str, float] = {}
    for replicas in config["replicas"]:
        native = find(results, kind="native", replicas=replicas)
        for verify in config["verify"]:
            ours = find(results, kind="ours", replicas=replicas, verify=verify)
            found[f"{gb}GB_{verify}_{replicas}_vs_native"] = ours.median() / native.median()
    ours, native = find(results, kind="ours", replicas=1, verify="checksum"), find(results, kind="native", replicas=1)
    found[f"{gb}GB_vs_floor"] = ours.median() / find(results, kind="floor", threads=2).median()
    for names in config["names"]:
        other = find(results, kind="ours", verify="checksum", names=names)
        found[f"{gb}GB_{names}_vs_exact"] = other.median() / ours.median()
    found[f"{gb}GB_again_vs_native"] = ours.median("again_seconds") / native.median("again_seconds")
    found[f"{gb}GB_extra_mb"] = ours.median("peak_mb")
    return found


def run(quick: bool) -> tuple[str, Mapping[str, float]]:
    swept = harness.read_config("single", quick=quick)
    text, ratios = [], {}
    for gb in swept["gigabytes"]:
        config = {**swept, "replicas": swept["replicas" if gb == swept["main"] else "few_replicas"]}
        harness.in_process({"kind": "prepare", "gb": gb})
        results = harness.run_in_turn(list(cases_of(config, gb)), config["repeats"])
        text.append(harness.table(HEADERS, rows(results)))
        ratios |= ratios_of(results, config, gb)
    return "\n\n".join(text), ratios


if __name__ == "__main__":
    harness.main("single: large tensors", run)
