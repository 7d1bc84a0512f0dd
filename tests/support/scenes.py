"""Checkpoints and programs with object graphs, from a few lines of text; no TensorFlow objects.

model/dense/_kernel 4x4 dense/kernel        a variable: its path of edges, its shape (`-`: a scalar), its full name
model/dense layer:stem                      a layer's own name (`layer:` alone: unknown); `counted`, `kind:dense`,
                                            `numbered:b,a` in the order in which a file would number its variables
model/dense2 -> model/dense                 another edge to what is there
optimizer adam model/a/kernel model/b/bias  an optimizer of Keras 3 that trains these, with two lists of slots
Words on variables: note:TEXT, members:A,B, keep:TEXT.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

import msgspec

from build import Graph
from dist_restore.core.graph import LayerName, Node, Scene
from dist_restore.core.index import Alias, AliasKind, CheckpointIndex, Group, SourceTensor, TargetIndex, TargetVariable
from dist_restore.core.tensors import TensorSpec
from dist_restore.naming.automatic_names import looks_automatic
from dist_restore.naming.names import NamedLeaf, name_graph
from dist_restore.planning.entries import Proof
from dist_restore.planning.plan import RestorePlan
from dist_restore.planning.planner import Options, resolve
from dist_restore.planning.rules.rule_set import RuleSet

ROLES = ("momentum", "velocity")


@dataclasses.dataclass
class Made:
    """A graph, and what the lines said of its variables."""

    nodes: list[Node]
    shapes: dict[int, tuple[int, ...]]
    words: dict[int, Mapping[str, str]]


def read(text: str) -> Made:
    graph, made = Graph(), Made([], {}, {})
    for line in filter(None, (row.strip() for row in text.splitlines())):
        path, *rest = line.split(" ")
        words = dict(w.split(":", 1) for w in rest if ":" in w)
        plain = [w for w in rest if ":" not in w]
        if plain[:1] == ["->"]:
            graph.link(path, graph.at(plain[1]))
        elif plain[:1] == ["adam"]:
            _optimizer(graph, made, path, [graph.at(p) for p in plain[1:]], words.get("label", "adam"))
        elif "layer" in words:
            layer = LayerName(words["layer"], "counted" in plain, words.get("kind", ""))
            own = tuple(graph.at(f"{path}/{name}") for name in filter(None, words.get("numbered", "").split(",")))
            graph.extra[graph.at(path)] = {"layer": layer, "numbered": own}
        else:
            node = graph.add(path, plain[1] if len(plain) > 1 else "")
            made.shapes[node] = () if plain[0] == "-" else tuple(map(int, plain[0].split("x")))
            made.words[node] = words
    made.nodes = graph.nodes()
    return made


def _optimizer(graph: Graph, made: Made, path: str, owners: list[int], label: str) -> None:
    before = len(graph.nodes())
    graph.keras_optimizer(path, label, owners, ROLES)
    for node, item in enumerate(graph.nodes()[before:], before):
        if item.leaf is not None:
            index = item.leaf.key.rpartition("/")[2]
            made.shapes[node] = made.shapes[owners[int(index)]] if index.isdecimal() else ()


def stored(text: str, *, by_layer: bool = False) -> CheckpointIndex:
    """The checkpoint of a program; `by_layer`: as a file of weights has it, which has no full names."""
    made = _renumbered(read(text))
    if by_layer:
        made.nodes = [_nameless(node) for node in made.nodes]
    leaves, optimizers = name_graph(made.nodes)
    tensors = [
        SourceTensor(
            leaf.name, TensorSpec(made.shapes[leaf.node], "float32"), leaf.aliases, leaf.kind, leaf.slot, leaf.leaf.key,
            members=_members(made.words.get(leaf.node, {})),
        )
        for leaf in leaves
    ]  # fmt: skip
    tensors.sort(key=lambda t: t.name)
    scene = Scene(tuple(made.nodes), {leaf.node: leaf.name for leaf in leaves}, by_layer=by_layer)
    return CheckpointIndex("ckpt-1", "tf2", tuple(tensors), optimizers, scene=scene)


def _renumbered(made: Made) -> Made:
    """The same graph with other numbers: what numbers objects have on two sides has nothing to do with each other."""
    count = len(made.nodes)

    def new(node: int) -> int:
        return count - node if node else 0

    nodes = {
        new(i): msgspec.structs.replace(node, edges=tuple([(name, new(child)) for name, child in node.edges]))
        for i, node in enumerate(made.nodes)
    }
    return Made(
        [nodes[i] for i in range(count)],
        {new(node): shape for node, shape in made.shapes.items()},
        {new(node): words for node, words in made.words.items()},
    )


def _nameless(node: Node) -> Node:
    leaf = msgspec.structs.replace(node.leaf, full_name="") if node.leaf is not None else None
    return msgspec.structs.replace(node, leaf=leaf)


def live(text: str) -> TargetIndex:
    made = read(text)
    leaves, optimizers = name_graph(made.nodes)
    state = {
        child
        for node in made.nodes
        for edge, c in node.edges
        if edge == "_variables"
        for _, child in made.nodes[c].edges
    }
    variables = []
    for leaf in leaves:
        words = made.words.get(leaf.node, {})
        group = Group.OPTIMIZER if leaf.slot or leaf.node in state else Group.MODEL
        variables.append(
            TargetVariable(
                leaf.name, TensorSpec(made.shapes[leaf.node], "float32"), _aliases(leaf), leaf.kind, group, leaf.slot,
                words.get("keep", ""), words.get("note", ""), members=_members(words),
            )
        )  # fmt: skip
    scene = Scene(tuple(made.nodes), {leaf.node: leaf.name for leaf in leaves}, tuple(made.nodes))
    return TargetIndex(tuple(variables), optimizers, scene=scene)


def _aliases(leaf: NamedLeaf) -> tuple[Alias, ...]:
    """As the index of a live program has them: its path is a name unless Keras counted it up, flattened or not."""
    path = leaf.leaf.full_name
    if "/" not in path or leaf.slot is not None:
        return leaf.aliases
    counted = any(looks_automatic(part) for part in path.split("/")[:-1])
    kinds = (AliasKind.COUNTED, AliasKind.COUNTED) if counted else (AliasKind.SEMANTIC, AliasKind.FLAT)
    extra = [Alias(path, kinds[0]), Alias(path.replace("/", "_"), kinds[1])]
    known = {leaf.name, *(e.name for e in extra)}
    return (*(e for e in extra if e.name != leaf.name), *(a for a in leaf.aliases if a.name not in known))


def _members(words: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(filter(None, words.get("members", "").split(",")))


def matched(
    source: str | CheckpointIndex, target: str | TargetIndex, rules: str | Mapping[str, str] | None = None
) -> RestorePlan:
    """The plan, with graphs on both sides; rules are TOML, or a dict."""
    sources = stored(source) if isinstance(source, str) else source
    targets = live(target) if isinstance(target, str) else target
    rule_set = RuleSet.from_toml(rules) if isinstance(rules, str) else RuleSet.of(rules)
    return resolve(sources, targets, rule_set, Options(keep_unmatched=True))


def pairs(done: RestorePlan, *, skip: Iterable[str] = ("optimizer",)) -> dict[str, str]:
    """Target -> source and proof, `model/a/w order`; optimizers' own left out."""
    return {
        e.target: f"{' + '.join(e.sources)} {e.proof.value}"
        for e in done.entries
        if e.sources and not e.target.startswith(tuple(skip))
    }


def proofs(done: RestorePlan) -> set[Proof]:
    return {e.proof for e in done.entries if e.sources and not e.target.startswith("optimizer")}


def refused(done: RestorePlan) -> dict[str, str]:
    """Target -> reason, of what is ambiguous."""
    return {e.target: e.reason for e in done.problems if e.problem.value == "ambiguous"}
