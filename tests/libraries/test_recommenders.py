"""Models of TensorFlow Recommenders read their own checkpoints (with TF_USE_LEGACY_KERAS=1, as the library wants)."""

from __future__ import annotations

import os

import pytest

pytest.importorskip("tf_keras", reason="tf_keras is absent")
if os.environ.get("TF_USE_LEGACY_KERAS") != "1":
    pytest.skip("needs TF_USE_LEGACY_KERAS=1, which `make test-libraries` sets", allow_module_level=True)
pytest.importorskip("tensorflow_recommenders", reason="TensorFlow Recommenders is absent")

from cases import Builder, cases, copies
from networks_recommenders import SMALL
from own_checkpoint import Mode, assert_reads_its_own
from tf_keras_modes import FLAT


@pytest.mark.parametrize(("build", "mode"), list(cases("recommenders", SMALL, FLAT)))
def test_a_recommender_reads_its_own_checkpoint(build: Builder, mode: Mode) -> None:
    assert_reads_its_own(copies(build), mode)
