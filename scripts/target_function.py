"""What scripts share whose `--target` names a function that builds live objects."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Sequence

from absl import flags

HELP = (
    "module:function. The function takes nothing and returns what would be restored into: a tf.train.Checkpoint, a "
    "built model, or a dict of such by name. Modules are found in the present directory and beside this script."
)


class TargetError(Exception):
    """--target names nothing that can be called."""


def load_target(name: str) -> object:
    """Calls the function that --target names."""
    module, separator, function = name.partition(":")
    if not separator:
        raise TargetError(f"--target={name} must be module:function")
    # A script's own path is its directory; a user's modules are where the user is.
    sys.path.insert(1, os.getcwd())
    try:
        build = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise TargetError(f"--target={name}: {error}") from error
    return build()


def flags_parser(script: str) -> Callable[[Sequence[str]], list[str]]:
    """Parses flags; absl's own way ends with 1, which in these scripts means that something was refused."""

    def parse(argv: Sequence[str]) -> list[str]:
        try:
            return flags.FLAGS(argv)
        except flags.Error as error:
            print(f"{script}: {error}\n(--help lists the flags)", file=sys.stderr)
            sys.exit(2)

    return parse
