"""Version 2, the refactor: other names, sub-modules, one fused projection, blocks in a plain list.

Given version 1's weights it computes the same function; `configs/rules/lm_v1_to_v2.toml` says which goes where.
"""

from __future__ import annotations

import keras
import tensorflow as tf

from lm.attention import causal_attention
from lm.sizes import VOCABULARY, Sizes

Dense = keras.layers.Dense


class Attention(keras.layers.Layer):
    """Causal self-attention; `qkv` computes query, key and value in one product, side by side."""

    def __init__(self, sizes: Sizes, name: str) -> None:
        super().__init__(name=name)
        self.heads = sizes.heads
        self.qkv = Dense(3 * sizes.width, name="qkv")
        self.out = Dense(sizes.width, name="out")

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """Mixes what earlier positions hold."""
        query, key, value = keras.ops.split(self.qkv(x), 3, axis=-1)
        return self.out(causal_attention(query, key, value, self.heads))


class Mlp(keras.layers.Layer):
    """Two dense layers with a GELU between them."""

    def __init__(self, sizes: Sizes, name: str) -> None:
        super().__init__(name=name)
        self.up = Dense(4 * sizes.width, activation="gelu", name="up")
        self.down = Dense(sizes.width, name="down")

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """Transforms each position on its own."""
        return self.down(self.up(x))


class Block(keras.layers.Layer):
    """One transformer block, normalised before attention and before the MLP."""

    def __init__(self, sizes: Sizes, name: str) -> None:
        super().__init__(name=name)
        self.attention_norm = keras.layers.LayerNormalization(name="attention_norm")
        self.attention = Attention(sizes, "attention")
        self.mlp_norm = keras.layers.LayerNormalization(name="mlp_norm")
        self.mlp = Mlp(sizes, "mlp")
        self.dropout = keras.layers.Dropout(sizes.dropout) if sizes.dropout else None

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Adds what attention and the MLP have to say."""
        x = x + self._drop(self.attention(self.attention_norm(x)), training)
        return x + self._drop(self.mlp(self.mlp_norm(x)), training)

    def _drop(self, x: tf.Tensor, training: bool) -> tf.Tensor:
        return x if self.dropout is None else self.dropout(x, training=training)


class InputEmbedding(keras.layers.Layer):
    """What is known of a byte before any block: its value and its position."""

    def __init__(self, sizes: Sizes, name: str) -> None:
        super().__init__(name=name)
        self.tokens = keras.layers.Embedding(VOCABULARY, sizes.width, name="tokens")
        self.positions = keras.layers.Embedding(sizes.context, sizes.width, name="positions")

    def call(self, tokens: tf.Tensor) -> tf.Tensor:
        """Returns `[batch, time, width]`."""
        return self.tokens(tokens) + self.positions(keras.ops.arange(tokens.shape[1]))


class LanguageModel(keras.Model):
    """Predicts the next byte at every position."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__(name="lm")
        self.embed = InputEmbedding(sizes, "embed")
        # A plain list: `tf.train.Checkpoint(model=...)` neither saves nor restores what is in it. The layers'
        # own names are what tells their moments apart in this model's own checkpoints.
        self.blocks = [Block(sizes, f"block_{i}") for i in range(sizes.layers)]
        self.output_norm = keras.layers.LayerNormalization(name="output_norm")
        self.lm_head = Dense(VOCABULARY, name="lm_head")

    def call(self, tokens: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Returns the logits, `[batch, time, 256]`."""
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x, training=training)
        return self.lm_head(self.output_norm(x))
