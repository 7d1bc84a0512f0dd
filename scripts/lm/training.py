"""The training step under a strategy, and the loop around it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import tensorflow as tf

from lm.interrupt import StopRequest, exit_code
from lm.state import State


@dataclasses.dataclass(frozen=True)
class Step:
    """What a step of training ends with, the same on all workers.

    Attributes:
      number: steps done so far.
      loss: mean over the global batch.
      exit_code: 0, or what to end with now, for somebody wants to stop.
    """

    number: int
    loss: float
    exit_code: int


def steps(
    state: State, strategy: tf.distribute.Strategy, batches: tf.data.Dataset, stop: StopRequest
) -> Iterator[Step]:
    """Trains on each batch in turn.

    Between two steps the state is whole: that is when to save it. A wish to stop goes into the next step on whichever
    worker it was made, and comes out of it on all of them.
    """
    train_step = _train_step(state, strategy, examples=batches.element_spec.shape[0])
    for batch in batches:
        loss, *wishes = train_step(_divided(batch, strategy), tf.constant(stop.wishes)).numpy().tolist()
        yield Step(int(state.step.numpy()), loss, exit_code(wishes))


def _divided(batch: tf.Tensor, strategy: tf.distribute.Strategy) -> tf.distribute.DistributedValues:
    """Gives each replica its part of the global batch.

    On every worker alike, for all of them make the same global batches. An input pipeline that is distributed by
    `experimental_distribute_dataset` takes, with TensorFlow 2.21 on CPUs, up to minutes to be deleted: threads of it,
    which no option reaches, sleep that long before they see that they should end.
    """
    parts = tf.split(batch, strategy.num_replicas_in_sync)
    return strategy.experimental_distribute_values_from_function(lambda to: parts[to.replica_id_in_sync_group])


def _train_step(state: State, strategy: tf.distribute.Strategy, *, examples: int) -> Callable[..., tf.Tensor]:
    """Returns the compiled step for global batches of so many examples.

    It takes each replica's part of the batch, and this worker's wishes. It returns the mean loss and how many replicas'
    workers have each wish: in one vector, because each reduction is a round between the workers.
    """

    def on_replica(tokens: tf.Tensor, wishes: tf.Tensor) -> tf.Tensor:
        variables = state.model.trainable_variables
        with tf.GradientTape() as tape:
            loss = _loss(state, tokens) / examples
        # Dense: Adam would square an embedding's sparse gradients before those of the replicas are added up, and
        # other numbers of replicas would train differently.
        gradients = [tf.convert_to_tensor(gradient) for gradient in tape.gradient(loss, variables)]
        # The optimizer adds up the replicas' gradients, hence a loss divided by the global batch.
        state.optimizer.apply_gradients(zip(gradients, variables, strict=True))
        return tf.concat([[loss], wishes], 0)

    @tf.function
    def train_step(batch: tf.Tensor, wishes: tf.Tensor) -> tf.Tensor:
        per_replica = strategy.run(on_replica, args=(batch, wishes))
        # In the same function as the update: an interrupt cannot come between the two.
        state.step.assign_add(1)
        return strategy.reduce(tf.distribute.ReduceOp.SUM, per_replica, axis=None)

    return train_step


def _loss(state: State, tokens: tf.Tensor) -> tf.Tensor:
    """Returns the sum over examples of the mean cross entropy per byte, in float32."""
    logits = tf.cast(state.model(tokens[:, :-1], training=True), tf.float32)
    entropy = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=tokens[:, 1:], logits=logits)
    return tf.reduce_sum(tf.reduce_mean(entropy, axis=-1))
