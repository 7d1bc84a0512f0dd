"""How long each read mode takes, by arithmetic; and against what was measured."""

from __future__ import annotations

import math
import tomllib

import pytest

from dist_restore.core.options import Reads
from dist_restore.distribute.forecast import Load, Rates, best, forecast, is_fast
from places import GOLDEN

GB = 1e9
LOAD = Load(int(8 * GB), int(8 * GB))


def seconds(world: int, rates: Rates, load: Load = LOAD) -> dict[str, float]:
    return {f.mode.value: f.seconds for f in forecast(load, world, rates)}


def test_a_disk_of_ones_own_takes_the_same_for_any_number_of_workers() -> None:
    rates = Rates(storage_each=1 * GB)
    found = [forecast(LOAD, world, rates)[0].storage for world in (1, 8, 512)]
    assert found == [8.0, 8.0, 8.0]


def test_shared_storage_is_read_once_for_each_worker_or_once_in_all() -> None:
    rates = Rates(storage_each=1 * GB, storage_all=2 * GB, exchange_each=100 * GB)
    every, chief, sharded = forecast(LOAD, 8, rates)
    assert (every.storage, chief.storage, sharded.storage) == (32.0, 8.0, 4.0)


def test_an_exchange_brings_each_worker_what_the_others_read() -> None:
    rates = Rates(storage_each=100 * GB, exchange_each=1 * GB)
    _, chief, sharded = forecast(LOAD, 4, rates)
    assert (chief.exchange, sharded.exchange) == (16.0, 6.0)


def test_one_link_for_all_carries_all_that_is_received() -> None:
    rates = Rates(storage_each=100 * GB, exchange_each=100 * GB, exchange_all=1 * GB)
    _, chief, sharded = forecast(LOAD, 4, rates)
    assert (chief.exchange, sharded.exchange) == (24.0, 24.0)


@pytest.mark.parametrize("world", [2, 4, 64, 512])
def test_slow_shared_storage_is_read_once(world: int) -> None:
    forecasts = forecast(LOAD, world, Rates(storage_each=0.15 * GB, storage_all=0.15 * GB))
    assert best(forecasts).mode is Reads.SHARDED


@pytest.mark.parametrize("world", [2, 4, 64, 512])
def test_a_page_cache_of_ones_own_is_read_by_everybody(world: int) -> None:
    forecasts = forecast(LOAD, world, Rates(storage_each=5 * GB, passes=2, exchange_each=0.5 * GB))
    assert best(forecasts, usual=Reads.EVERY_WORKER).mode is Reads.EVERY_WORKER


def test_a_small_gain_is_no_reason_to_leave_the_usual_mode() -> None:
    close = forecast(LOAD, 2, Rates(storage_each=1 * GB, exchange_each=0.55 * GB))
    assert close[0].seconds > close[2].seconds
    assert best(close, usual=Reads.EVERY_WORKER).mode is Reads.EVERY_WORKER
    assert best(close, usual=Reads.SHARDED).mode is Reads.SHARDED


def test_fast_storage_needs_no_measurement_of_the_network() -> None:
    assert is_fast(LOAD, 4, 2 * GB) and not is_fast(LOAD, 4, 1 * GB)


@pytest.mark.parametrize("world", [1, 2, 3, 512])
def test_forecasts_are_finite_and_grow_with_the_load(world: int) -> None:
    rates = Rates(storage_each=1 * GB, storage_all=4 * GB)
    small, large = seconds(world, rates, Load(1, 1)), seconds(world, rates)
    assert all(0 <= small[mode] < large[mode] < math.inf for mode in small)


MEASURED = tomllib.loads((GOLDEN / "cluster_measured.toml").read_text())


@pytest.mark.parametrize("storage", ["limited", "disk"])
@pytest.mark.parametrize("world", [2, 3, 4])
def test_forecasts_are_near_what_was_measured(storage: str, world: int) -> None:
    facts, load = MEASURED[storage], Load(int(MEASURED["bytes"]), int(MEASURED["bytes"]))
    rates = Rates(
        facts["storage_each"], facts["storage_all"], exchange_all=facts["exchange_all"], passes=facts["passes"]
    )
    expected = seconds(world, rates, load)
    found = {mode: values[world - 2] for mode, values in facts["seconds"].items()}
    for mode, value in found.items():
        assert value / facts["within"] <= expected[mode] <= value * facts["within"], (mode, expected[mode], value)
    # What matters: the mode that is taken is the fastest one, or as good as that.
    usual = Reads.SHARDED if storage == "limited" else Reads.EVERY_WORKER
    chosen = best(forecast(load, world, rates), usual).mode.value
    assert found[chosen] <= 1.1 * min(found.values())
