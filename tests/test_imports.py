"""The room table of WORKSPACE.md is true of the code."""

import ast
import json
import pathlib
import re
import subprocess
import sys

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


# ---- Importing costs nothing -----------------------------------------------------------------------------

LOADED = """
import json, sys
import dist_restore as dr
loaded = [name for name in ("tensorflow", "keras", "numpy", "tensorboard") if name in sys.modules]
plain = [dr.RestoreError, dr.RuleSet, dr.RestorePlan, dr.Status, dr.RestoreReport, dr.errors.RuleError]
print(json.dumps([loaded, "tensorflow" in sys.modules, sorted(set(dr.__all__) - set(dir(dr)))]))
"""


def test_importing_the_package_loads_no_tensorflow_until_a_name_needs_it():
    done = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, text=True, check=True, cwd=ROOT)
    assert json.loads(done.stdout) == [[], False, []]


def test_every_public_name_is_found():
    import dist_restore as dr

    assert {name: getattr(dr, name).__name__ for name in dr.__all__} == {name: name for name in dr.__all__}
    with pytest.raises(AttributeError, match="has no attribute 'restore_everything'"):
        dr.restore_everything  # noqa: B018


ALONE = """
import importlib, os, sys
import keras, tensorboard, tensorflow
failed = []
for name in sys.argv[1:]:
    child = os.fork()
    if not child:
        try:
            importlib.import_module(name)
        except BaseException as error:
            print(name, repr(error), flush=True)
            os._exit(1)
        os._exit(0)
    os.waitpid(child, 0)
"""


def test_every_module_can_be_imported_first():
    """Names are loaded when they are asked for, in any order: a circle would show in one of them only."""
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in FILES]
    names = [name.removesuffix(".__init__") for name in names]
    done = subprocess.run([sys.executable, "-c", ALONE, *names], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == ""
