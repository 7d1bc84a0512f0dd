"""Rows: lists of layers, whose members have a place and perhaps a name.

A name that somebody chose decides. Members without one are told apart by their order, relative to members of the same
class: only where both sides have equally many, with equal variables one by one, and where every order that both sides
know (places, automatic counters, the optimizer's list) says the same.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterator, Sequence

from dist_restore.naming.automatic_names import Template
from dist_restore.planning.matching.how import How
from dist_restore.planning.matching.view import View


@dataclasses.dataclass(frozen=True, slots=True)
class Paired:
    """A member of the program's row and the one of the checkpoint's that belongs to it."""

    ours: int
    theirs: int
    how: How


@dataclasses.dataclass(frozen=True, slots=True)
class Unclear:
    """Members that could not be told apart, and why."""

    ours: tuple[int, ...]
    theirs: tuple[int, ...]
    reason: str


@dataclasses.dataclass(frozen=True, slots=True)
class _Group:
    """Members of one label on both sides."""

    label: str
    ours: tuple[int, ...]
    theirs: tuple[int, ...]


def pair_rows(mine: View, other: View, ours: Sequence[int], theirs: Sequence[int]) -> Iterator[Paired | Unclear]:
    """Pairs the members of two rows.

    Args:
      mine: the program.
      other: the checkpoint.
      ours: members of the program's row that have no partner yet, in order.
      theirs: likewise of the checkpoint's.
    """
    for group in _groups(mine, other, ours, theirs):
        if _is_chosen(group.label) and len(group.ours) == len(group.theirs) == 1:
            trouble = _slots_differ(mine, other, group)
            yield (
                Unclear(group.ours, group.theirs, trouble)
                if trouble
                else Paired(*group.ours, *group.theirs, How.CHOSEN)
            )
        else:
            yield from _pair_by_order(mine, other, group)


def _is_chosen(label: str) -> bool:
    """Whether a label says more than what Keras makes up."""
    return any(part and not part.endswith("{}") for part in label.split("/"))


def _groups(mine: View, other: View, ours: Sequence[int], theirs: Sequence[int]) -> list[_Group]:
    mine_by, theirs_by = _by_label(mine, ours), _by_label(other, theirs)
    groups = [_Group(k, tuple(mine_by[k]), tuple(theirs_by[k])) for k in mine_by if k and k in theirs_by]
    left = [m for k, members in mine_by.items() if not k or k not in theirs_by for m in members]
    rest = [m for k, members in theirs_by.items() if not k or k not in mine_by for m in members]
    names = {k for k in mine_by if k not in theirs_by} - {""}, {k for k in theirs_by if k not in mine_by} - {""}
    if names[0] and names[1]:
        # Both sides have names here, and these are not the same: what is without a name is compared by itself.
        groups += [_Group("", (m,), ()) for m in left if mine.label(m).text]
        left = [m for m in left if not mine.label(m).text]
        rest = [m for m in rest if not other.label(m).text]
    order = {m: i for i, m in enumerate(ours)}, {m: i for i, m in enumerate(theirs)}
    if mine.by_layer and all(map(mine.kind, left)) and all(map(other.kind, rest)):
        kinds = sorted({*map(mine.kind, left), *map(other.kind, rest)})
        return [*groups, *(_of_kind(mine, other, left, rest, kind) for kind in kinds)]
    return [
        *groups,
        _Group("", tuple(sorted(left, key=order[0].__getitem__)), tuple(sorted(rest, key=order[1].__getitem__))),
    ]


def _of_kind(mine: View, other: View, ours: Sequence[int], theirs: Sequence[int], kind: str) -> _Group:
    members = [m for m in ours if mine.kind(m) == kind], [m for m in theirs if other.kind(m) == kind]
    return _Group(f"{kind}{{}}", tuple(members[0]), tuple(members[1]))


def _by_label(view: View, members: Sequence[int]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = collections.defaultdict(list)
    for member in members:
        found[view.label(member).text].append(member)
    return dict(found)


def _pair_by_order(mine: View, other: View, group: _Group) -> Iterator[Paired | Unclear]:
    if not group.ours or not group.theirs:
        if group.ours:
            yield Unclear(group.ours, (), "the checkpoint has no layer of this name at this place")
        return
    if len(group.ours) != len(group.theirs):
        yield Unclear(group.ours, group.theirs, _counts(group))
        return
    sigs = [mine.signature(m) for m in group.ours], [other.signature(m) for m in group.theirs]
    if sigs[0] != sigs[1] and len(group.ours) > 1:
        yield Unclear(group.ours, group.theirs, f"{_only_order(group)}, and their shapes or variables differ")
        return
    twins = [sig for sig, count in collections.Counter(sigs[0]).items() if count > 1]
    troubles = (
        _names_missing(mine, other, group, _of(sigs[0], sig)) or _orders_differ(mine, other, group, _of(sigs[0], sig))
        for sig in twins
    )
    trouble = next(filter(None, troubles), "")
    trouble = f"{_only_order(group)}, and {trouble}" if trouble else _slots_differ(mine, other, group)
    if trouble:
        yield Unclear(group.ours, group.theirs, trouble)
        return
    # A member that no other one is like is order too: what took the place of another one may be built alike.
    yield from (Paired(ours, theirs, How.ORDER) for ours, theirs in zip(group.ours, group.theirs, strict=True))


def _slots_differ(mine: View, other: View, group: _Group) -> str:
    """Whether slots call a layer of the checkpoint otherwise than the program calls the one in its place."""
    for ours, theirs in zip(group.ours, group.theirs, strict=True):
        here, there = mine.called_by_slots(ours), other.called_by_slots(theirs)
        name = mine.layer_name(ours)
        if name and here and there and _ends_with(here, name) and not _ends_with(there, name):
            shown = name.replace("{}", ""), there.replace("{}", "")
            return (
                f"its layer is called {shown[0]!r}, and the checkpoint's slots call the one in its place {shown[1]!r}"
            )
    return ""


def _ends_with(text: str, name: str) -> bool:
    return f"_{text}".endswith(f"_{name}")


def _of(sigs: Sequence[int], sig: int) -> list[int]:
    return [i for i, own in enumerate(sigs) if own == sig]


def _counts(group: _Group) -> str:
    return (
        f"{_only_order(group)}: the model has {len(group.ours)} of this kind and the checkpoint {len(group.theirs)}, "
        "so one was added or removed"
    )


def _only_order(group: _Group) -> str:
    what = f"an automatic name ({group.label.replace('{}', '')})" if group.label else "no name"
    return f"its layer has {what}, so only the order could tell"


def _names_missing(mine: View, other: View, group: _Group, twins: Sequence[int]) -> str:
    """Where layers have names that somebody chose, but not in a file that has no order of their making either."""
    chosen = any(_is_chosen(mine.label(group.ours[i]).text) for i in twins)
    return "the file calls its layers by class and order only" if mine.by_layer and chosen else ""


def _orders_differ(mine: View, other: View, group: _Group, twins: Sequence[int]) -> str:
    """Why the orders that both sides know do not agree, for members that are equal in all else; empty if they do."""
    ours, theirs = [group.ours[i] for i in twins], [group.theirs[i] for i in twins]
    orders: tuple[tuple[str, Callable[[View, int], tuple[int, ...]]], ...] = (
        ("automatic names count", _counters),
        ("the optimizer's list has them", _place),
    )
    for text, rank in orders:
        ranks = [rank(mine, m) for m in ours], [rank(other, m) for m in theirs]
        if all(all(side) and len(set(side)) == len(side) for side in ranks) and _order(ranks[0]) != _order(ranks[1]):
            return f"{text} in another order than their places"
    return ""


def _order(ranks: Sequence[tuple[int, ...]]) -> list[int]:
    return sorted(range(len(ranks)), key=ranks.__getitem__)


def _counters(view: View, member: int) -> tuple[int, ...]:
    label: Template = view.label(member)
    return label.counters


def _place(view: View, member: int) -> tuple[int, ...]:
    found = [view.places[v] for v in view.variables(member) if v in view.places]
    return min(found) if found else ()
