"""What names say of variables that are compared by their place in an optimizer's list: only ever against a pair.

Full names, and the names that slots carry. Automatic names say nothing but their counters, and the model's own name,
with which all of one side begin, may have changed.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable, Iterator, Mapping, Sequence

from dist_restore.core.index import AliasKind, SourceTensor, TargetVariable
from dist_restore.naming.automatic_names import Template, Vocabulary


class Names:
    """The names of what two optimizers train."""

    def __init__(
        self,
        ours: Sequence[TargetVariable],
        theirs: Sequence[SourceTensor],
        words: Vocabulary,
        full_names: tuple[Mapping[str, str], Mapping[str, str]],
    ) -> None:
        """Prepares.

        Args:
          ours: what the model's optimizer trains.
          theirs: what the checkpoint's trained.
          words: what automatic names are made of.
          full_names: variable -> what it calls itself, of both sides.
        """
        self._words = words
        self._full = (
            {v.name: full_names[0].get(v.name, "") for v in ours},
            {t.name: full_names[1].get(t.name, "") for t in theirs},
        )
        layers = self._chosen(self._full[0].items()), self._chosen(self._full[1].items())
        members = {name for v in ours for name in v.members}
        roots = [{own[:1] for own in side.values()} for side in layers]
        # The name that all begin with is that of the model, which may change; but not that of a member of a list.
        is_model = all(len(root) == 1 for root in roots) and not members.intersection(*roots[0])
        self._layers = tuple({name: own[is_model:] for name, own in side.items()} for side in layers)
        self._flat = [t.text for s in theirs for t in self._templates(s, AliasKind.FLAT)]
        self._known_roots: dict[str, bool] = {}

    def differ(self, target: TargetVariable, source: SourceTensor) -> str:
        """What the names of a pair say against it; empty where that is nothing."""
        mine, other = self._layers[0].get(target.name, ()), self._layers[1].get(source.name, ())
        if mine and other and not (_ends_with(mine, other) or _ends_with(other, mine)):
            here, there = self._full[0][target.name], self._full[1][source.name]
            return f"the variable is called {here!r} and the checkpoint's {there!r}"
        theirs = [a.name for a in source.aliases if a.kind is AliasKind.FLAT]
        ours = [a.name for a in target.aliases if a.kind in (AliasKind.FLAT, AliasKind.COUNTED) and "/" not in a.name]
        if not theirs or not ours or any(self._agreed(target, source)):
            return ""
        return f"the checkpoint's slots call it {theirs[0]!r} and the model {ours[0]!r}"

    def count_otherwise(self, pairs: Iterable[tuple[TargetVariable, SourceTensor]]) -> bool:
        """Whether automatic names count in another order than places do: then one side was built in another order."""
        groups: dict[str, list[tuple[tuple[int, ...], tuple[int, ...]]]] = collections.defaultdict(list)
        for target, source in pairs:
            agreed = next(self._agreed(target, source), None)
            if agreed is not None:
                ours, theirs = agreed
                groups[ours.text].append((ours.counters, theirs.counters[-len(ours.counters) :]))
        return any(_rank([m[0] for m in own]) != _rank([m[1] for m in own]) for own in groups.values())

    def _chosen(self, full_names: Iterable[tuple[str, str]]) -> Mapping[str, tuple[str, ...]]:
        """The layers in full names that somebody gave their names."""
        parts = [(name, self._words.path(full).text.split("/")[:-1]) for name, full in full_names]
        return {name: tuple(part for part in own if not part.endswith("{}")) for name, own in parts}

    def _agreed(self, target: TargetVariable, source: SourceTensor) -> Iterator[tuple[Template, Template]]:
        """Flat names of both sides that are equal but for counters; the model's own name may be missing before one."""
        ours = [*self._templates(target, AliasKind.FLAT), *self._templates(target, AliasKind.COUNTED)]
        for theirs in self._templates(source, AliasKind.FLAT):
            for own in ours:
                stages = [o.text.removesuffix(f"_{own.text}") for o in ours if o.text.endswith(f"_{own.text}")]
                if theirs.text == own.text or self._is_below(theirs.text, own.text, stages, target.members):
                    yield own, theirs

    def _is_below(self, theirs: str, ours: str, stages: Sequence[str], members: Sequence[str]) -> bool:
        """Whether a name goes on after that of the model: of two names of stages, one is not the other's."""
        before = theirs.removesuffix(f"_{ours}")
        if before == theirs:
            return False
        if not stages or before.endswith("{}"):
            return True
        return not set(stages).intersection(members) and self._is_root(before)

    def _is_root(self, name: str) -> bool:
        """Whether all that slots call a variable of the checkpoint begins with a name."""
        known = self._known_roots.get(name)
        if known is None:
            known = self._known_roots[name] = all(text.startswith(f"{name}_") for text in self._flat)
        return known

    def _templates(self, item: TargetVariable | SourceTensor, kind: AliasKind) -> list[Template]:
        return [self._words.flat(a.name) for a in item.aliases if a.kind is kind and "/" not in a.name]


def _ends_with(parts: Sequence[str], end: Sequence[str]) -> bool:
    return tuple(parts[-len(end) :]) == tuple(end)


def _rank(counters: Sequence[tuple[int, ...]]) -> list[int]:
    return sorted(range(len(counters)), key=counters.__getitem__)
