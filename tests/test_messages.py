"""What is said, and when, where something small is in the way: every error names the file or tensor and what helps."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest
import tensorflow as tf

import dist_restore as dr


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
