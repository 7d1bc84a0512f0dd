"""Which `keep` rules to advise for slots that the checkpoint lacks: of these and of no others. Pure."""

from __future__ import annotations

import collections
from collections.abc import Collection, Container, Iterable, Iterator, Mapping

from dist_restore.core.index import TargetVariable


def keep_rules(
    lacking: Collection[str], variables: Iterable[TargetVariable], harmless: Container[str]
) -> Mapping[str, str]:
    """For each slot that has no source the widest pattern of its role that reaches only such slots.

    Args:
      lacking: names of the slots for which the checkpoint has nothing.
      variables: all live variables.
      harmless: names of others that a pattern may reach too: nothing could fill them.

    Returns:
      Slot -> `optimizer/momentum/{rest}` where the whole role is lacking, `optimizer/momentum/model/body/{rest}` where
      a part is, and its own name where no pattern would do.
    """
    others: collections.Counter[str] = collections.Counter()
    slots = {}
    for variable in variables:
        if variable.name in lacking:
            slots[variable.name] = variable
        elif variable.name not in harmless:
            others.update(prefix for name in _names(variable) for prefix in _prefixes(name))
    return {name: _widest(variable, others) for name, variable in slots.items()}


def _widest(variable: TargetVariable, others: Mapping[str, int]) -> str:
    slot = variable.slot
    assert slot is not None
    root = f"{slot.optimizer}/{slot.role}" if slot.optimizer else slot.role
    within = [p for p in _prefixes(variable.name) if p.startswith(f"{root}/") and p not in others]
    return f"{within[0]}{{rest}}" if within else variable.name


def _names(variable: TargetVariable) -> Iterator[str]:
    yield variable.name
    yield from (alias.name for alias in variable.aliases)


def _prefixes(name: str) -> Iterator[str]:
    """All that ends in a slash, shortest first."""
    yield from (name[: place + 1] for place, letter in enumerate(name) if letter == "/")
