"""Suggestions: the nearest candidates, and rules that can be pasted as they are.

A suggestion is a proposal to a person, never a decision: it rests on shapes and on likeness of names.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import json
import re
from collections.abc import Collection, Container, Iterable, Iterator, Mapping, Sequence

from dist_restore.entries import PlanEntry, Problem
from dist_restore.resolve.nearest import likeness, nearest, tokens
from dist_restore.resolve.patterns import MAX_PATTERN
from dist_restore.specs import AliasKind, CheckpointIndex, SourceTensor, TargetIndex, TensorSpec

_NUMBER = re.compile(r"[0-9]+")
# Pairs of names compared in one resolution (about a second): a bound on the work, far above what people read.
MAX_PAIRS = 500_000
# A proposal must share half of the words, and lead the next best by a tenth; below that it is a comment only.
MIN_LIKENESS = 0.5
MIN_LEAD = 0.1
# Below this likeness a name of equal shape is mentioned only where there is none that is more alike.
MIN_MENTION = 0.2
# Comments are for people; rules, which may be pasted, are never left out.
MAX_COMMENTS = 200


_FIT = '{ fit = { fill = "keep" } }'
# It is the one proposal that can be pasted and be wrong: of a vocabulary whose tokens moved, shapes tell nothing.
_FIT_MEANS = "# fit keeps every index where it is; where indices are tokens, and some moved: remap_rows"
_SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"  # rules drop it


@dataclasses.dataclass(frozen=True, slots=True)
class _Proposal:
    """One rule: without a source it is `keep`."""

    source: str
    target: str
    ops: str = ""


class Suggester:
    """Candidates for single targets, and the TOML text for a whole plan."""

    def __init__(self, sources: CheckpointIndex) -> None:
        self._index = sources
        self._pairs_left = MAX_PAIRS
        self._lead: dict[str, float] = {}
        self._nothing_alike: set[str] = set()

    @functools.cached_property
    def _sources(self) -> Mapping[str, SourceTensor]:
        return {t.name: t for t in self._index.tensors if t.slot is None}

    @functools.cached_property
    def _words(self) -> Mapping[str, frozenset[str]]:
        return {name: tokens(tensor.own_name) for name, tensor in self._sources.items()}

    @functools.cached_property
    def _by_shape(self) -> Mapping[tuple[int, ...], Sequence[str]]:
        table: dict[tuple[int, ...], list[str]] = collections.defaultdict(list)
        for name, tensor in self._sources.items():
            if not tensor.spec.is_object:
                table[tensor.spec.shape].append(name)
        return table

    @functools.cached_property
    def _by_word(self) -> Mapping[str, Sequence[str]]:
        table: dict[str, list[str]] = collections.defaultdict(list)
        for name, words in self._words.items():
            for word in words:
                table[word].append(name)
        return table

    def with_candidates(
        self, entries: Sequence[PlanEntry], targets: TargetIndex, used: Container[str]
    ) -> list[PlanEntry]:
        """The entries, those that nothing fills with their candidates among the sources that are still free."""
        open_ = {e.target for e in entries if e.problem is Problem.UNMATCHED and not e.candidates}
        if not open_:
            return list(entries)
        open_ &= {v.name for v in targets.variables if v.slot is None}  # a slot has those of its owner
        return [
            dataclasses.replace(e, candidates=self._candidates(e, used)) if e.target in open_ else e for e in entries
        ]

    def _candidates(self, entry: PlanEntry, used: Container[str], limit: int = 3) -> tuple[str, ...]:
        """The most alike names: of equal shape, else of any, else by spelling; best first."""
        words = tokens(entry.target)
        fitting = self._ranked(words, self._by_shape.get(entry.spec.shape, ()), used)
        self._lead[entry.target] = _lead(fitting or ())
        named = [pair for pair in fitting or () if pair[0] >= MIN_MENTION]
        other = None if named else self._ranked(words, self._sharing(words), used, MIN_LIKENESS)
        found = named or other or fitting
        if found:
            return tuple(name for _, name in found[:limit])
        if fitting is not None and other is not None:
            self._nothing_alike.add(entry.target)
        if self._pairs_left < len(self._sources):
            return ()
        self._pairs_left -= len(self._sources)
        return nearest(entry.target, (n for n in self._sources if n not in used), limit)

    def _ranked(
        self, words: frozenset[str], names: Collection[str], used: Container[str], least: float = 0.0
    ) -> list[tuple[float, str]] | None:
        """(likeness, name) of the free names, best first; None when there are more than may be compared."""
        if len(names) > self._pairs_left:
            return None
        self._pairs_left -= len(names)
        scored = sorted((-likeness(words, self._words[name]), name) for name in names if name not in used)
        return [(-value, name) for value, name in scored if -value >= least]

    def _sharing(self, words: frozenset[str]) -> Collection[str]:
        """All names that could share half of the words: they have one of any half of them, such as the rarest."""
        lists = sorted((self._by_word.get(w, ()) for w in words), key=len)[: len(words) // 2 + 1]
        # Too many to be compared are not put together either.
        return set().union(*lists) if sum(map(len, lists)) <= self._pairs_left else self._sources

    def text(
        self, entries: Sequence[PlanEntry], targets: TargetIndex, used: Container[str], ruled: Container[str]
    ) -> str:
        """TOML rules for every target that is refused; empty when none is.

        Args:
          entries: the plan's, with their candidates.
          targets: all live variables.
          used: source names that something uses.
          ruled: targets that rules decided; another rule for these would only contradict.
        """
        refused = [e for e in entries if e.problem is not Problem.NONE]
        if not refused:
            return ""
        owners = {v.name for v in targets.variables if v.slot is None}
        refused = [e for e in refused if e.target in owners]
        found = [p for e in refused if e.target not in ruled and (p := self._propose(e)) and _can_be_written(p)]
        rules = _without_rivals(found, used)
        proposed = {p.target for p in rules}
        texts = [_render(p) for p in _collapse(rules, self._sources, owners)]
        return "\n".join([*texts, *self._comments([e for e in refused if e.target not in proposed])])

    def _comments(self, entries: Sequence[PlanEntry]) -> Iterator[str]:
        yield from (self._render_unclear(e) for e in entries[:MAX_COMMENTS])
        if len(entries) > MAX_COMMENTS:
            yield f"# ... and {len(entries) - MAX_COMMENTS} more that are not clear\n"

    def _render_unclear(self, entry: PlanEntry) -> str:
        """Comments only: what is not clear is for a person to decide, so nothing here may take effect by pasting."""
        lines = [f"# {_quote(entry.target)} {entry.spec}: choose a source, or keep it", "# [[rule]]"]
        lines += [f"# from = {_quote(name)}{self._also(name)}" for name in entry.candidates[:3]]
        return "\n".join([*lines, f"# to = {_quote(entry.target)}", ""])

    def _also(self, name: str) -> str:
        """What else a tensor is called whose name is a number: a rule may say it, with captures too."""
        tensor = self._sources.get(name)
        if tensor is None or tensor.name_kind is not AliasKind.POSITIONAL:
            return ""
        said = next((a.name for a in tensor.aliases if a.kind in (AliasKind.FLAT, AliasKind.SEMANTIC)), "")
        return f"  # or {_quote(said)}" if said else ""

    def _propose(self, entry: PlanEntry) -> _Proposal | None:
        """The one rule to propose: a clear candidate, or plainly none; None where it is not clear."""
        if entry.problem in (Problem.SHAPE, Problem.DTYPE) and len(entry.candidates) == 1:
            spec = self._sources[entry.candidates[0]].spec
            ops = "" if entry.spec.is_object or spec.is_object else _fixing_ops(entry, spec)
            return _Proposal(entry.candidates[0], entry.target, ops) if ops else None
        if entry.problem is not Problem.UNMATCHED:
            return None
        if self._lead.get(entry.target, 0.0) > 0:
            return _Proposal(entry.candidates[0], entry.target)
        return _Proposal("", entry.target) if entry.target in self._nothing_alike else None


def _without_rivals(proposals: Sequence[_Proposal], used: Container[str]) -> list[_Proposal]:
    """Leaves out sources that are used already or that two proposals want."""
    wanted = collections.Counter(p.source for p in proposals)
    return [p for p in proposals if not p.source or (wanted[p.source] == 1 and p.source not in used)]


def _can_be_written(proposal: _Proposal) -> bool:
    """Whether a rule means these names as they are: no braces, no bytes that are no UTF-8, no absurd length."""
    return all(
        name.isprintable() and len(name) <= MAX_PATTERN and not {"{", "}"} & set(name) and not name.endswith(_SUFFIX)
        for name in (proposal.source, proposal.target)
    )


def _lead(found: Sequence[tuple[float, str]]) -> float:
    """By how much the best candidate leads, if it is good enough to propose; else 0."""
    if not found or found[0][0] < MIN_LIKENESS:
        return 0.0
    lead = found[0][0] - (found[1][0] if len(found) > 1 else 0.0)
    return lead if lead >= MIN_LEAD else 0.0


def _fixing_ops(entry: PlanEntry, found: TensorSpec) -> str:
    """The ops that surely are the right ones to propose, else empty."""
    if entry.problem is Problem.DTYPE:
        return "" if "string" in (found.dtype, entry.spec.dtype) else f'{{ cast = {{ dtype = "{entry.spec.dtype}" }} }}'
    if _squeezed(found.shape) == _squeezed(entry.spec.shape):
        return f"{{ reshape = {{ shape = {list(entry.spec.shape)} }} }}"
    # Equal numbers of elements prove nothing: it may be a transpose, or a transpose and a reshape.
    if len(found.shape) == len(entry.spec.shape) and found.elements != entry.spec.elements:
        return _FIT
    return ""


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(n for n in shape if n != 1)


def _collapse(proposals: Sequence[_Proposal], sources: Iterable[str], targets: Iterable[str]) -> list[_Proposal]:
    """Replaces proposals that differ in one block index only by one rule with `{i}`.

    Only where every index that the pattern would match is among them, so that the rule does just the same.
    """
    if not proposals:
        return []
    families: dict[_Proposal, list[_Proposal]] = collections.defaultdict(list)
    for proposal in proposals:
        families[_family(proposal)].append(proposal)
    reach = _reach(sources), _reach(targets)
    result = []
    for pattern, members in families.items():
        names = {m.source or m.target for m in members}
        side = reach[0].get(pattern.source) if pattern.source else reach[1].get(pattern.target)
        result += [pattern] if len(members) > 1 and names == side else members
    return sorted(result, key=lambda p: p.target)


def _reach(names: Iterable[str]) -> dict[str, set[str]]:
    """Pattern -> the names that it matches."""
    table: dict[str, set[str]] = collections.defaultdict(set)
    for name in names:
        table[_NUMBER.sub("{i}", name, count=1)].add(name)
    return table


def _family(proposal: _Proposal) -> _Proposal:
    theirs, ours = _NUMBER.search(proposal.source), _NUMBER.search(proposal.target)
    if proposal.source and (theirs is None or ours is None or theirs.group() != ours.group()):
        return proposal
    source, target = (_NUMBER.sub("{i}", name, count=1) for name in (proposal.source, proposal.target))
    return _Proposal(source, target, proposal.ops)


def _render(proposal: _Proposal) -> str:
    if not proposal.source:
        keep = f"keep = {_quote(proposal.target)}\n"
        return f"[[rule]]  # nothing in the checkpoint fits: it keeps its present value\n{keep}"
    tail = f"ops = [{proposal.ops}]\n" if proposal.ops else ""
    if proposal.ops == _FIT:
        tail = f"{_FIT_MEANS}\n{tail}"
    return f"[[rule]]\nfrom = {_quote(proposal.source)}\nto = {_quote(proposal.target)}\n{tail}"


def _quote(name: str) -> str:
    # JSON's string escapes are also TOML's; surrogates are not, and such names stand in comments only.
    return json.dumps(name.encode("utf-8", "replace").decode("utf-8"), ensure_ascii=False).replace("\x7f", "\\u007f")
