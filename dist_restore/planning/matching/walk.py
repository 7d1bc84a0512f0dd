"""The joint walk: both object graphs from the root, as TensorFlow itself restores, but for what names say of rows.

Edges that somebody named lead to the same thing on both sides. Members of rows are paired by `rows`. What is paired
over a stronger way is not paired again over a weaker one.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable, Mapping, Sequence

from dist_restore.planning.matching.how import How
from dist_restore.planning.matching.numbers import pair_numbers, pair_numbers_below
from dist_restore.planning.matching.rows import Paired, Unclear, pair_rows
from dist_restore.planning.matching.view import View


class Walk:
    """The pairs of objects that a walk finds.

    Attributes:
      pairs: node of the program -> node of the checkpoint, and what that rests on.
      unclear: variables of the program -> what was unclear on the way to them.
    """

    def __init__(self, mine: View, other: View, pins: Mapping[int, int]) -> None:
        """Prepares a walk.

        Args:
          mine: the program.
          other: the checkpoint.
          pins: variable of the program -> the one that rules fill it from.
        """
        self._mine, self._other, self._pins = mine, other, pins
        self.pairs: dict[int, tuple[int, How]] = {}
        self._taken: dict[int, int] = {}
        self.unclear: dict[int, Unclear] = {}
        # What edges lead to on the other side for a node that has a partner already, over another edge.
        self._others: list[tuple[int, int]] = []
        self._edges: collections.deque[tuple[int, int, How]] = collections.deque()
        self._rows: tuple[collections.deque[tuple[int, int, How]], ...] = tuple(collections.deque() for _ in How)

    def start(self, ours: int, theirs: int, how: How = How.CHOSEN) -> None:
        """Walks from two nodes that belong together."""
        known = ours in self.pairs
        self._edges.append((ours, theirs, how))
        while self._edges or any(self._rows):
            if self._edges:
                self._visit(*self._edges.popleft())
            else:
                self._row(*next(row for row in self._rows if row).popleft())
        for one, another in self._others if not known else ():
            self._part(one, another)
        self._others.clear()
        self.unclear = {v: u for v, u in self.unclear.items() if v not in self.pairs}

    def _visit(self, ours: int, theirs: int, how: How) -> None:
        if (ours in self.pairs and ours) or (theirs in self._taken and theirs):
            if ours in self.pairs and theirs not in self._taken:
                self._others.append((ours, theirs))
            return  # a root may be walked from again, under another name
        self.pairs[ours], self._taken[theirs] = (theirs, how), ours
        members = self._mine.members(ours, self._other.rows[theirs])
        if members and self._other.rows[theirs]:
            # Optimizers last: what they train tells them apart, once that is known.
            queue = How.ORDER if all(map(self._mine.is_optimizer, members)) else how
            self._rows[queue].append((ours, theirs, how))
            return
        others = {label: (child, how) for label, child in self._other.kids[theirs]}
        if self._other.by_layer:
            self._edges += [
                (a, b, max(how, own)) for a, b, own in pair_numbers_below(self._mine, self._other, ours, theirs)
            ]
            pairs = pair_numbers(self._mine, self._other, ours, theirs)
            others |= {label: (child, max(how, own)) for label, child, own in pairs}
        self._edges += [(c, *others[label]) for label, c in self._mine.kids[ours] if label in others]

    def _part(self, ours: int, other: int) -> None:
        """Parts what has become one object of two of the checkpoint: which of them it is, nothing says."""
        theirs = {*self._other.variables(other)}
        if ours not in self.pairs or not theirs:
            return
        partner = self.pairs[ours][0]
        found = Unclear((ours,), (partner, other), "two objects of the checkpoint are one in the program")
        mine = [v for v in self._mine.variables(ours) if v in self.pairs and self.pairs[v][0] not in theirs]
        for variable in mine if theirs - self._taken.keys() else ():
            del self.pairs[variable]
            self.unclear[variable] = found

    def _row(self, ours: int, theirs: int, how: How) -> None:
        members = [m for m in self._mine.members(ours, self._other.rows[theirs]) if m not in self.pairs]
        others = [m for m in self._other.rows[theirs] if m not in self._taken]
        pinned = dict(self._pinned(members, others))
        self._edges += [(m, o, how) for m, o in pinned.items()]
        members = [m for m in members if m not in pinned]
        others = [o for o in others if o not in pinned.values()]
        trained = dict(self._by_what_they_train(members, others))
        self._edges += [(m, o, max(how, own)) for m, (o, own) in trained.items()]
        for found in pair_rows(self._mine, self._other, members, others) if not trained else ():
            if isinstance(found, Paired):
                self._edges.append((found.ours, found.theirs, max(how, found.how)))
            else:
                below = (v for m in found.ours for v in self._mine.variables(m))
                self.unclear.update((v, found) for v in below)

    def _pinned(self, members: Iterable[int], others: Iterable[int]) -> Iterable[tuple[int, int]]:
        """Members of which rules have paired a variable."""
        if not self._pins:
            return
        homes = {v: o for o in others for v in self._other.all_variables(o)}
        taken: set[int] = set()
        for member in members:
            found = {homes[self._pins[v]] for v in self._mine.all_variables(member) if self._pins.get(v) in homes}
            if len(found) == 1 and not found & taken:
                taken |= found
                yield member, found.pop()

    def _by_what_they_train(self, members: Sequence[int], others: Sequence[int]) -> Mapping[int, tuple[int, How]]:
        """Optimizers that have slots for the same variables; none unless that tells each of them."""
        if not members or not all(map(self._mine.is_optimizer, members)):
            return {}
        theirs = {self._other.owners(o): o for o in others}
        found: dict[int, tuple[int, How]] = {}
        for member in members:
            pairs = [self.pairs.get(v, (-1, How.ORDER)) for v in self._mine.owners(member)]
            partner = theirs.get(frozenset(node for node, _ in pairs)) if pairs else None
            if partner is not None:
                found[member] = partner, max(how for _, how in pairs)
        return found if len({o for o, _ in found.values()}) == len(members) == len(others) else {}
