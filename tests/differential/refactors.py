"""What people do to programs. A refactor keeps the roles of what it does not replace: that is the truth."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterator, Set

from programs import FRESH, Block, Leaf, Node, Path, Program, at, edited, nodes, ordered, reads_tokens, walk


@dataclasses.dataclass(frozen=True)
class Refactor:
    """A program and what became of it.

    Attributes:
      kind: of the change.
      old: the program that saved.
      new: the program that restores.
      preserving: whether the function stays the same.
      steps: the kinds of change that it consists of.
    """

    kind: str
    old: Program
    new: Program
    preserving: bool
    steps: tuple[str, ...] = ()


Change = Callable[[random.Random, Program], Program | None]


# ---- Helpers ---------------------------------------------------------------------------------------------


def _blocks(program: Program, *styles: str) -> list[tuple[int, Path, Block]]:
    """All blocks (of these styles), with the index of their model and the way to them."""
    found = []
    for index, (_, model) in enumerate(program.models):
        found.append((index, (), model))
        found += [(index, path, node) for path, node in walk(model) if isinstance(node, Block)]
    return [entry for entry in found if not styles or entry[2].style in styles]


def _leaves(program: Program) -> list[tuple[int, Path, Leaf]]:
    """All layers that have variables and are called once."""
    shared = {n.of for n in nodes(program) if isinstance(n, Leaf)}
    return [
        (index, path, node)
        for index, (_, model) in enumerate(program.models)
        for path, node in walk(model)
        if isinstance(node, Leaf) and node.kind not in ("again", "dropout") and node.role not in shared
    ]


def _edit(program: Program, model: int, path: Path, edit: Callable[[Node], Node]) -> Program:
    models = list(program.models)
    models[model] = (models[model][0], edited(models[model][1], path, edit))
    return dataclasses.replace(program, models=tuple(models))


def _with(block: Block, children: tuple[Node, ...]) -> Block:
    return dataclasses.replace(block, children=children)


def _fresh(rng: random.Random, program: Program) -> Iterator[str]:
    used = {n.name for n in nodes(program)} | {n.attr for n in nodes(program)}
    words = [w for w in FRESH if w not in used]
    rng.shuffle(words)
    return iter(words)


def _turned(rng: random.Random, items: list[Node]) -> tuple[str, ...]:
    """Two of them exchanged, seldom all in another order."""
    roles = [n.role for n in items]
    if rng.random() < 0.3:
        rng.shuffle(roles)
    else:
        i, j = rng.sample(range(len(roles)), 2)
        roles[i], roles[j] = roles[j], roles[i]
    return tuple(roles)


def _named(program: Program) -> bool:
    return any(isinstance(n, Leaf) and n.name for n in nodes(program))


def _is_styled(program: Program, model: int, path: Path, *styles: str) -> bool:
    """Whether the block around a node has one of these styles."""
    parent = at(program.models[model][1], path[:-1])
    return isinstance(parent, Block) and parent.style in styles


_ATTRIBUTES = ("subclass", "module", "dict")


def _new_leaf(rng: random.Random, program: Program, kind: str = "") -> Leaf:
    word = next(_fresh(rng, program))
    kinds = ("dense",) * 4 + ("norm",) if program.library == "module" else ("dense",) * 5 + ("norm", "batch_norm")
    name = word if _named(program) else ""
    return Leaf(f"new_{word}", kind or rng.choice(kinds), word, name, bias=rng.random() < 0.7)


# ---- Changes that keep the function ----------------------------------------------------------------------


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
    blocks = [b for b in _blocks(program, *(_ATTRIBUTES if held else ())) if len(_own(b[2])) > 1]
    if not blocks:
        return None
    model, path, block = rng.choice(blocks)
    roles = _turned(rng, ordered(_own(block), block.made))
    changes = {**({"made": roles} if made else {}), **({"held": roles} if held else {})}
    return _edit(program, model, path, lambda b: dataclasses.replace(b, **changes))


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
    for model, path, block in _blocks(program, "functional", "subclass", "module"):
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
    return _edit(program, model, path, lambda b: dataclasses.replace(b, children=tuple(children), **pins))


def rename_layer(rng: random.Random, program: Program) -> Program | None:
    """Another name for a layer that has one."""
    found = [(m, p, n) for m, p, n in _all(program) if n.name]
    return _rename(rng, program, found, "name")


def rename_attribute(rng: random.Random, program: Program) -> Program | None:
    """Another attribute for a layer that is held by one."""
    found = [(m, p, n) for m, p, n in _all(program) if p and n.attr and _is_styled(program, m, p, *_ATTRIBUTES)]
    return _rename(rng, program, found, "attr")


def rename_both(rng: random.Random, program: Program) -> Program | None:
    found = [
        (m, p, n) for m, p, n in _all(program) if p and n.attr and n.name and _is_styled(program, m, p, *_ATTRIBUTES)
    ]
    return _rename(rng, program, found, "attr", "name")


def name_layer(rng: random.Random, program: Program) -> Program | None:
    """A name for a layer that had none."""
    return _rename(rng, program, [(m, p, n) for m, p, n in _leaves(program) if not n.name], "name")


def _all(program: Program) -> list[tuple[int, Path, Node]]:
    return [*_leaves(program), *((m, p, b) for m, p, b in _blocks(program))]


def _rename(rng: random.Random, program: Program, found: list[tuple[int, Path, Node]], *fields: str) -> Program | None:
    if not found:
        return None
    words = _fresh(rng, program)
    for model, path, _ in rng.sample(found, min(len(found), rng.choice((1, 1, 2)))):
        word = next(words)
        program = _edit(program, model, path, lambda n, w=word: dataclasses.replace(n, **dict.fromkeys(fields, w)))
    return program


def rename_terms(rng: random.Random, program: Program) -> Program | None:
    """A tf.Module's variables are called otherwise."""
    return dataclasses.replace(program, terms=("kernel", "bias")) if program.library == "module" else None


def add_dropout(rng: random.Random, program: Program) -> Program | None:
    if program.library == "module":
        return None
    leaf = dataclasses.replace(_new_leaf(rng, program, "dropout"), name="")
    return _insert(rng, program, leaf, _blocks(program, "functional", "sequential", "open", "subclass"))


def remove_dropout(rng: random.Random, program: Program) -> Program | None:
    found = [(m, p, n) for m, (_, b) in enumerate(program.models) for p, n in walk(b) if isinstance(n, Leaf)]
    found = [(m, p, n) for m, p, n in found if n.kind == "dropout" and n.wire == "chain"]
    return _remove(rng, program, [e for e in found if not _parts_branches(program, *e[:2])])


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
    for model, path, block in _blocks(program, "functional", "sequential", "subclass", "module"):
        plain = [i for i in range(len(block.children) - 1) if all(_is_plain(c) for c in block.children[i : i + 2])]
        found += [(model, path, i) for i in plain if len(block.children) > 2 or rng.random() < 0.3]
    if not found:
        return None
    model, path, i = rng.choice(found)
    parent = at(program.models[model][1], path)
    assert isinstance(parent, Block)
    inner, word = parent.children[i : i + 2], next(_fresh(rng, program))
    chain = all(c.wire == "chain" for c in inner)
    styles = (
        ("module",)
        if program.library == "module"
        else ("sequential", "functional", "subclass")
        if chain
        else ("functional", "subclass")
    )
    made = tuple(c.role for c in ordered(parent.children, parent.made) if c in inner)
    block = Block(f"new_{word}", rng.choice(styles), word, inner, word if _named(program) else "", made=made)
    return _edit(program, model, path, lambda b: _with(b, (*b.children[:i], block, *b.children[i + 2 :])))


def _is_plain(node: Node) -> bool:
    return isinstance(node, Leaf) and node.kind not in ("again", "embedding") and node.wire != "branch"


def unnest(rng: random.Random, program: Program) -> Program | None:
    """A block's layers go to its parent."""
    found = []
    for model, path, block in _blocks(program, "functional", "sequential", "open", "subclass", "module"):
        if path and block.wire == "chain" and _fits(at(program.models[model][1], path[:-1]), block):
            found.append((model, path, block))
    if not found:
        return None
    model, path, block = rng.choice(found)
    i = path[-1]
    return _edit(
        program, model, path[:-1], lambda b: _with(b, (*b.children[:i], *block.children, *b.children[i + 1 :]))
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


# ---- Changes of the function -----------------------------------------------------------------------------


def add_layer(rng: random.Random, program: Program) -> Program | None:
    return _insert(
        rng,
        program,
        _new_leaf(rng, program),
        _blocks(program, "functional", "sequential", "open", "subclass", "module"),
    )


def insert_in_list(rng: random.Random, program: Program) -> Program | None:
    """Another member of a list, most of the time of the same kind as its neighbours."""
    lists = _blocks(program, "list")
    if not lists:
        return None
    block = rng.choice(lists)[2]
    model = next(b for b in block.children)
    kind = model.kind if isinstance(model, Leaf) and model.kind != "again" else "dense"
    return _insert(rng, program, _new_leaf(rng, program, kind), lists)


def _insert(rng: random.Random, program: Program, leaf: Leaf, blocks: list[tuple[int, Path, Block]]) -> Program | None:
    if not blocks:
        return None
    model, path, block = rng.choice(blocks)
    first = block.children[0]
    begin = int(isinstance(first, Leaf) and first.kind == "embedding")
    i = rng.randint(begin, len(block.children))
    if leaf.kind == "dropout" and [c.wire for c in block.children[max(i - 1, 0) : i + 1]] == ["branch", "branch"]:
        return None
    return _edit(program, model, path, lambda b: _with(b, (*b.children[:i], leaf, *b.children[i:])))


def remove_layer(rng: random.Random, program: Program) -> Program | None:
    return _remove(rng, program, _all(program))


def remove_from_list(rng: random.Random, program: Program) -> Program | None:
    found = [(m, p, n) for m, p, n in _all(program) if p and _is_styled(program, m, p, "list")]
    return _remove(rng, program, found)


def _remove(rng: random.Random, program: Program, found: list[tuple[int, Path, Node]]) -> Program | None:
    shared = {n.of for n in nodes(program) if isinstance(n, Leaf)} - {""}
    found = [(m, p, n) for m, p, n in found if p and _is_removable(program, m, p, n, shared)]
    if not found:
        return None
    model, path, _ = rng.choice(found)
    i = path[-1]
    return _edit(program, model, path[:-1], lambda b: _with(b, (*b.children[:i], *b.children[i + 1 :])))


def _is_removable(program: Program, model: int, path: Path, node: Node, shared: set[str]) -> bool:
    parent = at(program.models[model][1], path[:-1])
    assert isinstance(parent, Block)
    inside = {node.role} | ({n.role for _, n in walk(node)} if isinstance(node, Block) else set())
    tokens = isinstance(node, Leaf) and node.kind == "embedding"
    return len(parent.children) > 1 and not tokens and not inside & shared


def replace_layer(rng: random.Random, program: Program) -> Program | None:
    """A layer goes and another one of its shape, with another name, comes into its place."""
    found = [(m, p, n) for m, p, n in _leaves(program) if n.kind != "embedding" and _shows(program, m, p, n)]
    if not found:
        return None
    model, path, _ = rng.choice(found)
    word = next(_fresh(rng, program))
    return _edit(
        program,
        model,
        path,
        lambda n: dataclasses.replace(n, role=f"new_{word}", attr=word, name=word if n.name else ""),
    )


def replace_block(rng: random.Random, program: Program) -> Program | None:
    """A block goes and another one, which is built alike and has another name, comes into its place."""
    found = [(m, p, b) for m, p, b in _blocks(program) if p and _shows(program, m, p, b) and not reads_tokens(b)]
    if not found:
        return None
    model, path, block = rng.choice(found)
    word = next(_fresh(rng, program))
    new = dataclasses.replace(_renewed(block, word), attr=word, name=word if block.name else "")
    return _edit(program, model, path, lambda _: new)


def _shows(program: Program, model: int, path: Path, node: Node) -> bool:
    """Whether a chosen name tells this layer from another."""
    return bool(node.name) or _is_styled(program, model, path, *_ATTRIBUTES)


def replace_class(rng: random.Random, program: Program) -> Program | None:
    """A layer goes and one of another class comes."""
    found = [(m, p, n) for m, p, n in _leaves(program) if n.kind in ("norm", "batch_norm", "dense")]
    if not found or program.library == "module":
        return None
    model, path, leaf = rng.choice(found)
    kind = {"norm": "batch_norm", "batch_norm": "norm", "dense": "conv"}[leaf.kind]
    return _edit(program, model, path, lambda n: dataclasses.replace(n, role=f"other_{n.role}", kind=kind))


def toggle_bias(rng: random.Random, program: Program) -> Program | None:
    found = [(m, p, n) for m, p, n in _leaves(program) if n.kind in ("dense", "conv")]
    if not found:
        return None
    model, path, _ = rng.choice(found)
    return _edit(program, model, path, lambda n: dataclasses.replace(n, bias=not n.bias))


def move_bias(rng: random.Random, program: Program) -> Program | None:
    """One layer loses its bias and another one gets one."""
    found = [(m, p, n) for m, p, n in _leaves(program) if n.kind == "dense"]
    losing, winning = [e for e in found if e[2].bias], [e for e in found if not e[2].bias]
    if not losing or not winning:
        return None
    for model, path, _ in (rng.choice(losing), rng.choice(winning)):
        program = _edit(program, model, path, lambda n: dataclasses.replace(n, bias=not n.bias))
    return program


def exchange_layers(rng: random.Random, program: Program) -> Program | None:
    """Two neighbours that have names are called in the opposite order."""
    found = []
    for model, path, block in _blocks(program):
        for i, pair in enumerate(zip(block.children, block.children[1:], strict=False)):
            if all(_is_told(n, block) for n in pair) and {n.wire for n in pair} != {"branch"}:
                found.append((model, path, i))
    if not found:
        return None
    model, path, i = rng.choice(found)
    return _edit(
        program, model, path, lambda b: _with(b, (*b.children[:i], *b.children[i : i + 2][::-1], *b.children[i + 2 :]))
    )


def _is_told(node: Node, parent: Block) -> bool:
    """Whether a chosen name tells a layer with variables from its neighbours."""
    if isinstance(node, Leaf) and node.kind in ("again", "embedding", "dropout"):
        return False
    return bool(node.name) or (parent.style in _ATTRIBUTES and bool(node.attr))


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
STRUCTURAL = set(CHANGING) - {"change optimizer", "add optimizer state"}
# A new name, for what might as well be another layer of the same shape, is for a person to declare.
DECLARED = {"rename layer", "rename attribute", "rename both", "rename terms", "nest", "unnest"}
ALL = {**PRESERVING, **CHANGING}


def random_refactor(rng: random.Random, program: Program) -> Refactor:
    """A random refactor that this program allows; now and then two or three at once."""
    first = _one(rng, program)
    steps = [first]
    for _ in range(rng.choice((0, 0, 0, 0, 0, 1, 1, 2)) if first.kind != "identity" else 0):
        # One layer gone and one come, unnamed, would be what no file can show.
        changed = any(step.kind in STRUCTURAL for step in steps)
        steps.append(_one(rng, steps[-1].new, besides={"identity"} | (STRUCTURAL if changed else set())))
    if len(steps) == 1:
        return first
    return Refactor("several", program, steps[-1].new, all(s.preserving for s in steps), tuple(s.kind for s in steps))


def _one(rng: random.Random, program: Program, besides: Set[str] = frozenset()) -> Refactor:
    kinds, weights = list(ALL), [weight for _, weight in ALL.values()]
    while True:
        kind = rng.choices(kinds, weights)[0]
        refactor = refactored(rng, program, kind) if kind not in besides else None
        if refactor is not None:
            return refactor


def refactored(rng: random.Random, program: Program, kind: str) -> Refactor | None:
    """A refactor of one kind; None where the program has nothing to which it could be done."""
    new = ALL[kind][0](rng, program)
    if new is None or (new == program and kind != "identity"):
        return None
    return Refactor(kind, program, new, kind in PRESERVING, (kind,))
