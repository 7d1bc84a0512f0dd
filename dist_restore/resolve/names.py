"""Looking names up: any alias of a tensor, as long as it means one tensor only."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Iterator, Sequence
from typing import Generic, TypeVar

from dist_restore.errors import RuleError
from dist_restore.specs import AliasKind, SourceTensor, TargetVariable

Named = TypeVar("Named", SourceTensor, TargetVariable)


class NameTable(Generic[Named]):
    """All names of one side (checkpoint or program), canonical ones first."""

    def __init__(self, items: Sequence[Named], side: str) -> None:
        """Builds the table.

        Args:
          items: the tensors or variables; canonical names are unique.
          side: how messages call this side: `the checkpoint` or `the model`.
        """
        self.side = side
        self.items = tuple(items)
        self._canonical = {item.name: item for item in items}
        self._aliases: dict[str, list[Named]] = collections.defaultdict(list)
        for item in items:
            for alias in item.aliases:
                if alias.name not in self._canonical:
                    self._aliases[alias.name].append(item)

    def get(self, name: str) -> Named | None:
        """The item of this name, or None.

        Raises:
          RuleError: the name is an alias of several items.
        """
        item = self._canonical.get(name)
        if item is not None:
            return item
        found = self._aliases.get(name, [])
        if len(found) > 1:
            raise RuleError(
                f"{name!r} is a name of {len(found)} tensors of {self.side}: "
                f"{', '.join(repr(i.name) for i in found[:5])}. Use the full name of the one that you mean."
            )
        return found[0] if found else None

    def names(self) -> Iterator[tuple[str, Named]]:
        """Canonical names and the semantic aliases: what a pattern with captures may match.

        Positional names are left out: `optimizer/{rest}` would otherwise match most of a Keras 3 model, whose
        variables are also `optimizer/trainable_variables/N`.
        """
        for item in self.items:
            yield item.name, item
        for name, items in self._aliases.items():
            if len(items) == 1 and _kind(items[0], name) in (AliasKind.SEMANTIC, AliasKind.FLAT):
                yield name, items[0]

    def all_names(self) -> Iterable[str]:
        """Canonical names, for the nearest ones in messages."""
        return self._canonical


def _kind(item: SourceTensor | TargetVariable, name: str) -> AliasKind:
    return next(a.kind for a in item.aliases if a.name == name)
