"""Proposed rules as values: what one says, several as one pattern, and the TOML text of each.

A proposal that is proven takes effect when its text is pasted. What is a guess is text of the same form in comments,
and says why it is one. A pattern stands for single rules only if it does exactly what they do: that is tried, and not
derived. Pure.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import re
from collections.abc import Iterator, Sequence

from dist_restore.core.errors import RuleError
from dist_restore.core.index import SourceTensor, TargetVariable
from dist_restore.planning.apply_rules import apply_rules
from dist_restore.planning.name_table import NameTable
from dist_restore.planning.rules.patterns import MAX_PATTERN
from dist_restore.planning.rules.rule import Rule
from dist_restore.planning.rules.rule_set import RuleSet

_NUMBER = re.compile(r"[0-9]+")
_SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"  # rules drop it
# How many patterns are tried; beyond that, what is left stays a rule for each.
MAX_TRIED = 300
KEEP_MEANS = "nothing in the checkpoint fits: it keeps its present value"


@dataclasses.dataclass(frozen=True, slots=True)
class Proposal:
    """One rule: without a source it is `keep`.

    Attributes:
      source: the rule's `from`.
      target: the rule's `to`, or what it keeps.
      ops: the one op, in TOML.
      guess: why it is a guess; empty where it is proven.
    """

    source: str
    target: str
    ops: str = ""
    guess: str = ""

    @property
    def can_be_written(self) -> bool:
        """Whether a rule means these names as they are: no braces, nothing unprintable, no absurd length."""
        return all(
            n.isprintable() and len(n) <= MAX_PATTERN and not {"{", "}"} & set(n) and not n.endswith(_SUFFIX)
            for n in (self.source, self.target)
        )

    def render(self) -> str:
        """The TOML text, in comments where it is a guess."""
        lines = list(self._lines())
        if not self.guess:
            head = "[[rule]]" if self.source else f"[[rule]]  # {KEEP_MEANS}"
            return "\n".join([head, *lines, ""])
        return "\n".join([f"# guess: {self.guess}", *(f"# {line}" for line in ("[[rule]]", *lines)), ""])

    def _lines(self) -> Iterator[str]:
        if not self.source:
            yield f"keep = {quote_toml(self.target)}"
            return
        yield f"from = {quote_toml(self.source)}"
        yield f"to = {quote_toml(self.target)}"
        if self.ops:
            yield f"ops = [{self.ops}]"


def quote_toml(name: str) -> str:
    """A name as a TOML string."""
    # JSON's string escapes are also TOML's; surrogates are not, and such names stand in comments only.
    return json.dumps(name.encode("utf-8", "replace").decode("utf-8"), ensure_ascii=False).replace("\x7f", "\\u007f")


def without_rivals(proposals: Sequence[Proposal]) -> list[Proposal]:
    """Leaves out those of which two want one source; what is proven comes before what is a guess."""
    proven = _single([p for p in proposals if not p.guess])
    taken = {p.source for p in proven} - {""}
    return proven + _single([p for p in proposals if p.guess and p.source not in taken])


def _single(proposals: Sequence[Proposal]) -> list[Proposal]:
    wanted = collections.Counter(p.source for p in proposals)
    return [p for p in proposals if not p.source or wanted[p.source] == 1]


def collapse(
    proposals: Sequence[Proposal], sources: NameTable[SourceTensor], targets: NameTable[TargetVariable]
) -> list[Proposal]:
    """The proposals, as few rules as do exactly the same: `{rest}` for a shared prefix, `{i}` for a block's index."""
    families: dict[Proposal, list[Proposal]] = collections.defaultdict(list)
    for proposal in proposals:
        for pattern in _patterns(proposal):
            families[pattern].append(proposal)
    largest = sorted((p for p, members in families.items() if len(members) > 1), key=lambda p: _order(p, families[p]))
    left, found, tries = dict.fromkeys(proposals), [], MAX_TRIED
    for pattern in largest:
        members = families[pattern]
        if tries and all(m in left for m in members):
            tries -= 1
            if _effect(pattern, sources, targets) == {m.target: m.source for m in members}:
                found.append(pattern)
                for member in members:
                    del left[member]
    return sorted([*found, *left], key=lambda p: p.target)


def _order(pattern: Proposal, members: Sequence[Proposal]) -> tuple[int, bool, int, str, str]:
    """Those that stand for most first; of equal ones the most special, which says most."""
    return -len(members), "{rest}" in pattern.target, -len(pattern.target), pattern.target, pattern.source


def _patterns(proposal: Proposal) -> Iterator[Proposal]:
    """The patterns that could stand for a proposal."""
    for source, target in _prefixes(proposal):
        yield dataclasses.replace(proposal, source=source, target=target)
        yield from _indexed(dataclasses.replace(proposal, source=source, target=target))
    yield from _indexed(proposal)


def _prefixes(proposal: Proposal) -> Iterator[tuple[str, str]]:
    """Both names with the segments that they end alike in as `{rest}`; never a rule that changes nothing."""
    theirs, ours = proposal.source.split("/"), proposal.target.split("/")
    if not proposal.source:
        yield from (("", "/".join([*ours[:cut], "{rest}"])) for cut in range(1, len(ours)))
        return
    for count in range(1, min(len(theirs), len(ours))):
        if theirs[-count] != ours[-count]:
            return
        before, after = theirs[:-count], ours[:-count]
        if before != after or proposal.ops:
            yield "/".join([*before, "{rest}"]), "/".join([*after, "{rest}"])


def _indexed(proposal: Proposal) -> Iterator[Proposal]:
    """The first number as `{i}`, where it is the same on both sides."""
    theirs, ours = _NUMBER.search(proposal.source), _NUMBER.search(proposal.target)
    if ours is None or (proposal.source and (theirs is None or theirs.group() != ours.group())):
        return
    source, target = (_NUMBER.sub("{i}", name, count=1) for name in (proposal.source, proposal.target))
    yield dataclasses.replace(proposal, source=source, target=target)


def _effect(
    pattern: Proposal, sources: NameTable[SourceTensor], targets: NameTable[TargetVariable]
) -> dict[str, str] | None:
    """Target -> source of all that a rule would decide; None where it is no rule."""
    rule = Rule(from_=pattern.source, to=pattern.target) if pattern.source else Rule(keep=pattern.target)
    try:
        done = apply_rules(RuleSet((rule,)), sources, targets)
    except RuleError:
        return None
    if done.missed:
        return None
    return {t: a.sources[0].name for t, a in done.assigned.items()} | dict.fromkeys(done.kept, "")
