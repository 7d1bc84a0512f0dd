"""What `order="refuse"` does: that two layers stand in the same order is then not enough to fill one from the other."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from dist_restore.core.nearest import quote
from dist_restore.planning.entries import PlanEntry, Problem, Proof, Status

_DECIDES = 'a rule, names on the layers (on both sides) or order="accept" decides'


def refuse_order(entries: Iterable[PlanEntry]) -> list[PlanEntry]:
    """The entries, those that only their order tells apart from others as ambiguous ones."""
    return [_refused(e) if e.filled and e.proof is Proof.ORDER else e for e in entries]


def _refused(entry: PlanEntry) -> PlanEntry:
    reason = f"nothing but their order says that {quote(entry.sources)} belongs here ({entry.evidence}); {_DECIDES}."
    return msgspec.structs.replace(
        entry,
        sources=(),
        ops=(),
        status=Status.AMBIGUOUS,
        reason=reason,
        source_specs=(),
        elements=0,
        problem=Problem.AMBIGUOUS,
        candidates=entry.sources,
        proof=Proof.NONE,
    )
