"""Many small variables: planning and applying, and how both grow."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import harness
from harness import Case, Result

FIGURES = ("first s", "again s", "first / native", "extra MB", "CPU s")
HEADERS = ("variables", "replicas", "what", *FIGURES, *harness.PHASES)


def cases_of(config: Mapping[str, object], count: int) -> Iterator[Case]:
    for replicas in config["replicas"]:
        base = {"count": count, "replicas": replicas, "again": True}
        yield {"kind": "native", **base}
        yield {"kind": "loop", **base}
        for verify in config["verify"]:
            yield {"kind": "ours", **base, "verify": verify}


def of(results: list[Result], kind: str, replicas: object, verify: object = None) -> Result:
    wanted = (kind, replicas, verify)
    return next(r for r in results if (r.case["kind"], r.case["replicas"], r.case.get("verify")) == wanted)


def rows(results: list[Result]) -> Iterator[list[str]]:
    for result in results:
        case = result.case
        native = of(results, "native", case["replicas"])
        yield [
            str(case["count"]),
            str(case["replicas"]),
            f"{case['kind']} {case.get('verify', '')}".strip(),
            f"{result.median():.3f}",
            f"{result.median('again_seconds'):.3f}",
            f"{result.median() / native.median():.3f}",
            f"{result.median('peak_mb'):.0f}",
            f"{result.median('cpu'):.2f}",
            *harness.phase_cells(result),
        ]


def run(quick: bool) -> tuple[str, Mapping[str, float]]:
    config = harness.read_config("many", quick=quick)
    text, ratios, seconds = [], {}, {}
    for count in config["counts"]:
        harness.in_process({"kind": "prepare", "count": count})
        results = harness.run_in_turn(list(cases_of(config, count)), config["repeats"])
        text.append(harness.table(HEADERS, rows(results)))
        for replicas in config["replicas"]:
            ours, native = of(results, "ours", replicas, "checksum"), of(results, "native", replicas)
            ratios[f"{count}_{replicas}_vs_native"] = ours.median() / native.median()
            seconds[count, replicas] = ours.median()
    least, most = min(config["counts"]), max(config["counts"])
    if least < most:
        ratios["exponent"] = math.log(seconds[most, 1] / seconds[least, 1]) / math.log(most / least)
    return "\n\n".join(text), ratios


if __name__ == "__main__":
    harness.main("many: small variables", run)
