"""Some rows of a large tensor: bytes read for each byte needed."""

from __future__ import annotations

from collections.abc import Mapping

import harness

HEADERS = ("fraction of the rows", "what", "needed MB", "read MB", "read / needed", "ms")


def run(quick: bool) -> tuple[str, Mapping[str, float]]:
    config = harness.read_config("slices", quick=quick)
    gb = config["gigabytes"]
    harness.in_process({"kind": "prepare", "gb": gb})
    kinds = ("slice_ours", "slice_native")
    cases = [{"kind": kind, "gb": gb, "fraction": f} for f in config["fractions"] for kind in kinds]
    results = harness.run_in_turn(cases, config["repeats"])
    text = harness.table(
        HEADERS,
        [
            [
                f"{r.case['fraction']:.2%}",
                r.case["kind"],
                f"{r.median('needed_mb'):.2f}",
                f"{r.median('read_mb'):.2f}",
                f"{r.median('ratio'):.3f}",
                f"{r.median() * 1e3:.2f}",
            ]
            for r in results
        ],
    )
    return text, {f"{r.case['kind']}_{r.case['fraction']}_read_per_needed": r.median("ratio") for r in results}


if __name__ == "__main__":
    harness.main("slices: parts of a tensor", run)
