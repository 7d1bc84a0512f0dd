"""Work that runs on the host that owns a device, as functions of TensorFlow's public API.

What a function does is traced once for all hosts, and kept whole (`_noinline`), so that it is placed where it is
called: inlined, its reads would be placed on the client. Calling it on one host costs another trace of one operation.
A function is called as a whole and not op by op: ops on other hosts are streamed, their errors come out of whatever
is called next, be it for another host, and a stopped host stops them all (seen on TF 2.21). Knows keys and handles.
"""

from __future__ import annotations

import dataclasses
import enum
import threading
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

# Tensors in one call. Few lengths, so that few functions are traced: 64 take 0.3 s to trace, once, and 8 ms a call. And
# few calls: with each TensorFlow opens the checkpoint anew, and reads 1 MB or more ahead.
COUNTS = (1, 8, 64)
_METHOD = "farmhash64"
# What the error says when bytes are not those that were expected.
UNEXPECTED = "other bytes than expected"


# What gRPC says of a request that did not arrive whole: once in five runs of a cluster with parameter servers on a
# machine with four times as many processes as processors (TF 2.21).
_UNPARSED = "Unable to parse request"


class Action(enum.Enum):
    """What a function does."""

    LOOK = "look"
    CHECK = "check"
    FILL = "fill"
    PUT = "put"
    HOLD = "hold"


@dataclasses.dataclass(frozen=True, slots=True)
class Kind:
    """A function, whatever the host.

    Attributes:
      action: what it does.
      dtype: of the tensors.
      count: how many tensors.
      components: how many variables each tensor is assigned to.
      compared: whether what is read must have given fingerprints before it is assigned.
    """

    action: Action
    dtype: str = "string"
    count: int = 1
    components: int = 0
    compared: bool = False


class Placed:
    """The functions over one checkpoint. May be called by several threads at once.

    Args:
      prefix: of the checkpoint, as the hosts see it.
      client: the host of the program itself.
    """

    def __init__(self, prefix: str, client: str) -> None:
        self._prefix, self._client = prefix, client
        self._lock = threading.Lock()
        self._bodies: dict[Kind, Callable[..., tf.Tensor]] = {}
        self._calls: dict[tuple[str, Kind], Callable[..., tf.Tensor]] = {}

    def call(self, host: str, kind: Kind, *arguments: object) -> tuple[bytes, ...]:
        """Runs a function on a host and returns the fingerprints that it gives.

        Raises:
          tf.errors.OpError: what happened there; nothing was assigned if a tensor could not be read.
        """
        with self._lock:
            function = self._calls.get((host, kind)) or self._place(host, kind)
        try:
            found = function(*arguments)
        except tf.errors.InternalError as error:
            if _UNPARSED not in str(error.message):
                raise
            found = function(*arguments)  # all that these functions do may be done twice
        return tuple(row.tobytes() for row in np.asarray(found.numpy()))

    def _place(self, host: str, kind: Kind) -> Callable[..., tf.Tensor]:
        signature = _signature(kind)
        if kind not in self._bodies:
            body = tf.function(
                lambda *arguments: self._body(kind, arguments),
                autograph=False,
                experimental_attributes={"_noinline": True},
                input_signature=signature,
            )
            self._bodies[kind] = body.get_concrete_function()
        whole = self._bodies[kind]

        def call(*arguments: tf.Tensor) -> tf.Tensor:
            with tf.device(f"{host}/device:CPU:0"):
                found = whole(*arguments)
            with tf.device(f"{self._client}/device:CPU:0"):
                return tf.identity(found)

        placed: Callable[..., tf.Tensor]
        placed = tf.function(call, autograph=False, input_signature=signature).get_concrete_function()
        self._calls[host, kind] = placed
        return placed

    def _body(self, kind: Kind, arguments: Sequence[tf.Tensor]) -> tf.Tensor:
        if kind.action is Action.LOOK:
            return fingerprint(tf.io.read_file(arguments[0]))
        if kind.action is Action.HOLD:
            return _joined([_held(handle, kind) for handle in arguments])
        if kind.action is Action.PUT:
            return _assigned([arguments[0]], arguments[1], arguments[2:])
        keys, *rest = arguments
        values = tf.raw_ops.RestoreV2(
            prefix=self._prefix,
            tensor_names=keys,
            shape_and_slices=[""] * kind.count,
            dtypes=[tf.as_dtype(kind.dtype)] * kind.count,
        )
        if kind.action is Action.CHECK:
            return _joined([fingerprint(value) for value in values])
        return _assigned(values, rest.pop(0) if kind.compared else None, rest)


def fingerprint(value: tf.Tensor) -> tf.Tensor:
    """FarmHash64 of a tensor's bytes as `uint8[1, 8]`; of strings, of their fingerprints."""
    return tf.raw_ops.Fingerprint(data=tf.reshape(value, [1, -1]), method=_METHOD)


def _signature(kind: Kind) -> list[tf.TensorSpec]:
    handles = [tf.TensorSpec([], tf.resource)] * (kind.count * kind.components)
    expected = [tf.TensorSpec([kind.count, 8], tf.uint8)]
    if kind.action is Action.PUT:
        return [tf.TensorSpec(None, tf.as_dtype(kind.dtype)), *expected, *handles]
    if kind.action is Action.HOLD:
        return [tf.TensorSpec([], tf.resource)] * kind.count
    if kind.action is Action.LOOK:
        return [tf.TensorSpec([], tf.string)]
    return [tf.TensorSpec([kind.count], tf.string), *(expected if kind.compared else []), *handles]


def _assigned(values: Sequence[tf.Tensor], expected: tf.Tensor | None, handles: Sequence[tf.Tensor]) -> tf.Tensor:
    """Assigns each value to its handles (component by component), unless a value is not what was expected."""
    found = _joined([fingerprint(value) for value in values])
    checks = []
    if expected is not None:
        same = tf.reduce_all(tf.equal(found, expected))
        checks.append(tf.raw_ops.Assert(condition=same, data=[tf.constant(UNEXPECTED)]))
    with tf.control_dependencies(checks):
        for number, handle in enumerate(handles):
            tf.raw_ops.AssignVariableOp(resource=handle, value=values[number % len(values)], validate_shape=True)
    return found


def _held(handle: tf.Tensor, kind: Kind) -> tf.Tensor:
    return fingerprint(tf.raw_ops.ReadVariableOp(resource=handle, dtype=tf.as_dtype(kind.dtype)))


def _joined(rows: Sequence[tf.Tensor]) -> tf.Tensor:
    return tf.concat(rows, 0) if len(rows) > 1 else rows[0]
