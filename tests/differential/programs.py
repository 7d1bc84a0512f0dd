"""Programs as plain values, and a seeded generator of random ones.

A program is a tree of layers that run in the order of `children`. Every layer has a *role*: a text that no refactor
changes and that is no name, so that what belongs to what stays known whatever becomes of names and lines.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterator

WIDTH = 4
WORDS = "enc mid dec proj out pre post body trunk stem block_1 block_2 block_3 cell_7 query_fc gate side fold".split()
FRESH = "neu alt extra nova redo block_8 block_9 renamed swap lift bridge late tower_3 aux plus".split()


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One layer.

    Attributes:
      role: what it is, whatever it is called.
      kind: dense, norm, batch_norm, embedding, conv, dropout, or again: another call of the layer with role `of`.
      attr: the attribute or key under which a subclass or dict holds it.
      name: the name that it is given; empty where Keras names it.
      wire: chain, residual (added to its input) or branch (neighbouring branches have one input, and are added).
    """

    role: str
    kind: str
    attr: str
    name: str = ""
    wire: str = "chain"
    units: int = WIDTH
    bias: bool = True
    of: str = ""


@dataclasses.dataclass(frozen=True)
class Block:
    """Some layers together.

    Attributes:
      role: what it is, whatever it is called.
      style: functional, sequential, open (a Sequential without Input), subclass, module, list or dict.
      attr: as in `Leaf`.
      name: as in `Leaf`.
      wire: as in `Leaf`.
      children: in the order in which they are called.
      made: roles in the order of the lines that make them; empty: as they are called.
      held: roles in the order of the lines that assign attributes (or fill a dict); empty: as they are called.
    """

    role: str
    style: str
    attr: str
    children: tuple[Node, ...]
    name: str = ""
    wire: str = "chain"
    made: tuple[str, ...] = ()
    held: tuple[str, ...] = ()


Node = Leaf | Block
Path = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """The optimizer.

    Attributes:
      kind: sgd, momentum, adam, adamw or rmsprop.
      place: given (to the Checkpoint), compiled (into the model) or both.
      key: its name in the Checkpoint.
      ema: whether it keeps averages of the weights.
      scaled: whether a LossScaleOptimizer is around it.
      turned: whether it is built over the variables in the opposite order.
    """

    kind: str
    place: str = "given"
    key: str = "optimizer"
    ema: bool = False
    scaled: bool = False
    turned: bool = False


@dataclasses.dataclass(frozen=True)
class Program:
    """A whole program.

    Attributes:
      library: keras, tf_keras or module (tf.Module).
      models: (key in the Checkpoint, model).
      optimizer: or none.
      bare: whether the model itself is what is saved, and not a Checkpoint.
      before: how many layers are made before, so that Keras counts on from there.
      terms: what a tf.Module calls its variables.
    """

    library: str
    models: tuple[tuple[str, Block], ...]
    optimizer: Optimizer | None = None
    bare: bool = False
    before: int = 0
    terms: tuple[str, str] = ("w", "b")


# ---- Looking at programs ---------------------------------------------------------------------------------


def walk(block: Block, path: Path = ()) -> Iterator[tuple[Path, Node]]:
    """All nodes below a block, with the way to each."""
    for index, child in enumerate(block.children):
        yield (*path, index), child
        if isinstance(child, Block):
            yield from walk(child, (*path, index))


def nodes(program: Program) -> Iterator[Node]:
    for _, model in program.models:
        yield model
        yield from (node for _, node in walk(model))


def at(block: Block, path: Path) -> Node:
    node: Node = block
    for index in path:
        assert isinstance(node, Block)
        node = node.children[index]
    return node


def edited(block: Block, path: Path, edit: Callable[[Node], Node]) -> Block:
    """The block with the node at `path` replaced by `edit(node)`."""
    if not path:
        changed = edit(block)
        assert isinstance(changed, Block)
        return changed
    index, rest = path[0], path[1:]
    child = block.children[index]
    new = edited(child, rest, edit) if rest and isinstance(child, Block) else edit(child)
    return dataclasses.replace(block, children=(*block.children[:index], new, *block.children[index + 1 :]))


def ordered(children: tuple[Node, ...], roles: tuple[str, ...]) -> list[Node]:
    """The children in the order of `roles`; one that is not among them stays behind the one called before it."""
    places: dict[str, tuple[int, int]] = {}
    last = (-1, 0)
    for index, child in enumerate(children):
        last = (roles.index(child.role), 0) if child.role in roles else (last[0], index + 1)
        places[child.role] = last
    return sorted(children, key=lambda child: places[child.role])


def groups(children: tuple[Node, ...]) -> Iterator[list[Node]]:
    """Neighbours that are branches together, all others alone."""
    together: list[Node] = []
    for child in children:
        if child.wire != "branch":
            if together:
                yield together
                together = []
            yield [child]
        else:
            together.append(child)
    if together:
        yield together


def reads_tokens(block: Block) -> bool:
    """Whether the first layer is an embedding."""
    first = block.children[0]
    return reads_tokens(first) if isinstance(first, Block) else first.kind == "embedding"


# ---- Making them up --------------------------------------------------------------------------------------

_MIXED = ("dense",) * 6 + ("norm",) * 2 + ("batch_norm", "conv", "dropout")
_MODULES = ("list", "list", "dict", "module", "module")
_STYLES = {
    "functional": ("sequential", "sequential", "open", "functional", "subclass"),
    "sequential": ("sequential", "functional", "subclass"),
    "open": ("sequential", "open", "subclass"),
    "subclass": ("list", "list", "dict", "subclass", "sequential", "open", "open", "functional"),
    "list": ("subclass", "sequential", "open"),
    "dict": ("subclass", "sequential"),
}


class Generator:
    """Makes one random program."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.count = 0
        self.naming = rng.choice(("auto", "auto", "blocks", "chosen", "mixed"))
        # Equal layers are what is hard, so that most programs consist of them.
        self.kinds = rng.choice((("dense",), ("dense",), ("dense",) * 5 + ("norm",), _MIXED))
        self.bias = rng.choice((0.0, 1.0, 1.0, 0.6))

    def program(self) -> Program:
        library = self.rng.choices(("keras", "tf_keras", "module"), (62, 22, 16))[0]
        if library == "module":
            self.kinds = tuple(k for k in self.kinds if k in ("dense", "norm"))
        models = self._models(library)
        optimizer = self._optimizer(library, len(models)) if self.rng.random() < 0.55 else None
        bare = len(models) == 1 and (optimizer is None or optimizer.place == "compiled") and self.rng.random() < 0.1
        return Program(library, models, optimizer, bare, before=self.rng.choice((0, 0, 0, 1, 3)))

    def _models(self, library: str) -> tuple[tuple[str, Block], ...]:
        if self.rng.random() < 0.85:
            return ((self.rng.choice(("model", "model", "net")), self.root(library)),)
        first = self.root(library)
        twin = self.twin(first)
        second = twin if isinstance(twin, Block) and self.rng.random() < 0.7 else self.root(library)
        return tuple(zip(self.rng.choice((("query", "document"), ("actor", "critic"))), (first, second), strict=True))

    def root(self, library: str) -> Block:
        styles = {"module": ("module",)}.get(
            library, ("functional",) * 4 + ("subclass",) * 5 + ("sequential",) * 2 + ("open",)
        )
        style = self.rng.choice(styles)
        words = self._words()
        names = self.rng.random() < 0.3 and self.naming in ("chosen", "mixed")
        children = self.children(library, style, words, depth=0)
        if self.rng.random() < 0.12 and library != "module":
            children = (self.leaf("embedding", words), *children)
        return Block(self._role(), style, "net", children, self.rng.choice(("net", "bert")) if names else "")

    def children(self, library: str, style: str, words: Iterator[str], depth: int) -> tuple[Node, ...]:
        if style == "list" and self.rng.random() < 0.5:
            return self.stack(library, words, depth)
        if style != "list" and self.rng.random() < 0.4:
            return self._wired(style, self.family(library, style, words, depth))
        found: list[Node] = []
        for _ in range(self.rng.randint(2, 4 if depth == 0 else 3)):
            if depth < 2 and self.rng.random() < (0.3 if depth == 0 else 0.2):
                styles = _MODULES if library == "module" else _STYLES[style]
                found.append(self.block(library, self.rng.choice(styles), words, depth + 1))
            else:
                found.append(self.leaf(self.rng.choice(self.kinds), words))
        return self._wired(style, self._shared(style, tuple(found)))

    def stack(self, library: str, words: Iterator[str], depth: int) -> tuple[Node, ...]:
        """Equal blocks, numbered where they have names."""
        style = "module" if library == "module" else "subclass"
        one = self.block(library, style, words, depth + 1) if self.rng.random() < 0.7 else self.leaf("dense", words)
        twins = (self.twin(one) for _ in range(self.rng.randint(2, 3)))
        return tuple(dataclasses.replace(t, name=f"{t.name}_{i}" if t.name else "") for i, t in enumerate(twins))

    def family(self, library: str, style: str, words: Iterator[str], depth: int) -> tuple[Node, ...]:
        """Equal layers or blocks, each with a name or attribute of its own: heads on a trunk, encoder and decoder."""
        styles = tuple(s for s in (_MODULES if library == "module" else _STYLES[style]) if s not in ("list", "dict"))
        inside = depth < 2 and self.rng.random() < 0.6
        one = self.block(library, self.rng.choice(styles), words, depth + 1) if inside else self.leaf("dense", words)
        found = [one, *(self._called(self.twin(one), words) for _ in range(self.rng.randint(1, 2)))]
        if self.rng.random() < 0.3:
            found.insert(self.rng.randint(0, len(found)), self.leaf(self.rng.choice(self.kinds), words))
        return tuple(found)

    def _called(self, node: Node, words: Iterator[str]) -> Node:
        name = next(words) if node.name else ""
        return dataclasses.replace(node, name=name, attr=self._attr(name, words))

    def block(self, library: str, style: str, words: Iterator[str], depth: int) -> Block:
        inner = words if style in ("list", "dict") else self._words()
        children = self.children(library, style, inner, depth)
        name = next(words) if self.naming == "blocks" else self._name(words)
        return Block(self._role(), style, self._attr(name, words), children, "" if style in ("list", "dict") else name)

    def leaf(self, kind: str, words: Iterator[str]) -> Leaf:
        name = self._name(words)
        return Leaf(self._role(), kind, self._attr(name, words), name, bias=self.rng.random() < self.bias)

    def twin(self, node: Node) -> Node:
        """The same architecture and names, and other roles."""
        roles: dict[str, str] = {}

        def copied(node: Node) -> Node:
            roles[node.role] = self._role()
            if isinstance(node, Leaf):
                return dataclasses.replace(node, role=roles[node.role], of=roles.get(node.of, ""))
            return dataclasses.replace(node, role=roles[node.role], children=tuple(copied(c) for c in node.children))

        return copied(node)

    def _wired(self, style: str, children: tuple[Node, ...]) -> tuple[Node, ...]:
        if style in ("sequential", "open") or self.rng.random() < 0.4:
            return children
        if self.rng.random() < 0.4:
            return tuple(dataclasses.replace(c, wire=self.rng.choice(("chain", "residual"))) for c in children)
        begin = self.rng.randrange(len(children) - 1)
        return tuple(dataclasses.replace(c, wire="branch") if i >= begin else c for i, c in enumerate(children))

    def _shared(self, style: str, children: tuple[Node, ...]) -> tuple[Node, ...]:
        dense = [c for c in children if isinstance(c, Leaf) and c.kind == "dense"]
        if style not in ("functional", "subclass", "module") or not dense or self.rng.random() > 0.08:
            return children
        return (*children, Leaf(self._role(), "again", "", of=self.rng.choice(dense).role))

    def _optimizer(self, library: str, models: int) -> Optimizer:
        kind = self.rng.choice(("sgd", "momentum", "adam", "adam", "adam", "adamw", "rmsprop"))
        place = (
            self.rng.choice(("given", "given", "compiled", "both")) if library != "module" and models == 1 else "given"
        )
        ema, scaled = self.rng.random() < 0.1, self.rng.random() < 0.1 and library == "keras"
        return Optimizer(kind, place, ema=ema, scaled=scaled, turned=self.rng.random() < 0.05)

    def _words(self) -> Iterator[str]:
        words = list(WORDS)
        self.rng.shuffle(words)
        return iter(words + [f"w_{n}" for n in range(50)])

    def _name(self, words: Iterator[str]) -> str:
        chosen = self.naming == "chosen" or (self.naming == "mixed" and self.rng.random() < 0.5)
        return next(words) if chosen else ""

    def _attr(self, name: str, words: Iterator[str]) -> str:
        return name if name and self.rng.random() < 0.5 else next(words)

    def _role(self) -> str:
        self.count += 1
        return f"r{self.count}"


def random_program(rng: random.Random) -> Program:
    """A random program."""
    return Generator(rng).program()


def naming(program: Program) -> str:
    """Whether layers have chosen names, automatic ones, or both."""
    found = {bool(n.name) for n in nodes(program) if isinstance(n, Leaf) and n.kind != "again"}
    return "mixed" if len(found) > 1 else ("chosen" if found == {True} else "auto")


def kind_of(program: Program) -> str:
    """The kind of model, for tables."""
    if len(program.models) > 1:
        return f"{program.library} two models"
    style = program.models[0][1].style
    styles = {n.style for n in nodes(program) if isinstance(n, Block)} - {style}
    extra = "lists" if styles & {"list", "dict"} else "nested" if styles else ""
    return " ".join(filter(None, (program.library, style, extra)))


def listing(program: Program) -> str:
    """The program for people: a line for each layer, in the order of the calls, and the orders that differ from it."""
    lines = [
        f"{program.library}, {program.optimizer}, bare={program.bare}, before={program.before}, terms={program.terms}"
    ]
    for key, model in program.models:
        for path, node in [((), model), *walk(model)]:
            lines.append("    " * (len(path) + 1) + (f"{key}: " if not path else "") + _line(node))
    return "\n".join(lines)


def _line(node: Node) -> str:
    texts = [node.role, node.kind if isinstance(node, Leaf) else node.style.upper(), f"{node.name!r}", f".{node.attr}"]
    if isinstance(node, Leaf):
        texts += ["no bias"] * (node.kind in ("dense", "conv") and not node.bias) + [f"of {node.of}"] * bool(node.of)
    else:
        texts += [f"made={node.made}"] * bool(node.made) + [f"held={node.held}"] * bool(node.held)
    return " ".join([*texts, node.wire] if node.wire != "chain" else texts)
