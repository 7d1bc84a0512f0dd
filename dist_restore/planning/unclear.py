"""What is not clear, for a person to decide: comments that name the candidates, one block for a family of names."""

from __future__ import annotations

import collections
import re
from collections.abc import Iterator, Mapping, Sequence

from dist_restore.core.index import AliasKind, SourceTensor
from dist_restore.core.shortening import shorten
from dist_restore.planning.entries import PlanEntry, Problem
from dist_restore.planning.proposals import quote_toml
from dist_restore.planning.row_families import collapse

_NUMBER = re.compile(r"[0-9]+")
# Candidates that a block names, and characters of the names of a family.
_SHOWN = 3
_MAX_LISTED = 300


def render_unclear(entries: Sequence[PlanEntry], sources: Mapping[str, SourceTensor]) -> Iterator[str]:
    """A block for each family of targets whose candidates differ in numbers only."""
    families: dict[object, list[PlanEntry]] = collections.defaultdict(list)
    for entry in entries:
        names = (entry.target, *entry.candidates[:_SHOWN])
        families[(entry.spec, entry.problem, *(_NUMBER.sub("#", name) for name in names))].append(entry)
    yield from (_block(family, sources) for family in families.values())


def _block(family: Sequence[PlanEntry], sources: Mapping[str, SourceTensor]) -> str:
    """Comments only: what is not clear is for a person to decide, so nothing here may take effect by pasting."""
    entry = family[0]
    mends = entry.problem in (Problem.SHAPE, Problem.DTYPE)
    shown = [n for n in entry.candidates[:_SHOWN] if n != entry.target or mends]  # no rule that says nothing
    own = ", such as that of its own name" if len(shown) < len(entry.candidates[:_SHOWN]) else ""
    lines = [f"# {_head(family)}: choose a source{own}, or keep it"]
    if shown:
        lines += ["# [[rule]]", *(f"# from = {quote_toml(n)}{_also(entry, sources.get(n))}" for n in shown)]
        lines.append(f"# to = {quote_toml(entry.target)}")
        lines += ["# ops = [...]"] if mends else []
    return "\n".join([*lines, ""])


def _head(family: Sequence[PlanEntry]) -> str:
    entry = family[0]
    if len(family) == 1:
        return f"{quote_toml(entry.target)} {entry.spec}"
    names = shorten(collapse(e.target for e in family), _MAX_LISTED)
    return f"{names} {entry.spec} ({len(family)} alike; below, if anything, the first)"


def _also(entry: PlanEntry, tensor: SourceTensor | None) -> str:
    """What a rule may say too where a name is a number, and the spec where it is another one."""
    if tensor is None:
        return ""
    notes = [] if tensor.spec == entry.spec else [str(tensor.spec)]
    if tensor.name_kind is AliasKind.POSITIONAL:
        said = [a.name for a in tensor.aliases if a.kind in (AliasKind.FLAT, AliasKind.SEMANTIC)]
        notes += [f"or {quote_toml(name)}" for name in said[:1]]
    return f"  # {'; '.join(notes)}" if notes else ""
