"""Tiny checkpoints and programs, written as short text: one line is one tensor.

model/dense/kernel 4x4                       a name and a shape; `-` is a scalar; float32 unless said
step - int64 kind:positional                 a name that nobody chose
model/a/w 2 flat:net_a_w pos:opt/tv/0        aliases by kind: sem, flat, cnt, pos
momentum@model/dense/kernel                  a slot: role and owner; of the owner's shape unless said
momentum@model/dense/kernel opt:opt_b        a slot of another optimizer than `optimizer`
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from dist_restore.core.graph import Leaf, Node
from dist_restore.core.index import (
    Alias,
    AliasKind,
    CheckpointIndex,
    Group,
    OptimizerInfo,
    Slot,
    SourceTensor,
    TargetIndex,
    TargetVariable,
)
from dist_restore.core.tensors import TensorSpec
from dist_restore.naming.names import slot_name
from dist_restore.planning.entries import PlanEntry
from dist_restore.planning.plan import RestorePlan
from dist_restore.planning.planner import Options, resolve
from dist_restore.planning.rules.rule_set import RuleSet, RulesLike

_KINDS = {"sem": AliasKind.SEMANTIC, "flat": AliasKind.FLAT, "cnt": AliasKind.COUNTED, "pos": AliasKind.POSITIONAL}
Families = Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Line:
    """What one line says, the same for both sides."""

    name: str
    spec: TensorSpec
    aliases: tuple[Alias, ...]
    kind: AliasKind
    slot: Slot | None
    words: Mapping[str, str]


def lines(text: str) -> list[Line]:
    found: list[Line] = []
    shapes: dict[str, tuple[int, ...]] = {}
    for row in text.split("\n"):  # on spaces and newlines only: hostile names hold the others
        parts = [part for part in row.split(" ") if part]
        if parts:
            found.append(_line(parts, shapes))
            shapes[found[-1].name] = found[-1].spec.shape
    return found


def _line(parts: list[str], shapes: Mapping[str, tuple[int, ...]]) -> Line:
    pairs = [p.split(":", 1) for p in parts[1:] if ":" in p]
    plain = [p for p in parts[1:] if ":" not in p]
    words = dict(pairs)
    role, _, owner = parts[0].rpartition("@")
    slot = Slot(role, owner, words.get("opt", "optimizer")) if role else None
    shape = _shape(plain[0]) if plain and plain[0][0] in "-0123456789" else shapes[owner]
    dtype = next((p for p in plain if p[0].isalpha()), "float32")
    aliases = tuple(Alias(name, _KINDS[kind]) for kind, name in pairs if kind in _KINDS)
    kind = AliasKind(words.get("kind", "semantic"))
    return Line(slot_name(slot) if slot else parts[0], TensorSpec(shape, dtype), aliases, kind, slot, words)


def _shape(text: str) -> tuple[int, ...]:
    return () if text == "-" else tuple(map(int, text.split("x")))


def _optimizers(found: Iterable[Line], families: Families) -> tuple[OptimizerInfo, ...]:
    """`families`: optimizer -> `family`, or `family:label` where its own name is another one."""
    roles: dict[str, set[str]] = {name: set() for name in families}
    for line in found:
        if line.slot is not None:
            roles.setdefault(line.slot.optimizer, set()).add(line.slot.role)
    infos = []
    for name in sorted(roles):
        family, _, label = families.get(name, "adam").partition(":")
        infos.append(OptimizerInfo(name, family, label or family, tuple(sorted(roles[name]))))
    return tuple(infos)


def checkpoint(text: str, families: Families | None = None) -> CheckpointIndex:
    found = lines(text)
    tensors = [
        SourceTensor(x.name, x.spec, x.aliases, x.kind, x.slot, f"key/{x.name}", x.name == "save_counter")
        for x in found
    ]
    tensors.sort(key=lambda t: t.name)
    return CheckpointIndex("ckpt-1", "tf2", tuple(tensors), _optimizers(found, families or {}))


def program(text: str, families: Families | None = None) -> TargetIndex:
    found = lines(text)
    return TargetIndex(tuple(map(_variable, found)), _optimizers(found, families or {}))


def _variable(line: Line) -> TargetVariable:
    group = Group.OPTIMIZER if line.slot or line.name.startswith("optimizer") else Group.MODEL
    keep = line.words.get("keep", "")
    note = line.words.get("note", "")
    tracker = line.name == "save_counter"
    return TargetVariable(
        line.name, line.spec, line.aliases, line.kind, group, line.slot, keep, note, tracker_only=tracker
    )


def plan(
    source: str | CheckpointIndex,
    target: str | TargetIndex,
    rules: RulesLike = None,
    *,
    keep: bool = False,
    verify_slices: bool = False,
) -> RestorePlan:
    """Resolves; rules that hold a `[` are TOML."""
    sources = checkpoint(source) if isinstance(source, str) else source
    targets = program(target) if isinstance(target, str) else target
    rule_set = RuleSet.from_toml(rules) if isinstance(rules, str) else RuleSet.of(rules)
    return resolve(sources, targets, rule_set, Options(keep_unmatched=keep, verify_slices=verify_slices))


def filled(done: RestorePlan) -> dict[str, str]:
    """Target -> sources, joined by ` + `."""
    return {target: " + ".join(sources) for target, sources in done.mapping().items()}


def entry(done: RestorePlan, target: str) -> PlanEntry:
    return next(e for e in done.entries if e.target == target)


def problems(done: RestorePlan) -> dict[str, str]:
    return {e.target: e.problem.value for e in done.problems}


def statuses(done: RestorePlan) -> dict[str, str]:
    return {e.target: e.status.value for e in done.entries}


def taken(suggestions: str) -> str:
    """The suggestions as if somebody had taken every guess: its comment signs away."""
    blocks = suggestions.split("\n\n")
    return "\n\n".join(b.replace("\n# ", "\n") if b.startswith("# guess:") else b for b in blocks)


class Graph:
    """An object graph from paths: `Graph().add("model/dense/_kernel", "dense/kernel")`."""

    def __init__(self) -> None:
        self._edges: list[list[tuple[str, int]]] = [[]]
        self._leaves: dict[int, Leaf] = {}
        self.slots: dict[int, list[tuple[int, str, int]]] = {}
        self.extra: dict[int, dict[str, object]] = {}

    def at(self, path: str, start: int = 0) -> int:
        """The node at a path, made where it is missing."""
        node = start
        for name in filter(None, path.split("/")):
            child = dict(self._edges[node]).get(name)
            if child is None:
                child = len(self._edges)
                self._edges.append([])
                self._edges[node].append((name, child))
            node = child
        return node

    def add(self, path: str, full_name: str = "") -> int:
        """A variable at a path; its key is the path."""
        node = self.at(path)
        self._leaves[node] = Leaf(path, full_name)
        return node

    def link(self, path: str, node: int) -> None:
        """Another edge to a node that is there already."""
        parent, _, name = path.rpartition("/")
        self._edges[self.at(parent)].append((name, node))

    def keras_optimizer(self, path: str, label: str, owners: Sequence[int], roles: Sequence[str]) -> None:
        """An optimizer of Keras 3, as its checkpoint has it: lists by role, and all of its variables in one."""
        state = [self.add(f"{path}/_iterations", f"{label}/iteration")]
        state.append(self.add(f"{path}/_learning_rate", f"{label}/learning_rate"))
        for index, owner in enumerate(owners):
            self.link(f"{path}/_trainable_variables/{index}", owner)
            flat = self._leaves[owner].full_name.replace("/", "_")
            for role in roles:
                name = "_velocities" if role == "velocity" else f"_{role}s"
                state.append(self.add(f"{path}/{name}/{index}", f"{label}/{flat}_{role}"))
        for index, node in enumerate(state):
            self.link(f"{path}/_variables/{index}", node)

    def nodes(self) -> list[Node]:
        return [
            Node(tuple(edges), self._leaves.get(i), slots=tuple(self.slots.get(i, ())), **self.extra.get(i, {}))  # type: ignore[arg-type]
            for i, edges in enumerate(self._edges)
        ]
