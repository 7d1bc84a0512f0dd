"""What rules decide: which target gets which sources, what is kept, what is dropped.

First match wins: a pattern passes over sources that an earlier rule took and targets that an earlier rule
decided. A rule that spells a name out is never passed over in silence: where it collides, that is an error.
Every rule must fire.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from typing import NamedTuple

from absl import logging

from dist_restore.core.errors import RuleError
from dist_restore.core.index import SourceTensor, TargetVariable
from dist_restore.core.nearest import nearest, quote
from dist_restore.ops import Op
from dist_restore.planning.name_table import Named, NameTable
from dist_restore.planning.rules.patterns import Captures, Pattern, compile_pattern, compile_template
from dist_restore.planning.rules.rule import Rule
from dist_restore.planning.rules.rule_set import RuleSet


class Assignment(NamedTuple):
    """One target of one rule.

    Attributes:
      sources: the tensors that the rule takes, in its order.
      ops: the rule's ops, not yet bound.
      part: which of the rule's targets this is.
      parts: how many targets the rule has.
      rule: index of the rule.
      called: the names by which the rule means the tensors, where these are aliases.
      literal: whether the rule spells the target's name out.
    """

    sources: tuple[SourceTensor, ...]
    ops: tuple[Op, ...]
    part: int
    parts: int
    rule: int
    called: tuple[str, ...] = ()
    literal: bool = True


class Decisions:
    """What the rules decided; filled in by `apply_rules`, read by the resolver.

    Attributes:
      assigned: target -> its assignment.
      kept: target -> the rule that keeps its value.
      kept_literally: the kept targets whose names a rule spells out.
      seeded: the assigned slots that are filled from variables which are no slots.
      dropped: source -> the rule that drops it.
      used: source -> the first rule that uses it.
      missed: source -> (rule, target) where a rule maps it to a target that it cannot fill.
    """

    def __init__(self) -> None:
        self.assigned: dict[str, Assignment] = {}
        self.kept: dict[str, int] = {}
        self.kept_literally: set[str] = set()
        self.seeded: set[str] = set()
        self.dropped: dict[str, int] = {}
        self.used: dict[str, int] = {}
        self.missed: dict[str, tuple[int, str]] = {}

    def decided(self, target: str) -> int | None:
        """The rule that decided a target, or None."""
        if target in self.assigned:
            return self.assigned[target].rule
        return self.kept.get(target)


def apply_rules(rules: RuleSet, sources: NameTable[SourceTensor], targets: NameTable[TargetVariable]) -> Decisions:
    """Applies all rules in their order.

    Raises:
      RuleError: a rule that matches nothing, two rules for one target, a name that is not unique.
    """
    decisions = Decisions()
    for index, rule in enumerate(rules.rules):
        where = rules.where(index)
        try:
            fired = _Application(rule, index, sources, targets, decisions).run()
        except RuleError as error:
            raise RuleError(f"{where} ({rule.describe()}): {error}") from error
        if fired:
            continue
        if not rule.optional:
            raise RuleError(f"{where} ({rule.describe()}) matched nothing. {_hint(rule, sources, targets, decisions)}")
        digits = _digits_only(rule, sources, targets)
        if digits:
            logging.warning("dist_restore: %s (%s) is optional and matched nothing. %s", where, rule.describe(), digits)
    return decisions


def is_seed(variable: TargetVariable, sources: Sequence[SourceTensor]) -> bool:
    """Whether a slot is filled from what is none, as an average from its weight."""
    return variable.slot is not None and all(s.slot is None for s in sources)


class _Application:
    """One rule against both sides."""

    def __init__(
        self,
        rule: Rule,
        index: int,
        sources: NameTable[SourceTensor],
        targets: NameTable[TargetVariable],
        decisions: Decisions,
    ) -> None:
        self._rule, self._index = rule, index
        self._sources, self._targets, self._decisions = sources, targets, decisions
        first = [compile_pattern(text, regex=rule.regex) for text in rule.sources[:1]]
        self._from = (*first, *(compile_template(text, regex=rule.regex) for text in rule.sources[1:]))
        self._to = tuple(compile_template(text, regex=rule.regex) for text in rule.targets)

    def run(self) -> bool:
        if self._rule.keep:
            return self._keep()
        if self._rule.drop:
            return self._drop()
        return self._map()

    def _keep(self) -> bool:
        pattern = compile_pattern(self._rule.keep, regex=self._rule.regex)
        found = [v.name for _, v, _ in _matches(pattern, self._targets) if self._decisions.decided(v.name) is None]
        self._decisions.kept.update(dict.fromkeys(found, self._index))
        if pattern.literal:
            self._decisions.kept_literally.update(found)
        return bool(found)

    def _drop(self) -> bool:
        pattern = compile_pattern(self._rule.drop, regex=self._rule.regex)
        found = [
            t.name for _, t, _ in _matches(pattern, self._sources, self._decisions.used) if self._may_drop(t, pattern)
        ]
        self._decisions.dropped.update(dict.fromkeys(found, self._index))
        return bool(found)

    def _may_drop(self, tensor: SourceTensor, pattern: Pattern) -> bool:
        if pattern.literal and tensor.name in self._decisions.used:
            rule = self._decisions.used[tensor.name]
            raise RuleError(f"{tensor.name!r} is used by rule {rule + 1}. Remove one of the two rules.")
        return tensor.name not in self._decisions.dropped

    def _map(self) -> bool:
        fired = False
        for name, captures in self._captures():
            called: list[str] = []
            sources = self._lookup_sources(name, captures, called)
            if sources is not None:
                fired |= self._assign(sources, captures, tuple(called))
        return fired

    def _captures(self) -> Iterator[tuple[str | None, Captures]]:
        """The captures of each match, from the side whose captures stand alone, and the source's name if it is that."""
        first = self._from[0]
        if first.computed:
            yield from self._captures_of_target(first)
        elif first.literal:
            yield None, {}
        else:
            # A list: what this rule takes on the way does not change what it matches.
            yield from [(name, found) for name, _, found in _matches(first, self._sources)]

    def _captures_of_target(self, first: Pattern) -> Iterator[tuple[None, Captures]]:
        driver = self._to[0]
        if driver.computed or not driver.bare:
            raise RuleError(
                f"{first.text!r} and {driver.text!r} both compute with captures, so neither can be matched. "
                "One side must have each capture alone, such as {i}."
            )
        yield from ((None, captures) for _, _, captures in _matches(driver, self._targets))

    def _lookup_sources(
        self, matched: str | None, captures: Captures, called: list[str]
    ) -> tuple[SourceTensor, ...] | None:
        """The tensors of one match; names of theirs that are aliases are added to `called`."""
        found: list[SourceTensor] = []
        for position, pattern in enumerate(self._from):
            # What was matched is not filled in again; of regexes only the others are templates.
            name = matched if position == 0 and matched is not None else pattern.fill(captures)
            tensor = self._sources.get(name) if name is not None else None
            if tensor is None:
                self._refuse_half(found, name or pattern.text)
                return None
            if not self._is_free(tensor, pattern) and not self._is_seed(tensor, captures):
                return None
            found.append(tensor)
            if name is not None and name != tensor.name:
                called.append(name)
        return tuple(found)

    def _is_free(self, tensor: SourceTensor, pattern: Pattern) -> bool:
        """Whether this rule may take a source: a pattern passes over what earlier rules took or dropped."""
        dropped = self._decisions.dropped.get(tensor.name)
        if dropped is not None and pattern.literal:
            raise RuleError(f"{tensor.name!r} is dropped by rule {dropped + 1}. Remove one of the two rules.")
        return pattern.literal or (
            dropped is None and self._decisions.used.get(tensor.name, self._index) == self._index
        )

    def _is_seed(self, tensor: SourceTensor, captures: Captures) -> bool:
        """Whether a variable fills slots only here: a slot that begins as a copy of it does not take it away."""
        if tensor.slot is not None or tensor.name in self._decisions.dropped:
            return False
        found = [self._targets.get(pattern.fill(captures) or pattern.text) for pattern in self._to]
        return all(v is not None and v.slot is not None for v in found)

    def _refuse_half(self, found: list[SourceTensor], missing: str) -> None:
        """Raises where some of the tensors that a rule joins are there and others are not."""
        if found:
            close = nearest(missing, self._sources.all_names())
            raise RuleError(
                f"{found[0].name!r} is in {self._sources.side}, and {missing!r}, which the rule joins it with, is not. "
                f"Nearest names: {quote(close) or 'none'}."
            )

    def _assign(self, sources: tuple[SourceTensor, ...], captures: Captures, called: tuple[str, ...]) -> bool:
        names = [pattern.fill(captures) or pattern.text for pattern in self._to]
        variables = [self._targets.get(name) for name in names]
        if not any(variables):
            for tensor in sources:
                self._decisions.missed.setdefault(tensor.name, (self._index, names[0]))
            return False
        return any([self._assign_part(sources, part, names[part], v, called) for part, v in enumerate(variables)])

    def _assign_part(
        self,
        sources: tuple[SourceTensor, ...],
        part: int,
        name: str,
        variable: TargetVariable | None,
        called: tuple[str, ...],
    ) -> bool:
        if variable is None:
            close = nearest(name, self._targets.all_names())
            raise RuleError(
                f"{name!r} is not in {self._targets.side}, though the rule's other targets are. "
                f"Nearest names: {quote(close) or 'none'}."
            )
        if not self._claim(variable, sources, self._to[part]):
            return False
        literal = self._to[part].literal
        assignment = Assignment(sources, self._rule.ops, part, len(self._to), self._index, called, literal)
        self._decisions.assigned[variable.name] = assignment
        if variable.slot is not None and is_seed(variable, sources):
            self._decisions.seeded.add(variable.name)
            return True
        for tensor in sources:
            self._decisions.used.setdefault(tensor.name, self._index)
        return True

    def _claim(self, variable: TargetVariable, sources: tuple[SourceTensor, ...], pattern: Pattern) -> bool:
        """Whether this rule may decide the target."""
        earlier = self._decisions.decided(variable.name)
        if earlier is None:
            return True
        if earlier == self._index:
            raise RuleError(f"two matches of this rule for one target, {variable.name!r}. Write a rule for each.")
        if pattern.literal:
            raise RuleError(
                f"two rules for one target: {variable.name!r} is decided by rule {earlier + 1} already. "
                "Remove one of them, or put the more special one first and let it be a pattern's exception."
            )
        for tensor in sources:
            self._decisions.missed.setdefault(
                tensor.name, (self._index, f"{variable.name} (decided by rule {earlier + 1})")
            )
        return False


def _matches(
    pattern: Pattern, table: NameTable[Named], taken: Container[str] = ()
) -> Iterator[tuple[str, Named, Captures]]:
    """Each item once, with the first of its names that matches and its captures; a pattern passes over `taken`."""
    if pattern.literal:
        item = table.get(pattern.text)
        if item is not None:
            yield pattern.text, item, {}
        return
    seen: set[str] = set()
    for name, item in table.framed(pattern.prefix, pattern.suffix):
        if item.name not in taken and item.name not in seen:
            captures = pattern.match(name)
            if captures is not None:
                seen.add(item.name)
                yield name, item, captures


def _hint(
    rule: Rule, sources: NameTable[SourceTensor], targets: NameTable[TargetVariable], decisions: Decisions
) -> str:
    """What is wrong with a rule that matched nothing: a source or target that is not there, with nearest names."""
    digits = _digits_only(rule, sources, targets)
    if digits:
        return digits
    hints = [_missing(text, rule.regex, sources) for text in (*rule.sources, rule.drop) if text]
    hints += [_missing(text, rule.regex, targets) for text in (*rule.targets, rule.keep) if text]
    for hint in filter(None, hints):
        return f"{hint}{_renamed_already(rule, sources, targets)}"
    if decisions.missed:
        name, (_, target) = next(reversed(decisions.missed.items()))
        close = nearest(target, targets.all_names())
        return f"It would map {name!r} to {target!r}. Nearest names in the model: {quote(close) or 'none'}."
    if not (decisions.assigned or decisions.kept or decisions.dropped):
        names = quote([n for n, _ in zip(sources.all_names(), range(3), strict=False)])
        return f"It matches no name in {sources.side}, which has names such as {names}."
    return "Earlier rules took all that it matches. If it may match nothing, say optional = true."


def _digits_only(rule: Rule, sources: NameTable[SourceTensor], targets: NameTable[TargetVariable]) -> str:
    """That a capture of one letter is why nothing matches, and the longer name that would; else empty."""
    found = [_digits_only_in(text, sources) for text in (*rule.sources[:1], rule.drop) if text and not rule.regex]
    found += [_digits_only_in(text, targets) for text in (rule.keep,) if text and not rule.regex]
    return next(filter(None, found), "")


def _digits_only_in(text: str, table: NameTable[Named]) -> str:
    pattern = compile_pattern(text)
    letters = [place for place in pattern.groups if len(place) == 1]
    longer = text
    for letter in letters:
        longer = longer.replace(f"{{{letter}}}", f"{{{letter}{letter}}}")
    if longer == text or any(True for _ in _matches(pattern, table)):
        return ""
    name = next((name for name, _, _ in _matches(compile_pattern(longer), table)), None)
    if name is None:
        return ""
    return (
        f"{quote([text])}: a capture of one letter takes digits only. With longer names, {quote([longer])}, it matches "
        f"{quote([name])}; write so on all sides of the rule."
    )


def _renamed_already(rule: Rule, sources: NameTable[SourceTensor], targets: NameTable[TargetVariable]) -> str:
    """That a checkpoint has the new names and not the old ones: it was saved by the program of today; else empty."""
    if rule.regex or not rule.targets:
        return ""
    old, new = compile_pattern(rule.sources[0]), compile_pattern(rule.targets[0])
    if old.computed or new.computed or any(True for _ in _matches(old, sources)):
        return ""
    here = (name for name, item, _ in _matches(new, targets) if sources.get(item.name) is not None)
    name = next(here, None)
    if name is None:
        return ""
    return (
        f" But it has the new name {quote([name])} already: if it was saved by the program as it is now, the rule is "
        "not needed for it. Restore it without the rule, or say optional = true."
    )


def _missing(text: str, regex: bool, table: NameTable[Named]) -> str:
    """That no name matches a pattern, and which are near; empty when one does."""
    if regex or any(True for _ in _matches(compile_pattern(text), table)):
        return ""
    close = nearest(text, table.all_names())
    return f"No name in {table.side} matches {text!r}. Nearest names: {quote(close) or 'none'}."
