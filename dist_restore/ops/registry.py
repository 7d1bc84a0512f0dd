"""The vocabulary, and its spelling in rule files and plans: `{"concat": {"axis": -1}}`."""

from __future__ import annotations

import dataclasses
import difflib
import enum
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TypeAlias

from dist_restore.core.errors import RuleError
from dist_restore.ops.arithmetic import Cast, Scale
from dist_restore.ops.base import Op
from dist_restore.ops.concat import Concat, Split
from dist_restore.ops.fields import Fields, rule_error, shown
from dist_restore.ops.mean import Mean
from dist_restore.ops.pad import Fit, Pad
from dist_restore.ops.permute_heads import PermuteHeads
from dist_restore.ops.remap_rows import RemapRows
from dist_restore.ops.reshape import Reshape
from dist_restore.ops.resize import Resize
from dist_restore.ops.row_map import RowMap
from dist_restore.ops.stack import Stack, Unstack
from dist_restore.ops.tile import Repeat, Tile
from dist_restore.ops.transpose import Slice, Transpose

JsonValue: TypeAlias = "str | int | float | bool | list[JsonValue] | dict[str, JsonValue] | None"

_VOCABULARY: tuple[type[Op], ...] = (
    Transpose,
    Reshape,
    Slice,
    Pad,
    Fit,
    Concat,
    Split,
    Stack,
    Unstack,
    Resize,
    Tile,
    Repeat,
    PermuteHeads,
    RemapRows,
    Cast,
    Scale,
    Mean,
)

OPS: Mapping[str, type[Op]] = MappingProxyType({op.NAME: op for op in _VOCABULARY})


def parse_op(raw: object, *, bound: bool = False) -> Op:
    """Reads one op.

    Args:
      raw: a mapping with the op's name as its only key, and its fields.
      bound: accept the fields that only plans have (`part`, `seed`, the `shape` of fit, the `rows` of remap_rows).

    Raises:
      RuleError: the op, one of its fields or a dtype is not known, or a value has the wrong type or size.
    """
    name, values = _opened(raw)
    kind = OPS.get(name)
    if kind is None:
        raise rule_error(shown(name), _unknown(name), f"The ops are {', '.join(OPS)}")
    if not isinstance(values, Mapping):
        raise rule_error(name, f"expected its fields, found {shown(values)}", _spelling(kind))
    _check_keys(kind, values, bound)
    return kind.read(Fields(name, values))


def parse_ops(raw: object, *, bound: bool = False) -> tuple[Op, ...]:
    """Reads a list of ops, and says in errors which of them is wrong.

    Raises:
      RuleError: as `parse_op`.
    """
    if not isinstance(raw, Sequence) or isinstance(raw, str | bytes):
        raise rule_error("ops", f"expected a list, found {shown(raw)}", "Write ops = [{ concat = { axis = -1 } }]")
    return tuple(_numbered(number, item, bound) for number, item in enumerate(raw, 1))


def dump_op(op: Op) -> dict[str, dict[str, JsonValue]]:
    """The op as plain data that `parse_op(..., bound=True)` takes back.

    Raises:
      RuleError: the op is not of the vocabulary.
    """
    if OPS.get(op.NAME) is not type(op):
        raise rule_error(type(op).__name__, "is not an op of rule files or plans", f"The ops are {', '.join(OPS)}")
    fields: dict[str, JsonValue] = {}
    for field in dataclasses.fields(op):
        value: object = getattr(op, field.name)
        if value is not None and not (field.name in op.BOUND and value == field.default):
            fields[field.name] = _plain(value)
    return {op.NAME: fields}


def _opened(raw: object) -> tuple[str, object]:
    if not isinstance(raw, Mapping) or len(raw) != 1:
        found = f"{len(raw)} keys" if isinstance(raw, Mapping) else shown(raw)
        raise rule_error("op", f"expected one op with its fields, found {found}", _spelling(Concat))
    ((name, values),) = raw.items()
    if not isinstance(name, str):
        raise rule_error("op", f"expected the name of an op, found {shown(name)}", f"The ops are {', '.join(OPS)}")
    return name, values


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(name[:40].lower(), list(OPS), n=1, cutoff=0.4)
    return "there is no such op" + (f"; did you mean {near[0]}?" if near else "")


def _check_keys(kind: type[Op], values: Mapping[object, object], bound: bool) -> None:
    fields = [f for f in dataclasses.fields(kind) if bound or f.name not in kind.BOUND]
    allowed = [f.name for f in fields]
    for key in values:
        if key not in allowed:
            why = "set by plans only" if key in kind.BOUND else "not known"
            raise rule_error(kind.NAME, f"field {shown(key)} is {why}", f"The fields are {', '.join(allowed)}")
    for field in fields:
        if field.default is dataclasses.MISSING and field.name not in values:
            raise rule_error(kind.NAME, f"field {field.name} is missing", f"The fields are {', '.join(allowed)}")


def _numbered(number: int, raw: object, bound: bool) -> Op:
    try:
        return parse_op(raw, bound=bound)
    except RuleError as error:
        raise RuleError(f"op {number}: {error}") from error


def _spelling(kind: type[Op]) -> str:
    fields = ", ".join(f"{f.name} = ..." for f in dataclasses.fields(kind) if f.name not in kind.BOUND)
    return f"Write {{ {kind.NAME} = {{ {fields} }} }}"


def _plain(value: object) -> JsonValue:
    if isinstance(value, enum.Enum):
        return str(value.value)
    if isinstance(value, RowMap):
        return value.text()
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"an op holds a {type(value).__name__}")
