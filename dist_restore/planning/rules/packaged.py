"""The rule files that come with the package, by name: `hf_bert`."""

from __future__ import annotations

import os
import pathlib

from dist_restore.core.errors import RuleError
from dist_restore.core.nearest import nearest, quote

_FOLDER = pathlib.Path(__file__).resolve().parents[2] / "rules"


def packaged(name: str) -> str:
    """The path of a rule file: of one that comes with the package where a plain name is given, else the name itself.

    Raises:
      RuleError: a plain name, and there is neither such a file nor such a packaged one.
    """
    if os.path.basename(name) != name or name.endswith(".toml") or not name or os.path.exists(name):
        return name
    found = {file.stem: file for file in sorted(_FOLDER.glob("*.toml"))}
    if name in found:
        return str(found[name])
    raise RuleError(
        f"There is no rule file {name!r}, and no rules of this name come with the package. Nearest names of these: "
        f"{quote(nearest(name, found)) or 'none'}; all: {quote(sorted(found))}. Of a file of your own, give the path."
    )
