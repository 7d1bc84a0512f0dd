"""TensorFlow Recommenders: models with a `compute_loss` and no `call`, which are therefore never called themselves."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import tensorflow as tf
import tensorflow_recommenders as tfrs
import tf_keras

WORDS = [f"w{i}" for i in range(9)]


def tower(vocabulary: list[str]) -> tf_keras.Model:
    lookup = tf_keras.layers.StringLookup(vocabulary=vocabulary, mask_token=None)
    return tf_keras.Sequential([lookup, tf_keras.layers.Embedding(len(vocabulary) + 1, 4)])


class Retrieval(tfrs.Model):
    """Two towers, as in the library's first tutorial."""

    def __init__(self) -> None:
        super().__init__()
        self.query_tower, self.candidate_tower = tower(WORDS), tower(WORDS[:5])
        self.task = tfrs.tasks.Retrieval(metrics=None)

    def compute_loss(self, features: dict[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        return self.task(self.query_tower(features["user"]), self.candidate_tower(features["item"]))


class Ranking(tfrs.Model):
    """An embedding below a small tower."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding_model = tower(WORDS)
        dense = [tf_keras.layers.Dense(4, "relu"), tf_keras.layers.Dense(4, "relu"), tf_keras.layers.Dense(1)]
        self.tower_model = tf_keras.Sequential(dense)
        self.task = tfrs.tasks.Ranking(loss=tf_keras.losses.MeanSquaredError())

    def compute_loss(self, features: dict[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        return self.task(tf.ones((2, 1)), self.tower_model(self.embedding_model(features["user"])))


class Cross(tfrs.Model):
    """Deep and cross: the library's own layers."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding_model = tower(WORDS)
        self.cross_layer = tfrs.layers.dcn.Cross(projection_dim=2)
        self.deep_layers = [tf_keras.layers.Dense(4, "relu"), tf_keras.layers.Dense(4, "relu")]
        self.logit_layer = tf_keras.layers.Dense(1)
        self.task = tfrs.tasks.Ranking(loss=tf_keras.losses.MeanSquaredError())

    def compute_loss(self, features: dict[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        x = self.cross_layer(self.embedding_model(features["user"]))
        for layer in self.deep_layers:
            x = layer(x)
        return self.task(tf.ones((2, 1)), self.logit_layer(x))


def built(make: Callable[[], tfrs.Model]) -> Callable[[], tfrs.Model]:
    """Builds the towers as training does, by the loss."""

    def build() -> tfrs.Model:
        model = make()
        model.compute_loss({"user": tf.constant(["w1", "w2"]), "item": tf.constant(["w3", "w4"])})
        return model

    return build


SMALL: Mapping[str, Callable[[], tfrs.Model]] = {
    "retrieval": built(Retrieval),
    "ranking": built(Ranking),
    "cross": built(Cross),
}
