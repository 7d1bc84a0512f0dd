"""Slots that an optimizer of Keras 3 keeps in lists which its checkpoints do not show: up to Keras 3.9.

TensorFlow sees these lists empty, and all state in one list, `_variables`. A slot's name says whose it is and what:
`adam/net_stem_kernel_momentum`. Where two owners have one name, their order is that of what the optimizer trains. Pure.
"""

from __future__ import annotations

import collections
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from dist_restore.core.graph import Node
from dist_restore.naming.slot_roles import role_of_edge

# How names end that are not called as the list is.
_ENDINGS = {"gradient_accumulator": "accumulated_gradient"}
_ENDINGS_OF_ADAMAX = {"momentum": "m", "norm": "u"}


def unlisted_slots(nodes: Sequence[Node], index: int, listed: Collection[int]) -> Iterator[tuple[str, int, int]]:
    """(role, owner, slot) of the slots of one optimizer of Keras 3 whose lists are empty.

    Args:
      nodes: the object graph.
      index: the optimizer.
      listed: the slots that lists show.
    """
    edges = dict(nodes[index].edges)
    empty = [edge for edge, child in edges.items() if not nodes[child].edges and nodes[child].leaf is None]
    roles = {role_of_edge(edge) for edge in empty}
    own = {*edges.values(), *listed}
    state = [child for _, child in _in_order(nodes, edges["_variables"]) if child not in own] if roles else []
    if not state:
        return
    special = _ENDINGS | (_ENDINGS_OF_ADAMAX if {"m", "u"} <= roles else {})
    endings = {**{role: role for role in roles}, **{end: role for end, role in special.items() if role in roles}}
    owners = [child for _, child in _in_order(nodes, edges["_trainable_variables"])]
    yield from _paired([(slot, _own_name(nodes, slot)) for slot in state], _by_flat_name(nodes, owners), endings)


def _paired(
    slots: Iterable[tuple[int, str]], owners: Mapping[str, Sequence[int]], endings: Mapping[str, str]
) -> Iterator[tuple[str, int, int]]:
    found: dict[tuple[str, str], list[int]] = collections.defaultdict(list)
    shortest_first = sorted(endings, key=len)  # so that of two owners the one with the longer name is meant
    for slot, name in slots:
        for ending in shortest_first:
            flat = name.removesuffix(f"_{ending}")
            if (flat != name and flat in owners) or name == ending:
                found[flat if flat != name else "", endings[ending]].append(slot)
                break
    for (flat, role), own in found.items():
        if len(own) == len(owners[flat]):
            yield from ((role, owner, slot) for owner, slot in zip(owners[flat], own, strict=True))


def _by_flat_name(nodes: Sequence[Node], owners: Sequence[int]) -> Mapping[str, Sequence[int]]:
    """The owners by their names without separators; and all, for slots without their owner's name (Adagrad's)."""
    found: dict[str, list[int]] = collections.defaultdict(list, {"": list(owners)})
    for owner in owners:
        leaf = nodes[owner].leaf
        if leaf is not None and leaf.full_name:
            found[leaf.full_name.replace("/", "_")].append(owner)
    return found


def _in_order(nodes: Sequence[Node], container: int) -> list[tuple[int, int]]:
    return sorted((int(name), child) for name, child in nodes[container].edges if name.isdecimal() and len(name) < 10)


def _own_name(nodes: Sequence[Node], index: int) -> str:
    leaf = nodes[index].leaf
    return leaf.full_name.partition("/")[2] if leaf is not None else ""
