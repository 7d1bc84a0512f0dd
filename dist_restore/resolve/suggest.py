"""Suggestions: the nearest candidates, and rules that can be pasted as they are.

A suggestion is a proposal to a person, never a decision: it rests on shapes and on likeness of names.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import re
from collections.abc import Container, Iterable, Sequence

from dist_restore.entries import PlanEntry, Problem
from dist_restore.resolve.nearest import likeness, nearest, tokens
from dist_restore.specs import CheckpointIndex, TargetIndex, TensorSpec

_NUMBER = re.compile(r"\d+")
# Pairs of names compared in one resolution: a bound on the work, far above what people read.
MAX_PAIRS = 200_000
# A proposal must share half of the words, and lead the next best by a tenth; below that it is a comment only.
MIN_LIKENESS = 0.5
MIN_LEAD = 0.1
# Below this likeness a name of equal shape is not even mentioned.
MIN_MENTION = 0.2


class Suggester:
    """Candidates for single targets, and the TOML text for a whole plan."""

    def __init__(self, sources: CheckpointIndex) -> None:
        self._sources = {t.name: t for t in sources.tensors if t.slot is None}
        self._by_shape: dict[tuple[int, ...], list[tuple[str, frozenset[str]]]] = collections.defaultdict(list)
        for tensor in self._sources.values():
            self._by_shape[tensor.spec.shape].append((tensor.name, tokens(tensor.name)))
        self._pairs_left = MAX_PAIRS
        self._lead: dict[str, float] = {}

    def with_candidates(self, entries: Sequence[PlanEntry], used: Container[str]) -> list[PlanEntry]:
        """The entries, those that nothing fills with their candidates among the sources that are still free."""
        return [
            dataclasses.replace(e, candidates=self._candidates(e, used)) if _wants_candidates(e) else e
            for e in entries
        ]

    def _candidates(self, entry: PlanEntry, used: Container[str], limit: int = 3) -> tuple[str, ...]:
        """The most alike names of equal shape, best first; without any, the nearest names."""
        pool = self._by_shape.get(entry.spec.shape, [])[: max(self._pairs_left, 0)]
        self._pairs_left -= len(pool)
        pool = [item for item in pool if item[0] not in used]
        words = tokens(entry.target)
        scored = sorted((-likeness(words, theirs), name) for name, theirs in pool)
        found = [(-value, name) for value, name in scored[:limit] if -value >= MIN_MENTION]
        self._lead[entry.target] = _lead(found)
        if found or self._pairs_left <= 0:
            return tuple(name for _, name in found)
        self._pairs_left -= len(self._sources)
        return nearest(entry.target, (n for n in self._sources if n not in used), limit)

    def text(self, entries: Sequence[PlanEntry], targets: TargetIndex, used: Iterable[str]) -> str:
        """TOML rules for every target that is refused; empty when none is."""
        owners = {v.name for v in targets.variables if v.slot is None}
        refused = [e for e in entries if e.target in owners and e.problem is not Problem.NONE]
        rules = self._without_rivals([self._rule(e) for e in refused if self._is_clear(e)], set(used))
        proposed = {target for _, target, _ in rules}
        texts = [_render(group) for group in _collapse(rules, set(self._sources), owners)]
        return "\n".join([*texts, *(_render_unclear(e) for e in refused if e.target not in proposed)])

    def _is_clear(self, entry: PlanEntry) -> bool:
        """Whether there is one proposal: a clear candidate, or plainly none."""
        if entry.problem is Problem.AMBIGUOUS:
            return False
        fits = any(self._sources[n].spec.shape == entry.spec.shape for n in entry.candidates if n in self._sources)
        return entry.problem is not Problem.UNMATCHED or self._lead.get(entry.target, 0.0) > 0 or not fits

    @staticmethod
    def _without_rivals(rules: Sequence[tuple[str, str, str]], used: set[str]) -> list[tuple[str, str, str]]:
        """Leaves out sources that are used already or that two proposals want."""
        wanted = collections.Counter(source for source, _, _ in rules)
        return [r for r in rules if not r[0] or (wanted[r[0]] == 1 and r[0] not in used)]

    def _rule(self, entry: PlanEntry) -> tuple[str, str, str]:
        """(source or empty, target, ops as TOML) of one suggestion."""
        if entry.problem in (Problem.SHAPE, Problem.DTYPE) and len(entry.candidates) == 1:
            return entry.candidates[0], entry.target, _fixing_ops(entry, self._sources[entry.candidates[0]].spec)
        if self._lead.get(entry.target, 0.0) > 0:
            return entry.candidates[0], entry.target, ""
        return "", entry.target, ""


def _wants_candidates(entry: PlanEntry) -> bool:
    return entry.problem is Problem.UNMATCHED and not entry.candidates


def _lead(found: Sequence[tuple[float, str]]) -> float:
    """By how much the best candidate leads, if it is good enough to propose; else 0."""
    if not found or found[0][0] < MIN_LIKENESS:
        return 0.0
    lead = found[0][0] - (found[1][0] if len(found) > 1 else 0.0)
    return lead if lead >= MIN_LEAD else 0.0


def _fixing_ops(entry: PlanEntry, found: TensorSpec) -> str:
    if entry.problem is Problem.DTYPE:
        return f'{{ cast = {{ dtype = "{entry.spec.dtype}" }} }}'
    if found.elements == entry.spec.elements:
        return f"{{ reshape = {{ shape = {list(entry.spec.shape)} }} }}"
    if len(found.shape) == len(entry.spec.shape):
        return '{ fit = { fill = "keep" } }'
    return ""


def _collapse(
    rules: Sequence[tuple[str, str, str]], sources: set[str], targets: set[str]
) -> list[tuple[str, str, str]]:
    """Replaces suggestions that differ in one block index only by one rule with `{i}`.

    Only where every index that the pattern would match is among them, so that the rule does just the same.
    """
    families: dict[tuple[str, str, str], list[tuple[str, str, str]]] = collections.defaultdict(list)
    for rule in rules:
        families[_family(rule)].append(rule)
    result = []
    for pattern, members in families.items():
        exact = len(members) > 1 and pattern not in members and _same_reach(pattern, members, sources, targets)
        result += [pattern] if exact else members
    return sorted(result, key=lambda r: r[1])


def _family(rule: tuple[str, str, str]) -> tuple[str, str, str]:
    source, target, ops = rule
    if "{" in source + target:
        return rule
    theirs, ours = _NUMBER.search(source), _NUMBER.search(target)
    if source and (theirs is None or ours is None or theirs.group() != ours.group()):
        return rule
    return _NUMBER.sub("{i}", source, count=1), _NUMBER.sub("{i}", target, count=1), ops


def _same_reach(
    pattern: tuple[str, str, str], members: Sequence[tuple[str, str, str]], sources: set[str], targets: set[str]
) -> bool:
    side, names = (pattern[0], sources) if pattern[0] else (pattern[1], targets)
    head, _, tail = side.partition("{i}")
    reach = {n for n in names if n.startswith(head) and n.endswith(tail) and n[len(head) : len(n) - len(tail)].isdigit()}
    return reach == {m[0] if pattern[0] else m[1] for m in members}


def _render(rule: tuple[str, str, str]) -> str:
    source, target, ops = rule
    if not source:
        return f"[[rule]]  # nothing in the checkpoint fits: it keeps its present value\nkeep = {_quote(target)}\n"
    tail = f"ops = [{ops}]\n" if ops else ""
    return f"[[rule]]\nfrom = {_quote(source)}\nto = {_quote(target)}\n{tail}"


def _render_unclear(entry: PlanEntry) -> str:
    """Comments only: what is not clear is for a person to decide, so nothing here may take effect by pasting."""
    lines = [f"# {_quote(entry.target)} {entry.spec}: choose a source, or keep it", "# [[rule]]"]
    lines += [f"# from = {_quote(name)}" for name in entry.candidates[:3]]
    return "\n".join([*lines, f"# to = {_quote(entry.target)}", ""])


def _quote(name: str) -> str:
    # JSON's string escapes are also TOML's; surrogates are not, and such names cannot be written in TOML at all.
    return json.dumps(name.encode("utf-8", "replace").decode("utf-8"), ensure_ascii=False).replace("\x7f", "\\u007f")
