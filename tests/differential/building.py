"""A specification becomes a program: live objects, and the variable of every role."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf
import tf_keras

from optimizers import make_optimizer, optimizer_variables, slot_roles
from programs import WIDTH, Block, Leaf, Node, Program, groups, ordered, reads_tokens

TIME = 3
_TERMS = {
    "dense": ("kernel", "bias"),
    "conv": ("kernel", "bias"),
    "norm": ("gamma", "beta"),
    "batch_norm": ("gamma", "beta", "moving_mean", "moving_variance"),
    "embedding": ("embeddings",),
}


@dataclasses.dataclass
class Built:
    """A live program.

    Attributes:
      program: what it was made from.
      models: by key.
      variables: role -> variable, of the model and of the optimizer.
      optimizer: or none.
      root: what is saved and restored.
    """

    program: Program
    models: dict[str, object]
    variables: dict[str, tf.Variable]
    optimizer: object
    root: object
    trainable: list[tf.Variable]
    owners: list[str]

    def outputs(self) -> list[np.ndarray]:
        """What the models make of one batch."""
        return [
            np.asarray(m(example(block)))
            for m, (_, block) in zip(self.models.values(), self.program.models, strict=True)
        ]

    @property
    def missing(self) -> list[str]:
        """The slots that the optimizer should have and has not; of one that somebody else built."""
        return [role for role in slot_roles(self.program, self.owners) if role not in self.variables]

    def add_slots(self) -> None:
        """Finds the variables of the optimizer; builds it where it is not built."""
        self.variables.update(optimizer_variables(self.optimizer, self.program, self.trainable, self.owners))


def build(program: Program, *, slots: bool = True) -> Built:
    """Builds a program.

    Args:
      program: what to build.
      slots: whether the optimizer is built too.
    """
    maker = _Maker(program)
    for _ in range(program.before):
        maker.count_on()
    models = {key: maker.model(block) for key, block in program.models}
    variables, owners = maker.variables(), []
    optimizer = make_optimizer(program)
    if program.optimizer and program.optimizer.place != "given":
        next(iter(models.values())).compile(optimizer=optimizer, loss="mse")
    roles = {id(v): role for role, v in variables.items()}
    trainable = [v for model in models.values() for v in model.trainable_variables]
    if program.optimizer and program.optimizer.turned:
        trainable.reverse()
    owners = [roles[id(raw(v))] for v in trainable]
    built = Built(program, models, variables, optimizer, _root(program, models, optimizer), trainable, owners)
    if optimizer is not None and slots:
        built.add_slots()
    return built


def _root(program: Program, models: dict[str, object], optimizer: object) -> object:
    if program.bare:
        return next(iter(models.values()))
    given = {program.optimizer.key: optimizer} if program.optimizer and program.optimizer.place != "compiled" else {}
    return tf.train.Checkpoint(**models, **given)


def checkpoint_of(built: Built) -> tf.train.Checkpoint:
    """A Checkpoint of what is saved."""
    return built.root if isinstance(built.root, tf.train.Checkpoint) else tf.train.Checkpoint(built.root)


def raw(variable: object) -> tf.Variable:
    """The TensorFlow variable behind a Keras 3 one."""
    return variable if isinstance(variable, tf.Variable) else variable.value


def example(block: Block) -> np.ndarray:
    """A batch of one."""
    if reads_tokens(block):
        return np.array([[0, 2, 3]], np.int32)
    return (np.arange(TIME * WIDTH, dtype=np.float32).reshape(1, TIME, WIDTH) - 5) / 7


def clear() -> None:
    """Forgets what Keras counted."""
    keras.backend.clear_session(free_memory=False)
    tf_keras.backend.clear_session()


# ---- tf.Module -------------------------------------------------------------------------------------------


class Linear(tf.Module):
    """A dense layer."""

    def __init__(self, name: str | None, bias: bool, terms: tuple[str, str]) -> None:
        super().__init__(name=name)
        self.terms = terms
        with self.name_scope:
            setattr(self, terms[0], tf.Variable(tf.zeros([WIDTH, WIDTH]), name=terms[0]))
            if bias:
                setattr(self, terms[1], tf.Variable(tf.zeros([WIDTH]), name=terms[1]))

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        x = tf.tensordot(x, getattr(self, self.terms[0]), 1)
        return x + getattr(self, self.terms[1]) if hasattr(self, self.terms[1]) else x


class Norm(tf.Module):
    """Scales and shifts."""

    def __init__(self, name: str | None) -> None:
        super().__init__(name=name)
        with self.name_scope:
            self.gamma = tf.Variable(tf.ones([WIDTH]), name="gamma")
            self.beta = tf.Variable(tf.zeros([WIDTH]), name="beta")

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        return x * self.gamma + self.beta


# ---- All libraries ---------------------------------------------------------------------------------------


class _Maker:
    """Makes the layers of one program; knows the object of every role."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.kit = tf_keras if program.library == "tf_keras" else keras
        self.objects: dict[str, object] = {}
        self.leaves: list[Leaf] = []
        kit = self.kit

        class Net(kit.Model):
            __init__ = _subclass_init(kit.Model)
            call = _subclass_call

        class Part(kit.layers.Layer):
            __init__ = _subclass_init(kit.layers.Layer)
            call = _subclass_call

            def build(self, shape: object) -> None:
                self.built = True

        class Group(tf.Module):
            __init__ = _subclass_init(tf.Module)
            __call__ = _subclass_call

        self.classes = {"net": Net, "part": Part, "module": Group}

    def count_on(self) -> None:
        """Other layers that somebody made before."""
        if self.program.library != "module":
            self.kit.layers.Dense(WIDTH)
            self.kit.layers.LayerNormalization()

    def model(self, block: Block) -> object:
        model = self.make(block, root=True)
        if block.style not in ("functional", "sequential"):
            model(example(block))
        return model

    def make(self, node: Node, *, root: bool = False) -> object:
        made = self._leaf(node) if isinstance(node, Leaf) else self._block(node, root)
        self.objects[node.role] = made
        return made

    def _leaf(self, leaf: Leaf) -> object:
        name = leaf.name or None
        if leaf.kind == "again":
            return None
        self.leaves.append(leaf)
        if self.program.library == "module":
            return Norm(name) if leaf.kind == "norm" else Linear(name, leaf.bias, self.program.terms)
        layers, zeros = self.kit.layers, {"kernel_initializer": "zeros"}
        make: dict[str, Callable[[], object]] = {
            "dense": lambda: layers.Dense(leaf.units, use_bias=leaf.bias, name=name, **zeros),
            "norm": lambda: layers.LayerNormalization(name=name),
            "batch_norm": lambda: layers.BatchNormalization(name=name),
            "embedding": lambda: layers.Embedding(WIDTH, WIDTH, "zeros", name=name),
            "conv": lambda: layers.Conv1D(leaf.units, 1, use_bias=leaf.bias, name=name, **zeros),
            "dropout": lambda: layers.Dropout(0.5, name=name),
        }
        return make[leaf.kind]()

    def _block(self, block: Block, root: bool) -> object:
        name = block.name or None
        if block.style in ("subclass", "module"):
            kind = "module" if block.style == "module" else "net" if root else "part"
            return self.classes[kind](self, block, name)
        for child in ordered(block.children, block.made):
            self.make(child)
        if block.style == "list":
            return [self.objects[c.role] for c in block.children]
        if block.style == "dict":
            return {c.attr: self.objects[c.role] for c in ordered(block.children, block.held)}
        if block.style == "functional":
            x = self._input(block)
            return self.kit.Model(x, self.flow(block, x), name=name)
        start = [self._input(block, layer=True)] if block.style == "sequential" else []
        return self.kit.Sequential([*start, *(self.objects[c.role] for c in block.children)], name=name)

    def _input(self, block: Block, *, layer: bool = False) -> object:
        tokens = reads_tokens(block)
        make = self.kit.layers.InputLayer if layer and self.kit is tf_keras else self.kit.Input
        shape = (TIME,) if tokens else (TIME, WIDTH)
        return make(shape, dtype="int32" if tokens else "float32")

    def flow(self, block: Block, x: object) -> object:
        for group in groups(block.children):
            outputs = [self.call(child, x) for child in group]
            total = outputs[0]
            for output in outputs[1:]:
                total = total + output
            x = x + total if group[0].wire == "residual" else total
        return x

    def call(self, child: Node, x: object) -> object:
        if isinstance(child, Leaf):
            return self.objects[child.of or child.role](x)
        return self.flow(child, x) if child.style in ("list", "dict") else self.objects[child.role](x)

    def variables(self) -> dict[str, tf.Variable]:
        """Role -> variable; the role of a variable is its layer's and what it is there."""
        found = {}
        for leaf in self.leaves:
            layer = self.objects[leaf.role]
            for term in _TERMS.get(leaf.kind, ()):
                attr = term
                if self.program.library == "module" and leaf.kind == "dense":
                    attr = self.program.terms[term == "bias"]
                variable = getattr(layer, attr, None)
                if variable is not None:
                    found[f"{leaf.role}.{term}"] = raw(variable)
        return found


def _subclass_init(base: type) -> Callable[..., None]:
    def init(self: object, maker: _Maker, block: Block, name: str | None) -> None:
        base.__init__(self, name=name)
        with self.name_scope if base is tf.Module else contextlib.nullcontext():
            for child in ordered(block.children, block.made):
                maker.make(child)
        for child in ordered(block.children, block.held):
            if child.attr:
                setattr(self, child.attr, maker.objects[child.role])
        self._run = tf.autograph.experimental.do_not_convert(lambda x: maker.flow(block, x))

    return init


def _subclass_call(self: object, x: object) -> object:
    return self._run(x)
