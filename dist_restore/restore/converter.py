"""A checkpoint and rules -> a new TensorFlow checkpoint, tensor by tensor. No variable is written.

The new checkpoint has the keys and the object graph of what it is made for, so that TensorFlow restores it like any
other.
"""

from __future__ import annotations

import contextlib
import functools
import os
import time
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from dist_restore.checkpoints.files.files import is_remote
from dist_restore.checkpoints.open import PathLike, Paths, open_checkpoint, resolve_path
from dist_restore.checkpoints.reader import Source
from dist_restore.core import crc32c as checksum
from dist_restore.core.arrays import bytes_of
from dist_restore.core.errors import RestoreError
from dist_restore.core.gc_pause import uncollected
from dist_restore.core.index import TargetIndex
from dist_restore.core.options import Order, RestoreConfig, Unmatched, choice
from dist_restore.engine.pipeline import stream
from dist_restore.engine.read_tasks import load_all
from dist_restore.engine.units import make_units
from dist_restore.engine.values import Value
from dist_restore.ops import Live
from dist_restore.planning.entries import PlanEntry
from dist_restore.planning.inverse_plan import inverse_of_plan
from dist_restore.planning.plan import RestorePlan
from dist_restore.planning.planner import Options, resolve
from dist_restore.planning.refusal import refuse_problems
from dist_restore.planning.rules.rule_set import RuleSet, RulesLike
from dist_restore.planning.sides import as_sources, as_targets, only_values
from dist_restore.planning.validate import require_checkpoint, require_targets
from dist_restore.report.conversion import ConversionReport
from dist_restore.report.progress import Progress, progress
from dist_restore.restore import template as templates
from dist_restore.restore.bundle_writer import BundleWriter, update_latest
from dist_restore.restore.template import Template
from dist_restore.targets.targets import Restorable, find_targets
from dist_restore.tf_internals.host_memory import tensor_of

# A thousand data files are enough; below that they are as large as a quarter of the budget.
_MOST_FILES = 1000


class CheckpointConverter:
    """Writes what a restore would fill in as a new checkpoint, without restoring.

    Args:
      target: live objects, as for `DistributedRestorer`; they keep their values. Either this or `like`.
      like: another TensorFlow checkpoint, whose names, shapes, dtypes and object graph the new one gets.
      rules: as for `DistributedRestorer`.
      invert_rules: run the rules backwards: they lead from `target` or `like` to what is converted. Decided with all
        shapes at hand, so that everything has an inverse that loses nothing.
      unmatched: `error` refuses targets that nothing fills; `keep` writes their present value, or that of `like`.
      order: as for `DistributedRestorer`.
      memory_budget: bytes of tensors in flight.
      overwrite: whether a checkpoint of the same prefix may be replaced.
      latest: whether the new checkpoint becomes its directory's latest one, in the file `checkpoint`.
      progress: force the progress bar on or off; by default it shows on long conversions in a terminal.

    Raises:
      ValueError: an option that is not known, or not just one of `target` and `like`.
      RuleError: rules that cannot be read.
    """

    def __init__(
        self,
        target: Restorable | None = None,
        *,
        like: PathLike | None = None,
        rules: RulesLike = None,
        invert_rules: bool = False,
        unmatched: str = "error",
        order: str = "accept",
        memory_budget: int = 256 << 20,
        overwrite: bool = False,
        latest: bool = False,
        progress: bool | None = None,
    ) -> None:
        if (target is None) == (like is None):
            raise ValueError("Give either target (live objects) or like (another checkpoint).")
        self._target, self._like = target, like
        self._rules, self._invert = RuleSet.of(rules), invert_rules
        self._config = RestoreConfig(
            unmatched=choice(Unmatched, unmatched, "unmatched"),
            order=choice(Order, order, "order"),
            memory_budget=memory_budget,
            progress=progress,
        )
        self._overwrite, self._latest = overwrite, latest

    def plan(self, path: Paths) -> RestorePlan:
        """The dry run: reads no tensor data and writes nothing.

        Raises:
          RestoreError: as `DistributedRestorer.plan`, for the checkpoint or for `like`.
          RuleError: also for rules that are to be run backwards and cannot be.
        """
        with uncollected(), contextlib.closing(open_checkpoint(path)) as source:
            return self._resolve(source, self._targets())

    def convert(self, path: Paths, to: PathLike) -> ConversionReport:
        """Plans, reads, transforms and writes. What was read is checked before the new checkpoint appears.

        Args:
          path: what `DistributedRestorer.restore` takes.
          to: prefix of the new checkpoint, such as `/runs/v2/ckpt-1`.

        Raises:
          RestoreError: any of the tree in `errors`; nothing was written then, and what was there is still there.
        """
        with uncollected():
            return self._convert(path, os.fspath(to), None)

    def apply(self, plan: RestorePlan, path: Paths, to: PathLike) -> ConversionReport:
        """As `convert`, by a plan that was made before, here or by a `DistributedRestorer` of the same target.

        Raises:
          PlanMismatchError: the plan was made for another target or for another checkpoint.
          RestoreError: as `convert`.
        """
        with uncollected():
            return self._convert(path, os.fspath(to), plan)

    def _convert(self, path: Paths, to: str, given: RestorePlan | None) -> ConversionReport:
        start = time.perf_counter()
        with contextlib.closing(open_checkpoint(path)) as source:
            targets = self._targets()
            plan = given or self._resolve(source, targets)
            require_targets(plan, targets)
            require_checkpoint(plan, source.index())
            refuse_problems(plan)
            self._refuse_own(path, to)
            with BundleWriter(to, self._group(plan), overwrite=self._overwrite) as writer:
                with self._template(writer.folder) as template:
                    self._write(plan, source, template, writer)
                    names = {e.target for e in plan.entries} - template.keys.keys()
                    kept_is, copied, not_saved = template.kept_is, template.copied(), tuple(sorted(names))
                size = writer.publish()
        if self._latest:
            update_latest(to)
        return ConversionReport(plan, to, kept_is, copied, not_saved, size, time.perf_counter() - start)

    def _targets(self) -> TargetIndex:
        if self._like is not None:
            with templates.like(self._like) as template:
                return template.targets
        assert self._target is not None
        return only_values(find_targets(templates.checkpoint_of(self._target)).index)

    def _resolve(self, source: Source, targets: TargetIndex) -> RestorePlan:
        rules = self._rules_back(source, targets) if self._invert else self._rules
        options = Options(
            keep_unmatched=self._config.unmatched is Unmatched.KEEP,
            verify_slices=True,
            refuse_order=self._config.order is Order.REFUSE,
        )
        return resolve(source.index(), targets, rules, options)

    def _rules_back(self, source: Source, targets: TargetIndex) -> RuleSet:
        """The way there is planned from names and shapes alone, and then undone."""
        there = resolve(as_sources(targets), as_targets(source.index()), self._rules, Options())
        return inverse_of_plan(there, self._rules)

    @contextlib.contextmanager
    def _template(self, folder: str) -> Iterator[Template]:
        if self._like is not None:
            with templates.like(self._like) as template:
                yield template
        else:
            assert self._target is not None
            with templates.live(self._target, folder) as template:
                yield template

    def _group(self, plan: RestorePlan) -> int:
        total = sum(e.bytes for e in plan.entries)
        return max(1, self._config.memory_budget // 4, total // _MOST_FILES)

    def _refuse_own(self, path: Paths, to: str) -> None:
        """The files that are read are never written, whatever may be overwritten."""
        found = resolve_path(path)
        read = [found] if isinstance(found, str) else list(found.values())
        for name in read if self._like is None else [*read, resolve_path(self._like)]:
            if _overlaps(name, to):
                raise RestoreError(f"{to!r} is what is read from ({name!r}). Write the new checkpoint elsewhere.")

    def _write(self, plan: RestorePlan, source: Source, template: Template, writer: BundleWriter) -> None:
        templates.require_saved(template, [e.target for e in plan.entries if e.filled])
        with progress(sum(e.bytes for e in plan.entries), self._config.progress, "convert") as bar:
            self._write_filled(plan, source, template, writer, bar)
            for entry in plan.entries:
                key = template.keys.get(entry.target)
                if not entry.filled and key is not None:
                    _copy(template, key, writer)
                    bar.advance(entry.bytes, entry.target)
            for key in template.not_planned():
                _copy(template, key, writer)

    def _write_filled(
        self, plan: RestorePlan, source: Source, template: Template, writer: BundleWriter, bar: Progress
    ) -> None:
        def live_of(entry: PlanEntry) -> Live:
            return functools.partial(template.read, template.keys[entry.target])

        works = load_all(make_units(plan.entries), source, live_of)
        with contextlib.closing(stream(works, self._config.memory_budget // 4)) as results:
            for values in results:
                while values:  # each is let go when it is written
                    value = values.pop()
                    entry = value.entry
                    writer.add(template.keys[entry.target], _tensor(value), entry.spec, _crc(value))
                    bar.advance(entry.bytes, entry.target)


def _copy(template: Template, key: str, writer: BundleWriter) -> None:
    writer.add(key, template.read_tensor(key), template.entries[key].spec, template.crc32c(key))


def _tensor(value: Value) -> tf.Tensor:
    return tensor_of(value.buffer, tf.as_dtype(value.entry.spec.dtype))


def _crc(value: Value) -> int | None:
    if value.crc32c is not None or value.entry.spec.dtype == "string":
        return value.crc32c
    return checksum.extend(0, bytes_of(np.asarray(value.buffer.array, order="C")))


def _overlaps(path: str, to: str) -> bool:
    """Whether files of the prefix `to` are, or lie in, what is at a path."""
    if is_remote(path) or is_remote(to):
        return path.rstrip("/") == to
    real = os.path.realpath(path)
    mine = [os.path.realpath(name) for name in (to, f"{to}.index")]
    return real in mine or (os.path.isdir(real) and mine[0].startswith(f"{real}{os.sep}"))
