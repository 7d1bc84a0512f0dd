"""One plan or restore from begin to end: plan on the chief, agree, check, assign, verify. Called by all workers.

`RestoreRun.restore` is the way of the data, downward. A phase is a block that every worker runs: a failure of one is
an error of all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack

import numpy as np
import tensorflow as tf
from absl import logging

from dist_restore.checkpoints.files.mounts import are_local
from dist_restore.checkpoints.open import Paths, Resolved, open_checkpoint, resolve_path
from dist_restore.checkpoints.reader import SceneSource, Source
from dist_restore.core.errors import CheckpointNotFoundError, RestoreError
from dist_restore.core.options import Order, Reads, RestoreConfig, Unmatched, Verify
from dist_restore.core.phases import during
from dist_restore.distribute.communicator import communicator_for
from dist_restore.distribute.decisions import Acknowledgement, Decision, Reading
from dist_restore.distribute.hosts.hosts import Remote
from dist_restore.distribute.messaging.liveness import scaled
from dist_restore.distribute.read_mode import View, choose_reading
from dist_restore.distribute.shared.assign_shared import assign_shared
from dist_restore.distribute.shared.schedule import make_schedule
from dist_restore.distribute.shared.strings import is_string, parse_strings, read_strings
from dist_restore.engine.assign_pass import assign_units
from dist_restore.engine.budget import Limits
from dist_restore.engine.check_pass import Checked, check_sources
from dist_restore.engine.ledger import Ledger, live_values
from dist_restore.engine.units import Unit, make_units
from dist_restore.engine.verify_pass import require_equal, verify_replicas
from dist_restore.planning.plan import RestorePlan
from dist_restore.planning.planner import Options, resolve
from dist_restore.planning.rules.rule_set import RuleSet
from dist_restore.planning.validate import require_targets
from dist_restore.report import tensorboard
from dist_restore.report.progress import Progress, progress
from dist_restore.report.report import RestoreReport
from dist_restore.restore.agreement import acknowledge, require_alike
from dist_restore.restore.announcing import announce
from dist_restore.restore.clock import PhaseClock
from dist_restore.restore.objects import filled_objects, restore_objects
from dist_restore.targets.assigner import Assigned, Assigner
from dist_restore.targets.targets import Restorable, Targets, find_targets, guess_strategy


class RestoreRun:
    """One plan or one restore. Used once.

    Args:
      target: what is restored into.
      strategy: where its variables live; taken from them when None.
      read_rules: gives the rules, which say which names changed; raises where this worker could not read them.
      config: the options.
    """

    def __init__(
        self,
        target: Restorable,
        strategy: tf.distribute.Strategy | None,
        read_rules: Callable[[], RuleSet],
        config: RestoreConfig,
    ) -> None:
        self._target, self._given, self._strategy = target, strategy, guess_strategy(target, strategy)
        self._read_rules, self._config = read_rules, config
        self._communicator = communicator_for(self._strategy, config.timeout)
        self._clock = PhaseClock(self._communicator)
        self._open_files = ExitStack()

    def plan(self, path: Paths) -> RestorePlan:
        """See `DistributedRestorer.plan`."""
        with self._open_files, self._communicator:
            targets, rules = self._find()
            decision, _ = self._decide(path, None, targets, rules)
            if self._communicator.world_size > 1:  # what one process planned out of its own variables is of these
                with self._clock.phase("agree"):
                    require_targets(decision.plan, targets.index)
            return decision.plan

    def restore(self, path: Paths, given: RestorePlan | None) -> RestoreReport:
        """See `DistributedRestorer.restore` and `apply`."""
        with self._open_files, self._communicator:
            targets, rules = self._find()
            decision, source = self._decide(path, given, targets, rules)
            source, said = self._agree(decision, given, targets, source)
            targets = _forget_scenes(targets, source)
            units = make_units(decision.plan.entries)
            reading = self._choose(units, source, said)
            remote = self._other_hosts(units, source, targets)
            checked = self._check(remote.client_reads, source, reading, keeps=not remote.is_needed)
            self._check_remote(remote, source, units)
            objects = self._restore_objects(decision.plan, source, targets)
            assigned = self._assign(remote, source, reading, targets, checked, objects)
            self._verify(remote, assigned, targets)
            return self._report(decision.plan, source, reading, assigned, remote, targets)

    def _find(self) -> tuple[Targets, RuleSet]:
        with self._clock.phase("resolve"):
            _require_eager()
            rules = self._read_rules()
            targets = find_targets(self._target, self._given)
            if targets.strategy is not self._strategy:
                raise RestoreError(
                    f"The variables live under {type(targets.strategy).__name__}, and the first of them do not. "
                    "Pass strategy= to DistributedRestorer."
                )
        return targets, rules

    # What the chief decides, and everybody agrees to.

    def _decide(
        self, path: Paths, given: RestorePlan | None, targets: Targets, rules: RuleSet
    ) -> tuple[Decision, Source | None]:
        """The path is resolved and the plan made once, on the chief; all get both, and the chief its open files."""
        mine: Decision | None = None
        source: Source | None = None
        with self._clock.phase("resolve"):
            if self._communicator.rank == 0:
                resolved = resolve_path(path)
                source = self._open(resolved)
                mine = Decision(resolved, given or resolve(source.index(), targets.index, rules, self._options()))
        if mine is not None and self._communicator.world_size == 1:
            return mine, source
        with self._clock.phase("broadcast"):
            packed = mine.pack() if mine is not None else b""
        data = self._communicator.broadcast(packed, "broadcast", len(packed))
        with self._clock.phase("broadcast"):
            decision = Decision.unpack(data)
        return decision, source

    def _options(self) -> Options:
        return Options(
            keep_unmatched=self._config.unmatched is Unmatched.KEEP,
            verify_slices=self._config.verify_slices,
            refuse_order=self._config.order is Order.REFUSE,
        )

    def _open(self, path: Resolved) -> Source:
        source = open_checkpoint(path)
        self._open_files.callback(source.close)
        return source

    def _agree(
        self, decision: Decision, given: RestorePlan | None, targets: Targets, source: Source | None
    ) -> tuple[Source | None, tuple[Acknowledgement, ...]]:
        """What each worker says of the decision, and the files that it sees."""
        with self._clock.phase("agree"):
            source = source or self._look(decision.path)
            mine = acknowledge(decision.plan, given, targets.index, source, self._config, self._communicator.world_size)
            if self._config.log_dir and self._communicator.rank == 0:
                tensorboard.require_writable(self._config.log_dir)
        said = tuple(Acknowledgement.unpack(data) for data in self._communicator.gather(mine.pack(), "agree"))
        with self._clock.phase("agree"):
            require_alike(mine, said[0], decision.path)
        return source, said

    def _look(self, path: Resolved) -> Source | None:
        """Opens the chief's checkpoint here, where this worker may have to read it; None where it is not to be seen."""
        if self._config.reads is Reads.CHIEF:
            return None
        try:
            return self._open(path)
        except CheckpointNotFoundError:
            if self._config.reads is Reads.EVERY_WORKER:
                raise
            return None

    def _choose(self, units: tuple[Unit, ...], source: Source | None, said: Sequence[Acknowledgement]) -> Reading:
        with self._clock.timed("choose"):
            readers = tuple(rank for rank, a in enumerate(said) if a.identity and (rank == 0 or a.may_read))
            view = View(units, source, readers, self._config.memory_budget, self._config.timeout)
            reading = choose_reading(self._communicator, self._config.reads, view)
        if self._communicator.rank == 0 and self._communicator.world_size > 1:
            logging.info("dist_restore: reads=%s, because %s", reading.mode.value, reading.reason)
        return reading

    def _other_hosts(self, units: tuple[Unit, ...], source: Source | None, targets: Targets) -> Remote:
        """What devices of other hosts hold that this program drives; nothing where there are several programs."""
        with self._clock.phase("choose"):
            limits = Limits(self._config.memory_budget, self._config.timeout)
            remote = Remote(units, source, dict(targets.handles), Assigner(self._strategy), limits)
        if self._communicator.world_size > 1 and remote.is_needed:
            raise RestoreError("Variables of a cluster of several programs are on devices of other programs.")
        return remote

    # Carrying it out.

    def _check(
        self, units: tuple[Unit, ...], source: Source | None, reading: Reading, *, keeps: bool
    ) -> Checked | None:
        """Where storage is local, reading twice costs little, and nothing changes where a byte is wrong.

        Shared reads are read once: what is wrong is found before its tensor is assigned anywhere.
        """
        if self._config.verify is Verify.NONE or reading.mode is Reads.SHARDED:
            return None
        checked: Checked | None = None
        keeps = keeps and reading.mode is Reads.EVERY_WORKER  # else others may assign it
        size = sum([r.spec.nbytes for u in units for r in u.reads])
        with self._clock.phase("check", size):
            if source is not None and self._communicator.rank in reading.readers and _is_local(source):
                with during("read"), self._progress("check", size) as bar:
                    checked = check_sources(units, source, bar, self._config.memory_budget, keeps=keeps)
        return checked

    def _check_remote(self, remote: Remote, source: Source | None, units: tuple[Unit, ...]) -> None:
        if self._config.verify is Verify.NONE or not remote.other_hosts_read:
            return
        if source is not None and _is_local(source):
            size = sum(r.spec.nbytes for u in units for r in u.reads)
            with self._progress("check", size) as bar, self._clock.phase("check"):
                remote.check(bar)

    def _restore_objects(self, plan: RestorePlan, source: Source | None, targets: Targets) -> tuple[str, ...]:
        """Tables and iterators; gives their names."""
        entries = filled_objects(plan.entries)
        with self._clock.timed("assign"):
            restore_objects(entries, dict(targets.objects), source, self._communicator)
        return tuple(e.target for e in entries)

    def _assign(
        self,
        remote: Remote,
        source: Source | None,
        reading: Reading,
        targets: Targets,
        checked: Checked | None,
        objects: Sequence[str],
    ) -> list[Assigned]:
        units = remote.local
        size = sum(e.bytes for u in units for e in u.entries)
        with self._progress("restore", size) as bar:
            ledger = Ledger(dict(targets.handles), self._assigner(), bar)
            ledger.touch(objects)
            if reading.mode is Reads.EVERY_WORKER:
                assert source is not None
                with self._clock.phase("assign", size):
                    live_of = live_values(units, ledger)
                    assign_units(units, source, ledger, live_of, self._config.memory_budget, checked)
            else:
                self._assign_shared(units, source, reading, ledger, size)
            if remote.is_needed:
                with self._clock.phase("assign", size):
                    remote.assign(ledger)
        return ledger.assigned

    def _assign_shared(
        self, units: tuple[Unit, ...], source: Source | None, reading: Reading, ledger: Ledger, size: int
    ) -> None:
        """Strings, of which there are few if any, come first: nothing has changed where they cannot be read."""
        ordered = [units[number] for number in reading.order]
        self._assign_strings([unit for unit in ordered if is_string(unit)], source, ledger)
        ordered = [unit for unit in ordered if not is_string(unit)]
        schedule = make_schedule(
            ordered, reading.readers, self._communicator.world_size, self._config.memory_budget // 2
        )
        largest = max((unit.nbytes for unit in ordered), default=0)
        limits = Limits(self._config.memory_budget, scaled(self._config.timeout, largest))
        exchange = self._communicator.exchange(reading.readers)
        with self._clock.phase("assign", size):
            live_of = live_values(ordered, ledger)
            done = assign_shared(schedule, self._communicator.rank, source, ledger, live_of, exchange, limits)
        if not done:
            raise RestoreError(f"internal: another worker stopped, and nobody said why. {ledger.changed()}")

    def _assign_strings(self, units: Sequence[Unit], source: Source | None, ledger: Ledger) -> None:
        if not units:
            return
        data = b""
        with self._clock.phase("read"):
            if source is not None and self._communicator.rank == 0:
                data = read_strings(units, source)
        data = self._communicator.broadcast(data, "read", len(data))
        with self._clock.phase("assign"), ledger.accounting():
            ledger.assign(parse_strings(units, data))

    # Afterwards.

    def _verify(self, remote: Remote, assigned: list[Assigned], targets: Targets) -> None:
        if self._config.verify is not Verify.REPLICAS:
            return
        here = remote.only_local(assigned)
        with self._clock.phase("verify", sum(a.nbytes for a in here)):
            verify_replicas(here, dict(targets.handles), self._assigner())
        if self._communicator.world_size > 1:
            mine = sorted((a.name, a.crc32c) for a in here)
            chiefs = self._communicator.broadcast(np.array([crc for _, crc in mine], "<u4").tobytes(), "verify")
            with self._clock.phase("verify"):
                require_equal(mine, np.frombuffer(chiefs, "<u4").tolist())
        if remote.is_needed:
            with self._clock.phase("verify"):
                remote.verify()

    def _report(
        self,
        plan: RestorePlan,
        source: Source | None,
        reading: Reading,
        assigned: list[Assigned],
        remote: Remote,
        targets: Targets,
    ) -> RestoreReport:
        read = remote.bytes_read + (source.bytes_read if source else 0)
        counts = self._communicator.gather(str(read).encode(), "report")
        report = RestoreReport(
            plan=plan,
            seconds=self._clock.chiefs(),
            bytes_read=tuple(int(count) for count in counts),
            reads=reading.mode.value,
            reads_reason=remote.reason or reading.reason,
            verify=self._config.verify.value,
            verified=self._config.verify is not Verify.NONE,
            hashes=tuple(sorted((a.name, f"{a.crc32c:08x}") for a in assigned)),
            world_size=self._communicator.world_size,
            formats=self._chiefs_formats(source),
        )
        with self._communicator.phase("report"):
            if self._communicator.rank == 0:
                announce(report, self._config.log_dir, dict(targets.handles), self._assigner())
        return report

    def _chiefs_formats(self, source: Source | None) -> tuple[str, ...]:
        mine = " ".join(source.index().formats) if source else ""
        return tuple(self._communicator.broadcast(mine.encode(), "report").decode().split())

    def _assigner(self) -> Assigner:
        return Assigner(self._strategy, self._communicator.rank, self._communicator.world_size)

    def _progress(self, title: str, total: int) -> AbstractContextManager[Progress]:
        enabled = self._config.progress if self._communicator.rank == 0 else False
        return progress(total, enabled, title)


def _require_eager() -> None:
    if not tf.executing_eagerly():
        raise RestoreError(
            "A restore assigns variables at once, and cannot be a part of a graph: call plan(), restore() and apply() "
            "outside of tf.function and of tf.Graph, before the first training step."
        )


def _forget_scenes(targets: Targets, source: Source | None) -> Targets:
    """The plan is made: both object graphs go, 30 MB of 185 with 50,000 variables."""
    if isinstance(source, SceneSource):
        source.forget_scene()
    return targets.without_scene()


def _is_local(source: Source) -> bool:
    return are_local(source.index().paths)
