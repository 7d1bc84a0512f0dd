"""Concat and stack, read right to their places: NumPy's bytes, whatever the pieces, each tensor checked."""

from __future__ import annotations

import math
import pathlib
import random
from collections.abc import Sequence

import hypothesis.strategies as st
import msgspec
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings

import build
from dist_restore import DistributedRestorer
from dist_restore.checkpoints.files.files import Seen
from dist_restore.checkpoints.reader import Stored
from dist_restore.core import crc32c as checksum
from dist_restore.core.errors import CheckpointCorruptError
from dist_restore.engine import chunks as pieces
from dist_restore.engine import joined as joining
from dist_restore.engine.chunks import PIECE, SCRATCH
from dist_restore.engine.joined import Joining, is_joined
from dist_restore.engine.units import Unit, make_units

FILE = "file"


class Tensors:
    """A file of tensors, one behind the other, from an odd offset on."""

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        self.places: dict[str, Stored] = {}
        self.data = b"odd"
        self.requests: list[tuple[str, int, int]] = []
        for name, array in arrays.items():
            data = array.tobytes()
            self.places[name] = Stored(
                FILE, len(self.data), len(data), checksum.extend(0, np.frombuffer(data, np.uint8))
            )
            self.data += data

    def read_stored(self, name: str, begin: int, out: np.ndarray) -> None:
        place = self.places[name]
        assert begin + out.size <= place.size
        self.requests.append((name, begin, out.size))
        out[...] = np.frombuffer(self.data, np.uint8, out.size, place.offset + begin)

    def read_parts(self, name: str, begin: int, parts: Sequence[memoryview], seen: Seen) -> None:
        for part in parts:
            self.read_stored(name, begin, np.frombuffer(part, np.uint8))
            seen(part)
            begin += len(part)

    def check(self, name: str) -> int:
        place = self.places[name]
        if checksum.extend(0, np.frombuffer(self.data, np.uint8, place.size, place.offset)) != place.crc32c:
            raise CheckpointCorruptError(f"{name}: damaged", names=(name,))
        return place.size

    def flip(self, name: str) -> None:
        """Damages the last byte of a tensor."""
        at = self.places[name].offset + self.places[name].size - 1
        self.data = self.data[:at] + bytes([self.data[at] ^ 1]) + self.data[at + 1 :]


def unit_of(op: str, axis: int, shapes: list[tuple[int, ...]], dtype: str, out: tuple[int, ...]) -> Unit:
    """The unit that a rule makes of tensors `t0`, `t1`, ..."""
    rows = [f"t{i} {_text(shape)} {dtype}" for i, shape in enumerate(shapes)]
    names = [f"t{i}" for i in range(len(shapes))]
    done = build.plan("\n".join(rows), f"out {_text(out)} {dtype}", rules(names, [{op: {"axis": axis}}]))
    (unit,) = make_units(done.entries)
    return unit


def rules(sources: list[str], ops: list[dict[str, object]]) -> dict[str, object]:
    return {"rule": [{"from": sources, "to": "out", "ops": ops}]}


def _text(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) if shape else "-"


def join(unit: Unit, source: Tensors, order: random.Random | None = None) -> np.ndarray:
    """Carries out the tasks in some order."""
    places = [source.places[read.name] for read in unit.reads]
    assert is_joined(unit, places)
    spec = unit.entries[0].spec
    out = np.full(spec.nbytes, 0xEE, np.uint8)
    work = Joining(unit, places, source, out)
    tasks = list(work.tasks)
    (order or random.Random(0)).shuffle(tasks)
    for task in tasks:
        task()
    assert work.finish() == checksum.extend(0, out)
    return out.view(spec.dtype).reshape(spec.shape)


@st.composite
def joints(draw: st.DrawFn) -> tuple[str, int, list[tuple[int, ...]]]:
    """An op, its axis, and the shapes of what it joins."""
    op = draw(st.sampled_from(["concat", "stack"]))
    rank = draw(st.integers(1 if op == "concat" else 0, 4))
    shape = [draw(st.integers(0, 5)) for _ in range(rank)]
    count = draw(st.integers(1, 4))
    axis = draw(st.integers(-rank, rank - 1) if op == "concat" else st.integers(-rank - 1, rank))
    shapes = [list(shape) for _ in range(count)]
    if op == "concat":
        for own in shapes:
            own[axis] = draw(st.integers(0, 5))
    return op, axis, [tuple(own) for own in shapes]


@settings(deadline=None)
@given(
    joints(),
    st.sampled_from(["float32", "int8", "bool", "bfloat16", "float64", "complex128"]),
    st.integers(1, 7),
    st.integers(1, 4),
    st.randoms(),
)
def test_it_is_what_numpy_makes_in_pieces_of_any_size(
    joint: tuple[str, int, list[tuple[int, ...]]], dtype: str, scratch: int, more: int, order: random.Random
) -> None:
    op, axis, shapes = joint
    with pytest.MonkeyPatch.context() as patch:
        # Rows below and above the buffer's size, and pieces of one row and of many.
        for module in (pieces, joining):
            patch.setattr(module, "SCRATCH", 3 * scratch)
            patch.setattr(module, "PIECE", 3 * scratch * more)
        patch.setattr(pieces, "_buffers", type("Buffers", (), {})())
        rng = np.random.default_rng(scratch)
        arrays = {f"t{i}": rng.integers(-99, 99, shape).astype(dtype) for i, shape in enumerate(shapes)}
        expected = (np.concatenate if op == "concat" else np.stack)(list(arrays.values()), axis)
        unit = unit_of(op, axis, shapes, dtype, expected.shape)
        source = Tensors(arrays)
        np.testing.assert_array_equal(join(unit, source, order), expected)
        read = [(name, begin + i) for name, begin, size in source.requests for i in range(size)]
        assert sorted(read) == [(name, i) for name, array in arrays.items() for i in range(array.nbytes)]  # each once


def test_rows_are_copied_and_runs_are_read_in_place() -> None:
    square = (1024, 1024)
    arrays = {f"t{i}": np.full(square, i, np.float32) for i in range(3)}
    for axis in (0, 1):
        shape = (3072, 1024) if axis == 0 else (1024, 3072)
        source = Tensors(arrays)
        np.testing.assert_array_equal(
            join(unit_of("concat", axis, [square] * 3, "float32", shape), source),
            np.concatenate(list(arrays.values()), axis),
        )
        assert {size for _, _, size in source.requests} == {SCRATCH}


def test_a_tensor_without_a_checksum_is_joined_too() -> None:
    arrays = {f"t{i}": np.full((4, 4), i, np.float32) for i in range(2)}
    source = Tensors(arrays)
    source.places = {name: msgspec.structs.replace(place, crc32c=None) for name, place in source.places.items()}
    unit = unit_of("concat", 1, [(4, 4)] * 2, "float32", (4, 8))
    np.testing.assert_array_equal(join(unit, source), np.concatenate(list(arrays.values()), 1))


@pytest.mark.parametrize("side", [8, 700])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_a_restore_joins_and_reads_nothing_twice_into_new_memory(
    side: int, axis: int, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Joining] = []
    original = Joining.__init__

    def init(self: Joining, *args: object) -> None:
        made.append(self)
        original(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(Joining, "__init__", init)
    saved = [tf.Variable(tf.random.stateless_uniform((side, side), (i, 0))) for i in range(3)]
    path = tf.train.Checkpoint(**dict(zip("qkv", saved, strict=True))).write(str(tmp_path / "ckpt"))
    expected = np.concatenate([v.numpy() for v in saved], axis)
    live = tf.Variable(tf.zeros(expected.shape))
    done = DistributedRestorer(
        tf.train.Checkpoint(qkv=live),
        rules={"rule": [{"from": ["q", "k", "v"], "to": "qkv", "ops": [{"concat": {"axis": axis}}]}]},
    ).restore(path)
    np.testing.assert_array_equal(live.numpy(), expected)
    assert len(made) == 1
    assert dict(done.hashes)["qkv"] == f"{checksum.extend(0, expected.reshape(-1).view(np.uint8)):08x}"


def test_threads_share_large_tensors_and_small_ones_are_one_task() -> None:
    def tasks(rows: int) -> int:
        arrays = {f"t{i}": np.zeros((rows, 1024), np.float32) for i in range(3)}
        unit = unit_of("concat", 1, [(rows, 1024)] * 3, "float32", (rows, 3 * 1024))
        source = Tensors(arrays)
        places = [source.places[read.name] for read in unit.reads]
        return len(Joining(unit, places, source, np.empty(unit.entries[0].bytes, np.uint8)).tasks)

    whole = PIECE // (1024 * 4)  # as many rows as make one piece
    assert (tasks(16), tasks(whole), tasks(4 * whole)) == (1, 3, 12)


@pytest.mark.parametrize("damaged", ["t0", "t1", "t2"])
@pytest.mark.parametrize("axis", [0, 1])
def test_a_tensor_whose_bytes_are_wrong_is_named(damaged: str, axis: int) -> None:
    arrays = {f"t{i}": np.full((4, 4), i, np.float32) for i in range(3)}
    source = Tensors(arrays)
    source.flip(damaged)
    shape = (12, 4) if axis == 0 else (4, 12)
    with pytest.raises(CheckpointCorruptError, match=damaged) as error:
        join(unit_of("concat", axis, [(4, 4)] * 3, "float32", shape), source)
    assert error.value.names == (damaged,)


@pytest.mark.parametrize(
    ("rows", "out", "sources", "ops"),
    [
        (
            "a 2x2 float32\nb 2x2 float64",
            "out 4x2 float32",
            ["a", "b"],
            [{"cast": {"dtype": "float32", "lossy": True}}, {"concat": {"axis": 0}}],
        ),
        ("a 2x2\nb 2x2", "out 4x2", ["a", "b"], [{"concat": {"axis": 0}}, {"transpose": {"perm": [0, 1]}}]),
        ("a 2x2\nb 2x2", "out 2x2", ["a", "b"], [{"mean": {}}]),
        ("a 2x2", "out 4x2", ["a", "a"], [{"concat": {"axis": 0}}]),
    ],
    ids=["another dtype", "more ops", "an average", "one tensor twice"],
)
def test_all_else_is_made_in_other_ways(rows: str, out: str, sources: list[str], ops: list[dict[str, object]]) -> None:
    done = build.plan(rows, out, rules(sources, ops))
    for unit in make_units(done.entries):
        assert not is_joined(unit, [Stored(FILE, 0, math.prod(read.spec.shape), None) for read in unit.reads])


def test_what_cannot_be_read_by_parts_is_made_in_other_ways() -> None:
    assert not is_joined(unit_of("concat", 0, [(2, 2), (2, 2)], "float32", (4, 2)), None)
