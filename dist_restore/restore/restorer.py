"""The public face: a restorer with its options checked. What it does is told in `run`."""

from __future__ import annotations

import os

import tensorflow as tf

from dist_restore.core.gc_pause import uncollected
from dist_restore.core.options import Matching, Order, Reads, RestoreConfig, Unmatched, Verify, choice
from dist_restore.planning.plan import RestorePlan
from dist_restore.planning.rules.rule_set import RulesLike
from dist_restore.report.report import RestoreReport
from dist_restore.restore.given import GivenPaths, path_text, rules_reader
from dist_restore.restore.run import RestoreRun
from dist_restore.targets.targets import Restorable


class DistributedRestorer:
    """Restores a checkpoint into a live, possibly refactored, model and its optimizer under a strategy.

    Args:
      target: a `tf.train.Checkpoint`, `keras.Model`, `tf.Module`, or a mapping of names to trackables or variables.
      rules: a TOML file's path, a `RuleSet`, a list of `Rule`, or a plain `{"old/name": "new/name"}` dict.
      strategy: where the variables live; taken from the variables when None.
      matching: `exact` accepts rules, equal names and what follows from them. `auto` is not built yet.
      unmatched: `error` refuses targets that nothing fills; `keep` lets them keep their present value.
      order: `accept` fills what rests on the order of equal layers alone, where neither side has a name, and says so
        in the plan; `refuse` refuses it.
      reads: which workers read the files: `every_worker`, `chief`, `sharded` (each a share, once), or `auto`, which
        measures and says why; all modes are the same for a single worker.
      verify: `none`, `checksum` (every byte that is read against the stored checksum, before anything changes), or
        `replicas` (besides, what every replica holds afterwards against what was assigned).
      memory_budget: bytes of tensors in flight per worker.
      timeout: seconds that any one wait for another worker may take.
      log_dir: TensorBoard directory, written by the chief alone; None for none.
      verify_slices: read tensors whole of which less than half is needed, so that their checksum can be compared.
      progress: force the progress bar on or off; by default it shows on long restores in a terminal.

    Raises:
      ValueError: an option that is not known.
      RuleError: rules that cannot be read; where several workers restore together, `plan` and `restore` raise it, on
        all of them.
    """

    def __init__(
        self,
        target: Restorable,
        *,
        rules: RulesLike = None,
        strategy: tf.distribute.Strategy | None = None,
        matching: str = "exact",
        unmatched: str = "error",
        order: str = "accept",
        reads: str = "auto",
        verify: str = "replicas",
        memory_budget: int = 256 << 20,
        timeout: float = 600.0,
        log_dir: str | os.PathLike[str] | None = None,
        verify_slices: bool = False,
        progress: bool | None = None,
    ) -> None:
        self._target, self._strategy = target, strategy
        self._read_rules = rules_reader(rules, target, strategy)
        self._config = RestoreConfig(
            matching=choice(Matching, matching, "matching"),
            unmatched=choice(Unmatched, unmatched, "unmatched"),
            order=choice(Order, order, "order"),
            reads=choice(Reads, reads, "reads"),
            verify=choice(Verify, verify, "verify"),
            memory_budget=memory_budget,
            timeout=timeout,
            verify_slices=verify_slices,
            log_dir=os.fspath(log_dir) if log_dir is not None else "",
            progress=progress,
        )
        if self._config.matching is Matching.AUTO:
            raise ValueError(
                "matching='auto' is not built yet. Use 'exact', and paste from plan.suggestions into a rule file."
            )

    def plan(self, path: GivenPaths) -> RestorePlan:
        """The dry run: reads no tensor data and changes no value. Called by all workers.

        Args:
          path: a checkpoint prefix, a file of another format, or a directory or `tf.train.CheckpointManager` (its
            latest checkpoint). Or a mapping of such by name: of `{"encoder": ...}` the tensors are called
            `encoder:...`, in rules and in the plan. Without rules, what just one of the checkpoints has by name and
            shape is taken from it.

        Returns:
          The plan; what `restore()` would refuse is an entry of it.

        Raises:
          CheckpointNotFoundError, CheckpointCorruptError, UnsupportedFormatError: the checkpoint cannot be read.
          RuleError: a rule that matches nothing or contradicts another.
          UnbuiltModelError: the model has no variables yet.
        """
        with uncollected():
            return self._run().plan(path_text(path))

    def restore(self, path: GivenPaths) -> RestoreReport:
        """Plans, checks, assigns, verifies and logs. Called by all workers.

        Args:
          path: as for `plan`.

        Raises:
          RestoreError: any of the tree in `errors`; unless it says otherwise, no variable has changed.
        """
        with uncollected():
            return self._run().restore(path_text(path), None)

    def apply(self, plan: RestorePlan, path: GivenPaths) -> RestoreReport:
        """Carries out a plan that was made before, for these variables and this checkpoint. Called by all workers.

        Raises:
          PlanMismatchError: the plan was made for other variables or for another checkpoint.
          RestoreError: as `restore`.
        """
        with uncollected():
            return self._run().restore(path_text(path), plan)

    def _run(self) -> RestoreRun:
        return RestoreRun(self._target, self._strategy, self._read_rules, self._config)
