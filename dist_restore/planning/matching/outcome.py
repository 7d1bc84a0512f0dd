"""What evidence says of a target: a source and what it rests on, or why none was taken."""

from __future__ import annotations

import dataclasses
from typing import TypeAlias

import msgspec

from dist_restore.core.index import SourceTensor
from dist_restore.planning.entries import Proof


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
    """Why a target got no source although there are candidates.

    Attributes:
      candidates: what could be meant, best first.
      reason: in words, without a full stop.
      of_indexes: whether only the indexes of a list are in doubt, so that the order of its members may still tell.
      of_roots: whether only the place of a root is in doubt, so that the object graph may still tell.
    """

    candidates: tuple[SourceTensor, ...]
    reason: str
    of_indexes: bool = False
    of_roots: bool = False


Outcome: TypeAlias = Match | Conflict
