"""Changes of a program that change its function."""

from __future__ import annotations

import dataclasses
import random

from edits import (
    ATTRIBUTES,
    Change,
    all_of,
    blocks_of,
    edit_at,
    fresh_words,
    insert,
    is_styled,
    leaves_of,
    new_leaf,
    remove,
    with_children,
)
from programs import Block, Leaf, Node, Path, Program, reads_tokens


def add_layer(rng: random.Random, program: Program) -> Program | None:
    return insert(
        rng,
        program,
        new_leaf(rng, program),
        blocks_of(program, "functional", "sequential", "open", "subclass", "module"),
    )


def insert_in_list(rng: random.Random, program: Program) -> Program | None:
    """Another member of a list, most of the time of the same kind as its neighbours."""
    lists = blocks_of(program, "list")
    if not lists:
        return None
    block = rng.choice(lists)[2]
    model = next(b for b in block.children)
    kind = model.kind if isinstance(model, Leaf) and model.kind != "again" else "dense"
    return insert(rng, program, new_leaf(rng, program, kind), lists)


def remove_layer(rng: random.Random, program: Program) -> Program | None:
    return remove(rng, program, all_of(program))


def remove_from_list(rng: random.Random, program: Program) -> Program | None:
    found = [(m, p, n) for m, p, n in all_of(program) if p and is_styled(program, m, p, "list")]
    return remove(rng, program, found)


def replace_layer(rng: random.Random, program: Program) -> Program | None:
    """A layer goes and another one of its shape, with another name, comes into its place."""
    found = [(m, p, n) for m, p, n in leaves_of(program) if n.kind != "embedding" and _shows(program, m, p, n)]
    if not found:
        return None
    model, path, _ = rng.choice(found)
    word = next(fresh_words(rng, program))
    return edit_at(
        program,
        model,
        path,
        lambda n: dataclasses.replace(n, role=f"new_{word}", attr=word, name=word if n.name else ""),
    )


def replace_block(rng: random.Random, program: Program) -> Program | None:
    """A block goes and another one, which is built alike and has another name, comes into its place."""
    found = [(m, p, b) for m, p, b in blocks_of(program) if p and _shows(program, m, p, b) and not reads_tokens(b)]
    if not found:
        return None
    model, path, block = rng.choice(found)
    word = next(fresh_words(rng, program))
    new = dataclasses.replace(_renamed(_renewed(block, word), word), attr=word, name=word if block.name else "")
    return edit_at(program, model, path, lambda _: new)


def _renamed(node: Node, word: str) -> Node:
    """New names for all that has one: with the old ones below it, a block would only have been renamed."""
    name = f"{node.name}_{word}" if node.name else ""
    if isinstance(node, Leaf):
        return dataclasses.replace(node, name=name)
    return dataclasses.replace(node, name=name, children=tuple(_renamed(child, word) for child in node.children))


def _shows(program: Program, model: int, path: Path, node: Node) -> bool:
    """Whether a chosen name tells this layer from another."""
    return bool(node.name) or is_styled(program, model, path, *ATTRIBUTES)


def replace_class(rng: random.Random, program: Program) -> Program | None:
    """A layer goes and one of another class comes, whose variables are not all called as some of the old one's are."""
    found = [(m, p, n) for m, p, n in leaves_of(program) if n.kind in ("norm", "dense")]
    if not found or program.library == "module":
        return None
    model, path, leaf = rng.choice(found)
    kind = {"norm": "batch_norm", "dense": "conv"}[leaf.kind]
    return edit_at(program, model, path, lambda n: dataclasses.replace(n, role=f"other_{n.role}", kind=kind))


def toggle_bias(rng: random.Random, program: Program) -> Program | None:
    found = [(m, p, n) for m, p, n in leaves_of(program) if n.kind in ("dense", "conv")]
    if not found:
        return None
    model, path, _ = rng.choice(found)
    return edit_at(program, model, path, lambda n: dataclasses.replace(n, bias=not n.bias))


def move_bias(rng: random.Random, program: Program) -> Program | None:
    """One layer loses its bias and another one gets one."""
    found = [(m, p, n) for m, p, n in leaves_of(program) if n.kind == "dense"]
    losing, winning = [e for e in found if e[2].bias], [e for e in found if not e[2].bias]
    if not losing or not winning:
        return None
    for model, path, _ in (rng.choice(losing), rng.choice(winning)):
        program = edit_at(program, model, path, lambda n: dataclasses.replace(n, bias=not n.bias))
    return program


def exchange_layers(rng: random.Random, program: Program) -> Program | None:
    """Two neighbours that have names are called in the opposite order."""
    found = []
    for model, path, block in blocks_of(program):
        for i, pair in enumerate(zip(block.children, block.children[1:], strict=False)):
            if all(_is_told(n, block) for n in pair) and {n.wire for n in pair} != {"branch"}:
                found.append((model, path, i))
    if not found:
        return None
    model, path, i = rng.choice(found)
    return edit_at(
        program,
        model,
        path,
        lambda b: with_children(b, (*b.children[:i], *b.children[i : i + 2][::-1], *b.children[i + 2 :])),
    )


def _is_told(node: Node, parent: Block) -> bool:
    """Whether a chosen name tells a layer with variables from its neighbours."""
    if isinstance(node, Leaf) and node.kind in ("again", "embedding", "dropout"):
        return False
    return bool(node.name) or (parent.style in ATTRIBUTES and bool(node.attr))


def two_of_one(rng: random.Random, program: Program) -> Program | None:
    """A second model comes beside the first."""
    if len(program.models) > 1 or program.bare or (program.optimizer and program.optimizer.place != "given"):
        return None
    model = program.models[0][1]
    models = [("query", model), ("document", _renewed(model, "second"))]
    if rng.random() < 0.5:
        models.reverse()
    return dataclasses.replace(program, models=tuple(models))


def _renewed(node: Node, prefix: str) -> Block:
    """Another block of the same making."""

    def new(node: Node) -> Node:
        role = f"{prefix}_{node.role}"
        if isinstance(node, Leaf):
            return dataclasses.replace(node, role=role, of=f"{prefix}_{node.of}" if node.of else "")
        orders = {"made": tuple(f"{prefix}_{r}" for r in node.made), "held": tuple(f"{prefix}_{r}" for r in node.held)}
        return dataclasses.replace(node, role=role, children=tuple(new(c) for c in node.children), **orders)

    block = new(node)
    assert isinstance(block, Block)
    return block


def one_of_two(rng: random.Random, program: Program) -> Program | None:
    """Of two models one stays, under a key of its own."""
    if len(program.models) < 2:
        return None
    return dataclasses.replace(program, models=((rng.choice(("model", "net")), rng.choice(program.models)[1]),))


def change_optimizer(rng: random.Random, program: Program) -> Program | None:
    if not program.optimizer:
        return None
    kind = {"adam": "adamw", "adamw": "adam", "momentum": "adam", "rmsprop": "adam", "sgd": "momentum"}[
        program.optimizer.kind
    ]
    return dataclasses.replace(program, optimizer=dataclasses.replace(program.optimizer, kind=kind))


def add_optimizer_state(rng: random.Random, program: Program) -> Program | None:
    """Averages on, or a loss scale around it."""
    optimizer = program.optimizer
    if not optimizer or optimizer.ema or optimizer.scaled:
        return None
    changes = {"scaled": True} if program.library == "keras" and rng.random() < 0.4 else {"ema": True}
    return dataclasses.replace(program, optimizer=dataclasses.replace(optimizer, **changes))


CHANGING: dict[str, tuple[Change, int]] = {
    "add layer": (add_layer, 5),
    "remove layer": (remove_layer, 6),
    "replace layer": (replace_layer, 6),
    "replace block": (replace_block, 4),
    "replace class": (replace_class, 3),
    "exchange layers": (exchange_layers, 8),
    "insert in list": (insert_in_list, 14),
    "remove from list": (remove_from_list, 8),
    "toggle bias": (toggle_bias, 3),
    "move bias": (move_bias, 10),
    "one of two": (one_of_two, 12),
    "two of one": (two_of_one, 3),
    "change optimizer": (change_optimizer, 2),
    "add optimizer state": (add_optimizer_state, 2),
}
