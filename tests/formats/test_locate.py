"""Which checkpoint a path means, and what is said when there is none."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

import bundle_fixtures as fx
from dist_restore.checkpoints.find import complete_prefixes, resolve_prefix
from dist_restore.core.errors import CheckpointCorruptError, CheckpointNotFoundError, UnsupportedFormatError


@pytest.fixture
def managed(tmp_path):
    """Three checkpoints by a CheckpointManager."""
    directory = str(tmp_path / "run")
    checkpoint = tf.train.Checkpoint(v=tf.Variable(1.0))
    manager = tf.train.CheckpointManager(checkpoint, directory, max_to_keep=5)
    for _ in range(3):
        manager.save()
    return directory


def touch(*paths: Path | str) -> None:
    for path in paths:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(b"")


def fake(prefix: Path | str, shards: int = 1) -> str:
    touch(f"{prefix}.index", *(fx.data_file(str(prefix), i, shards) for i in range(shards)))
    return str(prefix)


def test_a_prefix_is_taken_as_it_is(managed):
    assert resolve_prefix(f"{managed}/ckpt-2") == f"{managed}/ckpt-2"


@pytest.mark.parametrize("suffix", [".index", ".data-00000-of-00001"])
def test_a_checkpoints_own_files_mean_its_prefix(managed, suffix):
    assert resolve_prefix(f"{managed}/ckpt-2{suffix}") == f"{managed}/ckpt-2"


@pytest.mark.parametrize("slash", ["", "/"])
def test_a_directory_means_its_latest_checkpoint_as_in_tensorflow(managed, slash):
    assert resolve_prefix(managed + slash) == tf.train.latest_checkpoint(managed) == f"{managed}/ckpt-3"


def test_relative_paths_stay_relative(managed, monkeypatch):
    monkeypatch.chdir(managed)
    assert resolve_prefix("ckpt-1") == "ckpt-1"
    assert resolve_prefix(".") == "./ckpt-3"
    assert complete_prefixes("") == ("ckpt-1", "ckpt-2", "ckpt-3")


def test_a_tf1_directory_works(tmp_path):
    tf1 = tf.compat.v1
    with tf.Graph().as_default(), tf1.Session() as session:
        tf1.get_variable("v", (2,), use_resource=True)
        session.run(tf1.global_variables_initializer())
        saver = tf1.train.Saver()
        for step in (9, 10):
            saver.save(session, str(tmp_path / "model.ckpt"), global_step=step)
    assert resolve_prefix(str(tmp_path)) == str(tmp_path / "model.ckpt-10")
    assert complete_prefixes(str(tmp_path)) == (str(tmp_path / "model.ckpt-9"), str(tmp_path / "model.ckpt-10"))


def test_a_copied_directory_is_not_followed_to_where_it_was(managed, tmp_path):
    """TF1 writes absolute paths into the state file."""
    state = Path(managed, "checkpoint")
    state.write_text(f'model_checkpoint_path: "{managed}/ckpt-2"\n')
    os.rename(managed, tmp_path / "copy")
    assert resolve_prefix(str(tmp_path / "copy")) == str(tmp_path / "copy/ckpt-2")


def test_a_copy_is_read_and_not_its_original(managed, tmp_path, caplog):
    Path(managed, "checkpoint").write_text(f'model_checkpoint_path: "{managed}/ckpt-2"\n')
    shutil.copytree(managed, tmp_path / "copy")
    with caplog.at_level("INFO", logger="absl"):
        assert resolve_prefix(str(tmp_path / "copy")) == str(tmp_path / "copy/ckpt-2")
    assert f"names {managed}/ckpt-2; took {tmp_path}/copy/ckpt-2" in caplog.text
    assert resolve_prefix(managed) == f"{managed}/ckpt-2"


def test_a_copy_without_the_checkpoint_is_an_error_that_names_both(managed, tmp_path):
    Path(managed, "checkpoint").write_text(f'model_checkpoint_path: "{managed}/ckpt-2"\n')
    shutil.copytree(managed, tmp_path / "copy", ignore=shutil.ignore_patterns("ckpt-2.*"))
    with pytest.raises(CheckpointNotFoundError) as error:
        resolve_prefix(str(tmp_path / "copy"))
    assert f"names {managed}/ckpt-2" in str(error.value)
    assert f"no complete {tmp_path}/copy/ckpt-2" in str(error.value)


def test_a_link_to_a_run_is_the_run(managed, tmp_path):
    Path(managed, "checkpoint").write_text(f'model_checkpoint_path: "{managed}/ckpt-2"\n')
    os.symlink(managed, tmp_path / "link")
    assert resolve_prefix(str(tmp_path / "link")) in (f"{managed}/ckpt-2", str(tmp_path / "link/ckpt-2"))


def test_a_state_file_that_names_a_lost_index_is_an_error_that_lists_the_others(managed):
    os.remove(f"{managed}/ckpt-3.index")
    with pytest.raises(CheckpointNotFoundError) as error:
        resolve_prefix(managed)
    assert f"{managed}/ckpt-3.index: no such file" in str(error.value)
    assert f"{managed}/ckpt-1, {managed}/ckpt-2" in str(error.value)


def test_a_state_file_that_names_lost_data_is_an_error_that_lists_the_others(managed):
    os.remove(f"{managed}/ckpt-3.data-00000-of-00001")
    for path in (managed, f"{managed}/ckpt-3"):
        with pytest.raises(CheckpointNotFoundError) as error:
            resolve_prefix(path)
        assert f"{managed}/ckpt-3.data-00000-of-00001: no such file" in str(error.value)
        assert f"{managed}/ckpt-2" in str(error.value)


@pytest.mark.parametrize("text", [b"", b"model_checkpoint_path: ", b'model_checkpoint_path: "ckpt', b"\xff\xfe"])
def test_a_damaged_state_file_is_an_error_that_lists_what_there_is(managed, text):
    Path(managed, "checkpoint").write_bytes(text)
    with pytest.raises(CheckpointNotFoundError, match=r"checkpoint: .*ckpt-1, .*ckpt-2"):
        resolve_prefix(managed)


def test_names_with_odd_characters_are_read_from_the_state_file(tmp_path):
    name = 'mödel "x" \\1'
    tf.compat.v1.train.update_checkpoint_state(str(tmp_path), fake(tmp_path / name))
    assert resolve_prefix(str(tmp_path)) == str(tmp_path / name)


def test_without_a_state_file_the_only_checkpoint_is_used(managed):
    os.remove(f"{managed}/checkpoint")
    with pytest.raises(CheckpointNotFoundError, match=r"3 checkpoints and no `checkpoint` file.*ckpt-3"):
        resolve_prefix(managed)
    for number in (1, 2):
        os.remove(f"{managed}/ckpt-{number}.index")
    assert resolve_prefix(managed) == f"{managed}/ckpt-3"


def test_a_saved_model_means_its_variables(tmp_path):
    module = tf.Module()
    module.v = tf.Variable(1.0)
    tf.saved_model.save(module, str(tmp_path / "export"))
    assert resolve_prefix(str(tmp_path / "export")) == str(tmp_path / "export/variables/variables")


def test_a_prefix_wins_over_a_directory_of_the_same_name(tmp_path):
    prefix = fake(tmp_path / "ckpt")
    os.mkdir(prefix)
    assert resolve_prefix(prefix) == prefix


@pytest.mark.parametrize("path", [None, "", "a\0b"])
def test_no_path_at_all_is_an_error(path):
    with pytest.raises(CheckpointNotFoundError, match="expected the path of a checkpoint"):
        resolve_prefix(path)


def test_an_empty_directory_is_an_error(tmp_path):
    with pytest.raises(CheckpointNotFoundError, match="no checkpoint in this directory"):
        resolve_prefix(str(tmp_path))


def test_a_path_that_does_not_exist_is_answered_with_the_nearest_names(managed):
    with pytest.raises(CheckpointNotFoundError, match=r"Nearest names: .*ckpt-3"):
        resolve_prefix(f"{managed}/ckpt_3")
    with pytest.raises(CheckpointNotFoundError, match=r"Nearest names: .*run"):
        resolve_prefix(f"{os.path.dirname(managed)}/runs")
    with pytest.raises(CheckpointNotFoundError, match="does not exist either"):
        resolve_prefix(f"{managed}/no/where")


def test_data_without_an_index_are_named(managed):
    os.remove(f"{managed}/ckpt-2.index")
    with pytest.raises(CheckpointNotFoundError, match=r"ckpt-2\.index: no such file, though data files"):
        resolve_prefix(f"{managed}/ckpt-2")


@pytest.mark.parametrize("name", ["m.pt", "m.pth", "pytorch_model.bin", "m.PKL", "m.pickle"])
def test_pickles_are_refused_with_advice(tmp_path, name):
    touch(tmp_path / name)
    with pytest.raises(UnsupportedFormatError, match="export it to safetensors"):
        resolve_prefix(str(tmp_path / name))


@pytest.mark.parametrize("name", ["m.h5", "m.weights.h5", "m.keras", "m.safetensors", "m.npz"])
def test_a_file_of_another_format_must_begin_as_its_name_says(tmp_path, name):
    touch(tmp_path / name)
    with pytest.raises(CheckpointCorruptError, match="is empty"):
        resolve_prefix(str(tmp_path / name))
    (tmp_path / name).write_bytes(b"\x80\x04 a pickle")
    with pytest.raises(UnsupportedFormatError, match="export it to safetensors"):
        resolve_prefix(str(tmp_path / name))


def test_a_pickle_under_a_checkpoints_name_is_told_by_its_content(tmp_path):
    (tmp_path / "last.ckpt").write_bytes(b"PK\x03\x04rest")
    (tmp_path / "other.ckpt").write_bytes(b"what is this")
    with pytest.raises(UnsupportedFormatError, match="safetensors"):
        resolve_prefix(str(tmp_path / "last.ckpt"))
    with pytest.raises(UnsupportedFormatError, match="unknown kind"):
        resolve_prefix(str(tmp_path / "other.ckpt"))


def test_a_directory_of_another_format_says_so(tmp_path):
    touch(tmp_path / "config.json", tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointNotFoundError, match=r"pytorch_model\.bin: .*safetensors"):
        resolve_prefix(str(tmp_path))


def test_complete_prefixes_are_in_the_order_of_their_numbers(tmp_path):
    fake(tmp_path / "ckpt-10")
    fake(tmp_path / "ckpt-9", shards=3)
    fake(tmp_path / "ckpt-2")
    fake(tmp_path / "torn", shards=3)
    os.remove(fx.data_file(str(tmp_path / "torn"), 1, 3))
    touch(tmp_path / "bare.index", tmp_path / "data-only.data-00000-of-00001")
    assert complete_prefixes(str(tmp_path)) == tuple(str(tmp_path / n) for n in ("ckpt-2", "ckpt-9", "ckpt-10"))
    assert complete_prefixes(str(tmp_path / "none")) == ()


def test_remote_directories_work(managed):
    for name in os.listdir(managed):
        tf.io.gfile.copy(f"{managed}/{name}", f"ram://locate/{name}", overwrite=True)
    assert resolve_prefix("ram://locate") == "ram://locate/ckpt-3"
    assert resolve_prefix("ram://locate/ckpt-1") == "ram://locate/ckpt-1"
    with pytest.raises(CheckpointNotFoundError, match="ckpt-2"):
        resolve_prefix("ram://locate/ckpt-22")


def test_what_is_resolved_can_be_opened(managed):
    from dist_restore.checkpoints.tf.bundle import Bundle

    assert np.all(Bundle.open(resolve_prefix(managed)).read("v/.ATTRIBUTES/VARIABLE_VALUE") == 1.0)
