"""One plan or restore from begin to end: plan on the chief, agree, check, assign, verify. Called by all workers."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import TypeVar

import numpy as np
import tensorflow as tf
from absl import logging

from dist_restore.checkpoints.files.mounts import are_local
from dist_restore.checkpoints.open import Paths, Resolved, open_checkpoint, resolve_path
from dist_restore.checkpoints.reader import Source
from dist_restore.core.errors import CheckpointNotFoundError, PlanMismatchError, RestoreError, VerificationError
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
from dist_restore.engine.assign_pass import Ledger, Limits, assign_units, check_sources, live_values
from dist_restore.engine.prefetch import Kept
from dist_restore.engine.reading import Located, Values, locate
from dist_restore.engine.units import Unit, make_units
from dist_restore.engine.verify_pass import verify_replicas
from dist_restore.planning.order import refuse_order
from dist_restore.planning.plan import RestorePlan
from dist_restore.planning.planner import Options, resolve
from dist_restore.planning.refusal import refuse_problems
from dist_restore.planning.rules.rule_set import RuleSet
from dist_restore.planning.validate import require_checkpoint, require_targets
from dist_restore.report import tensorboard
from dist_restore.report.progress import Progress, progress
from dist_restore.report.report import PhaseSeconds, RestoreReport
from dist_restore.restore.announcing import announce
from dist_restore.restore.objects import filled_objects, refuse_shared_iterators, restore_objects
from dist_restore.targets.assigner import Assigned, Assigner
from dist_restore.targets.targets import Restorable, Targets, find_targets, guess_strategy

Result = TypeVar("Result")


class Session:
    """One plan or one restore, with its clock. Used once.

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
        self._talk = communicator_for(self._strategy, config.timeout)
        self._stack = ExitStack()
        self._rules = RuleSet()
        self._seconds: list[tuple[str, float]] = []
        self._path: Resolved = ""
        self._source: Source | None = None
        self._located: tuple[tuple[Unit, ...], Sequence[Located]] = ((), ())
        self._kept: Kept | None = None

    def plan(self, path: Paths) -> RestorePlan:
        """See `DistributedRestorer.plan`."""
        with self._stack, self._talk:
            targets = self._run("resolve", self._find)
            plan = self._decide(path, None, targets)
            if self._talk.world_size > 1:  # what one process planned out of its own variables is of these
                self._run("agree", lambda: require_targets(plan, targets.index))
            return plan

    def restore(self, path: Paths, given: RestorePlan | None) -> RestoreReport:
        """See `DistributedRestorer.restore` and `apply`."""
        with self._stack, self._talk:
            targets = self._run("resolve", self._find)
            plan = self._decide(path, given, targets)
            acknowledgements = self._agree(plan, given, targets)
            units = make_units(plan.entries)
            reading = self._choose(units, acknowledgements)
            remote = self._run("choose", lambda: self._other_hosts(units, targets))
            if self._talk.world_size > 1 and remote.is_needed:
                raise RestoreError("Variables of a cluster of several programs are on devices of other programs.")
            self._check(remote.client_reads, reading, keeps=not remote.is_needed)
            self._check_remote(remote, units)
            objects = self._restore_objects(plan, targets)
            assigned = self._assign(remote.local, reading, targets, remote, objects)
            self._verify(remote.only_local(assigned), targets)
            self._verify_remote(remote)
            return self._finish(plan, reading, assigned, remote, targets)

    def _run(self, phase: str, work: Callable[[], Result], nbytes: int = 0) -> Result:
        start = time.perf_counter()
        result = self._talk.run_everywhere(phase, work, nbytes)
        self._seconds.append((phase, time.perf_counter() - start))
        return result

    def _find(self) -> Targets:
        _require_eager()
        self._rules = self._read_rules()
        targets = find_targets(self._target, self._given)
        if targets.strategy is not self._strategy:
            raise RestoreError(
                f"The variables live under {type(targets.strategy).__name__}, and the first of them do not. "
                "Pass strategy= to DistributedRestorer."
            )
        return targets

    # What the chief decides, and everybody agrees to.

    def _decide(self, path: Paths, given: RestorePlan | None, targets: Targets) -> RestorePlan:
        """The path is resolved and the plan made once, on the chief; all get both."""
        plan = self._run("resolve", lambda: self._decide_alone(path, given, targets))
        if self._talk.world_size == 1:
            assert plan is not None
            return plan
        mine = self._run("broadcast", lambda: Decision(self._path, plan).pack() if plan is not None else b"")
        data = self._talk.broadcast(mine, "broadcast", len(mine))
        decision = self._run("broadcast", lambda: Decision.unpack(data))
        self._path = decision.path
        return decision.plan

    def _decide_alone(self, path: Paths, given: RestorePlan | None, targets: Targets) -> RestorePlan | None:
        if self._talk.rank != 0:
            return None
        self._path = resolve_path(path)
        source = self._open()
        options = Options(
            keep_unmatched=self._config.unmatched is Unmatched.KEEP,
            verify_slices=self._config.verify_slices,
            refuse_order=self._config.order is Order.REFUSE,
        )
        return given or resolve(source.index(), targets.index, self._rules, options)

    def _open(self) -> Source:
        self._source = open_checkpoint(self._path)
        self._stack.callback(self._source.close)
        return self._source

    def _agree(self, plan: RestorePlan, given: RestorePlan | None, targets: Targets) -> tuple[Acknowledgement, ...]:
        """All that names, shapes and dtypes can show is refused here, before a byte of weights is read."""
        mine = self._run("agree", lambda: self._acknowledge(plan, given, targets))
        found = tuple(Acknowledgement.unpack(data) for data in self._talk.gather(mine.pack(), "agree"))
        self._run("agree", lambda: self._compare(mine, found[0]))
        return found

    def _acknowledge(self, plan: RestorePlan, given: RestorePlan | None, targets: Targets) -> Acknowledgement:
        if given is not None and given is not plan and given.digest != plan.digest:
            raise PlanMismatchError(
                f"The chief applies the plan {plan.digest[:12]}, and this worker {given.digest[:12]}."
            )
        source = self._source or self._look()
        # What a single process planned a moment ago, out of these two, need not be compared with them: 4 us a variable.
        if given is not None or self._talk.world_size > 1:
            require_targets(plan, targets.index)
            if source is not None:
                require_checkpoint(plan, source.index())
        refuse_problems(self._as_allowed(plan, given))
        refuse_shared_iterators(plan.entries, self._talk.world_size)
        if self._config.log_dir and self._talk.rank == 0:
            tensorboard.require_writable(self._config.log_dir)
        # One worker has nobody to compare it with, and for 50,000 variables it takes 0.3 s.
        digest = plan.digest if self._talk.world_size > 1 else ""
        # Without checksums equal samples are no proof, and the chief alone reads, unless others were told to.
        may_read = source is not None and (source.is_proof() or self._config.reads is not Reads.AUTO)
        return Acknowledgement(digest, source.identity() if source else "", may_read, self._options())

    def _as_allowed(self, plan: RestorePlan, given: RestorePlan | None) -> RestorePlan:
        """A plan that was made before may rest on more than this restorer allows."""
        if given is None or self._config.order is not Order.REFUSE:
            return plan
        return dataclasses.replace(plan, entries=tuple(refuse_order(plan.entries)))

    def _look(self) -> Source | None:
        """Opens the chief's checkpoint here, where this worker may have to read it; None where it is not to be seen."""
        if self._config.reads is Reads.CHIEF:
            return None
        try:
            return self._open()
        except CheckpointNotFoundError:
            if self._config.reads is Reads.EVERY_WORKER:
                raise
            return None

    def _options(self) -> str:
        config = self._config
        return f"reads={config.reads.value} verify={config.verify.value} memory_budget={config.memory_budget}"

    def _compare(self, mine: Acknowledgement, chiefs: Acknowledgement) -> None:
        if mine.digest != chiefs.digest:
            raise PlanMismatchError(f"The chief has the plan {chiefs.digest[:12]}, and this worker {mine.digest[:12]}.")
        if mine.options != chiefs.options:
            raise PlanMismatchError(
                f"This worker's restorer has {mine.options}, the chief's {chiefs.options}. Give all workers the same."
            )
        if mine.identity and mine.identity != chiefs.identity:
            raise PlanMismatchError(
                f"{self._path}: this worker sees other files under this path than the chief (their checksums or sizes "
                "differ). Copy the chief's there, remove them, or pass reads='chief'."
            )

    def _choose(self, units: tuple[Unit, ...], acknowledgements: Sequence[Acknowledgement]) -> Reading:
        start = time.perf_counter()
        readers = tuple(rank for rank, a in enumerate(acknowledgements) if a.identity and (rank == 0 or a.may_read))
        view = View(units, self._source, readers, self._config.memory_budget, self._config.timeout)
        reading = choose_reading(self._talk, self._config.reads, view)
        self._seconds.append(("choose", time.perf_counter() - start))
        if self._talk.rank == 0 and self._talk.world_size > 1:
            logging.info("dist_restore: reads=%s, because %s", reading.mode.value, reading.reason)
        return reading

    # Carrying it out.

    def _check(self, units: tuple[Unit, ...], reading: Reading, *, keeps: bool) -> None:
        """Where storage is local, reading twice costs little, and nothing changes where a byte is wrong.

        Shared reads are read once: what is wrong is found before its tensor is assigned anywhere.
        """
        if self._config.verify is not Verify.NONE and reading.mode is not Reads.SHARDED:
            keeps = keeps and reading.mode is Reads.EVERY_WORKER  # else others may assign it
            size = sum([r.spec.nbytes for u in units for r in u.reads])
            self._run("check", lambda: self._check_own(units, reading, size, keeps=keeps), size)

    def _other_hosts(self, units: tuple[Unit, ...], targets: Targets) -> Remote:
        """What devices of other hosts hold that this program drives; nothing where there are several programs."""
        limits = Limits(self._config.memory_budget, self._config.timeout)
        return Remote(units, self._source, dict(targets.handles), Assigner(self._strategy), limits)

    def _check_remote(self, remote: Remote, units: tuple[Unit, ...]) -> None:
        if self._config.verify is not Verify.NONE and remote.other_hosts_read and _are_local(self._source):
            with self._progress("check", sum(r.spec.nbytes for u in units for r in u.reads)) as bar:
                self._run("check", lambda: remote.check(bar))

    def _check_own(self, units: tuple[Unit, ...], reading: Reading, size: int, *, keeps: bool) -> None:
        source = self._source
        if source is None or self._talk.rank not in reading.readers or not _are_local(source):
            return
        with during("read"), self._progress("check", size) as bar:
            located = self._locate(units, source)
            self._kept = check_sources(located, source, bar, self._config.memory_budget, keeps=keeps)

    def _locate(self, units: tuple[Unit, ...], source: Source) -> Sequence[Located]:
        """Where units lie; both passes ask for the same ones."""
        if self._located[0] != units:  # quick where they are the same objects
            self._located = units, locate(units, source)
        return self._located[1]

    def _restore_objects(self, plan: RestorePlan, targets: Targets) -> tuple[str, ...]:
        """Tables and iterators; gives their names."""
        entries = filled_objects(plan.entries)
        start = time.perf_counter()
        restore_objects(entries, dict(targets.objects), self._source, self._talk)
        self._seconds.append(("assign", time.perf_counter() - start))
        return tuple(e.target for e in entries)

    def _assign(
        self, units: tuple[Unit, ...], reading: Reading, targets: Targets, remote: Remote, changed: Sequence[str]
    ) -> list[Assigned]:
        size = sum(e.bytes for u in units for e in u.entries)
        handles = dict(targets.handles)
        assigner = Assigner(self._strategy, self._talk.rank, self._talk.world_size)
        with self._progress("restore", size) as bar:
            ledger = Ledger(handles, assigner, bar)
            for name in changed:
                ledger.touch(name)
            if reading.mode is Reads.EVERY_WORKER:
                self._run("assign", lambda: self._assign_own(units, ledger), size)
            else:
                self._assign_shared(units, reading, ledger, size)
            if remote.is_needed:
                self._run("assign", lambda: remote.assign(ledger), size)
        return ledger.assigned

    def _assign_own(self, units: tuple[Unit, ...], ledger: Ledger) -> None:
        assert self._source is not None
        live_of = live_values(units, ledger)
        located = self._locate(units, self._source)
        kept, self._kept = self._kept, None
        assign_units(located, self._source, ledger, live_of, self._config.memory_budget, kept)

    def _assign_shared(self, units: tuple[Unit, ...], reading: Reading, ledger: Ledger, size: int) -> None:
        ordered = [units[number] for number in reading.order]
        self._assign_strings([unit for unit in ordered if is_string(unit)], ledger)
        ordered = [unit for unit in ordered if not is_string(unit)]
        schedule = make_schedule(ordered, reading.readers, self._talk.world_size, self._config.memory_budget // 2)
        largest = max((unit.nbytes for unit in ordered), default=0)
        limits = Limits(self._config.memory_budget, scaled(self._config.timeout, largest))
        exchange = self._talk.exchange(reading.readers)
        done = self._run(
            "assign",
            lambda: assign_shared(
                schedule, self._talk.rank, self._source, ledger, live_values(ordered, ledger), exchange, limits
            ),
            size,
        )
        if not done:
            raise RestoreError(f"internal: another worker stopped, and nobody said why. {ledger.changed()}")

    def _assign_strings(self, units: Sequence[Unit], ledger: Ledger) -> None:
        """Few if any; before the rest, so that nothing has changed where they cannot be read."""
        if not units:
            return
        source = self._source if self._talk.rank == 0 else None
        data = self._run("read", lambda: read_strings(units, source) if source is not None else b"")
        data = self._talk.broadcast(data, "read", len(data))
        self._run("assign", lambda: _assign_accounted(ledger, parse_strings(units, data)))

    # Afterwards.

    def _verify(self, assigned: list[Assigned], targets: Targets) -> None:
        if self._config.verify is not Verify.REPLICAS:
            return
        size = sum(a.nbytes for a in assigned)
        handles = dict(targets.handles)
        assigner = Assigner(self._strategy, self._talk.rank, self._talk.world_size)
        self._run("verify", lambda: verify_replicas(assigned, handles, assigner), size)
        if self._talk.world_size > 1:
            mine = sorted((a.name, a.crc32c) for a in assigned)
            chiefs = self._talk.broadcast(np.array([crc for _, crc in mine], "<u4").tobytes(), "verify")
            self._run("verify", lambda: _compare_with_chief(mine, np.frombuffer(chiefs, "<u4")))

    def _verify_remote(self, remote: Remote) -> None:
        if self._config.verify is Verify.REPLICAS and remote.is_needed:
            self._run("verify", remote.verify)

    def _finish(
        self, plan: RestorePlan, reading: Reading, assigned: list[Assigned], remote: Remote, targets: Targets
    ) -> RestoreReport:
        read = remote.bytes_read + (self._source.bytes_read if self._source else 0)
        counts = self._talk.gather(str(read).encode(), "report")
        report = RestoreReport(
            plan=plan,
            seconds=self._chiefs_seconds(),
            bytes_read=tuple(int(count) for count in counts),
            reads=reading.mode.value,
            reads_reason=remote.reason or reading.reason,
            verify=self._config.verify.value,
            verified=self._config.verify is not Verify.NONE,
            hashes=tuple(sorted((a.name, f"{a.crc32c:08x}") for a in assigned)),
            world_size=self._talk.world_size,
            formats=self._chiefs_formats(),
        )
        self._talk.run_everywhere("report", lambda: self._announce(report, dict(targets.handles)))
        return report

    def _announce(self, report: RestoreReport, handles: Mapping[str, tf.Variable]) -> None:
        if self._talk.rank == 0:
            assigner = Assigner(self._strategy, self._talk.rank, self._talk.world_size)
            announce(report, self._config.log_dir, handles, assigner)

    def _chiefs_formats(self) -> tuple[str, ...]:
        mine = " ".join(self._source.index().formats) if self._source else ""
        return tuple(self._talk.broadcast(mine.encode(), "report").decode().split())

    def _chiefs_seconds(self) -> PhaseSeconds:
        """The report is the same on all workers."""
        lines = "\n".join(f"{name} {taken!r}" for name, taken in self._seconds)
        text = self._talk.broadcast(lines.encode(), "report").decode()
        return PhaseSeconds(tuple((name, float(taken)) for name, taken in map(str.split, text.splitlines())))

    def _progress(self, title: str, total: int) -> AbstractContextManager[Progress]:
        enabled = self._config.progress if self._talk.rank == 0 else False
        return progress(total, enabled, title)


def _require_eager() -> None:
    if not tf.executing_eagerly():
        raise RestoreError(
            "A restore assigns variables at once, and cannot be a part of a graph: call plan(), restore() and apply() "
            "outside of tf.function and of tf.Graph, before the first training step."
        )


def _are_local(source: Source | None) -> bool:
    return source is not None and are_local(source.index().paths)


def _assign_accounted(ledger: Ledger, values: Values) -> None:
    with ledger.accounting():
        ledger.assign(values)


def _compare_with_chief(mine: Sequence[tuple[str, int]], chiefs: np.ndarray) -> None:
    """Every worker must have assigned the same values."""
    if len(mine) != len(chiefs):
        raise VerificationError(f"this worker assigned {len(mine)} variables, and the chief {len(chiefs)}")
    wrong = tuple(name for (name, crc), other in zip(mine, chiefs.tolist(), strict=True) if crc != other)
    if wrong:
        names = ", ".join(repr(name) for name in wrong[:10])
        raise VerificationError(
            f"{len(wrong)} variable(s) got other values here than on the chief: {names}. The workers read different "
            "bytes, or a memory is faulty. Restore again with reads='chief'.",
            names=wrong,
        )
