"""What workers tell each other about a restore, as values and as bytes. Pure."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping

from dist_restore.core.options import Reads
from dist_restore.planning.plan import RestorePlan


@dataclasses.dataclass(frozen=True, slots=True)
class Decision:
    """What the chief has decided.

    Attributes:
      path: of the checkpoint, or of several by name, as the chief resolved it.
      plan: made for it.
    """

    path: str | Mapping[str, str]
    plan: RestorePlan

    def pack(self) -> bytes:
        """As bytes."""
        path = self.path if isinstance(self.path, str) else dict(self.path)
        return json.dumps([path, self.plan.to_json()]).encode("ascii")

    @staticmethod
    def unpack(data: bytes) -> Decision:
        """The inverse of `pack`; raises `PlanMismatchError` where the plan does not fit its digest."""
        path, plan = json.loads(data)
        return Decision(path, RestorePlan.from_json(plan))


@dataclasses.dataclass(frozen=True, slots=True)
class Acknowledgement:
    """What one worker says of a decision.

    Attributes:
      digest: of the plan that it has.
      identity: of the checkpoint that it sees (see `Source.identity`); empty where it sees none.
      may_read: whether it may read instead of the chief: equal identities prove equal bytes, or it was told to.
      options: of its restorer, those that must be the same everywhere.
    """

    digest: str
    identity: str
    may_read: bool
    options: str

    def pack(self) -> bytes:
        """As bytes."""
        return json.dumps(dataclasses.astuple(self)).encode("ascii")

    @staticmethod
    def unpack(data: bytes) -> Acknowledgement:
        """The inverse of `pack`."""
        return Acknowledgement(*json.loads(data))


@dataclasses.dataclass(frozen=True, slots=True)
class Reading:
    """Who reads what.

    Attributes:
      mode: never `auto`.
      reason: why this one, in words.
      readers: ranks that read the files, ascending.
      order: numbers of the plan's units in file order, for those who do not see the files.
    """

    mode: Reads
    reason: str
    readers: tuple[int, ...]
    order: tuple[int, ...] = ()

    def pack(self) -> bytes:
        """As bytes."""
        return json.dumps([self.mode.value, self.reason, self.readers, self.order]).encode("ascii")

    @staticmethod
    def unpack(data: bytes) -> Reading:
        """The inverse of `pack`."""
        mode, reason, readers, order = json.loads(data)
        return Reading(Reads(mode), reason, tuple(readers), tuple(order))


@dataclasses.dataclass(frozen=True, slots=True)
class Measured:
    """What one worker has measured, for `auto`.

    Attributes:
      storage: bytes per second that it reads; 0 where unknown.
      local: whether its files are on a local file system.
    """

    storage: float
    local: bool

    def pack(self) -> bytes:
        """As bytes."""
        return json.dumps(dataclasses.astuple(self)).encode("ascii")

    @staticmethod
    def unpack(data: bytes) -> Measured:
        """The inverse of `pack`."""
        return Measured(*json.loads(data))
