"""The outcome of a restore, as one frozen value: what was decided, what it took, and what was checked.

Knows the plan. Knows neither TensorFlow nor how the restore was carried out; it is the same on all workers.
"""

from __future__ import annotations

import dataclasses
import textwrap

from dist_restore.core.text import escape_text, human_bytes
from dist_restore.planning.entries import Coverage
from dist_restore.planning.plan import RestorePlan
from dist_restore.planning.row_families import collapse
from dist_restore.planning.summary import REASON_WIDTH
from dist_restore.report import json as encode

# What was compared beyond the checkpoint's checksums, in words, by the `verify` option.
_VERIFIED = {"checksum": "", "replicas": "every replica of every restored variable holds what was assigned"}
# Formats whose files hold checksums of the tensors, as `CheckpointIndex.format` calls them, and those that have none.
_WITH_CHECKSUMS = frozenset({"tf1", "tf2", "saved_model", "npz", "keras_archive"})
_WITHOUT_CHECKSUMS = {"safetensors": "safetensors", "keras_weights": ".weights.h5", "keras_h5": ".h5"}


@dataclasses.dataclass(frozen=True, slots=True)
class PhaseSeconds:
    """How long each phase took, in the order in which they ran.

    Attributes:
      phases: `(name, seconds)`; a phase that ran twice is there twice.
    """

    phases: tuple[tuple[str, float], ...] = ()

    def __getitem__(self, phase: str) -> float:
        """Seconds of one phase; raises `KeyError`, with the phases that there are, for any other name."""
        seconds = dict(self.items())
        if phase not in seconds:
            raise KeyError(f"no phase {phase!r}; there are {', '.join(seconds) or 'none'}")
        return seconds[phase]

    def items(self) -> tuple[tuple[str, float], ...]:
        """`(name, seconds)` with each name once: what ran twice is added up."""
        seconds: dict[str, float] = {}
        for name, taken in self.phases:
            seconds[name] = seconds.get(name, 0.0) + taken
        return tuple(seconds.items())

    @property
    def total(self) -> float:
        """Seconds of all phases."""
        return sum((taken for _, taken in self.phases), 0.0)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RestoreReport:
    """What `restore()` did.

    Attributes:
      plan: what was decided; the restore did just that.
      seconds: how long each phase took, on the chief.
      bytes_read: from storage, one number per worker.
      verified: what was asked for was checked, and found right; `False` when nothing was asked for.
      reads: which workers read the files: the mode that was chosen.
      reads_reason: why that mode.
      verify: the option: `none`, `checksum` or `replicas`.
      hashes: `(variable, hex digest)` of what was assigned, sorted; empty when nothing was hashed.
      world_size: number of workers.
      formats: of the checkpoints, as their indexes call them.
    """

    plan: RestorePlan
    seconds: PhaseSeconds = PhaseSeconds()
    bytes_read: tuple[int, ...] = ()
    verified: bool = False
    reads: str = ""
    reads_reason: str = ""
    verify: str = "none"
    hashes: tuple[tuple[str, str], ...] = ()
    world_size: int = 1
    formats: tuple[str, ...] = ()

    @property
    def coverage(self) -> Coverage:
        """How much of the targets the checkpoint filled."""
        return self.plan.coverage

    @property
    def unchecked(self) -> tuple[str, ...]:
        """Source tensors that were read in part only, so that no checksum covers them; sorted."""
        return tuple(sorted({name for entry in self.plan.entries for name in entry.unchecked}))

    def to_json(self) -> str:
        """Canonical JSON with a schema version: all of this report, the whole plan included."""
        return encode.encode(
            self.plan,
            {
                "seconds": [[name, taken] for name, taken in self.seconds.phases],
                "bytes_read": list(self.bytes_read),
                "verified": self.verified,
                "reads": self.reads,
                "reads_reason": self.reads_reason,
                "verify": self.verify,
                "unchecked": list(self.unchecked),
                "hashes": [list(pair) for pair in self.hashes],
                "world_size": self.world_size,
                "formats": list(self.formats),
            },
        )

    def summary(self) -> str:
        """The plan's table, what carrying it out took and what was checked, and last what rests on order alone."""
        sentences = (self._filled(), self._reading(), self._verification(), self._unchecked())
        text = " ".join(s for s in sentences if s)
        paragraph = textwrap.fill(text, REASON_WIDTH, break_long_words=False, break_on_hyphens=False)
        return "\n\n".join(filter(None, (self.plan.table(), paragraph, self.plan.order_note)))

    def _filled(self) -> str:
        filled, total = self.coverage.filled(), self.coverage.total()
        phases = ", ".join(f"{escape_text(name)} {taken:.2f}" for name, taken in self.seconds.items())
        return (
            f"Filled {filled.variables} of {total.variables} variables from {escape_text(self.plan.checkpoint)} "
            f"in {self.seconds.total:.2f} s{f' ({phases})' if phases else ''}."
        )

    def _reading(self) -> str:
        size = sum(self.bytes_read)
        rate = f", {human_bytes(size / self.seconds.total)}/s over all phases" if self.seconds.total > 0 else ""
        workers = f"{self.world_size} worker{'s' if self.world_size > 1 else ''}"
        mode = f" Reads: {escape_text(self.reads)}" if self.reads else ""
        why = f", because {escape_text(self.reads_reason)}" if mode and self.reads_reason else ""
        return f"Read {human_bytes(size)} with {workers}{rate}.{mode}{why}{'.' if mode else ''}"

    def _verification(self) -> str:
        if self.verify != "none" and not self.verified:
            return f"NOT verified, although verify={self.verify!r}."
        if self.verify == "none":
            return 'Nothing was verified (verify="none").'
        if self.verify not in _VERIFIED:
            return f"Verified: {escape_text(self.verify)}."
        beyond = _VERIFIED[self.verify]
        return f"Verified: {self._checksums()}{f', and {beyond}' if beyond else ''}."

    def _checksums(self) -> str:
        """What was compared with the file, which depends on its format."""
        without = ", ".join(_WITHOUT_CHECKSUMS.get(f, f) for f in self.formats if f not in _WITH_CHECKSUMS)
        if without and not _WITH_CHECKSUMS.intersection(self.formats):
            return f"the file's sizes alone are right, for its format ({escape_text(without)}) stores no checksums"
        stored = "what was read whole has the checksums that the checkpoint stores"
        return f"{stored} (of {escape_text(without)} there are none)" if without else stored

    def _unchecked(self) -> str:
        if not self.unchecked:
            return ""
        return f"Read in part, which no checksum covers: {collapse(self.unchecked)}."
