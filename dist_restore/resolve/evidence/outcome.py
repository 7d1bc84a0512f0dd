"""What evidence says of a target: a source and what it rests on, or why none was taken."""

from __future__ import annotations

import dataclasses
from typing import TypeAlias

import msgspec

from dist_restore.entries import Proof
from dist_restore.specs import SourceTensor


class Match(msgspec.Struct, frozen=True, gc=False):
    """A source for a target, and what it rests on.

    Attributes:
      source: the tensor.
      evidence: what it rests on, in words.
      proof: which kind of evidence that is.
      name: the name that both sides have, where it rests on one.
    """

    source: SourceTensor
    evidence: str
    proof: Proof = Proof.NAME
    name: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Conflict:
    """Why a target got no source although there are candidates."""

    candidates: tuple[SourceTensor, ...]
    reason: str


Outcome: TypeAlias = Match | Conflict
