"""The rows of a plan, and how they are counted.

A `PlanEntry` says what one target variable gets; `Coverage` adds the entries up. Pure values.
"""

from __future__ import annotations

import collections
import dataclasses
import enum
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgspec

from dist_restore.core.index import Group
from dist_restore.core.tensors import TensorSpec
from dist_restore.ops import Op


class Status(str, enum.Enum):
    """What becomes of a target.

    Attributes:
      EXACT: filled from the source of the same name, as it is (but for a cast that loses nothing).
      RENAMED: filled as it is from a source of another name.
      TRANSFORMED: all of its elements come from sources, through ops.
      RESIZED: only some of its elements come from sources.
      KEPT: allowed to keep its present value.
      UNMATCHED: nothing fills it; a restore is refused.
      AMBIGUOUS: more than one source would do; a restore is refused.
    """

    EXACT = "exact"
    RENAMED = "renamed"
    TRANSFORMED = "transformed"
    RESIZED = "resized"
    KEPT = "kept"
    UNMATCHED = "unmatched"
    AMBIGUOUS = "ambiguous"


FILLED = (Status.EXACT, Status.RENAMED, Status.TRANSFORMED, Status.RESIZED)


class Problem(str, enum.Enum):
    """Why an entry makes `restore()` refuse; each has its own error class."""

    NONE = ""
    UNMATCHED = "unmatched"
    AMBIGUOUS = "ambiguous"
    SHAPE = "shape"
    DTYPE = "dtype"


class Proof(str, enum.Enum):
    """What a filled entry rests on.

    Attributes:
      NONE: nothing fills the target.
      RULE: a rule says so.
      NAME: names that somebody chose are equal.
      STRUCTURE: no name says otherwise, and what is left on both sides is one thing, built alike.
      OUTPUTS: the outputs of the old model.
      ORDER: only a place in an order; no proof.
    """

    NONE = ""
    RULE = "rule"
    NAME = "name"
    STRUCTURE = "structure"
    OUTPUTS = "outputs"
    ORDER = "order"


class PlanEntry(msgspec.Struct, frozen=True, gc=False):
    """What one target variable gets.

    Attributes:
      target: canonical name of the target.
      sources: canonical names of the source tensors, in the order in which the ops take them.
      ops: the ops, bound to this target, in the order of application.
      status: what becomes of the target.
      evidence: what decided it, such as `rule 2` or `equal names`.
      reason: one sentence for people.
      bytes: size of the target variable in bytes.
      spec: shape and dtype of the target.
      source_specs: shape and dtype of each source, as stored.
      group: what the target is part of.
      elements: how many of the target's elements come from the sources.
      problem: why a restore is refused; `Problem.NONE` when it is not.
      candidates: nearest source names, best first, when there is a problem.
      unchecked: source names of which only a part is read, so that no checksum covers it.
      proof: what kind of evidence the entry rests on; `Proof.ORDER` is none.
    """

    target: str
    sources: tuple[str, ...]
    ops: tuple[Op, ...]
    status: Status
    evidence: str
    reason: str
    bytes: int
    spec: TensorSpec = TensorSpec((), "float32")
    source_specs: tuple[TensorSpec, ...] = ()
    group: Group = Group.OTHER
    elements: int = 0
    problem: Problem = Problem.NONE
    candidates: tuple[str, ...] = ()
    unchecked: tuple[str, ...] = ()
    proof: Proof = Proof.NONE

    @property
    def filled(self) -> bool:
        """Whether the target gets a value from the checkpoint."""
        return self.status in FILLED


# A plan has one for each variable, and a struct is made five times faster than a dataclass. For users it stays one:
# `dataclasses.replace`, `fields` and `asdict` take it.
PlanEntry.__dataclass_fields__ = dataclasses.make_dataclass(  # type: ignore[attr-defined]
    "PlanEntry", PlanEntry.__struct_fields__
).__dataclass_fields__


class Unused(NamedTuple):
    """A source tensor that nothing used, and why."""

    name: str
    reason: str


class Use(NamedTuple):
    """What became of one of several checkpoints.

    Attributes:
      name: in the mapping.
      path: as it was resolved.
      used: how many of its tensors fill targets.
      unused: how many do not.
    """

    name: str
    path: str
    used: int
    unused: int


@dataclasses.dataclass(frozen=True, slots=True)
class Tally:
    """A count of targets: how many variables, how many elements, how many bytes."""

    variables: int = 0
    elements: int = 0
    bytes: int = 0

    def __add__(self, other: Tally) -> Tally:
        return Tally(self.variables + other.variables, self.elements + other.elements, self.bytes + other.bytes)


@dataclasses.dataclass(frozen=True, slots=True)
class CoverageRow:
    """The tally of one group's targets that have one status; `filled` counts what sources fill of them."""

    group: Group
    status: Status
    total: Tally
    filled: Tally


@dataclasses.dataclass(frozen=True, slots=True)
class Coverage:
    """How much of the targets the checkpoint fills: by status, by group, and as fractions."""

    rows: tuple[CoverageRow, ...]

    @staticmethod
    def of(entries: Iterable[PlanEntry]) -> Coverage:
        """Counts the entries of a plan."""
        members: dict[tuple[Group, Status], list[PlanEntry]] = collections.defaultdict(list)
        for entry in entries:
            members[entry.group, entry.status].append(entry)
        return Coverage(tuple(_row(*key, members[key]) for key in sorted(members)))

    def total(self, *, group: Group | None = None, status: Status | None = None) -> Tally:
        """All targets, or those of one group, one status or both."""
        return sum((r.total for r in self._select(group, status)), Tally())

    def filled(self, *, group: Group | None = None, status: Status | None = None) -> Tally:
        """What sources fill of the same targets."""
        return sum((r.filled for r in self._select(group, status)), Tally())

    @property
    def groups(self) -> tuple[Group, ...]:
        """The groups that have targets."""
        return tuple(g for g in Group if any(r.group is g for r in self.rows))

    @property
    def statuses(self) -> tuple[Status, ...]:
        """The statuses that occur."""
        return tuple(s for s in Status if any(r.status is s for r in self.rows))

    @property
    def variables(self) -> float:
        """Fraction of the variables that are filled, 0 to 1."""
        return _fraction(self.filled().variables, self.total().variables)

    @property
    def elements(self) -> float:
        """Fraction of the elements that are filled, 0 to 1."""
        return _fraction(self.filled().elements, self.total().elements)

    @property
    def bytes(self) -> float:
        """Fraction of the bytes that are filled, 0 to 1."""
        return _fraction(self.filled().bytes, self.total().bytes)

    def _select(self, group: Group | None, status: Status | None) -> list[CoverageRow]:
        rows = (r for r in self.rows if group is None or r.group is group)
        return [r for r in rows if status is None or r.status is status]


def _row(group: Group, status: Status, entries: Sequence[PlanEntry]) -> CoverageRow:
    count = len(entries)
    total = Tally(count, sum(e.spec.elements for e in entries), sum(e.bytes for e in entries))
    if status not in FILLED:
        return CoverageRow(group, status, total, Tally())
    filled = Tally(count, sum(e.elements for e in entries), sum(map(filled_bytes, entries)))
    return CoverageRow(group, status, total, filled)


def filled_bytes(entry: PlanEntry) -> int:
    """How many of a target's bytes come from sources."""
    if not entry.filled:
        return 0
    if entry.elements == entry.spec.elements:  # nearly always
        return entry.bytes
    return round(entry.bytes * _fraction(entry.elements, entry.spec.elements))


def _fraction(part: int, whole: int) -> float:
    return part / whole if whole else 1.0
