"""Tensors whose memory is filled in place, and variables written and read without a copy.

The one adapter around what TensorFlow does not promise: eager tensors' own buffers, and eager ops called without
their Python wrappers (`tests/tf_internals/test_host_memory.py` says on which version it was tried; TF 2.21). Where a
piece of it is missing, the public way is taken, which costs time and nothing else. Knows tensors and handles; knows
no strategies.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import mmap
import sys
from collections.abc import Iterable, Sequence

import msgspec
import numpy as np
import tensorflow as tf

try:
    from tensorflow.python import pywrap_tfe
    from tensorflow.python.distribute import values as distribute_values
    from tensorflow.python.eager import context, core
    from tensorflow.python.framework import ops as framework_ops
    from tensorflow.python.ops import resource_variable_ops
except ImportError:  # another TensorFlow
    _PRIVATE = False
else:
    _PRIVATE = hasattr(context, "anonymous_name")

# Dtypes that the Empty op has a kernel for on CPUs.
DTYPES = frozenset(
    "bool int8 uint8 int16 uint16 int32 uint32 int64 uint64 float16 bfloat16 float32 float64 "
    "complex64 complex128".split()
)
_HUGE_PAGE = 2 << 20
_HOST = "/CPU:0"
# The Empty op takes its shape in int32.
_MAX_AXIS = 2**31 - 1
# If the first ones of so many old values are all held elsewhere too, no more are tried: each costs a copy.
_ENOUGH = 4


class HostBuffer(msgspec.Struct, frozen=True, gc=False, eq=False):
    """Memory on the host for one value.

    Attributes:
      array: the memory, to be filled.
      tensor: of the same memory, where a variable may take that over without a copy: nothing may write to `array` once
        it is assigned. None where the variable gets a copy.
      is_mapped: whether the memory is the system's, see `mapped_buffer`.
    """

    array: np.ndarray
    tensor: tf.Tensor | None = None
    is_mapped: bool = False


def new_buffer(shape: Sequence[int], dtype: str) -> HostBuffer | None:
    """A tensor's memory, which nobody has written to yet; None where there is no such thing for the dtype."""
    if dtype not in DTYPES or not _PRIVATE or not tf.executing_eagerly() or max(shape, default=0) > _MAX_AXIS:
        return None
    eager = context.context()  # first of all: before anything else has asked for it there can be no tensor
    eager.ensure_initialized()
    size = framework_ops.EagerTensor(np.array(shape, np.int32), None, None)
    with tf.device(_HOST):
        # 8 us; tf.raw_ops.Empty takes 50.
        tensor = _call("Empty", size, "dtype", tf.as_dtype(dtype).as_datatype_enum, "init", False)
    array = tensor._numpy()
    if not array.flags.writeable:
        return None
    _ask_for_huge_pages(array)
    return HostBuffer(array, tensor)


def mapped_buffer(shape: Sequence[int], dtype: str) -> HostBuffer | None:
    """As `new_buffer`, of mapped pages, which go back to the system as soon as nobody holds the tensor.

    TensorFlow's CPU allocator keeps all that it ever took. But this memory is not its own: a variable that holds it is
    copied at its first update.
    """
    if dtype not in DTYPES or not _PRIVATE or not tf.executing_eagerly():
        return None
    kind = np.dtype(tf.as_dtype(dtype).as_numpy_dtype)
    size = max(1, math.prod(shape) * kind.itemsize)
    try:
        pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError:  # a limit; TensorFlow may have memory still, or says what is missing
        return None
    array = np.frombuffer(pages, kind, math.prod(shape)).reshape(shape)
    _ask_for_huge_pages(array)
    context.context().ensure_initialized()
    tensor = framework_ops.EagerTensor(array, None, tf.as_dtype(dtype).as_datatype_enum)
    # Shared as long as it is aligned, which pages are.
    is_shared = tensor._numpy().ctypes.data == array.ctypes.data
    return HostBuffer(array, tensor, is_mapped=True) if is_shared else None


def tensor_of(buffer: HostBuffer, dtype: tf.DType) -> tf.Tensor:
    """The buffer's tensor; one with a copy of its values where it has none."""
    return buffer.tensor if buffer.tensor is not None else to_tensor(buffer.array, dtype)


def to_tensor(value: np.ndarray, dtype: tf.DType) -> tf.Tensor:
    """A tensor with memory of its own that holds the array's values."""
    if _PRIVATE and tf.executing_eagerly() and value.dtype != object:
        context.context().ensure_initialized()  # it may be the first tensor of all
        # The tensor shares an aligned array's memory, so it gets a copy. 4 us; tf.convert_to_tensor, which copies too,
        # takes 17.
        return framework_ops.EagerTensor(np.array(value, order="C"), None, dtype.as_datatype_enum)
    return tf.convert_to_tensor(value, dtype=dtype)


def plain_components(variable: tf.Variable) -> tuple[tf.Variable, ...] | None:
    """The plain variables that a variable consists of; None where writing it is more than writing each of these.

    That is so for all that is no ordinary variable and no mirrored one, and in graphs.
    """
    return _components(variable) if _PRIVATE and tf.executing_eagerly() else None


def plain_rows(variables: Iterable[tf.Variable]) -> list[tuple[tf.Variable, ...] | None]:
    """The same of many: what does not depend on the variable is asked once."""
    if not _PRIVATE or not tf.executing_eagerly():
        return [None for _ in variables]
    return [_components(variable) for variable in variables]


def _components(variable: tf.Variable) -> tuple[tf.Variable, ...] | None:
    if type(variable) is resource_variable_ops.ResourceVariable:
        return (variable,) if _is_plain(variable) else None
    if type(variable) is not distribute_values.MirroredVariable:
        return None
    components = tuple(variable.values)
    return components if all(map(_is_plain, components)) else None


def _is_plain(component: tf.Variable) -> bool:
    exact = type(component) is resource_variable_ops.ResourceVariable
    return exact and component._cached_value is None and isinstance(component.handle, framework_ops.EagerTensor)


def have_shape(variables: Iterable[tf.Variable], shape: tuple[int, ...]) -> bool:
    """Whether all variables have a shape."""
    sizes = list(shape)
    try:
        return all([variable.shape.as_list() == sizes for variable in variables])
    except ValueError:  # of unknown rank
        return False


def has_shape(variable: tf.Variable, shape: tuple[int, ...]) -> bool:
    """Whether a variable has a shape; to make a `TensorShape` for that takes 4 us."""
    return have_shape((variable,), shape)


def write(component: tf.Variable, tensor: tf.Tensor) -> None:
    """Makes a plain variable hold a tensor of its dtype and shape; the memory is shared, and copied on write."""
    # 10 us; `assign(read_value=False)` takes 50, and does the same after its checks, which the caller has made.
    _assign(component.handle, tensor)


def take_over(component: tf.Variable, tensor: tf.Tensor) -> None:
    """As `write`, and the memory is shared in any case.

    A variable that was read or updated by rows (`tf.nn.embedding_lookup`) copies what is assigned to it and what is
    read from it, until it is told to share again, as TensorFlow tells it before saving (`read_value_no_copy`); the next
    use of rows copies what is shared then. A table of 400 MB took 1232 MB beyond the variables, and 400 when told.
    """
    share_memory(component)
    write(component, tensor)


def share_memory(component: tf.Variable) -> None:
    """Lets a plain component share its memory with who reads it, until its next update by rows."""
    with contextlib.suppress(tf.errors.OpError):  # a device without the op
        _call("DisableCopyOnRead", component.handle)


def _assign(handle: tf.Tensor, tensor: tf.Tensor) -> None:
    _call("AssignVariableOp", handle, tensor, "validate_shape", False)


def _call(op: str, *arguments: object) -> tf.Tensor:
    """Calls an eager op without its Python wrapper.

    Raises:
      tf.errors.OpError: the op failed. TensorFlow itself raises classes of its own here, which are no public errors.
    """
    try:
        return pywrap_tfe.TFE_Py_FastPathExecute(context.context(), op, None, *arguments)
    except core._NotOkStatusException as error:
        kind = tf.compat.v1.errors.exception_type_from_error_code(error.code)
        raise kind(None, None, f"{op}: {error}") from None
    except core._FallbackException as error:
        raise tf.errors.UnimplementedError(None, None, f"{op}: {error}") from None


class Replacer:
    """Writes variables, and gives the memory of what they held, to be filled with something else."""

    def __init__(self) -> None:
        self._probes: dict[tf.DType, _Probe | None] = {}
        self._tried = self._shared = 0

    def write(self, component: tf.Variable, tensor: tf.Tensor) -> tf.Tensor | None:
        """Writes as the function `take_over` does.

        Returns:
          The old value, for `reclaim`. None where it was not in this host's memory, or where copies have been all that
          came of old values.
        """
        # The probe is made here and not in `reclaim`: the first one takes ms, in which threads have things to read.
        wanted = self.is_wanted and is_here(component) and self._probe(component.dtype) is not None
        share_memory(component)  # first of all, or the old value would be a copy
        old = _read(component.handle, component.dtype) if wanted else None
        write(component, tensor)
        return old

    def reclaim(self, tensors: list[tf.Tensor]) -> HostBuffer | None:
        """The memory of the old value in the list, which is emptied; of a copy, where somebody else may hold it still.

        Returns:
          None where copies have been all that came of old values.
        """
        try:
            return self._alone(tensors) if self.is_wanted else None
        except tf.errors.OpError:  # the memory is given back as always
            return None

    @property
    def is_wanted(self) -> bool:
        """Whether old values are tried still: copies alone have not come of them."""
        return self._shared < _ENOUGH

    def _alone(self, tensors: list[tf.Tensor]) -> HostBuffer | None:
        """The tensor in the list, which is emptied, or a copy; nobody else holds its memory."""
        probe = self._probe(tensors[0].dtype)
        place = tensors[0]._numpy().ctypes.data if self._tried < _ENOUGH else 0
        if probe is None:
            return None
        held = probe.own(tensors)
        array = held._numpy()
        self._tried += 1
        self._shared += bool(place) and array.ctypes.data != place
        return HostBuffer(array, held) if array.flags.writeable else None

    def _probe(self, dtype: tf.DType) -> _Probe | None:
        if dtype not in self._probes:
            try:
                self._probes[dtype] = _Probe.tried(dtype)
            except tf.errors.OpError:  # another TensorFlow, without one of the ops
                self._probes[dtype] = None
        return self._probes[dtype]


class _Probe:
    """A variable of ours, which nobody else can read, that tells whether a tensor's memory is somebody else's too.

    TensorFlow updates a variable in place if nobody else holds its memory, and copies it before if somebody does: an
    eager tensor, an array or memory view of one, another variable, NumPy. So ours gets the tensor, and is asked for an
    update of no rows. (It keeps it until it gets the next one. Each call costs: among threads that empty the caches
    40 us in place of 10. ResourceStridedSliceAssign does the same, and takes 2.4 ms the first time, this 0.5.)
    """

    def __init__(self, dtype: tf.DType) -> None:
        with tf.device(_HOST):
            name = context.anonymous_name()
            self._handle = tf.raw_ops.VarHandleOp(dtype=dtype, shape=None, shared_name=name)
        # 30 us each; `tf.zeros` takes 4 ms the first time.
        self._no_rows = framework_ops.EagerTensor(np.zeros([0], np.int32), None, None)
        self._nothing = framework_ops.EagerTensor(np.zeros([], dtype.as_numpy_dtype), None, dtype.as_datatype_enum)

    @classmethod
    def tried(cls, dtype: tf.DType) -> _Probe | None:
        """A probe that copies what somebody holds, as it must; None if this TensorFlow does anything else."""
        probe, held = cls(dtype), new_buffer([1], dtype.name)
        if held is None:
            return None
        own = probe.own([held.tensor])
        return probe if own._numpy().ctypes.data != held.array.ctypes.data else None

    def own(self, tensors: list[tf.Tensor]) -> tf.Tensor:
        """The tensor in the list, which is emptied, or a copy of it."""
        _assign(self._handle, tensors.pop())
        _call("ResourceScatterUpdate", self._handle, self._no_rows, self._nothing)
        _call("DisableCopyOnRead", self._handle)  # which that update enabled: reading would be copying
        return _read(self._handle, self._nothing.dtype)


def is_here(component: tf.Variable) -> bool:
    """Whether what a component holds is an array with axes in this process's memory."""
    device = f"{context.context().host_address_space()}/device:CPU:0"
    return component.dtype.name in DTYPES and component.shape.rank != 0 and component.device == device


def reshaped(buffer: HostBuffer, shape: Sequence[int]) -> HostBuffer:
    """The same memory as a tensor of another shape; the old tensor is not to be used again."""
    if buffer.array.shape == tuple(shape):
        return buffer
    with tf.device(_HOST):
        tensor = tf.reshape(buffer.tensor, shape)
    return HostBuffer(tensor._numpy(), tensor)


def view(component: tf.Variable) -> np.ndarray:
    """What a component holds now, without a copy where that is possible; to be read at once, and let go."""
    if not _PRIVATE or not _is_plain(component):
        return as_array(component.numpy())
    return as_array(_read(component.handle, component.dtype)._numpy())


def as_array(value: object) -> np.ndarray:
    """What `tf.Tensor.numpy` gives as an array; a scalar string is `bytes` there, of which NumPy would cut NULs."""
    return np.array(value, object) if isinstance(value, bytes) else np.asarray(value)


def _read(handle: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """The value of a plain variable; it shares the variable's memory."""
    return _call("ReadVariableOp", handle, "dtype", dtype.as_datatype_enum)


def _ask_for_huge_pages(array: np.ndarray) -> None:
    """Lets the kernel back new memory with huge pages, where that is left to programs (Linux, `madvise`).

    Touching 1 GB for the first time takes 0.41 s in pages of 4 KB and 0.03 to 0.1 s in pages of 2 MB; reading the
    file into it, 0.1 s. Advice alone: whatever comes of it, the memory is the same.
    """
    begin = -(-array.ctypes.data // _HUGE_PAGE) * _HUGE_PAGE
    end = (array.ctypes.data + array.nbytes) // _HUGE_PAGE * _HUGE_PAGE
    if end > begin and _LIBC is not None:
        _LIBC.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), mmap.MADV_HUGEPAGE)


def _libc() -> ctypes.CDLL | None:
    if sys.platform != "linux" or not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    try:
        library = ctypes.CDLL(None, use_errno=True)
        library.madvise.restype = ctypes.c_int
    except (OSError, AttributeError):
        return None
    return library


_LIBC = _libc()
