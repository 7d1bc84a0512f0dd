"""Networks of Sonnet read their own checkpoints."""

from __future__ import annotations

import pytest

pytest.importorskip("sonnet", reason="Sonnet is absent")

from cases import Builder, cases, copies
from networks_sonnet import SMALL, UNTRAINED
from own_checkpoint import Mode, assert_reads_its_own
from sonnet_modes import ALL

CASES = [*cases("sonnet", SMALL, ALL), *cases("sonnet", UNTRAINED, ALL[:1])]


@pytest.mark.parametrize(("build", "mode"), CASES)
def test_a_network_of_sonnet_reads_its_own_checkpoint(build: Builder, mode: Mode) -> None:
    assert_reads_its_own(copies(build), mode)
