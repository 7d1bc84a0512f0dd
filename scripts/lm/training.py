"""The training step under a strategy, and the loop around it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import tensorflow as tf

from lm.state import State


def losses(state: State, strategy: tf.distribute.Strategy, batches: tf.data.Dataset) -> Iterator[tuple[int, float]]:
    """Trains on each batch in turn and yields the number of steps done so far and the step's loss.

    Between two steps the state is whole: that is when to save it.
    """
    train_step = _train_step(state, strategy, examples=batches.element_spec.shape[0])
    for batch in batches:
        loss = float(train_step(_divided(batch, strategy)))
        yield int(state.step.numpy()), loss


def _divided(batch: tf.Tensor, strategy: tf.distribute.Strategy) -> tf.distribute.DistributedValues:
    """Gives each replica its part of the global batch.

    On every worker alike, for all of them make the same global batches. An input pipeline that is distributed by
    `experimental_distribute_dataset` takes, with TensorFlow 2.21 on CPUs, up to minutes to be deleted: threads of it,
    which no option reaches, sleep that long before they see that they should end.
    """
    parts = tf.split(batch, strategy.num_replicas_in_sync)
    return strategy.experimental_distribute_values_from_function(lambda to: parts[to.replica_id_in_sync_group])


def _train_step(state: State, strategy: tf.distribute.Strategy, *, examples: int) -> Callable[..., tf.Tensor]:
    """Returns the compiled step for global batches of so many examples; it returns the mean loss."""

    def on_replica(tokens: tf.Tensor) -> tf.Tensor:
        variables = state.model.trainable_variables
        with tf.GradientTape() as tape:
            loss = _loss(state, tokens) / examples
        # Dense: Adam would square an embedding's sparse gradients before those of the replicas are added up, and
        # other numbers of replicas would train differently.
        gradients = [tf.convert_to_tensor(gradient) for gradient in tape.gradient(loss, variables)]
        # The optimizer adds up the replicas' gradients, hence a loss divided by the global batch.
        state.optimizer.apply_gradients(zip(gradients, variables, strict=True))
        return loss

    @tf.function
    def train_step(batch: tf.Tensor) -> tf.Tensor:
        per_replica = strategy.run(on_replica, args=(batch,))
        # In the same function as the update: an interrupt cannot come between the two.
        state.step.assign_add(1)
        return strategy.reduce(tf.distribute.ReduceOp.SUM, per_replica, axis=None)

    return train_step


def _loss(state: State, tokens: tf.Tensor) -> tf.Tensor:
    """Returns the sum over examples of the mean cross entropy per byte, in float32."""
    logits = tf.cast(state.model(tokens[:, :-1], training=True), tf.float32)
    entropy = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=tokens[:, 1:], logits=logits)
    return tf.reduce_sum(tf.reduce_mean(entropy, axis=-1))
