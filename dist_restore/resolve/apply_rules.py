"""What rules decide: which target gets which sources, what is kept, what is dropped.

First match wins: a pattern passes over sources that an earlier rule took and targets that an earlier rule
decided. A rule that spells a name out is never passed over in silence: where it collides, that is an error.
Every rule must fire.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from dist_restore.errors import RuleError
from dist_restore.resolve.names import NameTable
from dist_restore.resolve.nearest import nearest, quote
from dist_restore.resolve.patterns import Captures, Pattern, compile_pattern, compile_template
from dist_restore.resolve.rules import Rule, RuleSet
from dist_restore.specs import SourceTensor, TargetVariable
from dist_restore.transforms import Op


@dataclasses.dataclass(frozen=True, slots=True)
class Assignment:
    """One target of one rule.

    Attributes:
      sources: the tensors that the rule takes, in its order.
      ops: the rule's ops, not yet bound.
      part: which of the rule's targets this is.
      parts: how many targets the rule has.
      rule: index of the rule.
    """

    sources: tuple[SourceTensor, ...]
    ops: tuple[Op, ...]
    part: int
    parts: int
    rule: int


class Decisions:
    """What the rules decided; filled in by `apply_rules`, read by the resolver."""

    def __init__(self) -> None:
        self.assigned: dict[str, Assignment] = {}
        self.kept: dict[str, int] = {}
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
        if not fired and not rule.optional:
            raise RuleError(f"{where} ({rule.describe()}) matched nothing. {_hint(rule, sources, targets, decisions)}")
    return decisions


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
        self._before = dict(decisions.used)  # what earlier rules took; this rule may use a source twice

    def run(self) -> bool:
        if self._rule.keep:
            return self._keep()
        if self._rule.drop:
            return self._drop()
        return self._map()

    def _keep(self) -> bool:
        pattern = compile_pattern(self._rule.keep, regex=self._rule.regex)
        found = [v for v, _ in _matches(pattern, self._targets) if self._decisions.decided(v.name) is None]
        self._decisions.kept.update((v.name, self._index) for v in found)
        return bool(found)

    def _drop(self) -> bool:
        pattern = compile_pattern(self._rule.drop, regex=self._rule.regex)
        found = [t for t, _ in _matches(pattern, self._sources) if self._free(t, pattern)]
        self._decisions.dropped.update((t.name, self._index) for t in found)
        return bool(found)

    def _free(self, tensor: SourceTensor, pattern: Pattern) -> bool:
        earlier = self._before.get(tensor.name)
        if earlier is not None and pattern.literal and self._rule.drop:
            raise RuleError(f"{tensor.name!r} is used by rule {earlier + 1}. Remove one of the two rules.")
        return earlier is None and tensor.name not in self._decisions.dropped

    def _map(self) -> bool:
        fired = False
        for captures in self._captures():
            sources = self._lookup_sources(captures)
            if sources is not None:
                fired |= self._assign(sources, captures)
        return fired

    def _captures(self) -> Iterator[Captures]:
        """The captures of each match, from the side whose captures stand alone."""
        first = compile_pattern(self._rule.sources[0], regex=self._rule.regex)
        if first.computed:
            yield from self._captures_of_target(first)
        elif first.literal:
            yield {}
        else:
            yield from (captures for t, captures in _matches(first, self._sources) if self._free(t, first))

    def _captures_of_target(self, first: Pattern) -> Iterator[Captures]:
        driver = compile_pattern(self._rule.targets[0])
        if driver.computed or not driver.bare:
            raise RuleError(
                f"{first.text!r} and {driver.text!r} both compute with captures, so neither can be matched. "
                "One side must have each capture alone, such as {i}."
            )
        for _, captures in _matches(driver, self._targets):
            yield captures

    def _lookup_sources(self, captures: Captures) -> tuple[SourceTensor, ...] | None:
        found = []
        for position, text in enumerate(self._rule.sources):
            name = compile_template(text, regex=self._rule.regex and position > 0).fill(captures)
            if position == 0 and self._rule.regex:
                name = captures["0"]
            tensor = self._sources.get(name) if name is not None else None
            if tensor is None:
                return self._source_missing(text, name, found)
            found.append(tensor)
        return tuple(found)

    def _source_missing(self, text: str, name: str | None, found: list[SourceTensor]) -> None:
        if not found:
            return
        close = nearest(name or text, self._sources.all_names())
        raise RuleError(
            f"{found[0].name!r} is in {self._sources.side}, and {name or text!r}, which the rule joins it with, is not. "
            f"Nearest names: {quote(close) or 'none'}."
        )

    def _assign(self, sources: tuple[SourceTensor, ...], captures: Captures) -> bool:
        fired = False
        parts = len(self._rule.targets)
        for part, text in enumerate(self._rule.targets):
            name = compile_template(text, regex=self._rule.regex).fill(captures)
            variable = self._targets.get(name) if name is not None else None
            if variable is None:
                self._miss(sources, name or text)
            elif self._claim(variable, sources):
                assignment = Assignment(sources, self._rule.ops, part, parts, self._index)
                self._decisions.assigned[variable.name] = assignment
                self._decisions.used.update((t.name, self._index) for t in sources)
                fired = True
        return fired

    def _miss(self, sources: tuple[SourceTensor, ...], name: str) -> None:
        if len(self._rule.targets) > 1 and any(t.name in self._decisions.used for t in sources):
            close = nearest(name, self._targets.all_names())
            raise RuleError(
                f"{name!r} is not in {self._targets.side}, though the rule's other targets are. "
                f"Nearest names: {quote(close) or 'none'}."
            )
        for tensor in sources:
            self._decisions.missed.setdefault(tensor.name, (self._index, name))

    def _claim(self, variable: TargetVariable, sources: tuple[SourceTensor, ...]) -> bool:
        """Whether this rule may decide the target."""
        earlier = self._decisions.decided(variable.name)
        if earlier is None:
            return True
        present = self._decisions.assigned.get(variable.name)
        literal = not any("{" in text for text in self._rule.targets) and not self._rule.regex
        if present is not None and present.rule == self._index and present.sources == sources:
            return False
        if earlier == self._index or literal:
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
    pattern: Pattern, table: NameTable[SourceTensor] | NameTable[TargetVariable]
) -> Iterator[tuple[SourceTensor, Captures]]:
    """Each item once, with the captures of the first of its names that matches."""
    if pattern.literal:
        item = table.get(pattern.text)
        if item is not None:
            yield item, {}  # type: ignore[misc]
        return
    seen: set[str] = set()
    for name, item in table.names():
        if item.name not in seen:
            captures = pattern.match(name)
            if captures is not None:
                seen.add(item.name)
                yield item, {"0": name, **captures}  # type: ignore[misc]


def _hint(
    rule: Rule, sources: NameTable[SourceTensor], targets: NameTable[TargetVariable], decisions: Decisions
) -> str:
    """What is wrong with a rule that matched nothing: a source or target that is not there, with nearest names."""
    checks = [(text, sources) for text in (*rule.sources, rule.drop) if text]
    checks += [(text, targets) for text in (*rule.targets, rule.keep) if text]  # type: ignore[misc]
    for text, table in checks:
        if not rule.regex and not any(True for _ in _matches(compile_pattern(text), table)):
            close = nearest(text, table.all_names())
            return f"No name in {table.side} matches {text!r}. Nearest names: {quote(close) or 'none'}."
    if decisions.missed:
        name, (_, target) = next(reversed(decisions.missed.items()))
        close = nearest(target, targets.all_names())
        return f"It would map {name!r} to {target!r}. Nearest names in the model: {quote(close) or 'none'}."
    return "Earlier rules took all that it matches. If it may match nothing, say optional = true."
