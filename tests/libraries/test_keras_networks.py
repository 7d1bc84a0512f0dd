"""Networks of keras.applications and KerasHub read their own checkpoints."""

from __future__ import annotations

import pytest

import networks_applications as applications
from cases import Builder, copies, spread
from keras_modes import ALL, FEW
from own_checkpoint import EVERYTHING, Mode, assert_reads_its_own

try:
    import networks_keras_hub as keras_hub
except ImportError as error:
    keras_hub, missing = None, str(error)


def backbones() -> list[object]:
    if keras_hub is None:
        return [pytest.param(None, None, marks=pytest.mark.skip(reason=f"KerasHub is absent: {missing}"))]
    return [*spread("hub", keras_hub.SMALL, ALL, 9), *spread("hub", keras_hub.MORE, ALL, 3)]


def networks() -> list[object]:
    large = {**applications.LARGE, **(applications.HUGE if EVERYTHING else {})}
    return [
        *spread("applications", applications.SMALL, ALL, 8),
        *spread("applications", large, ALL if EVERYTHING else FEW, 3),
    ]


@pytest.mark.parametrize(("build", "mode"), networks())
def test_a_network_of_keras_applications_reads_its_own_checkpoint(build: Builder, mode: Mode) -> None:
    assert_reads_its_own(copies(build), mode)


@pytest.mark.parametrize(("build", "mode"), backbones())
def test_a_backbone_of_keras_hub_reads_its_own_checkpoint(build: Builder, mode: Mode) -> None:
    assert_reads_its_own(copies(build), mode)
