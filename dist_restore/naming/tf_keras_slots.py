"""tf_keras's (Keras 2) optimizers in an object graph: which of their variables is which slot of which variable.

A Keras 3 optimizer lists its owners beside its slots; one of tf_keras does not, and numbers from 1 instead of 2. What
is left are the slots' own names, `Adam/m/dense/kernel`: the optimizer's name (absent where `build` was called by the
user), a word for the role, and the owner's name. A list is read only where one reading of all its names holds. Pure.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from dist_restore.naming.slot_roles import family_of, is_word_of, role_of_edge, role_of_slot

# Lists of an optimizer without a name of its own -> its class, where only one class keeps just these. Those of Adam
# mean the same in AdamW. `momentums` alone is SGD's as well as Lion's.
_SIGNATURES = {
    frozenset({"momentum", "velocity"}): "adam",
    frozenset({"momentum", "velocity", "velocity_hat"}): "adam",
    frozenset({"m", "u"}): "adamax",
    frozenset({"accumulator"}): "adagrad",
    frozenset({"accumulator", "linear"}): "ftrl",
    frozenset({"accumulated_grad", "accumulated_delta_var"}): "adadelta",
}
# The attributes by which an optimizer of the new style (2.11 on) is known, and a legacy one.
NEW_STYLE = frozenset({"_variables", "_iterations"})
_LEGACY = frozenset({"iter", "learning_rate", "decay"})


class State(NamedTuple):
    """One variable of an optimizer: its place in a list, its node, its full name, and the shape of one in parts."""

    position: int
    node: int
    full_name: str
    parts_of: tuple[int, ...] | None = None


class Owners(NamedTuple):
    """What an optimizer might train.

    Attributes:
      names: full name -> node, of all variables that have a name of their own.
      sharded: shape -> node, of the variables that are stored in parts, where only one has the shape: slots of these
        are all called `ShardedVariable`.
    """

    names: Mapping[str, int]
    sharded: Mapping[tuple[int, ...], int]


class Reading(NamedTuple):
    """What an optimizer's variables are.

    Attributes:
      label: the optimizer's own name; empty where its variables carry none.
      family: lower-case class name; empty where nothing gives it away.
      slots: (role, node of the owner, node of the slot).
    """

    label: str
    family: str
    slots: tuple[tuple[str, int, int], ...]


class _List(NamedTuple):
    """A list of slots that was read: its role, the optimizer's name, and (position, owner, slot)."""

    role: str
    label: str
    members: tuple[tuple[int, int, int], ...]


_NOTHING = Reading("", "", ())
# What tf_keras 2.21 calls every slot of a variable in parts.
_SHARDED = "ShardedVariable"


def is_legacy(edges: Iterable[str]) -> bool:
    """Whether these are the attributes of an optimizer of Keras 2 before 2.11."""
    return _LEGACY.issubset(edges)


def read_slots(lists: Mapping[str, Sequence[State]], state: Sequence[State], owners: Owners) -> Reading:
    """Reads the slots of one optimizer.

    Args:
      lists: attribute name -> its variables, for the lists that hold state (`_momentums`).
      state: all variables of the optimizer, for one whose lists were not saved: tf_keras remembers what an optimizer
        consists of when it is first asked, which may be before it is built.
      owners: all variables that might be trained.

    Returns:
      Nothing, where the names have several readings or contradict each other.
    """
    by_edge = [(role_of_edge(edge), members) for edge, members in lists.items() if members]
    found = [_read_list(role, members, owners) for role, members in by_edge or _by_words(state)]
    good = [item for item in found if item is not None]
    labels = {item.label for item in good}
    if not good or len(good) < len(found) or len(labels) > 1 or not _agree(good):
        return _NOTHING
    label = labels.pop()
    family = family_of(label) if label else _SIGNATURES.get(frozenset(i.role for i in good if i.role != "average"), "")
    return Reading(label, family, tuple((i.role, owner, slot) for i in good for _, owner, slot in i.members))


def label_of(slot: str, owner: str) -> str:
    """The optimizer's name in a slot's full name: before the word in `Adam/m/a/w`, before the owner in `Adam/a/w/m`."""
    if slot.endswith(f"/{owner}"):
        return _label(slot.removesuffix(f"/{owner}").split("/"))
    head, middle, _ = slot.rpartition(f"{owner}/")
    return head.rstrip("/").rpartition("/")[2] if middle else ""


def _label(prefix: Sequence[str]) -> str:
    return prefix[-2] if len(prefix) > 1 else ""


def _by_words(state: Sequence[State]) -> Iterable[tuple[str, Sequence[State]]]:
    """Slots of an optimizer that has a name, by its role's word: `Adam/m/a/kernel`."""
    groups: dict[tuple[str, str], list[State]] = collections.defaultdict(list)
    for item in state:
        parts = item.full_name.split("/")
        if len(parts) > 2 and family_of(parts[0]):
            groups[parts[0], parts[1]].append(item)
    for (label, word), members in groups.items():
        # In the order of the variables, so that equal places mean equal owners, as in the lists that are missing.
        yield role_of_slot(word, family_of(label)), [m._replace(position=i) for i, m in enumerate(members)]


def _read_list(role: str, members: Sequence[State], owners: Owners) -> _List | None:
    """The one reading of a list: of what has names by these, and of what is in parts by its shape."""
    named = [m for m in members if m.full_name != _SHARDED]
    read = _read_names(role, named, owners.names) if named else _List(role, "", ())
    parts = [(m, owners.sharded.get(m.parts_of or ())) for m in members if m.full_name == _SHARDED]
    found = tuple((m.position, owner, m.node) for m, owner in parts if owner is not None)
    if read is None or len(found) < len(parts):
        return None
    whole = (*read.members, *found)
    return read._replace(members=whole) if len({owner for _, owner, _ in whole}) == len(whole) else None


def _read_names(role: str, members: Sequence[State], owners: Mapping[str, int]) -> _List | None:
    """The one reading of names: a common prefix, and behind it each time an owner."""
    first = members[0].full_name.split("/")
    prefixes = [first[:size] for size in range(1, len(first)) if _all_owned("/".join(first[:size]), members, owners)]
    if len(prefixes) > 1:
        prefixes = [p for p in prefixes if is_word_of(p[-1], role)]
    if len(prefixes) != 1:
        return None
    start = len("/".join(prefixes[0])) + 1
    read = tuple((m.position, owners[m.full_name[start:]], m.node) for m in members)
    return _List(role, _label(prefixes[0]), read)


def _all_owned(prefix: str, members: Iterable[State], owners: Mapping[str, int]) -> bool:
    return all(m.full_name.startswith(f"{prefix}/") and m.full_name[len(prefix) + 1 :] in owners for m in members)


def _agree(lists: Iterable[_List]) -> bool:
    """Whether equal places have equal owners, in all lists."""
    places: dict[int, int] = {}
    return all(places.setdefault(position, owner) == owner for item in lists for position, owner, _ in item.members)
