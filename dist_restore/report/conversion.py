"""What a conversion wrote."""

from __future__ import annotations

import dataclasses

from dist_restore.core.text import human_bytes
from dist_restore.planning.entries import Status
from dist_restore.planning.plan import RestorePlan
from dist_restore.planning.row_families import collapse

_SHOWN = 10


@dataclasses.dataclass(frozen=True, slots=True)
class ConversionReport:
    """The plan that was carried out, and what it became.

    Attributes:
      plan: what went where.
      path: prefix of the new checkpoint.
      kept_is: whose value kept targets have, in words.
      copied: keys of state that is no variable's, copied from the same place.
      not_saved: kept targets that `tf.train.Checkpoint` never saves, and that are not in the new checkpoint either.
      bytes_written: size of the new files.
      seconds: how long it took.
    """

    plan: RestorePlan
    path: str
    kept_is: str
    copied: tuple[str, ...]
    not_saved: tuple[str, ...]
    bytes_written: int
    seconds: float

    @property
    def kept(self) -> tuple[str, ...]:
        """Targets that were written with a value that is not the source's."""
        left_out = set(self.not_saved)
        return tuple(e.target for e in self.plan.entries if e.status is Status.KEPT and e.target not in left_out)

    def summary(self) -> str:
        """The plan's table, what was kept, where it all is, and last what rests on order alone."""
        lines = [self.plan.table(), ""]
        for names, text in (
            (self.kept, f"kept, with the value {self.kept_is}"),
            (self.copied, f"no variables, copied with the value {self.kept_is}"),
            (self.not_saved, "never saved by tf.train.Checkpoint, and not written"),
        ):
            if names:
                lines.append(f"{len(names)} {text}: {_listed(names)}")
        lines.append(f"Written: {self.path} ({human_bytes(self.bytes_written)}) in {self.seconds:.2f} s")
        return "\n".join([*lines, *(["", self.plan.order_note] if self.plan.order_note else [])])


def _listed(names: tuple[str, ...]) -> str:
    shown = ", ".join(collapse([name]) for name in names[:_SHOWN])
    return f"{shown}, ..." if len(names) > _SHOWN else shown
