"""Sonnet: the networks that it brings, and modules of its layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import sonnet as snt
import tensorflow as tf

Build = Callable[[], snt.Module]


def called(module: snt.Module, *inputs: object, **options: object) -> snt.Module:
    module(*inputs, **options)
    return module


class Attention(snt.Module):
    """A block of attention, of linear layers in attributes, a list and a dictionary."""

    def __init__(self, name: str | None = None) -> None:
        super().__init__(name)
        self.query, self.key, self.value = snt.Linear(4), snt.Linear(4), snt.Linear(4)
        self.norms = [snt.LayerNorm(-1, True, True) for _ in range(2)]
        self.heads = {"a": snt.Linear(3), "b": snt.Linear(3)}
        self._layers = [snt.nets.MLP([8, 4]), snt.nets.MLP([8, 4])]

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        weights = tf.nn.softmax(tf.matmul(self.query(x), self.key(x), transpose_b=True))
        x = self.norms[0](x + tf.matmul(weights, self.value(x)))
        for layer in self._layers:
            x = self.norms[1](x + layer(x))
        return self.heads["a"](x) + self.heads["b"](x)


def images(size: int = 16) -> tf.Tensor:
    return tf.zeros((1, size, size, 3))


def vqvae() -> snt.Module:
    return called(snt.nets.VectorQuantizerEMA(4, 5, 0.25, 0.9), tf.zeros((2, 4)), is_training=True)


def recurrent() -> snt.Module:
    core = snt.DeepRNN([snt.LSTM(4), snt.LSTM(4), snt.Linear(2)])
    return called(core, tf.zeros((2, 4)), core.initial_state(2))


SMALL: Mapping[str, Build] = {
    "mlp": lambda: called(snt.nets.MLP([8, 8, 4]), tf.zeros((2, 4))),
    "sequential": lambda: called(snt.Sequential([snt.Linear(4), tf.nn.relu, snt.Linear(4)]), tf.zeros((2, 4))),
    "attention": lambda: called(Attention(), tf.zeros((2, 3, 4))),
    "cifar10_convnet": lambda: called(snt.nets.Cifar10ConvNet(), images(32), is_training=True),
    "deep_rnn": recurrent,
    "resnet50": lambda: called(snt.nets.ResNet50(5), images(32), is_training=True),
}
# Trains by averages alone: there is nothing for an optimizer.
UNTRAINED: Mapping[str, Build] = {"vqvae": vqvae}
