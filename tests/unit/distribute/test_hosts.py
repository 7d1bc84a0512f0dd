"""Who reads what for which host: pure decisions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dist_restore.core.tensors import TensorSpec
from dist_restore.distribute.hosts.placement import Holding, batches, divide, host_of
from dist_restore.engine.units import make_units
from dist_restore.ops import parse_ops
from dist_restore.planning.entries import PlanEntry, Status

CLIENT, A, B = "/job:localhost/replica:0/task:0", "/job:worker/replica:0/task:0", "/job:worker/replica:0/task:1"
SPEC = TensorSpec((4, 4), "float32")
COUNTS = (1, 8, 64)


def entry(target: str, source: str = "", ops: tuple[object, ...] = ()) -> PlanEntry:
    return PlanEntry(target, (source or target,), ops, Status.EXACT, "", "", SPEC.nbytes, SPEC, (SPEC,))


def divided(entries: list[PlanEntry], holdings: dict[str, Holding], seeing: tuple[str, ...] = (CLIENT, A, B)):
    return divide(make_units(entries), holdings, CLIENT, seeing, lambda e: not e.ops)


def names(units) -> list[str]:
    return [e.target for unit in units for e in unit.entries]


def test_a_device_names_its_host() -> None:
    assert host_of(f"{A}/device:TPU:3", CLIENT) == A
    assert host_of("/device:CPU:0", CLIENT) == host_of("", CLIENT) == CLIENT


def test_what_the_client_holds_alone_is_its_own_affair() -> None:
    found = divided([entry("x")], {"x": Holding((CLIENT, CLIENT), True)})
    assert names(found.local) == ["x"] and not found.sent and not found.read


def test_a_copy_is_read_by_each_host_that_sees_the_files_and_sent_to_the_others() -> None:
    holdings = {"x": Holding((A, A, B, B), True)}
    both, one = divided([entry("x")], holdings), divided([entry("x")], holdings, seeing=(CLIENT, A))
    assert [(host, [e.target for e in es]) for host, es in both.read] == [(A, ["x"]), (B, ["x"])] and not both.sent
    assert [host for host, _ in one.read] == [A]
    assert names(one.sent) == ["x"] and one.receivers == (("x", (B,)),)


@pytest.mark.parametrize("uniform", [True, False])
def test_what_needs_ops_or_is_divided_is_sent(uniform: bool) -> None:
    ops = () if not uniform else parse_ops([{"transpose": {"perm": [1, 0]}}])
    found = divided([entry("x", ops=ops)], {"x": Holding((A, B), uniform)})
    assert not found.read and found.receivers == (("x", (A, B)),)


def test_entries_that_share_a_source_are_read_in_one_place() -> None:
    ops = parse_ops([{"transpose": {"perm": [1, 0]}}])
    held = {"x": Holding((A,), True), "y": Holding((CLIENT,), True)}
    found = divided([entry("x", "s"), entry("y", "s", ops)], held)
    assert not found.read and not found.local and names(found.sent) == ["x", "y"]


@given(st.lists(st.integers(0, 1 << 20), max_size=200), st.integers(1, 1 << 22))
def test_batches_hold_everything_once_but_for_small_repetitions(sizes: list[int], budget: int) -> None:
    found = list(batches(sizes, COUNTS, budget))
    assert [i for part in found for i in dict.fromkeys(part)] == list(range(len(sizes)))
    for part in found:
        assert len(part) in COUNTS
        once = [sizes[i] for i in dict.fromkeys(part)]
        assert len(once) == 1 or sum(once) <= budget
        assert sum(sizes[i] for i in part) <= sum(once) + (64 << 10)
