"""Evidence of an optimizer's list, for tf_keras where several variables have one full name.

Slots of tf_keras have nothing but the names of their owners, and two towers may have equal names. But the list of what
the optimizer keeps has an order, which its class gives it. So both lists must have equal names and shapes, place by
place, and every slot must carry the name of what fills its owner. Which of several equal names is which is order. Pure.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator, Mapping, Sequence

from dist_restore.core.index import CheckpointIndex, SourceTensor, TargetIndex, TargetVariable
from dist_restore.naming.automatic_names import Vocabulary
from dist_restore.planning.matching.by_state_number import numbered_lists
from dist_restore.planning.matching.by_walk import own_words

_LIST = "variables"


@dataclasses.dataclass(frozen=True, slots=True)
class Listed:
    """What the list says of one slot.

    Attributes:
      source: its tensor.
      is_order: whether other slots have the same name, so that only the order tells them apart.
    """

    source: SourceTensor
    is_order: bool


class SlotLists:
    """The lists of all optimizers whose slots the checkpoint does not tell by name; one object per resolution."""

    def __init__(self, targets: TargetIndex, sources: CheckpointIndex, owners: Mapping[str, SourceTensor]) -> None:
        """Compares the lists of the program and of the checkpoint.

        Args:
          targets: the program's index.
          sources: the checkpoint's.
          owners: what fills variables as it is.
        """
        known = {o.name for o in sources.optimizers}
        names = [o.name for o in targets.optimizers if o.roles and o.name not in known]
        self._found: dict[str, SourceTensor] = {}
        self._full_names: Mapping[str, str] = {}
        self._moved: frozenset[str] = frozenset()
        if not names or targets.scene is None or sources.scene is None:
            return
        ours = numbered_lists(targets.variables, names, _LIST)
        theirs = numbered_lists(sources.tensors, names, _LIST)
        if not any(theirs.values()):
            return
        self._full_names = sources.scene.full_names()
        mine, words = targets.scene.full_names(), Vocabulary(own_words(targets.scene))
        for name in names:
            pairs = [*_pairs(ours[name], theirs[name])]
            texts = [(words.path(mine.get(v.name, "")).text, words.path(self._of(t)).text) for v, t in pairs]
            if all(_same_name(*both) for both in texts):
                self._found.update((v.name, t) for v, t in pairs)
        self._counts = collections.Counter(self._of(t) for t in self._found.values())
        if any(count > 1 for count in self._counts.values()):
            self._moved = self._find_moved(targets, owners, (targets.scene.order(), sources.scene.order()))

    def find(self, target: TargetVariable, owners: Sequence[SourceTensor]) -> Listed | str | None:
        """What the list says of a slot, or why it says nothing.

        Args:
          target: the slot.
          owners: what fills its owner.

        Returns:
          None where the list knows nothing of it, or the name of its owner speaks against it.
        """
        source = self._found.get(target.name)
        if source is None or len(owners) != 1 or not self._of(source).endswith(f"/{self._of(owners[0])}"):
            return None
        if self._of(source) in self._moved:
            return f"several slots are called {self._of(source)!r}, and what they belong to has moved"
        return Listed(source, self._counts[self._of(source)] > 1)

    def _find_moved(
        self,
        targets: TargetIndex,
        owners: Mapping[str, SourceTensor],
        orders: tuple[Mapping[str, int], Mapping[str, int]],
    ) -> frozenset[str]:
        """Names of several slots whose owners come in another order in the checkpoint's graph than in the program's."""
        places: dict[str, list[tuple[int, int]]] = collections.defaultdict(list)
        for variable in targets.variables:
            source = self._found.get(variable.name)
            owner = variable.slot.owner if variable.slot is not None else ""
            if source is not None and owner in owners and self._counts[self._of(source)] > 1:
                theirs = orders[1].get(owners[owner].name)
                if owner in orders[0] and theirs is not None:
                    places[self._of(source)].append((orders[0][owner], theirs))
        return frozenset(name for name, own in places.items() if not _is_rising([t for _, t in sorted(own)]))

    def _of(self, tensor: SourceTensor) -> str:
        return self._full_names.get(tensor.name, "")


def _is_rising(numbers: Sequence[int]) -> bool:
    return list(numbers) == sorted(numbers)


def _same_name(ours: str, theirs: str) -> bool:
    """Whether names are equal but for the optimizer's own, which is not there where a user's program built it."""
    return ours == theirs or ours.endswith(f"/{theirs}") or theirs.endswith(f"/{ours}")


def _pairs(
    ours: Mapping[int, TargetVariable], theirs: Mapping[int, SourceTensor]
) -> Iterator[tuple[TargetVariable, SourceTensor]]:
    """What has one place in both lists; nothing where these are not alike."""
    if ours.keys() == theirs.keys() and all(v.spec == theirs[n].spec for n, v in ours.items()):
        yield from ((v, theirs[n]) for n, v in ours.items())
