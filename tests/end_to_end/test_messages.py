"""What is said, and when, where something small is in the way: every error names the file or tensor and what helps."""

from __future__ import annotations

import pathlib
import threading
import time
from collections.abc import Callable

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import trackable_object_graph_pb2

import bundle_fixtures as fx
import dist_restore as dr
from dist_restore.checkpoints.tf.checkpoint import OBJECT_GRAPH_KEY
from dist_restore.distribute.messaging.protocol import ClusterCommunicator
from dist_restore.restore import given
from dist_restore.restore import run as session
from fake_cluster import run_workers
from format_files import WRITERS
from live import assert_unchanged, refuse, seq, snapshot


def saved(directory: pathlib.Path, **variables: tf.Variable) -> str:
    return tf.train.Checkpoint(**variables).write(str(directory / "ckpt"))


def mirrored() -> tf.distribute.Strategy:
    return tf.distribute.MirroredStrategy([d.name for d in tf.config.list_logical_devices("CPU")[:2]])


# ---- Values that are no plain numbers --------------------------------------------------------------------


@pytest.mark.parametrize("make", [tf.distribute.get_strategy, mirrored])
@pytest.mark.parametrize("value", [b"text\x00", b"", b"\x00", [b"a\x00", b"", b"\x00\x00longer"]])
def test_strings_with_nulls_are_restored_and_verified(tmp_path: pathlib.Path, make: object, value: object) -> None:
    path = saved(tmp_path, text=tf.Variable(value))
    with make().scope():
        live = tf.Variable(tf.fill(tf.constant(value).shape, b"other"))
    report = dr.DistributedRestorer(tf.train.Checkpoint(text=live)).restore(path)
    assert report.verified
    assert live.numpy().tolist() == value if isinstance(value, list) else live.numpy() == value


def test_an_axis_above_two_to_the_31_is_restored(tmp_path: pathlib.Path) -> None:
    shape = (2**33, 0)
    path = saved(tmp_path, long=tf.Variable(np.zeros(shape, np.uint8)))
    live = tf.Variable(np.zeros(shape, np.uint8))
    report = dr.DistributedRestorer(tf.train.Checkpoint(long=live)).restore(path)
    assert report.plan.mapping()["long"] == ("long",)


def test_lossy_values_are_listed_together_with_rules(tmp_path: pathlib.Path) -> None:
    path = saved(tmp_path, **{n: tf.Variable([1.0, 70000.0]) for n in "abc"}, fine=tf.Variable([1.0]))
    live = {n: tf.Variable([0.0, 0.0], dtype=tf.float16) for n in "abc"}
    root = tf.train.Checkpoint(**live, fine=tf.Variable([0.0], dtype=tf.float16))
    error = refuse(dr.DtypeMismatchError, root, path, "3 variables would lose values", "'a' float16[2]", "70000.0")
    assert error.names == ("a", "b", "c")
    rules = str(error).partition("if that is meant:\n")[2]
    dr.DistributedRestorer(root, rules=dr.RuleSet.from_toml(rules)).restore(path)
    assert np.isinf(live["c"].numpy()[1])


def test_many_lossy_values_are_not_all_listed(tmp_path: pathlib.Path) -> None:
    path = saved(tmp_path, **{f"v{n}": tf.Variable([70000.0]) for n in range(30)})
    root = tf.train.Checkpoint(**{f"v{n}": tf.Variable([0.0], dtype=tf.float16) for n in range(30)})
    error = refuse(dr.DtypeMismatchError, root, path, "20 variables would lose values, and maybe more")
    assert len(error.names) == 20


# ---- Before anything is looked at ------------------------------------------------------------------------


def workers(monkeypatch: pytest.MonkeyPatch, program: Callable[[int], object]) -> list[object]:
    """What a program raises on each of two workers that are threads."""
    mine = threading.local()
    monkeypatch.setattr(session, "communicator_for", lambda *_: mine.talk)
    monkeypatch.setattr(given, "is_alone", lambda _: False)

    def run(talk: ClusterCommunicator) -> object:
        mine.talk = talk
        return program(talk.rank)

    return run_workers(2, run)


@pytest.mark.parametrize("culprit", [0, 1])
def test_rules_that_one_worker_cannot_read_are_an_error_on_all(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, culprit: int
) -> None:
    path = saved(tmp_path, v=tf.Variable(1.0))
    (tmp_path / "rules.toml").write_text("")

    def program(rank: int) -> object:
        rules = tmp_path / ("lost.toml" if rank == culprit else "rules.toml")
        return dr.DistributedRestorer(tf.train.Checkpoint(v=tf.Variable(0.0)), rules=rules).restore(path)

    for error in workers(monkeypatch, program):
        assert isinstance(error, dr.WorkerError) and isinstance(error, dr.RuleError), error
        assert (error.rank, error.phase) == (culprit, "resolve")
        assert "lost.toml" in str(error)


def test_rules_that_a_single_worker_cannot_read_are_an_error_at_once(tmp_path: pathlib.Path) -> None:
    with pytest.raises(dr.RuleError, match="lost"):
        dr.DistributedRestorer(tf.train.Checkpoint(v=tf.Variable(0.0)), rules=tmp_path / "lost.toml")


@pytest.mark.parametrize("below", ["a file", "a directory where nothing can be made"])
def test_a_log_dir_that_cannot_be_written_is_refused_before_anything_changes(
    tmp_path: pathlib.Path, below: str
) -> None:
    path = saved(tmp_path, v=tf.Variable(1.0))
    log_dir = tmp_path / "ckpt.index" / "logs" if below == "a file" else pathlib.Path("/proc")
    if not log_dir.is_dir() and below != "a file":
        pytest.skip("no /proc here")
    refuse(dr.RestoreError, tf.train.Checkpoint(v=tf.Variable(0.0)), path, "log_dir", str(log_dir), log_dir=log_dir)


def test_a_log_dir_is_left_with_the_events_alone(tmp_path: pathlib.Path) -> None:
    path = saved(tmp_path, v=tf.Variable(1.0))
    dr.DistributedRestorer(tf.train.Checkpoint(v=tf.Variable(0.0)), log_dir=tmp_path / "logs").restore(path)
    (event,) = (tmp_path / "logs").iterdir()
    assert event.name.endswith(".dist_restore")


def test_summaries_have_the_step_that_was_restored(tmp_path: pathlib.Path) -> None:
    def build(steps: int) -> tf.train.Checkpoint:
        optimizer = keras.optimizers.SGD()
        weight = keras.Variable([1.0], name="w")
        optimizer.build([weight])
        optimizer.iterations.assign(steps)
        return tf.train.Checkpoint(w=weight, optimizer=optimizer)

    path = build(7).write(str(tmp_path / "ckpt"))
    dr.DistributedRestorer(build(0), log_dir=tmp_path / "logs").restore(path)
    (event,) = (tmp_path / "logs").iterdir()
    events = list(tf.compat.v1.train.summary_iterator(str(event)))
    assert {e.step for e in events if e.summary.value} == {7}


def test_a_restore_inside_a_function_is_refused_at_once(tmp_path: pathlib.Path) -> None:
    path = saved(tmp_path, v=tf.Variable(1.0))
    target = tf.train.Checkpoint(v=tf.Variable(0.0))
    own = dr.DistributedRestorer(target)
    plan, before = own.plan(path), snapshot(target)
    for call in (lambda: own.restore(path), lambda: own.plan(path), lambda: own.apply(plan, path)):
        start = time.monotonic()
        with pytest.raises(dr.RestoreError, match=r"outside of tf\.function"):
            tf.function(call)()
        assert time.monotonic() - start < 5
    assert_unchanged(before)


# ---- Managers --------------------------------------------------------------------------------------------


@pytest.fixture
def manager(tmp_path: pathlib.Path) -> tf.train.CheckpointManager:
    return tf.train.CheckpointManager(tf.train.Checkpoint(v=tf.Variable(3.0)), str(tmp_path / "run"), max_to_keep=2)


def test_a_manager_as_path_means_its_latest_checkpoint(manager: tf.train.CheckpointManager) -> None:
    live = tf.Variable(0.0)
    own = dr.DistributedRestorer(tf.train.Checkpoint(v=live))
    with pytest.raises(dr.CheckpointNotFoundError, match="run"):
        own.restore(manager)
    manager.save()
    assert own.plan({"old": manager}).checkpoints == (("old", manager.latest_checkpoint),)
    assert own.restore(manager).plan.checkpoint == manager.latest_checkpoint
    assert live.numpy() == 3.0


def test_a_manager_as_target_is_refused_with_what_to_pass(manager: tf.train.CheckpointManager) -> None:
    manager.save()
    with pytest.raises(dr.RestoreError, match=r"pass manager\.checkpoint"):
        dr.DistributedRestorer(manager).restore(manager)


# ---- What is wrong with a file ---------------------------------------------------------------------------


def test_a_dtype_that_is_not_known_is_named_with_tensor_and_file(tmp_path: pathlib.Path) -> None:
    path = fx.hand_made(tmp_path / "ckpt", {b"v": fx.entry((2,), 999, size=8)})
    refuse(dr.DtypeMismatchError, {"v": tf.Variable([0.0, 0.0])}, path, "'v' (dtype_999)", path, 'keep = "v"')


def test_a_broken_object_graph_is_named_with_its_file(tmp_path: pathlib.Path) -> None:
    graph = trackable_object_graph_pb2.TrackableObjectGraph()
    graph.nodes.add().children.add(node_id=900000, local_name="v")
    path = fx.save(tmp_path / "ckpt", {OBJECT_GRAPH_KEY: tf.constant(graph.SerializeToString())})
    with pytest.raises(dr.CheckpointCorruptError, match=f"{path}: .*object 0 refers to object 900000"):
        dr.open_checkpoint(path)


def test_a_missing_layer_group_is_named_with_its_file(tmp_path: pathlib.Path) -> None:
    path = WRITERS["legacy"](seq("ab"), tmp_path)
    with h5py.File(path, "a") as file:
        del file["model_weights" if "model_weights" in file else "/"]["b"]
    with pytest.raises(dr.CheckpointCorruptError, match=f"{path}: .*'b'"):
        dr.open_checkpoint(path)


def test_keras_list_of_shards_is_refused_with_what_to_do(tmp_path: pathlib.Path) -> None:
    model = seq("ab")
    model.save_weights(tmp_path / "m.weights.json", max_shard_size=1e-7)
    refuse(dr.UnsupportedFormatError, model, tmp_path / "m.weights.json", "m.weights.json", "save_weights(")


# ---- What is wrong with a rule ---------------------------------------------------------------------------


def test_rules_for_a_checkpoint_that_has_the_new_names_are_said_not_to_be_needed(tmp_path: pathlib.Path) -> None:
    root = tf.train.Checkpoint(new=tf.Variable(1.0))
    path = root.write(str(tmp_path / "ckpt"))
    for rules in ({"old": "new"}, {"old{i}": "new"}, {"{name}/w": "{name}"}):
        refuse(dr.RuleError, root, path, "it has the new name 'new' already", "without the rule", rules=rules)
    error = refuse(dr.RuleError, root, path, rules={"old": "newer"})
    assert "already" not in str(error)


LETTER = "[[rule]]\nfrom = 'enc/{v}/w'\nto = 'dec/{v}/w'\n"


def in_folders(folder: str) -> dict[str, object]:
    module = tf.Module()
    module.query = tf.Module()
    module.query.w = tf.Variable(1.0)
    return {folder: module}


def test_a_capture_of_one_letter_is_said_to_take_digits_only(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tf.train.Checkpoint(**in_folders("enc")).write(str(tmp_path / "ckpt"))
    root = in_folders("dec")
    words = ("one letter takes digits only", "'enc/{vv}/w'", "'enc/query/w'")
    refuse(dr.RuleError, root, path, *words, rules=dr.RuleSet.from_toml(LETTER))
    keep = dr.RuleSet.from_toml("[[rule]]\nkeep = 'dec/{v}/w'")
    refuse(dr.RuleError, root, path, "one letter takes digits only", "'dec/{vv}/w'", rules=keep)
    with caplog.at_level("WARNING"):
        dr.DistributedRestorer(root, rules=dr.RuleSet.from_toml(f"{LETTER}optional = true\n")).plan(path)
    assert "one letter takes digits only" in caplog.text
    longer = dr.RuleSet.from_toml(LETTER.replace("{v}", "{vv}"))
    dr.DistributedRestorer(root, rules=longer).restore(path)


def test_an_optional_rule_that_matches_nothing_for_another_reason_is_silent(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = in_folders("enc")
    path = tf.train.Checkpoint(**root).write(str(tmp_path / "ckpt"))
    with caplog.at_level("WARNING"):
        rules = LETTER.replace("enc/{v}", "other/{v}") + "optional = true\n"
        dr.DistributedRestorer(root, rules=dr.RuleSet.from_toml(rules)).plan(path)
    assert "optional" not in caplog.text


# ---- What plan and report say ----------------------------------------------------------------------------


def test_what_is_unused_because_of_its_shape_says_so(tmp_path: pathlib.Path) -> None:
    path = saved(tmp_path, v=tf.Variable([1.0, 2.0]), other=tf.Variable(1.0))
    plan = dr.DistributedRestorer(tf.train.Checkpoint(v=tf.Variable([1.0, 2.0, 3.0]))).plan(path)
    unused = {u.name: u.reason for u in plan.unused}
    assert "another shape" in unused["v"] and "[2]" in unused["v"] and "[3]" in unused["v"]
    assert unused["other"] == "no variable of the model has this name"


def test_evidence_has_the_name_by_which_a_rule_means_a_source(tmp_path: pathlib.Path) -> None:
    model = seq("ab")
    path = tf.train.Checkpoint(model=model).write(str(tmp_path / "ckpt"))
    root = tf.train.Checkpoint(net=seq("ac"))
    source = dr.open_checkpoint(path)
    alias = next(a.name for t in source.index().tensors if t.name == "model/b/kernel" for a in t.aliases)
    source.close()
    plan = dr.DistributedRestorer(root, rules={alias: "net/c/kernel"}).plan(path)
    (entry,) = (e for e in plan.entries if e.target == "net/c/kernel")
    assert entry.sources == ("model/b/kernel",)
    assert entry.evidence.endswith(f", as {alias!r}")
    plan = dr.DistributedRestorer(root, rules={"model/b/kernel": "net/c/kernel"}).plan(path)
    (entry,) = (e for e in plan.entries if e.target == "net/c/kernel")
    assert ", as" not in entry.evidence


@pytest.mark.parametrize(
    ("name", "has"), [("keras", True), ("npz", True), ("safetensors", False), ("weights", False), ("legacy", False)]
)
def test_the_report_says_whether_this_format_has_checksums(tmp_path: pathlib.Path, name: str, has: bool) -> None:
    root = seq("ab")
    report = dr.DistributedRestorer(root).restore(WRITERS[name](root, tmp_path))
    said = " ".join(report.summary().split())
    assert ("has the checksums that the checkpoint stores" in said) is has
    assert ("stores no checksums" in said) is not has
