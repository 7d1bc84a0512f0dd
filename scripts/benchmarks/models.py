"""The models that the benchmarks save and restore, and their checkpoints, made once and kept."""

from __future__ import annotations

import pathlib

import harness
import numpy as np
import tensorflow as tf

VOCABULARY = 32_000
BLOCKS = 23


class Block(tf.Module):
    """Eight tensors of a transformer's block, or six where q, k and v are fused; `prefix` renames them."""

    def __init__(self, width: int, *, fused: bool, prefix: str) -> None:
        super().__init__()
        square = (width, width)
        shapes = {"qkv": (width, 3 * width)} if fused else dict.fromkeys("qkv", square)
        shapes |= {"out": square, "up": (width, 4 * width), "down": (4 * width, width), "bias": (4 * width,)}
        shapes |= {"scale": (width,)}
        for name, shape in shapes.items():
            setattr(self, prefix + name, tf.Variable(tf.zeros(shape)))


class Model(tf.Module):
    """A language model without its functions: an embedding and blocks, about 190 tensors."""

    def __init__(self, width: int, *, fused: bool = False, prefix: str = "") -> None:
        super().__init__()
        self.embedding = tf.Variable(tf.zeros((VOCABULARY, width)))
        self.blocks = [Block(width, fused=fused, prefix=prefix) for _ in range(BLOCKS)]


class Small(tf.Module):
    """Ten small variables."""

    def __init__(self) -> None:
        super().__init__()
        for name in "abcdefghij":
            setattr(self, name, tf.Variable(tf.zeros((4, 8))))


class Many(tf.Module):
    """Many small variables, ten to a block."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.blocks = [Small() for _ in range(count // 10)]


def width_for(gigabytes: float) -> int:
    """The width of which a `Model` has about so many bytes of float32."""
    widths = range(64, 8192, 64)
    return min(widths, key=lambda d: abs(4 * (VOCABULARY * d + BLOCKS * (12 * d * d + 5 * d)) - gigabytes * 1e9))


def randomize(module: tf.Module) -> None:
    """Gives every variable values of its own."""
    rng = np.random.default_rng(0)
    for variable in module.variables:
        variable.assign(rng.standard_normal(variable.shape, dtype=np.float32))


def saved(name: str, make: object) -> str:
    """The checkpoint of a model, which is written the first time."""
    assert callable(make)
    prefix = harness.data_root() / name / "ckpt"
    if not pathlib.Path(f"{prefix}.index").exists():
        model = make()
        randomize(model)
        prefix.parent.mkdir(parents=True, exist_ok=True)
        tf.train.Checkpoint(model=model).write(str(prefix))
    return str(prefix)


def files_of(prefix: str) -> list[str]:
    """The files of a checkpoint."""
    path = pathlib.Path(prefix)
    return sorted(str(p) for p in path.parent.glob(path.name + ".*"))


def strategy(replicas: int) -> tf.distribute.Strategy:
    """The default strategy, or a mirrored one over logical CPU devices."""
    if replicas == 1:
        return tf.distribute.get_strategy()
    device = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(device, [tf.config.LogicalDeviceConfiguration()] * replicas)
    return tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(replicas)])
