"""The plan: what every target variable gets, from which source tensors, through which ops, and why.

A plan is a frozen value with one canonical JSON form, so that it can be reviewed, committed, broadcast as
bytes and compared by digest. Knows the ops by name; knows neither files nor live objects.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
from collections.abc import Mapping

from dist_restore.core.errors import PlanMismatchError, RestoreError
from dist_restore.core.index import Group
from dist_restore.core.tensors import TensorSpec
from dist_restore.core.text import escape_text
from dist_restore.ops import describe, dump_op, parse_op
from dist_restore.planning.entries import Coverage, PlanEntry, Problem, Proof, Status, Unused, Use, filled_bytes
from dist_restore.planning.proofs import order_note
from dist_restore.planning.row_families import TableRow
from dist_restore.planning.summary import plan_table

# Raised when the meaning of a field changes; a reader refuses what it does not know.
SCHEMA_VERSION = 2


@dataclasses.dataclass(frozen=True, slots=True)
class RestorePlan:
    """The frozen decision: one entry per target, sorted by target name.

    Attributes:
      checkpoint: the checkpoint that was resolved, for people; not part of the digest, for the same files
        may be mounted elsewhere on another worker.
      checkpoint_fingerprint: of the index that the plan was made from.
      target_fingerprint: of the live variables that the plan was made for.
      entries: one per target.
      unused: source tensors that nothing used, each with a reason.
      suggestions: TOML text of rules for what is unmatched; empty when nothing is.
      checkpoints: `(name, path)` of several checkpoints, sorted by name; like `checkpoint`, no part of the digest.
    """

    checkpoint: str
    checkpoint_fingerprint: str
    target_fingerprint: str
    entries: tuple[PlanEntry, ...]
    unused: tuple[Unused, ...] = ()
    suggestions: str = ""
    checkpoints: tuple[tuple[str, str], ...] = ()

    @property
    def coverage(self) -> Coverage:
        """How much of the targets this plan fills."""
        return Coverage.of(self.entries)

    @property
    def uses(self) -> tuple[Use, ...]:
        """How many tensors of each of several checkpoints are used; empty for a single one."""
        if not self.checkpoints:
            return ()
        used = collections.Counter(n.partition(":")[0] for n in {n for e in self.entries for n in e.sources})
        unused = collections.Counter(u.name.partition(":")[0] for u in self.unused)
        return tuple(Use(name, path, used[name], unused[name]) for name, path in self.checkpoints)

    @property
    def problems(self) -> tuple[PlanEntry, ...]:
        """The entries for which `restore()` would refuse."""
        return tuple(e for e in self.entries if e.problem is not Problem.NONE)

    def mapping(self) -> dict[str, tuple[str, ...]]:
        """Target name -> names of the sources that fill it, for all filled targets."""
        return {e.target: e.sources for e in self.entries if e.filled}

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the canonical JSON, without the checkpoints' paths and the digest itself."""
        return _digest(self._content())

    def to_json(self) -> str:
        """The canonical JSON text, with its digest; `from_json` takes it back."""
        content = self._content()
        paths: dict[str, object] = {"checkpoint": self.checkpoint}
        if self.checkpoints:
            paths["checkpoints"] = [list(pair) for pair in self.checkpoints]
        return _canonical({**content, **paths, "digest": _digest(content)}).decode("ascii")

    @staticmethod
    def from_json(text: str) -> RestorePlan:
        """Reads what `to_json` wrote.

        Raises:
          PlanMismatchError: the text is no plan, its schema is another one, or its digest does not fit it.
        """
        fields = _parse(text)
        plan = _decode(fields)
        if fields.get("digest") != plan.digest:
            raise PlanMismatchError(
                f"The plan's digest is {str(fields.get('digest'))[:80]!r} and its content has {plan.digest!r}: "
                "it was edited or damaged. Make it again with restorer.plan(path)."
            )
        return plan

    @property
    def order_note(self) -> str:
        """Which variables rest on their order alone, in words; empty when none does."""
        return order_note(self.entries)

    def summary(self) -> str:
        """The text table, one row per family of names, with block indexes collapsed; last what rests on order alone."""
        return "\n\n".join(filter(None, (self.table(), self.order_note)))

    def table(self) -> str:
        """The table of `summary`, without what is said below it."""
        table = plan_table(tuple(_row(e) for e in self.entries), self.unused)
        lines = (f"from {u.name}: {u.used} of {u.used + u.unused} tensors of {escape_text(u.path)}" for u in self.uses)
        return "\n\n".join(filter(None, (table, "\n".join(lines))))

    def _content(self) -> dict[str, object]:
        return {
            "schema": SCHEMA_VERSION,
            "checkpoint_fingerprint": self.checkpoint_fingerprint,
            "target_fingerprint": self.target_fingerprint,
            "entries": [_encode_entry(e) for e in self.entries],
            "unused": [list(u) for u in self.unused],
            "suggestions": self.suggestions,
        }


def _row(entry: PlanEntry) -> TableRow:
    return TableRow(
        target=entry.target,
        sources=entry.sources,
        ops=describe(entry.ops),
        status=entry.status.value,
        group=entry.group.value,
        shape=entry.spec.shape,
        dtype=entry.spec.dtype,
        variables=1,
        filled_variables=int(entry.filled),
        bytes=entry.bytes,
        filled_bytes=filled_bytes(entry),
        evidence=entry.evidence,
        reason=entry.reason,
    )


def _digest(content: Mapping[str, object]) -> str:
    return hashlib.sha256(_canonical(content)).hexdigest()


def _canonical(fields: Mapping[str, object]) -> bytes:
    # ASCII with sorted keys and no spaces: the same bytes on every worker and every Python.
    return json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode("ascii")


def _encode_entry(entry: PlanEntry) -> dict[str, object]:
    return {
        "target": entry.target,
        "sources": list(entry.sources),
        "ops": [dump_op(op) for op in entry.ops],
        "status": entry.status.value,
        "evidence": entry.evidence,
        "reason": entry.reason,
        "bytes": entry.bytes,
        "spec": _encode_spec(entry.spec),
        "source_specs": [_encode_spec(s) for s in entry.source_specs],
        "group": entry.group.value,
        "elements": entry.elements,
        "problem": entry.problem.value,
        "candidates": list(entry.candidates),
        "unchecked": list(entry.unchecked),
        "proof": entry.proof.value,
    }


def _encode_spec(spec: TensorSpec) -> list[object]:
    return [spec.dtype, list(spec.shape)]


def _parse(text: str) -> dict[str, object]:
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PlanMismatchError(f"This is no plan: it is not JSON ({error}).") from error
    if not isinstance(fields, dict):
        raise PlanMismatchError("This is no plan: expected a JSON object.")
    if fields.get("schema") != SCHEMA_VERSION:
        raise PlanMismatchError(
            f"The plan has schema {str(fields.get('schema'))[:40]!r}, this version reads {SCHEMA_VERSION}. "
            "Make the plan again with restorer.plan(path)."
        )
    return fields


def _decode(fields: dict[str, object]) -> RestorePlan:
    try:
        return RestorePlan(
            checkpoint=_text(fields["checkpoint"]),
            checkpoint_fingerprint=_text(fields["checkpoint_fingerprint"]),
            target_fingerprint=_text(fields["target_fingerprint"]),
            entries=tuple(_decode_entry(_object(e)) for e in _list(fields["entries"])),
            unused=tuple(Unused(*_decode_pair(u)) for u in _list(fields["unused"])),
            suggestions=_text(fields["suggestions"]),
            checkpoints=tuple(_decode_pair(p) for p in _list(fields.get("checkpoints", []))),
        )
    except (KeyError, IndexError, TypeError, ValueError, RestoreError) as error:
        raise PlanMismatchError(f"This is no plan that this version can read: {error!r}.") from error


def _decode_entry(fields: dict[str, object]) -> PlanEntry:
    return PlanEntry(
        target=_text(fields["target"]),
        sources=_texts(fields["sources"]),
        ops=tuple(parse_op(_object(op), bound=True) for op in _list(fields["ops"])),
        status=Status(fields["status"]),
        evidence=_text(fields["evidence"]),
        reason=_text(fields["reason"]),
        bytes=_count(fields["bytes"]),
        spec=_decode_spec(fields["spec"]),
        source_specs=tuple(_decode_spec(s) for s in _list(fields["source_specs"])),
        group=Group(fields["group"]),
        elements=_count(fields["elements"]),
        problem=Problem(fields["problem"]),
        candidates=_texts(fields["candidates"]),
        unchecked=_texts(fields["unchecked"]),
        proof=Proof(fields["proof"]),
    )


def _decode_pair(value: object) -> tuple[str, str]:
    first, second = _list(value)
    return _text(first), _text(second)


def _decode_spec(value: object) -> TensorSpec:
    dtype, shape = _list(value)
    return TensorSpec(tuple(_count(n) for n in _list(shape)), _text(dtype))


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected text, found {type(value).__name__}")
    return value


def _texts(value: object) -> tuple[str, ...]:
    return tuple(_text(item) for item in _list(value))


def _count(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 63:
        raise TypeError(f"expected a count, found {type(value).__name__}")
    return value


def _list(value: object) -> list[object]:
    if not isinstance(value, list):
        raise TypeError(f"expected a list, found {type(value).__name__}")
    return value


def _object(value: object) -> dict[str, object]:
    if not isinstance(value, dict):
        raise TypeError(f"expected an object, found {type(value).__name__}")
    return value
