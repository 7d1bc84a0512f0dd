"""One network as every kind of target: the same weights under names of that kind's own.

Each kind is built by `KINDS[name]()`, to be called under a strategy's scope, and gives a `Target`: the root that is
restored into, its variables by the names that the weights have in the files, and the rules that it needs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import keras
import sonnet as snt
import tensorflow as tf
import tf_keras
from tensorflow.python.distribute.sharded_variable import ShardedVariable

from format_files import build

Rules = Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Target:
    """What is restored into.

    Attributes:
      root: as users wrap it.
      variables: by the names that the weights have.
      renamed: what this kind calls otherwise: name of the weight -> name of the variable, below the model.
      kept: patterns of state that is this kind's own and in no file.
    """

    root: object
    variables: Mapping[str, object]
    renamed: Rules = dataclasses.field(default_factory=dict)
    kept: tuple[str, ...] = ()


# Name of each weight, and its shape.
SHAPES = {
    "wide/kernel": (4, 6),
    "wide/bias": (6,),
    "norm/gamma": (6,),
    "norm/beta": (6,),
    "norm/moving_mean": (6,),
    "norm/moving_variance": (6,),
    "inner/first/kernel": (6, 6),
    "alike/kernel": (6, 6),
    "head/kernel": (6, 3),
    "head/bias": (3,),
}


def functional() -> Target:
    model = build()
    return Target(tf.train.Checkpoint(model=model), {v.path: v for v in model.variables})


def subclassed() -> Target:
    class Inner(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.first = keras.layers.Dense(6, use_bias=False)

        def call(self, x: tf.Tensor) -> tf.Tensor:
            return self.first(x)

    class Net(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.wide, self.norm = keras.layers.Dense(6), keras.layers.BatchNormalization()
            self.inner, self.alike = Inner(), keras.layers.Dense(6, use_bias=False)
            self.head = keras.layers.Dense(3)

        def call(self, x: tf.Tensor) -> tf.Tensor:
            return self.head(self.alike(self.inner(self.norm(self.wide(x)))))

    model = Net()
    model(tf.zeros((1, 4)))
    return Target(tf.train.Checkpoint(model=model), {name: _attribute(model, name) for name in SHAPES})


def module() -> Target:
    return _module(lambda shape: tf.Variable(tf.zeros(shape)))


def sharded() -> Target:
    """A module whose matrices are in two parts, as under a partitioner."""
    return _module(lambda shape: _in_parts(shape) if len(shape) > 1 else tf.Variable(tf.zeros(shape)))


def _in_parts(shape: tuple[int, ...]) -> ShardedVariable:
    parts = [(shape[0] // 2 + shape[0] % 2, *shape[1:]), (shape[0] // 2, *shape[1:])]
    return ShardedVariable([tf.Variable(tf.zeros(part)) for part in parts])


def _module(make: Callable[[tuple[int, ...]], object]) -> Target:
    root = tf.Module()
    for name, shape in SHAPES.items():
        *parts, last = name.split("/")
        node = root
        for part in parts:
            if not hasattr(node, part):
                setattr(node, part, tf.Module())
            node = getattr(node, part)
        setattr(node, last, make(shape))
    return Target(tf.train.Checkpoint(model=root), {name: _attribute(root, name) for name in SHAPES})


def mapping() -> Target:
    variables = {name: tf.Variable(tf.zeros(shape)) for name, shape in SHAPES.items()}
    root: dict[str, object] = {}
    for name, variable in variables.items():
        *parts, last = name.split("/")
        node = root
        for part in parts:
            node = node.setdefault(part, {})
        node[last] = variable
    return Target({"model": root}, variables)


def two() -> Target:
    model = build(tf_keras)
    names = {v.name.partition(":")[0]: v for v in model.variables}
    variables = {f"inner/{n}" if n.startswith("first/") else n: v for n, v in names.items()}
    return Target(tf.train.Checkpoint(model=model), variables)


class SonnetNet(snt.Module):
    """Sonnet's layers have parameters of other names, and a batch norm's statistics are modules of their own."""

    def __init__(self) -> None:
        super().__init__(name="net")
        self.wide = snt.Linear(6)
        self.norm = snt.BatchNorm(create_scale=True, create_offset=True)
        self.inner = snt.Module(name="inner")
        self.inner.first = snt.Linear(6, with_bias=False)
        self.alike, self.head = snt.Linear(6, with_bias=False), snt.Linear(3)

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        return self.head(
            self.alike(self.inner.first(self.norm(self.wide(x), is_training=False, test_local_stats=True)))
        )


def sonnet() -> Target:
    model = SonnetNet()
    model(tf.zeros((2, 4)))
    renamed = {name: name.replace("/kernel", "/w").replace("/bias", "/b") for name in SHAPES if "norm" not in name}
    renamed |= {"norm/gamma": "norm/scale", "norm/beta": "norm/offset"}
    # The mean of a moving average, which Sonnet keeps as shape [1, 6].
    renamed |= {"norm/moving_mean": "norm/moving_mean/average", "norm/moving_variance": "norm/moving_variance/average"}
    variables = {name: _attribute(model, path) for name, path in renamed.items()}
    own = tuple(f"model/norm/moving_{n}/{part}" for n in ("mean", "variance") for part in ("hidden", "counter"))
    return Target(tf.train.Checkpoint(model=model), variables, renamed, own)


def _attribute(root: object, path: str) -> object:
    for part in path.split("/"):
        root = getattr(root, part)
    return root


# Replicas have no parts: a partitioner is what ParameterServerStrategy takes (see `test_parameter_servers.py`).
STRATEGIES = ("default", "mirrored2", "tpu")
WITHOUT_REPLICAS = ("sharded",)
KINDS: Mapping[str, Callable[[], Target]] = {
    "functional": functional,
    "subclassed": subclassed,
    "module": module,
    "mapping": mapping,
    "sharded": sharded,
    "sonnet": sonnet,
    "tf_keras": two,
}
PAIRS = tuple((k, s) for k in sorted(KINDS) for s in STRATEGIES if s == "default" or k not in WITHOUT_REPLICAS)
