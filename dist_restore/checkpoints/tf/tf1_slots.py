"""Slots in a name-based checkpoint of TF1: `dense/kernel/Adam_1` is Adam's second slot of `dense/kernel`.

Such a name is proof only together with its owner: a tensor of the same checkpoint, of the same shape, with as many
slots as the class makes. Whatever is not proved stays a tensor like others. Names are the file's own.
"""

from __future__ import annotations

import collections
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from dist_restore.core.index import Alias, AliasKind, OptimizerInfo, Slot, SourceTensor
from dist_restore.naming.slot_roles import SHADOWS, family_of_tf1_slot, roles_of_tf1_slots

_COUNTER = re.compile(r"_([1-9][0-9]{0,3})\Z")
_STEP = "global_step"
# One for each optimizer that has been applied; the name of the class does not tell two of a class apart.
_POWER = re.compile(r"beta1_power(?:_\d+)?\Z")


class _Found(NamedTuple):
    """A tensor that is called like a slot: of what (if it is one), by which word, with which number."""

    tensor: SourceTensor
    head: str
    word: str
    number: int


def with_slots(tensors: Iterable[SourceTensor]) -> tuple[tuple[SourceTensor, ...], tuple[OptimizerInfo, ...]]:
    """The tensors, slots marked as such, and the optimizers that they belong to.

    An optimizer is called by the word that its slots carry, after the scope that it was made in: `Adam`, `train/Adam`.
    """
    table = {t.name: t for t in tensors}
    found = [f for f in map(_read, table.values()) if f is not None]
    scopes = _scopes(found, table)
    groups: dict[tuple[str, str], list[_Found]] = collections.defaultdict(list)
    for item in found:
        owner, scope = _owner(item, table, scopes)
        if owner is not None and owner.spec.shape == item.tensor.spec.shape:
            groups[owner.name, _optimizer(scope, item.word)].append(item)
    slots = [s for (owner, name), members in groups.items() for s in _mark(owner, name, members)]
    optimizers = _describe(slots)
    table.update((t.name, t) for t in slots)
    table.update((t.name, t) for t in _counted_steps(table, optimizers))
    return tuple(table.values()), optimizers


def _read(tensor: SourceTensor) -> _Found | None:
    head, _, last = tensor.name.rpartition("/")
    counter = _COUNTER.search(last)
    word = last[: counter.start()] if counter else last
    if not head or family_of_tf1_slot(word) is None:
        return None
    return _Found(tensor, head, word, int(counter.group(1)) if counter else 0)


def _scopes(found: Sequence[_Found], table: Mapping[str, SourceTensor]) -> Mapping[str, str]:
    """Word -> the scope in which the optimizer was made, where one fits all slots that have no owner without it."""
    common: dict[str, set[str]] = {}
    for item in found:
        if item.head not in table:
            here = {scope for scope, rest in _cuts(item.head) if rest in table}
            common[item.word] = common.get(item.word, here) & here
    return {word: scopes.pop() for word, scopes in common.items() if len(scopes) == 1}


def _cuts(head: str) -> Iterable[tuple[str, str]]:
    parts = head.split("/")
    return (("/".join(parts[:i]), "/".join(parts[i:])) for i in range(1, min(len(parts), 9)))


def _owner(
    item: _Found, table: Mapping[str, SourceTensor], scopes: Mapping[str, str]
) -> tuple[SourceTensor | None, str]:
    if item.head in table:
        return table[item.head], ""
    scope = scopes.get(item.word, "")
    return (table.get(item.head[len(scope) + 1 :]), scope) if scope else (None, "")


def _optimizer(scope: str, word: str) -> str:
    name = "AdamWeightDecayOptimizer" if word in ("adam_m", "adam_v") else word
    return f"{scope}/{name}" if scope else name


def _mark(owner: str, optimizer: str, members: Sequence[_Found]) -> Iterable[SourceTensor]:
    """The slots of one variable; none where their number is not that of one optimizer of this class."""
    words: dict[str, list[_Found]] = collections.defaultdict(list)
    for member in members:
        words[member.word].append(member)
    for word, slots in words.items():
        slots.sort(key=lambda s: s.number)
        roles = roles_of_tf1_slots(word, len(slots))
        if [s.number for s in slots] == list(range(len(roles))):
            for slot, role in zip(slots, roles, strict=True):
                yield msgspec.structs.replace(slot.tensor, slot=Slot(role, owner, optimizer))


def _describe(slots: Iterable[SourceTensor]) -> tuple[OptimizerInfo, ...]:
    roles: dict[str, set[str]] = collections.defaultdict(set)
    families: dict[str, str] = {}
    for tensor in slots:
        assert tensor.slot is not None
        word = _COUNTER.sub("", tensor.name.rpartition("/")[2])
        families[tensor.slot.optimizer] = family_of_tf1_slot(word) or ""
        roles[tensor.slot.optimizer].add(tensor.slot.role)
    return tuple(
        OptimizerInfo(name, families[name], name.rpartition("/")[2], tuple(sorted(roles[name])))
        for name in sorted(roles)
    )


def _counted_steps(table: Mapping[str, SourceTensor], optimizers: Sequence[OptimizerInfo]) -> Iterable[SourceTensor]:
    """`global_step` as the iterations of the only optimizer; with several, nobody knows whose updates it counts."""
    step = table.get(_STEP)
    own = [o.name for o in optimizers if o.family != SHADOWS]
    powers = sum(1 for name in table if _POWER.match(name.rpartition("/")[2]))
    if step is not None and step.spec.shape == () and len(own) == 1 and powers <= 1:
        name = Alias(f"{own[0]}/iterations", AliasKind.POSITIONAL)
        yield msgspec.structs.replace(step, aliases=(*step.aliases, name))
