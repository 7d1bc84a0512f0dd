"""The room table of WORKSPACE.md is true of the code."""

import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / "dist_restore"
TENSORFLOW = {"tensorflow", "keras", "tensorboard"}


def read_table() -> dict[str, tuple[set[str], bool]]:
    """Room -> (rooms that it may import, whether it may import TensorFlow)."""
    text = (ROOT / "WORKSPACE.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| [^|]* \|([^|]*)\| (yes|no) \|$", text, re.MULTILINE)
    return {room: (set(allowed.split()), tf == "yes") for room, allowed, tf in rows}


def room_of(path: pathlib.Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(path: pathlib.Path) -> set[str]:
    """Full names of all modules that a file imports, at its top or inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the room"
            found |= {node.module} if node.module != "dist_restore" else {f"dist_restore.{a.name}" for a in node.names}
    return found


FILES = sorted(PACKAGE.rglob("*.py"))
TABLE = read_table()


def test_every_room_is_in_the_table_and_every_row_is_a_room():
    assert {room_of(path) for path in FILES} == set(TABLE)


def test_the_table_has_no_circle():
    done: set[str] = set()
    while len(done) < len(TABLE):
        free = {room for room, (allowed, _) in TABLE.items() if allowed <= done} - done
        assert free, f"rooms import each other in a circle: {sorted(set(TABLE) - done)}"
        done |= free


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_file_imports_only_what_its_room_may(path):
    room = room_of(path)
    allowed, may_use_tf = TABLE[room]
    modules = imports_of(path)
    inside = {m.split(".")[1] for m in modules if m.startswith("dist_restore.")}
    assert inside <= allowed | {room}
    assert may_use_tf or not {m.split(".")[0] for m in modules} & TENSORFLOW


def test_the_thinking_imports_no_tensorflow():
    for room in ("specs", "errors", "plan", "resolve", "transforms", "entries", "naming"):
        assert TABLE[room][1] is False
