"""Version 1: flat blocks under numbered attributes; query, key and value are three layers."""

from __future__ import annotations

import keras
import tensorflow as tf

from lm.attention import causal_attention
from lm.sizes import VOCABULARY, Sizes

Dense = keras.layers.Dense


class Block(keras.layers.Layer):
    """One transformer block, normalised before attention and before the MLP."""

    def __init__(self, sizes: Sizes, name: str) -> None:
        super().__init__(name=name)
        self.heads = sizes.heads
        self.ln1 = keras.layers.LayerNormalization(name="ln1")
        self.q = Dense(sizes.width, name="q")
        self.k = Dense(sizes.width, name="k")
        self.v = Dense(sizes.width, name="v")
        self.proj = Dense(sizes.width, name="proj")
        self.ln2 = keras.layers.LayerNormalization(name="ln2")
        self.up = Dense(4 * sizes.width, activation="gelu", name="up")
        self.down = Dense(sizes.width, name="down")
        self.dropout = keras.layers.Dropout(sizes.dropout) if sizes.dropout else None

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Adds what attention and the MLP have to say."""
        seen = self.ln1(x)
        x = x + self._drop(self.proj(causal_attention(self.q(seen), self.k(seen), self.v(seen), self.heads)), training)
        return x + self._drop(self.down(self.up(self.ln2(x))), training)

    def _drop(self, x: tf.Tensor, training: bool) -> tf.Tensor:
        return x if self.dropout is None else self.dropout(x, training=training)


class LanguageModel(keras.Model):
    """Predicts the next byte at every position."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__(name="lm")
        self.sizes = sizes
        self.token_embedding = keras.layers.Embedding(VOCABULARY, sizes.width, name="token_embedding")
        self.position_embedding = keras.layers.Embedding(sizes.context, sizes.width, name="position_embedding")
        for i in range(sizes.layers):
            setattr(self, f"block_{i}", Block(sizes, f"block_{i}"))
        self.final_norm = keras.layers.LayerNormalization(name="final_norm")
        self.head = Dense(VOCABULARY, name="head")

    def call(self, tokens: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Returns the logits, `[batch, time, 256]`."""
        x = self.token_embedding(tokens) + self.position_embedding(keras.ops.arange(tokens.shape[1]))
        for i in range(self.sizes.layers):
            x = getattr(self, f"block_{i}")(x, training=training)
        return self.head(self.final_norm(x))
