"""Where things lie in this repository, for tests in any folder."""

from __future__ import annotations

import pathlib

TESTS = pathlib.Path(__file__).resolve().parents[1]
ROOT = TESTS.parent
CORPUS = TESTS / "data" / "corpus"
GOLDEN = TESTS / "data" / "golden"
# What a process of its own needs, to import the package, the scripts, and any test's programs.
IMPORTS = [str(p) for p in (ROOT, ROOT / "scripts", TESTS, *sorted({f.parent for f in TESTS.rglob("*.py")} - {TESTS}))]
