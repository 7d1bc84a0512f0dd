"""What the entries of a plan rest on: counted by kind, and said in words where order alone speaks. Pure."""

from __future__ import annotations

import collections
import textwrap
from collections.abc import Iterable, Sequence

from dist_restore.core.shortening import shorten
from dist_restore.core.text import escape_text
from dist_restore.planning.entries import PlanEntry, Proof
from dist_restore.planning.row_families import patterns
from dist_restore.planning.summary import REASON_WIDTH

KINDS = tuple(proof for proof in Proof if proof is not Proof.NONE)
# Families of names that the sentence lists, and characters of each; the plan's entries have them all.
MAX_FAMILIES = 8
MAX_NAME = 120


def count_proofs(entries: Iterable[PlanEntry]) -> dict[str, int]:
    """Kind of proof -> how many filled variables rest on it, zeros included."""
    counts = collections.Counter(e.proof for e in entries if e.filled)
    return {proof.value: counts[proof] for proof in KINDS}


def order_note(entries: Sequence[PlanEntry]) -> str:
    """Which filled variables rest on their order alone, and what to do about it; empty when none does."""
    names = [e.target for e in entries if e.filled and e.proof is Proof.ORDER]
    if not names:
        return ""
    rest, them = ("rest on their", "them") if len(names) > 1 else ("rests on its", "it")
    text = (
        f"{len(names)} of {len(entries)} variables {rest} order alone: {_listed(names)}; "
        f'order="refuse" refuses {them}, a rule settles {them}. No check of values tells whether an order is right.'
    )
    return textwrap.fill(text, REASON_WIDTH, break_long_words=False, break_on_hyphens=False)


def _listed(names: Sequence[str]) -> str:
    found = patterns(names)
    shown = [shorten(escape_text(pattern), MAX_NAME) for pattern, _ in found[:MAX_FAMILIES]]
    more = sum(count for _, count in found[MAX_FAMILIES:])
    return ", ".join([*shown, *([f"and {more} more"] if more else [])])
