"""Networks of Model Garden (tf_keras) read their own checkpoints."""

from __future__ import annotations

import pytest

pytest.importorskip("tf_keras", reason="tf_keras is absent")
pytest.importorskip("official", reason="Model Garden is absent")

import networks_model_garden as garden
from cases import Builder, cases, copies, spread
from own_checkpoint import EVERYTHING, Mode, assert_reads_its_own
from tf_keras_modes import ALL, FEW

LARGE = {**garden.LARGE, **(garden.HUGE if EVERYTHING else {})}
CASES = [
    *spread("garden", garden.SMALL, ALL, 7),
    *(cases("garden", LARGE, ALL) if EVERYTHING else spread("garden", LARGE, FEW, 3)),
]


@pytest.mark.parametrize(("build", "mode"), CASES)
def test_a_network_of_model_garden_reads_its_own_checkpoint(build: Builder, mode: Mode) -> None:
    assert_reads_its_own(copies(build), mode)
