"""What the documents name exists: files of the package, of tests and of scripts, and links between documents."""

from __future__ import annotations

import pathlib
import re

import pytest

from places import ROOT

PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "tests").glob("*/README.md")]
PACKAGE = ROOT / "dist_restore"
# `planning/rules/inverse.py`, `tests/support/warm.py`; what has braces or stars is a pattern.
_PATH = re.compile(r"`((?:[a-z_0-9]+/)+[a-z_0-9]+\.(?:py|toml|md|sh))`")
_LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")
# Histories speak of what was.
HISTORIES = {"CHANGELOG.md", "RESULTS.md"}


@pytest.mark.parametrize("page", [p for p in PAGES if p.name not in HISTORIES], ids=lambda p: str(p.relative_to(ROOT)))
def test_what_a_page_names_exists(page: pathlib.Path) -> None:
    text = page.read_text()
    missing = [path for path in _PATH.findall(text) if not any((root / path).exists() for root in (ROOT, PACKAGE))]
    missing += [link for link in _LINK.findall(text) if not (page.parent / link).exists()]
    assert not missing
