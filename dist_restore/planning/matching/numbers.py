"""Variables that a file numbers within their layer.

Told by what their class calls them, by their shapes where each of these occurs once, or by the order in which the
program's layer would number its own.
"""

from __future__ import annotations

import collections
from collections.abc import Collection, Iterator, Mapping, Sequence

from dist_restore.naming.layer_variables import OF_KERAS_2, variable_names
from dist_restore.planning.matching.how import How
from dist_restore.planning.matching.view import View

# Either can be left out of a layer by an option, and what is left looks the same.
PAIR = frozenset({"gamma", "beta"})


def pair_numbers(mine: View, other: View, ours: int, theirs: int) -> Iterator[tuple[str, int, How]]:
    """(name of a variable in the program's layer, the one of the file's layer that it is, why), for numbered ones."""
    numbered = _numbered(other, theirs)
    named = {label: n for label, n in mine.kids[ours] if n in mine.shapes}
    kids = dict(other.kids[theirs])
    yield from ((x, kids[y], How.CHOSEN) for x, y in OF_KERAS_2.items() if x in named and x not in kids and y in kids)
    if not numbered or not _same_classes(mine, other, ours, theirs) or len(PAIR & named.keys()) == 1:
        return
    kind = "" if mine.is_own_class(ours) else mine.kind(ours)
    by_class = _by_class(kind, named, [(int(label[1:]), other.shapes[n]) for label, n in numbered.items()])
    if by_class:
        yield from ((name, numbered[f"#{number}"], How.CHOSEN) for number, name in enumerate(by_class))
        return
    left = {label: n for label, n in named.items() if label not in dict(other.kids[theirs])}
    by_shape = _single({label: mine.shapes[n] for label, n in left.items()})
    found = _single({label: other.shapes[n] for label, n in numbered.items()})
    if len(left) == len(numbered) and by_shape.keys() == found.keys() and len(found) == len(numbered):
        yield from ((by_shape[shape], numbered[label], How.CHOSEN) for shape, label in found.items())
        return
    yield from (
        (label, numbered[number], How.ORDER) for label, number in _by_own_order(mine, ours, left, numbered, other)
    )


def pair_numbers_below(mine: View, other: View, ours: int, theirs: int) -> Iterator[tuple[int, int, How]]:
    """(variable of the program's layer, the one of the file's that it is, why), for layers that hold lists of them.

    Such a layer is of a class of the user's: a file numbers its variables one after the other, wherever it holds them.
    """
    own = mine.numbered(ours)
    direct = {node for _, node in mine.kids[ours]}
    if direct.issuperset(own) or not _same_classes(mine, other, ours, theirs):
        return
    numbered = {int(label[1:]): node for label, node in _numbered(other, theirs).items()}
    shapes = {number: other.shapes[node] for number, node in numbered.items()}
    if {number: mine.shapes.get(node) for number, node in enumerate(own)} != shapes:
        return
    how = How.CHOSEN if len(set(shapes.values())) == len(shapes) else How.ORDER
    yield from ((node, numbered[number], how) for number, node in enumerate(own))


def _numbered(other: View, theirs: int) -> dict[str, int]:
    """`#3` -> the variable of that number in a file's layer."""
    return {x: n for x, n in other.kids[theirs] if x[:1] == "#" and x[1:].isdecimal() and n in other.shapes}


def _by_own_order(
    mine: View, ours: int, left: Mapping[str, int], numbered: Mapping[str, int], other: View
) -> list[tuple[str, str]]:
    """The program's layer numbers its variables as a file of it would: where these are the same numbers and shapes."""
    labels = {node: label for label, node in left.items()}
    own = {f"#{number}": node for number, node in enumerate(mine.numbered(ours)) if node in labels}
    if len(own) != len(left) or {n: mine.shapes[node] for n, node in own.items()} != {
        n: other.shapes[node] for n, node in numbered.items()
    }:
        return []
    return [(labels[node], number) for number, node in own.items()]


def _by_class(kind: str, named: Collection[str], numbered: Sequence[tuple[int, tuple[int, ...]]]) -> tuple[str, ...]:
    """The names that the class of the program's layer gives to the numbers; empty where it does not."""
    shapes = [shape for _, shape in sorted(numbered)]
    names = variable_names(kind, shapes) if [n for n, _ in sorted(numbered)] == [*range(len(numbered))] else None
    return names if names is not None and set(names) == set(named) else ()


def _same_classes(mine: View, other: View, ours: int, theirs: int) -> bool:
    kinds = mine.kind(ours), other.kind(theirs)
    return not all(kinds) or kinds[0] == kinds[1]


def _single(shapes: Mapping[str, tuple[int, ...]]) -> dict[tuple[int, ...], str]:
    """Shape -> the one label that has it."""
    counts = collections.Counter(shapes.values())
    return {shape: label for label, shape in shapes.items() if counts[shape] == 1}
