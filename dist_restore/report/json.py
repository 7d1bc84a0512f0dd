"""A report as JSON: for programs that come after (a TensorBoard plugin, a page, a test in CI)."""

from __future__ import annotations

import json
from collections.abc import Mapping

from dist_restore.planning.entries import Coverage, CoverageRow, Tally
from dist_restore.planning.plan import RestorePlan
from dist_restore.planning.proofs import count_proofs

# Raised when the meaning of a field changes; new fields alone do not raise it. The plan inside has its own.
SCHEMA_VERSION = 1


def encode(plan: RestorePlan, outcome: Mapping[str, object]) -> str:
    """The canonical JSON of a plan, its coverage, and the fields of its outcome.

    Args:
      plan: stands under `plan`, as `RestorePlan.to_json` writes it, digest and all.
      outcome: the other fields, as JSON values.

    Raises:
      ValueError: a number that JSON does not have, such as infinity.
    """
    fields = {
        **outcome,
        "schema": SCHEMA_VERSION,
        "kind": "dist_restore.report",
        "plan": json.loads(plan.to_json()),
        "coverage": [_row(row) for row in plan.coverage.rows],
        "fractions": _fractions(plan.coverage),
        "proofs": count_proofs(plan.entries),
    }
    return json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def _row(row: CoverageRow) -> dict[str, object]:
    return {
        "group": row.group.value,
        "status": row.status.value,
        "total": _tally(row.total),
        "filled": _tally(row.filled),
    }


def _tally(tally: Tally) -> dict[str, int]:
    return {"variables": tally.variables, "elements": tally.elements, "bytes": tally.bytes}


def _fractions(coverage: Coverage) -> dict[str, float]:
    return {"variables": coverage.variables, "elements": coverage.elements, "bytes": coverage.bytes}
