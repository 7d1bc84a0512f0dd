"""One rule as a value, and how it is read from a table of TOML or of Python."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from dist_restore.core.errors import RuleError
from dist_restore.ops import Op, parse_ops

_SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"
_KEYS = frozenset({"from", "to", "ops", "keep", "drop", "optional", "regex"})


@dataclasses.dataclass(frozen=True, slots=True)
class Rule:
    """One rule: a mapping (`from_`, `to`, `ops`), a `keep` or a `drop`.

    Attributes:
      from_: one or more name patterns of checkpoint tensors.
      to: one or more name patterns of live variables.
      ops: what is done on the way, in order.
      keep: pattern of live variables that keep their present value, and their slots too.
      drop: pattern of checkpoint tensors that are left out on purpose, and their slots too.
      optional: whether the rule may match nothing.
      regex: whether the patterns are regular expressions (RE2) instead of names with captures.
    """

    from_: str | tuple[str, ...] = ()
    to: str | tuple[str, ...] = ()
    ops: tuple[Op, ...] = ()
    keep: str = ""
    drop: str = ""
    optional: bool = False
    regex: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "from_", _names(self.from_))
        object.__setattr__(self, "to", _names(self.to))
        object.__setattr__(self, "ops", _ops(self.ops))
        object.__setattr__(self, "keep", _clean(self.keep))
        object.__setattr__(self, "drop", _clean(self.drop))
        kinds = [bool(self.from_ or self.to), bool(self.keep), bool(self.drop)]
        if sum(kinds) != 1 or bool(self.from_) != bool(self.to):
            raise RuleError(f"A rule has either `from` and `to`, or `keep`, or `drop`; this one is {self.describe()}.")
        if self.ops and not self.from_:
            raise RuleError(f"`ops` belong to a rule with `from` and `to`; this one is {self.describe()}.")

    @property
    def sources(self) -> tuple[str, ...]:
        """`from_` as a tuple."""
        return _names(self.from_)

    @property
    def targets(self) -> tuple[str, ...]:
        """`to` as a tuple."""
        return _names(self.to)

    def describe(self) -> str:
        """The rule in one short line."""
        parts = [("from", " + ".join(self.sources)), ("to", ", ".join(self.targets))]
        parts += [("keep", self.keep), ("drop", self.drop)]
        text = " ".join(f"{key}={value!r}" for key, value in parts if value)
        return text[:300] or "empty"

    @staticmethod
    def of(table: Mapping[str, object], where: str = "rule") -> Rule:
        """Reads one `[[rule]]` table.

        Raises:
          RuleError: an unknown key, a value of the wrong type, or an op that cannot be read.
        """
        unknown = sorted(set(table) - _KEYS)
        if unknown:
            raise RuleError(f"{where}: unknown key {unknown[0]!r}. A rule has the keys {', '.join(sorted(_KEYS))}.")
        try:
            return Rule(
                from_=_texts(table.get("from", ()), "from"),
                to=_texts(table.get("to", ()), "to"),
                ops=parse_ops(sequence(table.get("ops", ()))),
                keep=text_of(table.get("keep", ""), "keep"),
                drop=text_of(table.get("drop", ""), "drop"),
                optional=_flag(table.get("optional", False), "optional"),
                regex=_flag(table.get("regex", False), "regex"),
            )
        except RuleError as error:
            raise RuleError(f"{where}: {error}") from error


def _ops(ops: object) -> tuple[Op, ...]:
    """Ops as they are, and as rule files write them: a rule made in Python may have either."""
    if not isinstance(ops, Iterable) or isinstance(ops, str | bytes | Mapping):
        return parse_ops(ops)
    given = tuple(ops)
    made = tuple(op for op in given if isinstance(op, Op))
    return made if len(made) == len(given) else parse_ops(given)


def _names(value: str | Sequence[str]) -> tuple[str, ...]:
    return tuple(_clean(v) for v in ((value,) if isinstance(value, str) else value))


def _clean(name: str) -> str:
    return name.removesuffix(_SUFFIX)


def sequence(value: object) -> Sequence[Mapping[str, object]]:
    """A list of tables, or an error that says what was found."""
    if not isinstance(value, (list, tuple)):
        raise RuleError(f"expected a list, found {type(value).__name__}")
    return value


def _texts(value: object, key: str) -> tuple[str, ...]:
    if isinstance(value, (list, tuple)):
        return tuple(text_of(v, key) for v in value)
    return (text_of(value, key),)


def text_of(value: object, key: str) -> str:
    """Text, or an error that says what was found under the key."""
    if not isinstance(value, str):
        raise RuleError(f"`{key}` takes text, found {type(value).__name__} {str(value)[:80]!r}")
    return value


def _flag(value: object, key: str) -> bool:
    if not isinstance(value, bool):
        raise RuleError(f"`{key}` takes true or false, found {str(value)[:80]!r}")
    return value
