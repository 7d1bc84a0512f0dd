"""What scripts share whose `--target` names a function that builds live objects."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Callable, Sequence

from absl import flags

HELP = (
    "module:function. The function takes nothing and returns what would be restored into: a tf.train.Checkpoint, a "
    "built model, or a dict of such by name. Modules are found in the present directory and beside this script."
)


class TargetError(Exception):
    """--target names nothing that can be called, or its function fails."""


def load_target(name: str) -> object:
    """Calls the function that --target names.

    Raises:
      TargetError: there is no such function, or it raised.
    """
    module, separator, function = name.partition(":")
    if not separator:
        raise TargetError(f"--target={name} must be module:function")
    # A script's own path is its directory; a user's modules are where the user is.
    sys.path.insert(1, os.getcwd())
    try:
        build = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise TargetError(f"--target={name}: {error}") from error
    try:
        return build()
    except Exception as error:  # somebody else's code: whatever it raises means that there is no target
        at = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{os.path.basename(at.filename)}, line {at.lineno}"
        raise TargetError(f"--target={name} raised {type(error).__name__}: {error} ({where})") from error


def flags_parser(script: str) -> Callable[[Sequence[str]], list[str]]:
    """Parses flags; absl's own way ends with 1, which in these scripts means that something was refused."""

    def parse(argv: Sequence[str]) -> list[str]:
        try:
            return flags.FLAGS(argv)
        except flags.Error as error:
            print(f"{script}: {error}\n(--help lists the flags)", file=sys.stderr)
            sys.exit(2)

    return parse
