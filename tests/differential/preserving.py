"""Changes of a program that keep its function."""

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
    is_named,
    is_styled,
    leaves_of,
    new_leaf,
    remove,
    turned,
    with_children,
)
from programs import Block, Leaf, Node, Path, Program, at, ordered, walk


def identity(rng: random.Random, program: Program) -> Program | None:
    return program


def counters(rng: random.Random, program: Program) -> Program | None:
    return dataclasses.replace(program, before=program.before + rng.choice((1, 2, 5)))


def made_lines(rng: random.Random, program: Program) -> Program | None:
    """The lines that make layers in another order; they are called as before."""
    return _turn(rng, program, made=True, held=False)


def attribute_lines(rng: random.Random, program: Program) -> Program | None:
    """The lines that assign attributes in another order."""
    return _turn(rng, program, made=False, held=True)


def lines(rng: random.Random, program: Program) -> Program | None:
    """`self.a = Dense()` and `self.b = Dense()` exchanged."""
    return _turn(rng, program, made=True, held=True)


def _turn(rng: random.Random, program: Program, *, made: bool, held: bool) -> Program | None:
    blocks = [b for b in blocks_of(program, *(ATTRIBUTES if held else ())) if len(_own(b[2])) > 1]
    if not blocks:
        return None
    model, path, block = rng.choice(blocks)
    roles = turned(rng, ordered(_own(block), block.made))
    changes = {**({"made": roles} if made else {}), **({"held": roles} if held else {})}
    return edit_at(program, model, path, lambda b: dataclasses.replace(b, **changes))


def _own(block: Block) -> tuple[Node, ...]:
    return tuple(c for c in block.children if not (isinstance(c, Leaf) and c.kind == "again"))


def branch_calls(rng: random.Random, program: Program) -> Program | None:
    """Parallel branches called in another order; made and held as before."""
    return _turn_branches(rng, program, pinned=True)


def branches(rng: random.Random, program: Program) -> Program | None:
    """Parallel branches made, held and called in another order."""
    return _turn_branches(rng, program, pinned=False)


def _turn_branches(rng: random.Random, program: Program, *, pinned: bool) -> Program | None:
    found = []
    for model, path, block in blocks_of(program, "functional", "subclass", "module"):
        places = [i for i, c in enumerate(block.children) if c.wire == "branch"]
        if len(places) > 1 and places[-1] - places[0] == len(places) - 1:
            found.append((model, path, block, places))
    if not found:
        return None
    model, path, block, places = rng.choice(found)
    children = list(block.children)
    i, j = rng.sample(places, 2)
    children[i], children[j] = children[j], children[i]
    pins = {}
    if pinned:
        pins = {"made": tuple(c.role for c in ordered(block.children, block.made))}
        pins["held"] = tuple(c.role for c in ordered(block.children, block.held))
    return edit_at(program, model, path, lambda b: dataclasses.replace(b, children=tuple(children), **pins))


def rename_layer(rng: random.Random, program: Program) -> Program | None:
    """Another name for a layer that has one."""
    found = [(m, p, n) for m, p, n in all_of(program) if n.name]
    return _rename(rng, program, found, "name")


def rename_attribute(rng: random.Random, program: Program) -> Program | None:
    """Another attribute for a layer that is held by one."""
    found = [(m, p, n) for m, p, n in all_of(program) if p and n.attr and is_styled(program, m, p, *ATTRIBUTES)]
    return _rename(rng, program, found, "attr")


def rename_both(rng: random.Random, program: Program) -> Program | None:
    found = [
        (m, p, n) for m, p, n in all_of(program) if p and n.attr and n.name and is_styled(program, m, p, *ATTRIBUTES)
    ]
    return _rename(rng, program, found, "attr", "name")


def name_layer(rng: random.Random, program: Program) -> Program | None:
    """A name for a layer that had none."""
    return _rename(rng, program, [(m, p, n) for m, p, n in leaves_of(program) if not n.name], "name")


def _rename(rng: random.Random, program: Program, found: list[tuple[int, Path, Node]], *fields: str) -> Program | None:
    if not found:
        return None
    words = fresh_words(rng, program)
    for model, path, _ in rng.sample(found, min(len(found), rng.choice((1, 1, 2)))):
        word = next(words)
        program = edit_at(program, model, path, lambda n, w=word: dataclasses.replace(n, **dict.fromkeys(fields, w)))
    return program


def rename_terms(rng: random.Random, program: Program) -> Program | None:
    """A tf.Module's variables are called otherwise."""
    return dataclasses.replace(program, terms=("kernel", "bias")) if program.library == "module" else None


def add_dropout(rng: random.Random, program: Program) -> Program | None:
    if program.library == "module":
        return None
    leaf = dataclasses.replace(new_leaf(rng, program, "dropout"), name="")
    return insert(rng, program, leaf, blocks_of(program, "functional", "sequential", "open", "subclass"))


def remove_dropout(rng: random.Random, program: Program) -> Program | None:
    found = [(m, p, n) for m, (_, b) in enumerate(program.models) for p, n in walk(b) if isinstance(n, Leaf)]
    found = [(m, p, n) for m, p, n in found if n.kind == "dropout" and n.wire == "chain"]
    return remove(rng, program, [e for e in found if not _parts_branches(program, *e[:2])])


def _parts_branches(program: Program, model: int, path: Path) -> bool:
    """Whether branches before and behind it would be on one input without it."""
    parent, i = at(program.models[model][1], path[:-1]), path[-1]
    assert isinstance(parent, Block)
    return [c.wire for c in parent.children[max(i - 1, 0) : i + 2]] == ["branch", "chain", "branch"]


def root_key(rng: random.Random, program: Program) -> Program | None:
    """Another key in the Checkpoint."""
    if program.bare:
        return None
    keys = {
        "model": "net",
        "net": "model",
        "query": "question",
        "document": "page",
        "actor": "policy",
        "critic": "value_net",
    }
    models = tuple((keys.get(key, key), model) for key, model in program.models)
    optimizer = program.optimizer
    if optimizer and rng.random() < 0.3:
        optimizer = dataclasses.replace(optimizer, key="opt")
    return dataclasses.replace(program, models=models, optimizer=optimizer)


def nest(rng: random.Random, program: Program) -> Program | None:
    """Some neighbours become a block of their own."""
    found = []
    for model, path, block in blocks_of(program, "functional", "sequential", "subclass", "module"):
        plain = [i for i in range(len(block.children) - 1) if all(_is_plain(c) for c in block.children[i : i + 2])]
        found += [(model, path, i) for i in plain if len(block.children) > 2 or rng.random() < 0.3]
    if not found:
        return None
    model, path, i = rng.choice(found)
    parent = at(program.models[model][1], path)
    assert isinstance(parent, Block)
    inner, word = parent.children[i : i + 2], next(fresh_words(rng, program))
    chain = all(c.wire == "chain" for c in inner)
    styles = (
        ("module",)
        if program.library == "module"
        else ("sequential", "functional", "subclass")
        if chain
        else ("functional", "subclass")
    )
    made = tuple(c.role for c in ordered(parent.children, parent.made) if c in inner)
    block = Block(f"new_{word}", rng.choice(styles), word, inner, word if is_named(program) else "", made=made)
    return edit_at(program, model, path, lambda b: with_children(b, (*b.children[:i], block, *b.children[i + 2 :])))


def _is_plain(node: Node) -> bool:
    return isinstance(node, Leaf) and node.kind not in ("again", "embedding") and node.wire != "branch"


def unnest(rng: random.Random, program: Program) -> Program | None:
    """A block's layers go to its parent."""
    found = []
    for model, path, block in blocks_of(program, "functional", "sequential", "open", "subclass", "module"):
        if path and block.wire == "chain" and _fits(at(program.models[model][1], path[:-1]), block):
            found.append((model, path, block))
    if not found:
        return None
    model, path, block = rng.choice(found)
    i = path[-1]
    return edit_at(
        program, model, path[:-1], lambda b: with_children(b, (*b.children[:i], *block.children, *b.children[i + 1 :]))
    )


def _fits(parent: Node, block: Block) -> bool:
    assert isinstance(parent, Block)
    others = [c for c in parent.children if c is not block]
    names = [c.name for c in (*others, *block.children) if c.name]
    attrs = [c.attr for c in (*others, *block.children) if c.attr]
    straight = all(c.wire == "chain" for c in block.children)
    styles = {c.style for c in block.children if isinstance(c, Block)}
    shared = any(isinstance(c, Leaf) and c.kind == "again" for c in block.children)
    if parent.style in ("sequential", "open", "list", "dict") and not (straight and not shared):
        return False
    if parent.style not in ("subclass", "module") and styles & {"list", "dict"}:
        return False
    beside = [c for c in others if c.wire == "branch"]
    joined = beside and any(c.wire == "branch" for c in block.children)
    return not joined and len(set(names)) == len(names) and len(set(attrs)) == len(attrs)


def turn_optimizer(rng: random.Random, program: Program) -> Program | None:
    """The optimizer is built over the variables in the opposite order."""
    if not program.optimizer or program.optimizer.kind == "sgd":
        return None
    return dataclasses.replace(
        program, optimizer=dataclasses.replace(program.optimizer, turned=not program.optimizer.turned)
    )


def place_optimizer(rng: random.Random, program: Program) -> Program | None:
    """The optimizer is compiled into the model instead of given, or given instead of compiled."""
    if not program.optimizer or len(program.models) > 1 or program.bare or program.library == "module":
        return None
    place = "given" if program.optimizer.place != "given" else "compiled"
    return dataclasses.replace(program, optimizer=dataclasses.replace(program.optimizer, place=place))


def drop_optimizer(rng: random.Random, program: Program) -> Program | None:
    """Evaluation: the program has no optimizer any more."""
    return dataclasses.replace(program, optimizer=None) if program.optimizer else None


PRESERVING: dict[str, tuple[Change, int]] = {
    "identity": (identity, 8),
    "counters": (counters, 4),
    "made lines": (made_lines, 8),
    "attribute lines": (attribute_lines, 4),
    "lines": (lines, 6),
    "branch calls": (branch_calls, 5),
    "branches": (branches, 3),
    "rename layer": (rename_layer, 4),
    "rename attribute": (rename_attribute, 4),
    "rename both": (rename_both, 2),
    "name layer": (name_layer, 2),
    "rename terms": (rename_terms, 3),
    "add dropout": (add_dropout, 3),
    "remove dropout": (remove_dropout, 4),
    "root key": (root_key, 4),
    "nest": (nest, 4),
    "unnest": (unnest, 4),
    "turn optimizer": (turn_optimizer, 3),
    "place optimizer": (place_optimizer, 3),
    "drop optimizer": (drop_optimizer, 3),
}
