"""The ops: what may happen to tensors between a checkpoint and a variable.

A closed vocabulary of plain data. A rule's ops are made concrete for one target by `bind`; `infer` says what a
bound chain makes, `apply` makes it, and `pull_back` says which parts of the sources it needs. A new op is one
file with one class, and one name in the tuple in `codec.py`. Knows neither TensorFlow nor files nor names.
"""

from dist_restore.transforms.arithmetic import Cast, Scale
from dist_restore.transforms.averaging import Mean
from dist_restore.transforms.base import Array, Boxes, Live, MapOp, MergeOp, Op, PartOp, Site, Specs
from dist_restore.transforms.boxes import apply_boxed, narrow, pull_back, source_boxes
from dist_restore.transforms.chain import (
    apply,
    bind,
    describe,
    filled_elements,
    for_slot,
    infer,
    inverse,
    may_refuse,
    refuses_slot,
)
from dist_restore.transforms.codec import OPS, JsonValue, dump_op, parse_op, parse_ops
from dist_restore.transforms.copying import Repeat, Tile
from dist_restore.transforms.dtypes import dtype_name, is_narrowing_cast, is_safe_cast, numpy_dtype
from dist_restore.transforms.fills import Fill, Fit, Pad
from dist_restore.transforms.heads import HeadLayout, PermuteHeads
from dist_restore.transforms.interpolation import Method
from dist_restore.transforms.lossless import cast_values, check_lossless
from dist_restore.transforms.merging import Concat, Stack
from dist_restore.transforms.movement import Slice, Transpose
from dist_restore.transforms.parting import Split, Unstack
from dist_restore.transforms.remap import RemapRows
from dist_restore.transforms.reshape import Reshape
from dist_restore.transforms.resize import Resize
from dist_restore.transforms.row_map import RowMap

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
    "infer",
    "inverse",
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
]
