"""Casts that may change a value: which entries have them, and one error for all that do. Knows entries of a plan."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence

from dist_restore.core.errors import DtypeMismatchError
from dist_restore.core.phases import during
from dist_restore.ops import may_refuse
from dist_restore.planning.entries import PlanEntry

# Variables with lossy values that one error lists.
_MAX_LOSSY = 20


def may_lose(entry: PlanEntry) -> bool:
    """Whether values decide if this entry can be made: a cast that may lose one, a scale that may overflow."""
    return bool(entry.ops) and may_refuse(entry.ops, entry.source_specs)


class Lossy:
    """Entries whose casts would change a value, so that one attempt shows many of them."""

    def __init__(self) -> None:
        self._found: list[tuple[PlanEntry, DtypeMismatchError]] = []  # by any thread

    @contextlib.contextmanager
    def gathered(self, entry: PlanEntry) -> Iterator[None]:
        """Keeps the error that leaves the block; raises once there are enough."""
        try:
            yield
        except DtypeMismatchError as error:
            self._found.append((entry, error))
            if len(self._found) >= _MAX_LOSSY:
                self.refuse()

    def refuse(self) -> None:
        """Raises what was found; nothing where nothing was."""
        found = sorted(self._found, key=lambda pair: pair[0].target)[:_MAX_LOSSY]
        with during("transform"):
            if len(found) == 1:
                raise found[0][1]
            if found:
                raise DtypeMismatchError(_lossy_text(found), names=tuple(entry.target for entry, _ in found))


def _lossy_text(found: Sequence[tuple[PlanEntry, DtypeMismatchError]]) -> str:
    more = ", and maybe more" if len(found) == _MAX_LOSSY else ""
    lines = [f"{len(found)} variables would lose values{more}:", *(f"  {error}" for _, error in found)]
    cast = [entry for entry, _ in found if len(entry.ops) == len(entry.sources) == 1]
    if cast:
        lines += ["Rules that allow it, if that is meant:", *map(_lossy_rule, cast)]
    return "\n".join(lines)


def _lossy_rule(entry: PlanEntry) -> str:
    names = f"from = {json.dumps(entry.sources[0])}\n  to = {json.dumps(entry.target)}"
    return f'  [[rule]]\n  {names}\n  ops = [{{ cast = {{ dtype = "{entry.spec.dtype}", lossy = true }} }}]'
