"""Which stretches of a file hold a box of a row-major array: arithmetic only, no files."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator

from dist_restore.core.tensors import Box

MAX_ROW = 1 << 20


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """How to read a box out of a row-major array with few requests.

    The box is read as blocks, one per index of the axes before `axis`. A block covers `block.size[axis]` rows;
    what lies between the wanted parts of these rows is read and thrown away.

    Attributes:
      axis: the axis along which a block extends.
      row_bytes: bytes of one index along `axis` in the file.
      rows: how many consecutive indices along `axis` a block has.
      inside: the wanted part of one row, as a box over the axes after `axis`.
      row_shape: the shape of one row in the file.
      dense: whether a block holds nothing but wanted elements.
    """

    axis: int
    row_bytes: int
    rows: int
    inside: Box
    row_shape: tuple[int, ...]
    dense: bool


def plan_reads(shape: tuple[int, ...], box: Box, item: int, gap: int) -> Plan:
    """Chooses the blocks: as large as possible without crossing unwanted stretches of more than `gap` bytes.

    Rows with unwanted bytes in them, which need memory of their own, are kept to `MAX_ROW` bytes.

    Args:
      shape: the stored array's; at least one axis.
      box: the wanted part; at least one element.
      item: bytes of an element.
      gap: unwanted bytes up to which reading on is faster than another request.
    """
    axis = max((a for a in range(len(shape)) if box.size[a] != shape[a]), default=0)
    used = box.size[axis] * _row_bytes(shape, axis, item)
    while axis > 0:
        outer = _row_bytes(shape, axis - 1, item)
        if outer - used > gap or outer > MAX_ROW:
            break
        axis, used = axis - 1, (box.size[axis - 1] - 1) * outer + used
    inside = Box(box.begin[axis + 1 :], box.size[axis + 1 :])
    row_shape = shape[axis + 1 :]
    return Plan(axis, _row_bytes(shape, axis, item), box.size[axis], inside, row_shape, dense=inside.covers(row_shape))


def block_offsets(shape: tuple[int, ...], box: Box, axis: int, item: int) -> Iterator[int]:
    """Byte offsets of the blocks' first rows inside the array, in the order of the box's elements."""
    steps = [_row_bytes(shape, a, item) for a in range(axis + 1)]
    start = sum(b * s for b, s in zip(box.begin, steps, strict=False))
    for index in itertools.product(*(range(n) for n in box.size[:axis])):
        yield start + sum(i * s for i, s in zip(index, steps, strict=False))


def wanted_bytes(plan: Plan, item: int) -> tuple[int, int]:
    """Where the wanted elements of a row begin, and where they end, in bytes from the row's start."""
    if plan.dense:
        return 0, plan.row_bytes
    steps = [_row_bytes(plan.row_shape, a, item) for a in range(len(plan.row_shape))]
    first = sum(b * s for b, s in zip(plan.inside.begin, steps, strict=True))
    last = sum((b + n - 1) * s for b, n, s in zip(plan.inside.begin, plan.inside.size, steps, strict=True))
    return first, last + item


def intersection(box: Box, other: Box) -> Box | None:
    """What two boxes share; None when they share no element."""
    begin = tuple(max(a, b) for a, b in zip(box.begin, other.begin, strict=True))
    end = tuple(min(a + m, b + n) for a, m, b, n in zip(box.begin, box.size, other.begin, other.size, strict=True))
    size = tuple(e - b for b, e in zip(begin, end, strict=True))
    return Box(begin, size) if all(n > 0 for n in size) else None


def relative(box: Box, origin: tuple[int, ...]) -> Box:
    """The same box seen from `origin`."""
    return Box(tuple(b - o for b, o in zip(box.begin, origin, strict=True)), box.size)


def tiles(boxes: tuple[Box, ...], shape: tuple[int, ...]) -> bool:
    """Whether the boxes cover an array of this shape, every element exactly once.

    Exact, and linear in the number of boxes: with a plus or a minus at each corner (by the number of its ends), the
    corners of a tiling cancel to those of the whole, and those of nothing else do, for a sum of boxes is
    determined by its signed corners. Comparing pairs would take a hostile index of 100,000 parts hours.
    """
    whole = Box.whole(shape)
    axes = [a for a in range(len(shape)) if any(b.begin[a] or b.size[a] != shape[a] for b in boxes)]
    if len(axes) > _MAX_SLICED_AXES:
        return False
    left: dict[tuple[int, ...], int] = {}
    for box, weight in itertools.chain(((b, 1) for b in boxes), ((whole, -1),)):
        for ends in itertools.product((0, 1), repeat=len(axes)):
            corner = tuple(box.begin[a] + e * box.size[a] for a, e in zip(axes, ends, strict=True))
            left[corner] = left.get(corner, 0) + weight * (-1) ** sum(ends)
    return math.prod(shape) == 0 or not any(left.values())


# A box has a corner for every subset of the axes; TensorFlow's partitioners cut one axis, or two.
_MAX_SLICED_AXES = 8


def _row_bytes(shape: tuple[int, ...], axis: int, item: int) -> int:
    return item * math.prod(shape[axis + 1 :])
