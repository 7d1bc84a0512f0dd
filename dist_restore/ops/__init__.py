"""The ops: what may happen to tensors between a checkpoint and a variable.

A closed vocabulary of plain data. A rule's ops are made concrete for one target by `bind`; `infer` says what a
bound chain makes, `apply` makes it, and `pull_back` says which parts of the sources it needs. A new op is one
file with one class, and one name in the tuple in `registry.py`. Knows neither TensorFlow nor files nor names.
"""

from dist_restore.ops.arithmetic import Cast, Scale
from dist_restore.ops.base import Array, Boxes, Live, MapOp, MergeOp, Op, PartOp, Site, Specs
from dist_restore.ops.chain import (
    apply,
    bind,
    describe,
    filled_elements,
    for_slot,
    infer,
    inverse,
    may_refuse,
    refuses_slot,
    stages,
)
from dist_restore.ops.concat import Concat, Split
from dist_restore.ops.dtypes import dtype_name, holds_codes, is_float_cast, is_narrowing_cast, is_safe_cast, numpy_dtype
from dist_restore.ops.interpolation import Method
from dist_restore.ops.lossless import cast_values, check_lossless
from dist_restore.ops.mean import Mean
from dist_restore.ops.pad import Fill, Fit, Pad
from dist_restore.ops.partial import apply_boxed, narrow, pull_back, source_boxes
from dist_restore.ops.permute_heads import HeadLayout, PermuteHeads
from dist_restore.ops.registry import OPS, JsonValue, dump_op, parse_op, parse_ops
from dist_restore.ops.remap_rows import RemapRows
from dist_restore.ops.reshape import Reshape
from dist_restore.ops.resize import Resize
from dist_restore.ops.row_map import RowMap
from dist_restore.ops.stack import Stack, Unstack
from dist_restore.ops.tile import Repeat, Tile
from dist_restore.ops.transpose import Slice, Transpose

__all__ = [
    "OPS",
    "Array",
    "Boxes",
    "Cast",
    "Concat",
    "Fill",
    "Fit",
    "HeadLayout",
    "JsonValue",
    "Live",
    "MapOp",
    "Mean",
    "MergeOp",
    "Method",
    "Op",
    "Pad",
    "PartOp",
    "PermuteHeads",
    "RemapRows",
    "Repeat",
    "Reshape",
    "Resize",
    "RowMap",
    "Scale",
    "Site",
    "Slice",
    "Specs",
    "Split",
    "Stack",
    "Tile",
    "Transpose",
    "Unstack",
    "apply",
    "apply_boxed",
    "bind",
    "cast_values",
    "check_lossless",
    "describe",
    "dtype_name",
    "dump_op",
    "filled_elements",
    "for_slot",
    "holds_codes",
    "infer",
    "inverse",
    "is_float_cast",
    "is_narrowing_cast",
    "is_safe_cast",
    "may_refuse",
    "narrow",
    "numpy_dtype",
    "parse_op",
    "parse_ops",
    "pull_back",
    "refuses_slot",
    "source_boxes",
    "stages",
]
