"""Many small variables written, or read, in one call.

An eager op costs 8 us however small its value is. A function of `COUNT` AssignVariableOps costs 2 us for each, if it
is registered as a proto and called without TensorFlow's Python wrappers (`tests/tf_internals/test_grouped.py` says on
which version that was tried; TF 2.21). Its first call takes 17 ms. Where a piece is missing, `write` writes nothing
and says so, and `read` reads nothing. Knows components and arrays; knows no strategies.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import TypeAlias, TypeVar

import numpy as np
import tensorflow as tf

from dist_restore.tf_internals import host_memory

try:
    from tensorflow.core.framework import function_pb2
    from tensorflow.core.protobuf import config_pb2
    from tensorflow.python.eager import context, execute
    from tensorflow.python.framework import ops as framework_ops
except ImportError:  # another TensorFlow
    _PRIVATE = False
else:
    _PRIVATE = hasattr(context.Context, "add_function_def") and hasattr(context.Context, "host_address_space")

# Variables of one call. Measured per variable, and for the first call: 64: 3.7 us, 6 ms; 256: 2.1 us, 17 ms;
# 1024: 1.9 us, 66 ms. Traced by `tf.function` and optimised by Grappler, 128 take 150 ms before the first call.
COUNT = 256
# Below this many values at once the first call costs more than it saves.
_FEW = 6 * COUNT

Components: TypeAlias = tuple[tf.Variable, ...]
Item = TypeVar("Item")


def together(items: list[Item], kind_of: Callable[[Item], Hashable | None]) -> Iterator[list[Item]]:
    """Empties a list: `COUNT` items of one kind come together, all others alone.

    Args:
      items: in the order in which they are wanted.
      kind_of: what items must have in common: shape and dtype; None for what is to come alone.
    """
    waiting: dict[Hashable, list[Item]] = collections.defaultdict(list)
    few = len(items) < _FEW
    items.reverse()
    while items:
        item = items.pop()
        kind = None if few else kind_of(item)
        if kind is None:
            yield [item]
            continue
        waiting[kind].append(item)
        if len(waiting[kind]) == COUNT:
            yield waiting.pop(kind)
    for group in waiting.values():
        yield from ([item] for item in group)


def write(rows: Sequence[Components | None], values: Sequence[np.ndarray]) -> bool:
    """Makes the plain components of `COUNT` variables hold a value each.

    The first components share the memory of one copy of all values, and part from it at their first update; so do the
    second ones, of another copy.

    Args:
      rows: of each variable its components, as `host_memory.plain_components` gives them.
      values: of each variable; all of one shape and dtype.

    Returns:
      Whether that was done; if not, nothing was written: other counts, dtypes, shapes, or devices than this can write.

    Raises:
      tf.errors.OpError: the call failed; any of the variables may have changed.
    """
    if not len(rows) == len(values) == COUNT or len({(value.shape, value.dtype) for value in values}) != 1:
        return False
    columns = _columns(rows)
    if columns is None or not all(_fits(column, values[0].shape, values[0].dtype) for column in columns):
        return False
    for column in columns:
        # Memory of its own for each: TF takes a part of a batch for the variable's alone when it is the last one in
        # use, and would then update in place what another replica still holds.
        _write_column(column, np.array(values))
    return True


def read(rows: Sequence[Components | None]) -> list[np.ndarray] | None:
    """What the plain components of `COUNT` variables hold: for the first ones of all an array of copies, and so on.

    Args:
      rows: as for `write`.

    Returns:
      None where that cannot be read: other counts, or other dtypes, shapes or devices than `write` can write.
    """
    columns = _columns(rows) if len(rows) == COUNT else None
    if columns is None or columns[0][0].shape.rank is None:
        return None
    shape, dtype = tuple(columns[0][0].shape.as_list()), columns[0][0].dtype
    if dtype.name not in host_memory.DTYPES or None in shape:
        return None
    if not all(_fits(column, shape, np.dtype(dtype.as_numpy_dtype)) for column in columns):
        return None
    return [_read_column(column) for column in columns]


def _columns(rows: Sequence[Components | None]) -> list[Components] | None:
    """The first components of all variables, the second ones, and so on; None where they differ in number."""
    plain = [row for row in rows if row is not None]
    if not _PRIVATE or len(plain) < len(rows) or len({len(row) for row in plain}) != 1:
        return None
    return list(zip(*plain, strict=True))


def _fits(column: Components, shape: tuple[int, ...], kind: np.dtype) -> bool:
    """Whether all components are on one CPU of this process, and of the values' shape and dtype."""
    dtype, device = column[0].dtype, column[0].device
    # Other dtypes have no kernel, or TF and NumPy lay them out differently.
    if dtype.name not in host_memory.DTYPES or kind != dtype.as_numpy_dtype:
        return False
    if not device.startswith(f"{context.context().host_address_space()}/device:CPU:"):
        return False
    if not host_memory.have_shape(column, shape):
        return False
    return all([c.dtype is dtype and c.device == device for c in column])


def _write_column(column: Components, array: np.ndarray) -> None:
    device, dtype = column[0].device, column[0].dtype.as_datatype_enum
    batch = framework_ops.EagerTensor(array, device, dtype)  # of memory that is its own: `np.array` copied
    _call(_registered("assign", _writing, dtype, device), 0, [batch, *(component.handle for component in column)])


def _read_column(column: Components) -> np.ndarray:
    device, dtype = column[0].device, column[0].dtype.as_datatype_enum
    (batch,) = _call(_registered("read", _reading, dtype, device), 1, [component.handle for component in column])
    return np.asarray(batch._numpy())


def _call(name: str, outputs: int, inputs: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    # Grappler has nothing to win here and takes longer than all the calls; other threads cost more than they bring.
    attributes = ("executor_type", "SINGLE_THREADED_EXECUTOR", "config_proto", _CONFIG)
    return list(execute.execute(name, outputs, inputs, attributes, context.context()))


def _registered(what: str, make: Callable[[str, int, str], function_pb2.FunctionDef], dtype: int, device: str) -> str:
    """The name of the function for a dtype and a device, which is registered with TensorFlow the first time."""
    name = f"__dist_restore_{what}_{COUNT}_{dtype}_{''.join(c if c.isalnum() else '_' for c in device)}"
    if not context.context().has_function(name):
        context.context().add_function_def(make(name, dtype, device))
    return name


def _reading(name: str, dtype: int, device: str) -> function_pb2.FunctionDef:
    """`def name(*handles)`: reads the variables and packs what they hold."""
    function = function_pb2.FunctionDef()
    function.signature.name, function.signature.is_stateful = name, True
    packed = function.node_def.add(name="packed", op="Pack", device=device)
    packed.attr["T"].type, packed.attr["N"].i, packed.attr["axis"].i = dtype, COUNT, 0
    for number in range(COUNT):
        function.signature.input_arg.add(name=f"handle{number}", type=tf.resource.as_datatype_enum)
        node = function.node_def.add(name=f"read{number}", op="ReadVariableOp", device=device)
        node.input.append(f"handle{number}")
        node.attr["dtype"].type = dtype
        packed.input.append(f"read{number}:value:0")
    function.signature.output_arg.add(name="batch", type=dtype)
    function.ret["batch"] = "packed:output:0"
    return function


def _writing(name: str, dtype: int, device: str) -> function_pb2.FunctionDef:
    """`def name(batch, *handles)`: unpacks the batch and assigns the parts."""
    function = function_pb2.FunctionDef()
    function.signature.name, function.signature.is_stateful = name, True
    function.signature.input_arg.add(name="batch", type=dtype)
    parts = function.node_def.add(name="parts", op="Unpack", input=["batch"], device=device)
    parts.attr["T"].type, parts.attr["num"].i, parts.attr["axis"].i = dtype, COUNT, 0
    for number in range(COUNT):
        handle, assign = f"handle{number}", f"assign{number}"
        function.signature.input_arg.add(name=handle, type=tf.resource.as_datatype_enum)
        inputs = [handle, f"parts:output:{number}"]
        node = function.node_def.add(name=assign, op="AssignVariableOp", input=inputs, device=device)
        node.attr["dtype"].type, node.attr["validate_shape"].b = dtype, False
        # Without a control output TF would leave the assignment out, for nothing needs its result.
        function.signature.control_output.append(assign)
        function.control_ret[assign] = assign
    return function


def _config() -> bytes:
    config = config_pb2.ConfigProto()
    config.graph_options.rewrite_options.disable_meta_optimizer = True
    return bytes(config.SerializeToString())


_CONFIG = _config() if _PRIVATE else b""
