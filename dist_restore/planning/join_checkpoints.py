"""Matching against several checkpoints: each is matched by itself, and what they say is then compared.

A target is matched where one checkpoint alone has a tensor of its name and shape. Where several have, nothing in
them can tell which is meant: the target is refused with the candidates of all, until a rule decides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from dist_restore.core.index import AliasKind, Part, SourceTensor, TargetVariable
from dist_restore.core.nearest import quote
from dist_restore.planning.apply_rules import Decisions
from dist_restore.planning.matching.outcome import Conflict, Match, Outcome


class _Claim(NamedTuple):
    """What one checkpoint says of a target."""

    part: Part
    outcome: Outcome

    @property
    def candidates(self) -> tuple[SourceTensor, ...]:
        return (self.outcome.source,) if isinstance(self.outcome, Match) else self.outcome.candidates

    def fits(self, target: TargetVariable) -> bool:
        return any(tensor.spec.shape == target.spec.shape for tensor in self.candidates)

    def is_named(self) -> bool:
        """Whether any of the tensors has a name that says something, and not just a place."""
        return any(
            kind is not AliasKind.POSITIONAL
            for tensor in self.candidates
            for kind in (tensor.name_kind, *(alias.kind for alias in tensor.aliases))
        )


def decisions_of(part: Part, decisions: Decisions) -> Decisions:
    """What the rules decided about one of the checkpoints, under the names that it has there."""
    own = {part.named(tensor.name): tensor for tensor in part.index.tensors}
    found = Decisions()
    for target, assignment in decisions.assigned.items():
        sources = tuple(own[s.name] for s in assignment.sources if s.part == part.name)
        if sources:
            found.assigned[target] = assignment._replace(sources=sources)
    found.seeded = decisions.seeded & found.assigned.keys()
    found.used = {own[name].name: rule for name, rule in decisions.used.items() if name in own}
    found.dropped = {own[name].name: rule for name, rule in decisions.dropped.items() if name in own}
    return found


def join_outcomes(
    outcomes: Sequence[tuple[Part, Mapping[str, Outcome]]],
    tensors: Sequence[SourceTensor],
    targets: Sequence[TargetVariable],
) -> dict[str, Outcome]:
    """One outcome per target out of those of all checkpoints.

    Args:
      outcomes: of each checkpoint by itself: target name -> match or conflict, about its own tensors.
      tensors: of all checkpoints, under the names that they have among all.
      targets: the variables that rules have not decided.

    Returns:
      Target name -> match or conflict, about `tensors`; targets without any candidate are absent.
    """
    table = {tensor.name: tensor for tensor in tensors}
    found: dict[str, Outcome] = {}
    for target in targets:
        claims = [_Claim(part, own[target.name]) for part, own in outcomes if target.name in own]
        outcome = _judge(target, claims, table)
        if outcome is not None:
            found[target.name] = outcome
    return found


def _judge(target: TargetVariable, claims: list[_Claim], table: Mapping[str, SourceTensor]) -> Outcome | None:
    rivals = [claim for claim in claims if claim.fits(target)] or claims
    if any(isinstance(claim.outcome, Match) and claim.is_named() for claim in rivals):
        # What has a place only, and not surely this one, is no rival of what has the name.
        rivals = [claim for claim in rivals if isinstance(claim.outcome, Match) or claim.is_named()]
    if len(rivals) == 1:
        return _lifted(rivals[0], table)
    if not rivals or target.tracker_only:
        return None
    names = quote([claim.part.name for claim in rivals])
    candidates = tuple(tensor for claim in rivals for tensor in _among_all(claim, table))
    reason = (
        f"the checkpoints {names} each have a candidate, and only a rule can say which is meant, such as "
        f'from = "{candidates[0].name}", to = "{target.name}"'
    )
    return Conflict(candidates, reason)


def _lifted(claim: _Claim, table: Mapping[str, SourceTensor]) -> Outcome:
    candidates = _among_all(claim, table)
    if isinstance(claim.outcome, Match):
        return Match(candidates[0], f"{claim.outcome.evidence}, in {claim.part.name!r} alone", claim.outcome.proof)
    where = f"(in the checkpoint {claim.part.name!r}, whose names rules begin with {claim.part.name + ':'!r})"
    return Conflict(candidates, f"{claim.outcome.reason} {where}")


def _among_all(claim: _Claim, table: Mapping[str, SourceTensor]) -> tuple[SourceTensor, ...]:
    return tuple(table[claim.part.named(tensor.name)] for tensor in claim.candidates)
