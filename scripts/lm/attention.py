"""What both versions compute between their projections."""

from __future__ import annotations

import keras
import tensorflow as tf


def causal_attention(query: tf.Tensor, key: tf.Tensor, value: tf.Tensor, heads: int) -> tf.Tensor:
    """Multi-head attention in which no byte sees a later one.

    Args:
      query: `[batch, time, width]`, as are `key` and `value`.
      key: what queries are compared with.
      value: what is averaged.
      heads: number of equal parts into which the width is split.

    Returns:
      `[batch, time, width]`.
    """
    query, key, value = (_split(tensor, heads) for tensor in (query, key, value))
    scores = keras.ops.einsum("bqhd,bkhd->bhqk", query, key) / query.shape[-1] ** 0.5
    time = query.shape[1]
    visible = keras.ops.tril(keras.ops.ones((time, time), "bool"))
    weights = keras.ops.softmax(keras.ops.where(visible, scores, -1e9))
    mixed = keras.ops.einsum("bhqk,bkhd->bqhd", weights, value)
    return keras.ops.reshape(mixed, (-1, time, heads * query.shape[-1]))


def _split(tensor: tf.Tensor, heads: int) -> tf.Tensor:
    return keras.ops.reshape(tensor, (-1, tensor.shape[1], heads, tensor.shape[2] // heads))
