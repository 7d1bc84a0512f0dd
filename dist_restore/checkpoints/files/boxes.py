"""Reads a box of a row-major array through requests for stretches of bytes; knows neither files nor formats."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from dist_restore.checkpoints.files import byte_regions as regions
from dist_restore.core.arrays import bytes_of
from dist_restore.core.tensors import Box

# Fills an array of bytes from a byte of the stored array on.
Fill: TypeAlias = Callable[[int, np.ndarray], None]


def read_box(fill: Fill, shape: tuple[int, ...], box: Box, gap: int, out: np.ndarray) -> None:
    """Reads what is inside `box` into a contiguous array of the box's size.

    Args:
      fill: reads bytes.
      shape: the stored array's; at least one axis.
      box: the wanted part; at least one element.
      gap: unwanted bytes up to which reading on is faster than another request.
      out: where to.
    """
    item = out.dtype.itemsize
    plan = regions.plan_reads(shape, box, item, gap)
    blocks = out.reshape(-1, plan.rows, *plan.inside.size)
    for block, begin in zip(blocks, regions.block_offsets(shape, box, plan.axis, item), strict=True):
        if plan.dense:
            fill(begin, bytes_of(block))
        else:
            _read_sparse(fill, begin, plan, block)


def _read_sparse(fill: Fill, begin: int, plan: regions.Plan, out: np.ndarray) -> None:
    """Reads rows of which only a part is wanted by way of a buffer of `MAX_ROW` bytes."""
    first, last = regions.wanted_bytes(plan, out.dtype.itemsize)
    step = max(1, regions.MAX_ROW // plan.row_bytes)
    buffer = np.empty(min(step, plan.rows) * plan.row_bytes, np.uint8)
    for row in range(0, plan.rows, step):
        count = min(step, plan.rows - row)
        fill(begin + row * plan.row_bytes + first, buffer[first : (count - 1) * plan.row_bytes + last])
        rows = buffer[: count * plan.row_bytes].view(out.dtype).reshape(count, *plan.row_shape)
        out[row : row + count] = rows[(slice(None), *plan.inside.slices())]
