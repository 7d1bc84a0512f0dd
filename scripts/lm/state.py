"""Everything that a run carries from one step to the next, and that a checkpoint therefore holds."""

from __future__ import annotations

import dataclasses

import keras
import tensorflow as tf

from lm import model_v1, model_v2
from lm.sizes import Sizes

VERSIONS = {1: model_v1.LanguageModel, 2: model_v2.LanguageModel}


@dataclasses.dataclass(frozen=True)
class State:
    """The live objects of a run.

    Attributes:
      model: the network, built.
      optimizer: Adam, built: its moments exist.
      step: int64 variable, the number of steps done.
    """

    model: keras.Model
    optimizer: keras.optimizers.Optimizer
    step: tf.Variable

    @property
    def nbytes(self) -> int:
        """How much a checkpoint of it holds, about."""
        variables = [*self.model.variables, *self.optimizer.variables]
        return sum(variable.value.shape.num_elements() * variable.value.dtype.size for variable in variables)

    def checkpoint(self) -> tf.train.Checkpoint:
        """What is saved and restored, under the names that rules use: `model/...`, `optimizer/...`, `step`."""
        return tf.train.Checkpoint(model=self.model, optimizer=self.optimizer, step=self.step)


def build(version: int, sizes: Sizes, *, seed: int = 0, learning_rate: float = 1e-3) -> State:
    """Builds model, optimizer and step; under a strategy's scope, call it there.

    All variables exist when this returns: what is built later cannot be restored now.
    """
    keras.utils.set_random_seed(seed)
    model = VERSIONS[version](sizes)
    model(tf.zeros([1, sizes.context], tf.int32))
    # With Adam's usual epsilon of 1e-7, weights whose gradient is all rounding error (a key's bias) move as fast
    # as the others, and no two programs that round differently stay together.
    optimizer = keras.optimizers.Adam(learning_rate, epsilon=1e-5)
    optimizer.build(model.trainable_variables)
    return State(model, optimizer, tf.Variable(0, dtype=tf.int64, trainable=False, name="step"))
