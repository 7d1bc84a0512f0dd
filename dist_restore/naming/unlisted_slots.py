"""Slots of Keras 3 whose lists do not say whose they are: they are not shown (up to Keras 3.9), or have some only.

TensorFlow sees these lists empty, and all state in one list, `_variables`. A slot's name says whose it is and what:
`adam/net_stem_kernel_momentum`. Slots of one role are in the order of what the optimizer trains. Pure.
"""

from __future__ import annotations

import collections
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from dist_restore.core.graph import Node
from dist_restore.naming.keras_containers import VARIABLE_LISTS
from dist_restore.naming.slot_roles import ENDINGS, role_of_edge

_Named = tuple[int, str]

_ENDINGS_OF_ADAMAX = {"momentum": "m", "norm": "u"}
# Muon calls two things momentum, and keeps them for different variables: nothing is told by such names.
_OF_MUON = "adam_velocities"


def unlisted_slots(
    nodes: Sequence[Node], index: int, listed: Iterable[tuple[str, int, int]]
) -> Iterator[tuple[str, int, int]]:
    """(role, owner, slot) of the slots of one optimizer of Keras 3 whose lists are empty.

    Args:
      nodes: the object graph.
      index: the optimizer.
      listed: the slots that lists show, likewise.
    """
    edges = dict(nodes[index].edges)
    lists = (edge for edge, child in edges.items() if not nodes[child].edges and nodes[child].leaf is None)
    roles = {role_of_edge(edge) for edge in lists if edge not in VARIABLE_LISTS}
    if not roles or _OF_MUON in edges:
        return
    own = {*edges.values(), *(slot for _, _, slot in listed)}
    state = [child for _, child in _in_order(nodes, edges["_variables"]) if child not in own]
    special = ENDINGS | (_ENDINGS_OF_ADAMAX if {"m", "u"} <= roles else {})
    endings = {**{role: role for role in roles}, **{end: role for end, role in special.items() if role in roles}}
    owners = [(child, _name(nodes, child)) for _, child in _in_order(nodes, edges["_trainable_variables"])]
    by_role = _by_role([(slot, _name(nodes, slot).partition("/")[2]) for slot in state], endings)
    complete = {role: slots for role, slots in by_role.items() if _is_one_for_each(slots, owners)}
    called = [(owner, flat) for slots in complete.values() for (owner, _), (_, flat) in zip(owners, slots, strict=True)]
    for role, slots in by_role.items():
        pairs = zip(owners, slots, strict=True) if role in complete else _by_name(slots, owners, called)
        yield from ((role, owner, slot) for (owner, _), (slot, _) in pairs)


def owners_in_list(nodes: Sequence[Node], container: int, owners: Mapping[str, int]) -> Mapping[str, int]:
    """Place in one list of slots -> the slot's owner.

    Args:
      nodes: the object graph.
      container: the list.
      owners: place in the list of what is trained -> owner; places are equal where there is a slot for each.
    """
    if not nodes[container].edges:
        return owners  # counters and rates are edges too
    slots = {place: f"{_name(nodes, slot).partition('/')[2]}_" for place, slot in nodes[container].edges}
    # Where a list has None for an owner, the others keep their places.
    some = 0 < len(slots) < len(owners) and slots.keys() == {str(n) for n in range(len(slots))}
    flat = {place: f"{_name(nodes, owner).replace('/', '_')}_" for place, owner in owners.items()}
    if not some and all([place not in flat or slot.startswith(flat[place]) for place, slot in slots.items()]):
        return owners
    known = _single([(owner, flat[place]) for place, owner in owners.items()])
    found = {place: known[name] for place, slot in slots.items() if (name := _longest_start(slot, known))}
    told = len(found) == len(slots) == len({*found.values()})
    return found if some or told else owners


def _longest_start(slot: str, owners: Collection[str]) -> str:
    """The longest of the names that a slot's begins with: `stem_kernel_` of `stem_kernel_momentum_`."""
    ends = [place for place, letter in enumerate(slot, 1) if letter == "_"]
    return next((slot[:end] for end in reversed(ends) if slot[:end] in owners), "")


def _is_one_for_each(slots: Sequence[_Named], owners: Sequence[_Named]) -> bool:
    """Whether there is a slot for each owner, in their order, and no name speaks against it."""
    flat = {name.replace("/", "_") for _, name in owners}
    return len(slots) == len(owners) and all([_fits(s, o, flat) for s, o in zip(slots, owners, strict=True)])


def _by_role(slots: Iterable[_Named], endings: Mapping[str, str]) -> dict[str, list[_Named]]:
    """Role -> its slots in their order, each with its owner's name without separators; empty where it has none."""
    found: dict[str, list[_Named]] = collections.defaultdict(list)
    longest_first = sorted(endings, key=len, reverse=True)
    for slot, name in slots:
        ending = next((e for e in longest_first if name == e or name.endswith(f"_{e}")), None)
        if ending is not None:
            found[endings[ending]].append((slot, name[: -len(ending)].removesuffix("_")))
    return found


def _fits(slot: _Named, owner: _Named, known: Collection[str]) -> bool:
    """Whether a slot may be an owner's: TensorFlow's name of that may lack scopes that Keras' has, but not its end."""
    flat, last = slot[1], owner[1].rpartition("/")[2]
    if flat in known:
        return flat == owner[1].replace("/", "_")
    # Of a variable of TensorFlow's own, Keras takes the name as it is: `scale:0`.
    return not flat or flat in (last, f"{last}_0") or flat.endswith((f"_{last}", f"_{last}_0"))


def _by_name(
    slots: Iterable[_Named], owners: Iterable[_Named], called: Iterable[_Named]
) -> Iterator[tuple[_Named, _Named]]:
    """Pairs of one name that no other has, for an optimizer may keep no slots for some.

    Args:
      slots: of one role.
      owners: by TensorFlow's names.
      called: owners, by what slots of other roles call them.
    """
    theirs = {*((owner, name.replace("/", "_")) for owner, name in owners), *called}
    ours, known = _single(slots), _single(theirs)
    yield from (((known[name], name), (ours[name], name)) for name in ours if name and name in known)


def _single(items: Iterable[_Named]) -> dict[str, int]:
    found: dict[str, list[int]] = collections.defaultdict(list)
    for index, name in items:
        found[name].append(index)
    return {name: own[0] for name, own in found.items() if len(own) == 1}


def _in_order(nodes: Sequence[Node], container: int) -> list[tuple[int, int]]:
    return sorted((int(name), child) for name, child in nodes[container].edges if name.isdecimal() and len(name) < 10)


def _name(nodes: Sequence[Node], index: int) -> str:
    leaf = nodes[index].leaf
    return leaf.full_name if leaf is not None else ""
