"""Rules in their order, and how they are read: from TOML, from a plain dict, from Python.

Rules are data that can be reviewed and committed. What they match is decided in `apply_rules`.
"""

from __future__ import annotations

import collections
import dataclasses
import os
import tomllib
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from dist_restore.core.errors import RuleError
from dist_restore.planning.rules.inverse import inverse_of_rules, inverse_slots
from dist_restore.planning.rules.packaged import packaged
from dist_restore.planning.rules.rule import Rule, sequence, text_of
from dist_restore.planning.rules.toml import rules_to_toml
from dist_restore.planning.rules.vocabularies import Vocabularies

# A rule file is written by people; one of more than this is something else.
MAX_FILE_BYTES = 16 << 20


RulesLike: TypeAlias = "str | os.PathLike[str] | RuleSet | Sequence[Rule] | Mapping[str, object] | None"


@dataclasses.dataclass(frozen=True, slots=True)
class RuleSet:
    """Rules in their order (the first that matches wins), and which slot role becomes which.

    Attributes:
      rules: the rules.
      slots: (role in the checkpoint, role in the program) pairs.
      origin: where they were read from, for messages.
    """

    rules: tuple[Rule, ...] = ()
    slots: tuple[tuple[str, str], ...] = ()
    origin: str = ""

    def _with_vocabularies(self) -> RuleSet:
        """The rules with the vocabularies read that their ops name; paths are relative to the rule file."""
        vocabularies, rules = Vocabularies(self.origin), []
        for index, rule in enumerate(self.rules):
            try:
                ops = vocabularies.read_for(rule.ops)
            except RuleError as error:
                raise RuleError(f"{self.where(index)}: {error}") from error
            rules.append(rule if ops == rule.ops else dataclasses.replace(rule, ops=ops))
        return dataclasses.replace(self, rules=tuple(rules))

    def where(self, index: int) -> str:
        """How messages call rule `index` (from 0): `rule 2 of fuse_qkv.toml`."""
        file = f" of {os.path.basename(self.origin)}" if self.origin else ""
        return f"rule {index + 1}{file}"

    def inverse(self) -> RuleSet:
        """The rules that lead back, as far as they follow from the text alone; `CheckpointConverter` has more of them.

        Raises:
          RuleError: a rule has no inverse; the message has its number and why.
        """
        found = inverse_of_rules([(self.where(index), rule) for index, rule in enumerate(self.rules)])
        return RuleSet(found, inverse_slots(self.slots), self.origin)

    def to_toml(self) -> str:
        """The text of a rule file.

        Raises:
          RuleError: vocabularies that are no files.
        """
        return rules_to_toml(self.rules, self.slots)

    @staticmethod
    def of(value: RulesLike) -> RuleSet:
        """Takes every form that the face allows: a path, a rule set, a list of rules, a dict, None.

        Vocabularies that rules name are read here.
        """
        if value is None:
            return RuleSet()
        if isinstance(value, RuleSet):
            return value._with_vocabularies()
        if isinstance(value, (str, os.PathLike)):
            return RuleSet.load(value)
        if isinstance(value, Mapping):
            return RuleSet.from_mapping(value)
        if isinstance(value, Sequence):
            rules = tuple(rule for rule in value if isinstance(rule, Rule))
            if len(rules) == len(value):
                return RuleSet(rules)._with_vocabularies()
        raise RuleError(
            f"Rules are a path of a TOML file, a RuleSet, a list of Rule or a dict; not {type(value).__name__}."
        )

    @staticmethod
    def load(path: str | os.PathLike[str]) -> RuleSet:
        """Reads a TOML file of rules.

        Args:
          path: of a file; or a name, such as `hf_bert`, of rules that come with the package.

        Raises:
          RuleError: the file is missing, too large, not TOML, or holds something else than rules.
        """
        name = packaged(os.fspath(path))
        try:
            with open(name, "rb") as file:
                data = file.read(MAX_FILE_BYTES + 1)
        except (OSError, ValueError) as error:  # ValueError: a path with a null byte
            raise RuleError(f"The rule file {name!r} cannot be read: {error}.") from error
        if len(data) > MAX_FILE_BYTES:
            raise RuleError(f"The rule file {name!r} is larger than {MAX_FILE_BYTES} bytes.")
        return RuleSet.from_toml(data.decode("utf-8", "replace"), origin=name)

    @staticmethod
    def from_toml(text: str, origin: str = "") -> RuleSet:
        """Reads TOML text.

        Raises:
          RuleError: as `load`; the message has the line.
        """
        try:
            tables = tomllib.loads(text)
        except (ValueError, RecursionError) as error:  # ValueError: also a number of thousands of digits
            raise RuleError(f"{origin or 'The rules'}: bad TOML: {error}.") from error
        return _from_tables(tables, origin)

    @staticmethod
    def from_mapping(mapping: Mapping[str, object]) -> RuleSet:
        """Reads a plain `{"old/name": "new/name"}` dict, or one of the shape of a rule file."""
        if mapping and set(mapping) <= {"rule", "slots"} and not any(isinstance(v, str) for v in mapping.values()):
            return _from_tables(mapping, "")
        rules = []
        for old, new in mapping.items():
            if not isinstance(old, str) or not isinstance(new, str):
                raise RuleError(f"A dict of rules maps names to names; found {old!r}: {new!r}.")
            rules.append(Rule(from_=old, to=new))
        return RuleSet(tuple(rules))


def _from_tables(tables: Mapping[str, object], origin: str) -> RuleSet:
    unknown = sorted(set(tables) - {"rule", "slots"})
    if unknown:
        raise RuleError(f"{origin or 'The rules'}: unknown table {unknown[0]!r}; use [[rule]] and [slots].")
    found = RuleSet((), _slots(tables.get("slots", {})), origin)
    rules = []
    rules_read = tables.get("rule", ())
    if isinstance(rules_read, Mapping):
        raise RuleError(f"{origin or 'The rules'}: expected [[rule]], found [rule]: each rule begins with [[rule]].")
    for index, table in enumerate(sequence(rules_read)):
        if not isinstance(table, Mapping):
            raise RuleError(f"{found.where(index)}: expected a [[rule]] table, found {type(table).__name__}.")
        rules.append(Rule.of(table, found.where(index)))
    return dataclasses.replace(found, rules=tuple(rules))._with_vocabularies()


def _slots(table: object) -> tuple[tuple[str, str], ...]:
    if not isinstance(table, Mapping):
        raise RuleError("[slots] is a table of role names, such as velocity = 'momentum'.")
    pairs = tuple((text_of(k, "slots"), text_of(v, "slots")) for k, v in table.items())
    twice = [role for role, count in collections.Counter(v for _, v in pairs).items() if count > 1]
    if twice:
        raise RuleError(f"[slots] gives the role {twice[0]!r} two sources. Remove one of them.")
    return pairs
