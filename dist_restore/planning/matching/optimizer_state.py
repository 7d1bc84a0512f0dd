"""Counters and rates of optimizers: state that belongs to no variable, and that a wrapper has a dummy of.

A LossScaleOptimizer has iterations and a learning rate of its own, which it never uses; the real ones are those of the
optimizer inside. So the innermost optimizers of both sides belong together, however deep they lie. A number that
counts something else on the two sides is no match, whatever it is called. Pure.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator, Sequence

from dist_restore.core.index import AliasKind, CheckpointIndex, OptimizerInfo, SourceTensor, TargetIndex, TargetVariable
from dist_restore.naming.slot_roles import INSIDE, LOSS_SCALE, SHADOWS
from dist_restore.planning.beginnings import is_unstepped
from dist_restore.planning.matching.by_state_number import StateNumbers
from dist_restore.planning.matching.outcome import Conflict, Match, Outcome

_ACCUMULATED = "accumulated_gradient"
# What name-based checkpoints call the number of updates, by TF1's convention.
TF1_STEP = "global_step"
_POWER = re.compile(r"beta[12]_power(?:_\d+)?\Z")


@dataclasses.dataclass(frozen=True, slots=True)
class _Chain:
    """An optimizer with all that wrap it: names from the outside in."""

    names: tuple[str, ...]

    @property
    def inner(self) -> str:
        return self.names[-1]

    @property
    def wrappers(self) -> tuple[str, ...]:
        return self.names[:-1]


class OptimizerState:
    """What becomes of optimizers' state, slots apart; one object per resolution."""

    def __init__(self, targets: TargetIndex, sources: CheckpointIndex) -> None:
        self._ours = {o.name: o for o in targets.optimizers}
        self._theirs = {o.name: o for o in sources.optimizers}
        self._pairs = [*_pairs(_chains(targets.optimizers), _chains(sources.optimizers))]
        unequal = [(mine, other) for mine, other in self._pairs if len(mine.names) != len(other.names)]
        self._unequal = unequal
        self._sources = sources
        self._has_step = sources.format == "tf1"
        self._my_wrappers = {name for mine, _ in unequal for name in mine.wrappers}
        self._their_wrappers = {name for _, other in unequal for name in other.wrappers}
        self.numbers = StateNumbers(targets, sources, _places(self._pairs))

    def match(self, targets: Iterable[TargetVariable], free: Iterable[SourceTensor]) -> dict[str, Outcome]:
        """Finds the state of optimizers that are wrapped on one side only, and the iterations of TF1's.

        Args:
          targets: variables without a decision, slots left out.
          free: tensors without a decision, slots left out.
        """
        targets, free = tuple(targets), tuple(free)
        numbered: dict[str, Outcome] = {**self.numbers.match(targets, free)}
        return {**numbered, **self._match_unequal(targets, free)}

    def _match_unequal(self, targets: Iterable[TargetVariable], free: Iterable[SourceTensor]) -> dict[str, Outcome]:
        places = {mine.inner: other.inner for mine, other in self._pairs}
        if not self._unequal and not (self._has_step and places):
            return {}
        table = self._state_by_name(free)
        if not table:
            return {}
        found: dict[str, Outcome] = {}
        for target in targets:
            optimizer, _, rest = target.name.rpartition("/")
            source = table.get(f"{places[optimizer]}/{rest}") if optimizer in places else None
            if source is not None:
                found[target.name] = self._judge(target, source, optimizer, places[optimizer])
        return found

    def _state_by_name(self, free: Iterable[SourceTensor]) -> dict[str, SourceTensor]:
        """State of innermost optimizers whose wrappers differ; and TF1's step, by what its file says that it counts."""
        places = {other.inner for _, other in self._unequal}
        table = {}
        for tensor in free:
            if tensor.name_kind is not AliasKind.POSITIONAL and tensor.name.rpartition("/")[0] in places:
                table[tensor.name] = tensor
            if tensor.name == TF1_STEP:
                table.update((alias.name, tensor) for alias in tensor.aliases)
        return table

    def _judge(self, target: TargetVariable, source: SourceTensor, mine: str, other: str) -> Outcome:
        trouble = self._counts_otherwise(mine, other, source) if target.name == f"{mine}/iterations" else ""
        if trouble:
            return Conflict((source,), trouble)
        if source.name == TF1_STEP:
            return Match(source, f"what TF1 counts the updates of {other!r} with, its only optimizer")
        return Match(source, f"{mine!r} is the checkpoint's {other!r}: the optimizer inside the wrapper")

    def keep_reason(self, target: TargetVariable) -> str:
        """Why a variable may keep its value.

        It is a loss scale's own, and the checkpoint's optimizer has none; or a rate that tf_keras puts into no file.
        """
        if not self._my_wrappers and not self.numbers.pairs:
            return ""
        optimizer, _, own = target.name.rpartition("/")
        if own == "learning_rate" and self.numbers.lacks(optimizer, target):
            return "files of tf_keras store no learning rate: it is what the program says"
        if optimizer not in self._my_wrappers or self._ours[optimizer].family != LOSS_SCALE:
            return ""
        return "the LossScaleOptimizer's own state, and the checkpoint's optimizer is not wrapped in one"

    def unmatched_reason(self, target: TargetVariable) -> str:
        """What a variable is, where that says why the checkpoint lacks it; else empty."""
        optimizer, _, rest = target.name.rpartition("/")
        trouble = self.numbers.trouble(optimizer)
        if trouble:
            return f'{trouble}. To keep that of the program: keep = "{target.name}"'
        if rest == "learning_rate" and optimizer in self._ours and optimizer not in self._my_wrappers:
            return f'the checkpoint stores no such learning rate. To keep that of the program: keep = "{target.name}"'
        if optimizer not in self._my_wrappers:
            return ""
        return f"it is state of the wrapper {optimizer!r} itself, and the checkpoint's optimizer is not wrapped"

    def doubt(self, target: TargetVariable, source: SourceTensor) -> str:
        """Why state of an equal name does not mean the same on both sides; empty where it does."""
        if not self._ours or not self._theirs:
            return ""
        mine, other = target.name.rpartition("/"), source.name.rpartition("/")
        if mine[0] not in self._ours or other[0] not in self._theirs:
            return ""
        wrapped = f"{mine[0]}/{INSIDE}" in self._ours, f"{other[0]}/{INSIDE}" in self._theirs
        if wrapped[0] != wrapped[1]:
            return (
                "one side's optimizer is wrapped in another (LossScaleOptimizer), whose own state of this name means "
                f'nothing to the one inside; a rule must say which is meant, such as from = "{other[0]}/{INSIDE}/'
                f'{other[2]}"'
            )
        return self._counts_otherwise(mine[0], other[0], source) if mine[2] == "iterations" else ""

    def _counts_otherwise(self, mine: str, other: str, source: SourceTensor) -> str:
        """Whether one of two counters counts batches and the other updates."""
        accumulates = _ACCUMULATED in self._ours[mine].roles, _ACCUMULATED in self._theirs[other].roles
        if accumulates[0] == accumulates[1] or is_unstepped(self._theirs[other], self._sources):
            return ""
        here, there = ("batches", "updates") if accumulates[0] else ("updates", "batches")
        return (
            f"with gradient accumulation it counts batches, without it updates: {there} in the checkpoint, {here} "
            f'here. A rule must say what is meant: keep = "{mine}/iterations", or from = "{source.name}", to = '
            f'"{mine}/iterations", which takes the number as it is'
        )

    def unused_reason(self, tensor: SourceTensor) -> str:
        """What a tensor is that no optimizer of Keras 3 has; empty where that is not known."""
        if tensor.name.rpartition("/")[0] in self._their_wrappers:
            return "state of the checkpoint's loss scale wrapper itself, and the program's optimizer is not wrapped"
        if self.numbers.is_copy(tensor):
            return "the wrapper's second copy of what the optimizer inside keeps"
        if _POWER.match(tensor.name.rpartition("/")[2]):
            return "a power of Adam's beta, which Keras 3 computes from the iterations"
        return ""


def _chains(optimizers: Sequence[OptimizerInfo]) -> list[_Chain]:
    """The optimizers that are not inside another, each with what is inside. What only averages is none."""
    names = {o.name for o in optimizers if o.family != SHADOWS}
    chains = []
    for name in sorted(names):
        if not name.endswith(f"/{INSIDE}") or name.removesuffix(f"/{INSIDE}") not in names:
            chain = [name]
            while f"{chain[-1]}/{INSIDE}" in names:
                chain.append(f"{chain[-1]}/{INSIDE}")
            chains.append(_Chain(tuple(chain)))
    return chains


def _places(pairs: Iterable[tuple[_Chain, _Chain]]) -> Iterator[tuple[str, str]]:
    """Names of optimizers that keep the same: the innermost ones, and wrappers where there are equally many."""
    for mine, other in pairs:
        yield mine.inner, other.inner
        if len(mine.names) == len(other.names):
            yield from zip(mine.wrappers, other.wrappers, strict=True)


def _pairs(ours: Sequence[_Chain], theirs: Sequence[_Chain]) -> Iterable[tuple[_Chain, _Chain]]:
    """The optimizers of one name; or the only one of each side."""
    if len(ours) == 1 and len(theirs) == 1:
        return zip(ours, theirs, strict=True)
    others = {chain.names[0]: chain for chain in theirs}
    return ((chain, others[chain.names[0]]) for chain in ours if chain.names[0] in others)
