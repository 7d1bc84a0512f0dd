"""Planning alone: many names and 20 rules, from indexes in memory."""

from __future__ import annotations

import math
from collections.abc import Mapping

import harness

HEADERS = ("names", "seconds", "microseconds a name", "extra MB")


def run(quick: bool) -> tuple[str, Mapping[str, float]]:
    config = harness.read_config("plan", quick=quick)
    cases = [{"kind": "plan", "count": count} for count in config["counts"]]
    results = harness.run_in_turn(cases, config["repeats"])
    seconds = {r.case["count"]: r.median() for r in results}
    text = harness.table(
        HEADERS,
        [
            [n, f"{s:.3f}", f"{s / n * 1e6:.1f}", f"{r.median('peak_mb'):.0f}"]
            for r, (n, s) in zip(results, seconds.items(), strict=True)
        ],
    )
    least, most = min(seconds), max(seconds)
    ratios = {f"{n}_seconds": s for n, s in seconds.items()}
    if least < most:
        ratios["exponent"] = math.log(seconds[most] / seconds[least]) / math.log(most / least)
    return text, ratios


if __name__ == "__main__":
    harness.main("plan: names and rules", run)
