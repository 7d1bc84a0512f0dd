"""The mutation script: which changes it makes, and that it tells a test that notices one from a test that does not."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest

from mutants import mutants_of
from places import ROOT


def changed(text: str) -> set[str]:
    return {line[1:].strip() for make in mutants_of("x.py", text) for line in make().diff if line.startswith("+")}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a == b", {"a != b"}),
        ("a < b", {"a <= b", "a >= b"}),
        ("a is b", {"a is not b"}),
        ("a and b", {"a or b", "a", "b"}),
        ("not a", {"a"}),
        ("a + b", {"a - b"}),
        ("x = 3", {"x = 4", "x = 2"}),
        ("x = True", {"x = False"}),
        ("x = 'a'", {"x = ''"}),
        ("x = ''", {"x = 'mutant'"}),
        ("if a:\n    b = c", {"if True:", "if False:"}),
        ("x = a if b else c", {"x = a", "x = c"}),
        ("x = [a for a in b if c]", {"x = [a for a in b]"}),
        ("x = f(a, b)", {"x = f(b, a)"}),
        ("x = (a, b)", {"x = (b, a)"}),
        ("x = sorted(a, key=b)", {"x = list(a)", "x = sorted(a)"}),
        ("x = min(a)", {"x = max(a)"}),
        ("x = any(a)", {"x = all(a)"}),
        ("for a in b:\n    continue", {"pass"}),
        ("def f():\n    yield a", {"yield from ()"}),
    ],
)
def test_each_kind_of_change_is_made(text: str, expected: set[str]) -> None:
    found = changed(text)
    # A statement that is an expression alone can be dropped, too.
    assert found - {"pass"} == expected - {"pass"} and expected <= found


@pytest.mark.parametrize(
    "text",
    [
        '"""Words."""',
        "import a.b",
        "assert a == 1",
        "x = f'{a} of 3'",
        "x = zip(a, strict=True)",
        "@f(1)\ndef g(a: 'b'): return a",
    ],
)
def test_what_decides_nothing_is_left_alone(text: str) -> None:
    assert not changed(text)


def test_mutants_know_their_lines() -> None:
    found = [make() for make in mutants_of("x.py", "a = b\nc = [d for d in e\n  if d]\nf = g == h\n")]
    assert [(m.line, m.what) for m in found] == [(2, "filter dropped"), (4, "comparison")]
    assert found[1].diff == ("-f = g == h", "+f = g != h")


@pytest.mark.slow
def test_a_test_that_notices_nothing_lets_mutants_survive(tmp_path: pathlib.Path) -> None:
    root = ROOT
    (tmp_path / "test_weak.py").write_text("import dist_restore.naming.automatic_names\ndef test_it(): pass\n")
    files = "--files=dist_restore/planning/matching/numbers.py"
    command = [sys.executable, "scripts/mutate.py", files, "--count=2", f"--tests={tmp_path},--rootdir={tmp_path}"]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (1, "2 mutants, 2 survived.")
