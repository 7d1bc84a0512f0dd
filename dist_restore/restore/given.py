"""What a program passes, in the forms that the face allows: rules and paths."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from typing import NoReturn, TypeAlias

import tensorflow as tf

from dist_restore.checkpoints.open import PathLike, Resolved
from dist_restore.core.errors import RuleError
from dist_restore.distribute.communicator import is_alone
from dist_restore.planning.rules.rule_set import RuleSet, RulesLike
from dist_restore.targets.targets import Restorable, guess_strategy

GivenPath: TypeAlias = PathLike | tf.train.CheckpointManager
GivenPaths: TypeAlias = GivenPath | Mapping[str, GivenPath]


def rules_reader(
    rules: RulesLike, target: Restorable, strategy: tf.distribute.Strategy | None
) -> Callable[[], RuleSet]:
    """Reads rules now, and gives what returns them.

    What only one of several workers cannot read must be told to the others: there what is returned raises.

    Raises:
      RuleError: they cannot be read, and there are no other workers.
    """
    try:
        found = RuleSet.of(rules)
    except RuleError as error:
        if is_alone(guess_strategy(target, strategy)):
            raise
        return functools.partial(_raise, error)
    return lambda: found


def _raise(error: RuleError) -> NoReturn:
    raise error


def path_text(path: GivenPaths) -> Resolved:
    """Paths as text; a manager's is its latest checkpoint."""
    if isinstance(path, Mapping):
        return {name: _text(one) for name, one in path.items()}
    return _text(path)


def _text(path: GivenPath) -> str:
    if isinstance(path, tf.train.CheckpointManager):
        # Without one the directory is looked into, which is an error that lists what is there.
        return str(path.latest_checkpoint or path.directory)
    return os.fspath(path)
