"""Which workers read the files: as asked for, or with `reads="auto"` what takes least. Called by all workers."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

from dist_restore.checkpoints.files.mounts import are_local
from dist_restore.checkpoints.reader import Source
from dist_restore.core.options import Reads
from dist_restore.core.text import human_bytes
from dist_restore.distribute.communicator import Communicator
from dist_restore.distribute.decisions import Measured, Reading
from dist_restore.distribute.forecast import SLOWEST_EXCHANGE, Forecast, Load, Rates, best, forecast, is_fast, load_of
from dist_restore.distribute.rates import exchange_rate, storage_rate
from dist_restore.engine.located import locate
from dist_restore.engine.units import Unit

_PHASE = "choose"
# Where there is less to read, it does not matter who does.
_LITTLE = 4 << 20

_Choice = tuple[Reads, str]


@dataclasses.dataclass(frozen=True, slots=True)
class View:
    """What one worker knows when it is time to choose.

    Attributes:
      units: of the plan.
      source: the opened checkpoint; None where this worker does not see it.
      readers: ranks that see it, ascending; the chief always does.
      memory_budget: bytes of values under way, of which buckets are a part.
      seconds: how long to wait for other workers.
    """

    units: tuple[Unit, ...]
    source: Source | None
    readers: tuple[int, ...]
    memory_budget: int
    seconds: float


def choose_reading(communicator: Communicator, wanted: Reads, view: View) -> Reading:
    """What all workers do, the same for all: the chief decides.

    Args:
      communicator: to the other workers.
      wanted: the option.
      view: of this worker.
    """
    if communicator.world_size == 1:
        return Reading(Reads.EVERY_WORKER, "there is one worker, which reads all that the plan needs", (0,))
    mode, reason = (wanted, "it was asked for") if wanted is not Reads.AUTO else _automatic(communicator, view)
    readers = {Reads.EVERY_WORKER: tuple(range(communicator.world_size)), Reads.CHIEF: (0,)}.get(mode, view.readers)
    order = _file_order(view) if communicator.rank == 0 else ()
    return Reading.unpack(communicator.broadcast(Reading(mode, reason, readers, order).pack(), _PHASE))


def _file_order(view: View) -> tuple[int, ...]:
    assert view.source is not None
    numbers = {id(unit): number for number, unit in enumerate(view.units)}
    return tuple(numbers[id(item.unit)] for item in locate(view.units, view.source))


def _automatic(communicator: Communicator, view: View) -> _Choice:
    if view.readers == (0,):
        return Reads.CHIEF, "only the chief sees the files, or nothing proves that those of others are the same"
    blind = sorted(set(range(communicator.world_size)) - set(view.readers))
    if blind:
        return Reads.SHARDED, f"worker(s) {', '.join(map(str, blind))} do not see the files"
    load = load_of(view.units)
    if load.read < _LITTLE:
        return Reads.EVERY_WORKER, f"{human_bytes(load.read)} is too little to share"
    return _measured(communicator, view, load)


def _measured(communicator: Communicator, view: View, load: Load) -> _Choice:
    assert view.source is not None
    local = are_local(view.source.index().paths)
    communicator.gather(b"", _PHASE)  # all begin at once: storage that is shared must be asked by all at the same time
    with communicator.phase(_PHASE):
        rate = storage_rate(view.units, view.source, communicator.rank, communicator.world_size, load.read)
    found = [Measured.unpack(data) for data in communicator.gather(Measured(rate, local).pack(), _PHASE)]
    slowest, local = min(m.storage for m in found), all(m.local for m in found)
    if not slowest:
        mode = Reads.EVERY_WORKER if local else Reads.SHARDED
        return mode, f"the storage is {'local' if local else 'remote'}; no sample of it could be read"
    if is_fast(load, communicator.world_size, slowest):
        return Reads.EVERY_WORKER, f"every worker reads {human_bytes(slowest)}/s, which no exchange would beat"
    rates = Rates(slowest, slowest * communicator.world_size, SLOWEST_EXCHANGE, passes=2 if local else 1)
    forecasts = forecast(load, communicator.world_size, rates)
    if best(forecasts, usual=Reads.EVERY_WORKER).mode is Reads.SHARDED:
        return Reads.SHARDED, f"{_explain(forecasts, rates)}; the exchange was not measured, and is hardly slower"
    with communicator.phase(_PHASE):
        passed = exchange_rate(
            communicator.exchange(view.readers), communicator.world_size, view.memory_budget, view.seconds
        )
    network = min(json.loads(data) for data in communicator.gather(json.dumps(passed).encode(), _PHASE))
    rates = dataclasses.replace(rates, exchange_each=network)
    forecasts = forecast(load, communicator.world_size, rates)
    chosen = best(forecasts, usual=Reads.EVERY_WORKER if local else Reads.SHARDED)
    return chosen.mode, _explain(forecasts, rates)


def _explain(forecasts: Sequence[Forecast], rates: Rates) -> str:
    expected = ", ".join(f"{f.mode.value} {f.seconds:.2f} s" for f in forecasts)
    return (
        f"expected are {expected}, at {human_bytes(rates.storage_each)}/s from storage and "
        f"{human_bytes(rates.exchange_each)}/s from other workers, for each worker"
    )
