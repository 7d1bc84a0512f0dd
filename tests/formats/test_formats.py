"""One list of behaviours for every format: the same weights, by the same names, under every strategy."""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
from collections.abc import Iterator

import keras
import numpy as np
import pytest
import tensorflow as tf
from safetensors.numpy import save_file

import dist_restore as dr
from dist_restore.checkpoints.reader import DirectSource
from dist_restore.core.tensors import Box
from dist_restore.ops import Slice, Transpose
from format_files import BARE_RULES, RULES, WRITERS, build, weights_of
from live import assert_holds, assert_unchanged, raw, restore, scramble, snapshot

FORMATS = sorted(WRITERS)


@pytest.fixture(scope="module")
def original() -> keras.Model:
    model = build()
    scramble(model, seed=7)
    return model


@pytest.fixture(scope="module")
def files(original: keras.Model, tmp_path_factory: pytest.TempPathFactory) -> dict[str, pathlib.Path]:
    directory = tmp_path_factory.mktemp("formats")
    return {name: write(original, directory) for name, write in WRITERS.items()}


@pytest.fixture(params=FORMATS)
def path(request: pytest.FixtureRequest, files: dict[str, pathlib.Path]) -> pathlib.Path:
    return files[request.param]


@contextlib.contextmanager
def opened(path: pathlib.Path) -> Iterator[object]:
    with contextlib.closing(dr.open_checkpoint(path)) as source:
        yield source


def assert_equal(model: keras.Model, original: keras.Model) -> None:
    for variable, expected in zip(model.variables, original.variables, strict=True):
        assert_holds(variable, expected.numpy())


def test_every_format_restores_the_same_weights_under_every_strategy(
    path: pathlib.Path, original: keras.Model, strategy: tf.distribute.Strategy
) -> None:
    with strategy.scope():
        model = build()
    scramble(model, seed=1)
    restore(tf.train.Checkpoint(model=model), path, rules=RULES.get(path.name))
    assert_equal(model, original)


def test_a_bare_model_is_restored_too(path: pathlib.Path, original: keras.Model) -> None:
    model = build()
    restore(model, path, rules=BARE_RULES.get(path.name))
    assert_equal(model, original)


def test_a_plan_reads_no_tensor_and_changes_no_variable(path: pathlib.Path, original: keras.Model) -> None:
    model = build()
    before = snapshot(model)
    plan = dr.DistributedRestorer(tf.train.Checkpoint(model=model), rules=RULES.get(path.name)).plan(path)
    assert_unchanged(before)
    assert sum(e.filled for e in plan.entries if e.target != "save_counter") == len(original.variables)
    with opened(path) as source:
        graph = source.index().format in ("tf2", "saved_model")  # whose object graph is a tensor itself
        assert graph or source.bytes_read == 0


def test_a_plan_of_a_format_survives_json_and_is_applied(path: pathlib.Path, original: keras.Model) -> None:
    model = build()
    restorer = dr.DistributedRestorer(tf.train.Checkpoint(model=model), rules=RULES.get(path.name))
    restorer.apply(dr.RestorePlan.from_json(restorer.plan(path).to_json()), path)
    assert_equal(model, original)


def test_rules_and_ops_work_on_every_format(path: pathlib.Path, original: keras.Model) -> None:
    root = {"cut": tf.Variable(tf.zeros((4, 2))), "turned": tf.Variable(tf.zeros((3, 6)))}
    with opened(path) as source:
        names = {t.name for t in source.index().tensors}
    prefix = "model/" if "model/wide/kernel" in names else ""
    rules = [
        dr.Rule(from_=(f"{prefix}wide/kernel",), to=("cut",), ops=(Slice((0, 1), (4, 2)),)),
        dr.Rule(from_=(f"{prefix}head/kernel",), to=("turned",), ops=(Transpose((1, 0)),)),
    ]
    restore(root, path, rules=rules)
    weights = weights_of(original)
    assert_holds(root["cut"], weights["wide/kernel"][:, 1:3])
    assert_holds(root["turned"], weights["head/kernel"].T)


def test_boxes_are_the_parts_of_the_whole(path: pathlib.Path) -> None:
    with opened(path) as source:
        for tensor in source.index().tensors:
            if len(tensor.spec.shape) == 2:
                rows, columns = tensor.spec.shape
                box = Box((1, 1), (rows - 2, columns - 1))
                whole = source.read(tensor.name)
                part = source.read(tensor.name, box)
                assert part.dtype == whole.dtype and part.flags.c_contiguous
                np.testing.assert_array_equal(part, whole[box.slices()])


def test_a_box_outside_is_refused(path: pathlib.Path) -> None:
    with opened(path) as source:
        tensor = next(t for t in source.index().tensors if len(t.spec.shape) == 2)
        with pytest.raises(ValueError, match="not inside"):
            source.read(tensor.name, Box((0, 1), tensor.spec.shape))


def test_reading_after_closing_is_an_error(path: pathlib.Path) -> None:
    source = dr.open_checkpoint(path)
    name = next(t.name for t in source.index().tensors if t.spec.elements > 1 and t.spec.dtype != "string")
    source.close()
    with pytest.raises(dr.RestoreError):
        source.read(name)


def test_the_identity_is_that_of_the_bytes_and_not_of_the_place(
    path: pathlib.Path, tmp_path: pathlib.Path, files: dict[str, pathlib.Path]
) -> None:
    copy = tmp_path / path.name
    if path.is_dir():
        shutil.copytree(path, copy)
    elif path.suffix:
        shutil.copy(path, copy)
    else:
        for part in path.parent.glob(f"{path.name}.*"):
            shutil.copy(part, tmp_path / part.name)
    with opened(path) as first, opened(copy) as second:
        assert first.identity() == second.identity()
        assert int(first.identity(), 16) >= 0
    identities = set()
    for other in files.values():
        with opened(other) as source:
            identities.add(source.identity())
    assert len(identities) == len(files)


def test_the_identity_changes_with_one_value(
    path: pathlib.Path, files: dict[str, pathlib.Path], original: keras.Model, tmp_path: pathlib.Path
) -> None:
    name = next(n for n, other in files.items() if other == path)
    changed = build()
    changed.set_weights(original.get_weights())
    raw(changed.variables[-1]).assign_add([1.0, 0.0, 0.0])
    with opened(path) as first, opened(WRITERS[name](changed, tmp_path)) as second:
        assert first.identity() != second.identity()


@pytest.mark.parametrize("name", ["safetensors", "npz", "weights", "keras", "legacy"])
def test_a_slice_reads_only_its_rows(name: str, tmp_path: pathlib.Path) -> None:
    inputs = keras.Input((4096,))
    model = keras.Model(inputs, keras.layers.Dense(64, name="big", use_bias=False)(inputs))
    path = WRITERS[name](model, tmp_path)
    root = {"rows": tf.Variable(tf.zeros((8, 64)))}
    rule = dr.Rule(from_=("big/kernel",), to=("rows",), ops=(Slice((100, 0), (8, 64)),))
    report = restore(root, path, rules=[rule])
    assert_holds(root["rows"], model.variables[0].numpy()[100:108])
    assert report.bytes_read[0] < 64 << 10  # of 1 MB


@pytest.mark.parametrize("name", ["safetensors", "sharded", "weights", "legacy"])
def test_a_large_tensor_is_read_once_in_place_and_reaches_every_replica(
    name: str, tmp_path: pathlib.Path, strategy: tf.distribute.Strategy
) -> None:
    def make() -> keras.Model:
        inputs = keras.Input((1500,))
        return keras.Model(inputs, keras.layers.Dense(1000, name="big")(inputs))

    original = make()
    scramble(original, seed=3)
    path = WRITERS[name](original, tmp_path)
    with strategy.scope():
        model = make()
    report = restore(model, path)
    assert_equal(model, original)
    assert report.bytes_read == (sum(v.numpy().nbytes for v in original.variables),)
    with opened(path) as source:  # 6 MB, by several threads, straight into the memory that the variable gets
        assert isinstance(source, DirectSource)
        assert source.stored("big/kernel").crc32c is None


def test_what_forgets_its_object_graph_is_read_as_before(path: pathlib.Path) -> None:
    with opened(path) as source:
        before = source.index()
        names = [t.name for t in before.tensors]
        values = {name: source.read(name) for name in names}
        source.forget_scene()
        assert source.index().scene is None
        assert source.index().fingerprint == before.fingerprint
        assert source.index() == before
        for name in names:
            np.testing.assert_array_equal(source.read(name), values[name])


def test_a_file_that_was_cut_after_it_was_opened_is_refused(tmp_path: pathlib.Path) -> None:
    save_file({"big.kernel": np.ones((1500, 1000), np.float32)}, tmp_path / "cut.safetensors")
    with opened(tmp_path / "cut.safetensors") as source:
        os.truncate(tmp_path / "cut.safetensors", 5_000_000)
        with pytest.raises(dr.CheckpointCorruptError, match=r"big/kernel.*truncated"):
            source.read_stored("big/kernel", 0, np.empty(6_000_000, np.uint8))


def test_a_wide_matrix_is_read_column_by_column_where_the_gaps_are_large(tmp_path: pathlib.Path) -> None:
    array = np.arange(40 * 30_000, dtype=np.float32).reshape(40, 30_000)
    np.savez(tmp_path / "wide.npz", a=array, f=np.asfortranarray(array))
    with opened(tmp_path / "wide.npz") as source:
        for name in ("a", "f"):
            box = Box((3, 100), (20, 50))
            np.testing.assert_array_equal(source.read(name, box), array[3:23, 100:150])
        assert source.bytes_read < array.nbytes


@pytest.mark.parametrize("name", ["safetensors", "npz", "packed_npz", "weights", "keras", "legacy"])
def test_a_file_on_another_file_system_is_read_in_place(
    name: str, files: dict[str, pathlib.Path], original: keras.Model
) -> None:
    path = f"ram://formats/{files[name].name}"
    tf.io.gfile.makedirs("ram://formats")
    with tf.io.gfile.GFile(path, "wb") as file:
        file.write(files[name].read_bytes())
    model = build()
    restore(model, path)
    assert_equal(model, original)


def test_a_directory_with_two_candidates_is_refused_with_both(
    files: dict[str, pathlib.Path], tmp_path: pathlib.Path
) -> None:
    shutil.copytree(files["sharded"], tmp_path / "d")
    shutil.copy(files["safetensors"], tmp_path / "d" / "other.safetensors")
    with pytest.raises(dr.CheckpointNotFoundError, match=r"model\.safetensors\.index\.json.*other\.safetensors"):
        dr.open_checkpoint(tmp_path / "d")
    shutil.copytree(files["saved_model"], tmp_path / "d", dirs_exist_ok=True)
    with pytest.raises(dr.CheckpointNotFoundError, match=r"several formats.*saved_model\.pb"):
        dr.open_checkpoint(tmp_path / "d")


def test_two_safetensors_files_without_an_index_are_refused(
    files: dict[str, pathlib.Path], tmp_path: pathlib.Path
) -> None:
    for name in ("a", "b"):
        shutil.copy(files["safetensors"], tmp_path / f"{name}.safetensors")
    with pytest.raises(dr.CheckpointNotFoundError, match=r"a\.safetensors.*b\.safetensors"):
        dr.open_checkpoint(tmp_path)


def test_a_folder_with_one_safetensors_file_means_it(files: dict[str, pathlib.Path], tmp_path: pathlib.Path) -> None:
    shutil.copy(files["safetensors"], tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    with opened(tmp_path) as source:
        assert source.index().format == "safetensors"
