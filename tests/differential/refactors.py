"""What people do to programs. A refactor keeps the roles of what it does not replace: that is the truth."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Set

from changing import CHANGING
from preserving import PRESERVING
from programs import Program


@dataclasses.dataclass(frozen=True)
class Refactor:
    """A program and what became of it.

    Attributes:
      kind: of the change.
      old: the program that saved.
      new: the program that restores.
      preserving: whether the function stays the same.
      steps: the kinds of change that it consists of.
    """

    kind: str
    old: Program
    new: Program
    preserving: bool
    steps: tuple[str, ...] = ()


STRUCTURAL = set(CHANGING) - {"change optimizer", "add optimizer state"}
# A new name, for what might as well be another layer of the same shape, is for a person to declare.
DECLARED = {"rename layer", "rename attribute", "rename both", "rename terms", "nest", "unnest"}
# Where layers have no names of their own, these leave two readings of the file. TensorFlow takes one of them, which may
# be right; the other is right for another program of the same file, so that a refusal is what is wanted.
UNDECIDABLE = {
    "made lines": "places and counters of layers disagree, as where the calls were exchanged",
    "remove layer": "which of several equal ones is gone",
    "remove from list": "which of several equal ones is gone",
    "insert in list": "which of several equal ones is new",
    "toggle bias": "which of several equal ones is which",
    "move bias": "which of several equal ones is which",
    "one of two": "which of two models stays",
    "two of one": "which of two models was there",
}
ALL = {**PRESERVING, **CHANGING}


def random_refactor(rng: random.Random, program: Program) -> Refactor:
    """A random refactor that this program allows; now and then two or three at once."""
    first = _one(rng, program)
    steps = [first]
    for _ in range(rng.choice((0, 0, 0, 0, 0, 1, 1, 2)) if first.kind != "identity" else 0):
        # One layer gone and one come, unnamed, would be what no file can show.
        changed = any(step.kind in STRUCTURAL for step in steps)
        steps.append(_one(rng, steps[-1].new, besides={"identity"} | (STRUCTURAL if changed else set())))
    if len(steps) == 1:
        return first
    return Refactor("several", program, steps[-1].new, all(s.preserving for s in steps), tuple(s.kind for s in steps))


def _one(rng: random.Random, program: Program, besides: Set[str] = frozenset()) -> Refactor:
    kinds, weights = list(ALL), [weight for _, weight in ALL.values()]
    while True:
        kind = rng.choices(kinds, weights)[0]
        refactor = refactored(rng, program, kind) if kind not in besides else None
        if refactor is not None:
            return refactor


def refactored(rng: random.Random, program: Program, kind: str) -> Refactor | None:
    """A refactor of one kind; None where the program has nothing to which it could be done."""
    new = ALL[kind][0](rng, program)
    if new is None or (new == program and kind != "identity"):
        return None
    return Refactor(kind, program, new, kind in PRESERVING, (kind,))
