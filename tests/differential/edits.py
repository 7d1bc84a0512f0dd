"""Programs edited: what all refactors have in common."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterator

from programs import FRESH, Block, Leaf, Node, Path, Program, at, edited, nodes, walk

Change = Callable[[random.Random, Program], Program | None]


def blocks_of(program: Program, *styles: str) -> list[tuple[int, Path, Block]]:
    """All blocks (of these styles), with the index of their model and the way to them."""
    found = []
    for index, (_, model) in enumerate(program.models):
        found.append((index, (), model))
        found += [(index, path, node) for path, node in walk(model) if isinstance(node, Block)]
    return [entry for entry in found if not styles or entry[2].style in styles]


def leaves_of(program: Program) -> list[tuple[int, Path, Leaf]]:
    """All layers that have variables and are called once."""
    shared = {n.of for n in nodes(program) if isinstance(n, Leaf)}
    return [
        (index, path, node)
        for index, (_, model) in enumerate(program.models)
        for path, node in walk(model)
        if isinstance(node, Leaf) and node.kind not in ("again", "dropout") and node.role not in shared
    ]


def edit_at(program: Program, model: int, path: Path, edit: Callable[[Node], Node]) -> Program:
    models = list(program.models)
    models[model] = (models[model][0], edited(models[model][1], path, edit))
    return dataclasses.replace(program, models=tuple(models))


def with_children(block: Block, children: tuple[Node, ...]) -> Block:
    return dataclasses.replace(block, children=children)


def fresh_words(rng: random.Random, program: Program) -> Iterator[str]:
    used = {n.name for n in nodes(program)} | {n.attr for n in nodes(program)}
    words = [w for w in FRESH if w not in used]
    rng.shuffle(words)
    return iter(words)


def turned(rng: random.Random, items: list[Node]) -> tuple[str, ...]:
    """Two of them exchanged, seldom all in another order."""
    roles = [n.role for n in items]
    if rng.random() < 0.3:
        rng.shuffle(roles)
    else:
        i, j = rng.sample(range(len(roles)), 2)
        roles[i], roles[j] = roles[j], roles[i]
    return tuple(roles)


def is_named(program: Program) -> bool:
    return any(isinstance(n, Leaf) and n.name for n in nodes(program))


def is_styled(program: Program, model: int, path: Path, *styles: str) -> bool:
    """Whether the block around a node has one of these styles."""
    parent = at(program.models[model][1], path[:-1])
    return isinstance(parent, Block) and parent.style in styles


ATTRIBUTES = ("subclass", "module", "dict")


def new_leaf(rng: random.Random, program: Program, kind: str = "") -> Leaf:
    word = next(fresh_words(rng, program))
    kinds = ("dense",) * 4 + ("norm",) if program.library == "module" else ("dense",) * 5 + ("norm", "batch_norm")
    name = word if is_named(program) else ""
    return Leaf(f"new_{word}", kind or rng.choice(kinds), word, name, bias=rng.random() < 0.7)


def insert(rng: random.Random, program: Program, leaf: Leaf, blocks: list[tuple[int, Path, Block]]) -> Program | None:
    if not blocks:
        return None
    model, path, block = rng.choice(blocks)
    first = block.children[0]
    begin = int(isinstance(first, Leaf) and first.kind == "embedding")
    i = rng.randint(begin, len(block.children))
    if leaf.kind == "dropout" and [c.wire for c in block.children[max(i - 1, 0) : i + 1]] == ["branch", "branch"]:
        return None
    return edit_at(program, model, path, lambda b: with_children(b, (*b.children[:i], leaf, *b.children[i:])))


def remove(rng: random.Random, program: Program, found: list[tuple[int, Path, Node]]) -> Program | None:
    shared = {n.of for n in nodes(program) if isinstance(n, Leaf)} - {""}
    found = [(m, p, n) for m, p, n in found if p and _is_removable(program, m, p, n, shared)]
    if not found:
        return None
    model, path, _ = rng.choice(found)
    i = path[-1]
    return edit_at(program, model, path[:-1], lambda b: with_children(b, (*b.children[:i], *b.children[i + 1 :])))


def _is_removable(program: Program, model: int, path: Path, node: Node, shared: set[str]) -> bool:
    parent = at(program.models[model][1], path[:-1])
    assert isinstance(parent, Block)
    inside = {node.role} | ({n.role for _, n in walk(node)} if isinstance(node, Block) else set())
    tokens = isinstance(node, Leaf) and node.kind == "embedding"
    return len(parent.children) > 1 and not tokens and not inside & shared


def all_of(program: Program) -> list[tuple[int, Path, Node]]:
    return [*leaves_of(program), *((m, p, b) for m, p, b in blocks_of(program))]
