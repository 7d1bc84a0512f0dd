"""The rooms of the package: what each may import (`rooms.toml`), by which doors, and how large its files are."""

import ast
import pathlib
import statistics
import tomllib
from collections.abc import Iterator

import pytest

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parents[1]
PACKAGE = ROOT / "dist_restore"
TABLE = tomllib.loads((HERE / "rooms.toml").read_text())
ROOMS = {room: row["rooms"] for room, row in TABLE.items()}
DOORS = {room: row["doors"] for room, row in TABLE.items()}
FILES = sorted(PACKAGE.rglob("*.py"))
TENSORFLOW = {"tensorflow", "keras", "tensorboard", "tf_keras"}
THINKING = ("core", "ops", "naming", "planning")


def module_of(path: pathlib.Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(path): path for path in FILES}


def imports_of(path: pathlib.Path) -> Iterator[str]:
    """Full names of all modules that a file imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path}: relative imports hide the room"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from ([name if name in MODULES else node.module for name in names])


def room_of(module: str) -> str:
    return module.split(".")[1]


def test_every_folder_is_a_room_and_every_room_a_folder() -> None:
    folders = {path.parent.relative_to(PACKAGE).parts[0] for path in FILES if path.parent != PACKAGE}
    assert folders == set(ROOMS)
    assert [path.name for path in FILES if path.parent == PACKAGE] == ["__init__.py"]


def test_rooms_import_downward_only() -> None:
    done: list[str] = []
    for room, allowed in ROOMS.items():  # from the lowest floor up
        assert set(allowed) <= set(done), f"{room} may import what stands above or beside it"
        done.append(room)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_file_imports_only_what_its_room_may(path: pathlib.Path) -> None:
    if path.parent == PACKAGE:
        return
    room, modules = room_of(module_of(path)), set(imports_of(path))
    inside = {room_of(m) for m in modules if m.startswith("dist_restore.")}
    assert inside <= {*ROOMS[room], room}
    assert room not in THINKING or not {m.split(".")[0] for m in modules} & TENSORFLOW


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_file_imports_other_rooms_by_their_doors(path: pathlib.Path) -> None:
    if path.parent == PACKAGE:
        return
    room = room_of(module_of(path))
    others = {m for m in imports_of(path) if m.startswith("dist_restore.") and room_of(m) != room}
    inside = {(room_of(m), ".".join(m.split(".")[2:]) or "__init__") for m in others}
    assert not {f"{other}.{file}" for other, file in inside if file not in DOORS[other]}


def test_every_door_is_used_by_somebody_outside() -> None:
    rooms = {path: room_of(module_of(path)) if path.parent != PACKAGE else "" for path in FILES}
    used = {m for path, room in rooms.items() for m in imports_of(path) if not m.startswith(f"dist_restore.{room}.")}
    doors = {f"dist_restore.{room}.{file}".removesuffix(".__init__") for room, files in DOORS.items() for file in files}
    assert doors <= used, sorted(doors - used)


def test_files_import_each_other_in_no_circle() -> None:
    edges = {m: {i for i in imports_of(p) if i in MODULES and i != m} for m, p in MODULES.items()}
    done: set[str] = set()
    while len(done) < len(edges):
        free = {module for module, own in edges.items() if own <= done} - done
        assert free, f"files import each other in a circle, among {sorted(set(edges) - done)}"
        done |= free


@pytest.mark.parametrize("folder", sorted({p.parent for p in FILES}), ids=lambda p: str(p.relative_to(ROOT)))
def test_every_room_says_what_it_knows(folder: pathlib.Path) -> None:
    assert ast.get_docstring(ast.parse((folder / "__init__.py").read_text()))


# ---- What a reader can take in ----------------------------------------------------------------------------


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_file_has_one_idea_and_functions_are_short(path: pathlib.Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= 400, "a file of more than 400 lines holds two ideas"
    functions = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    assert not [f.name for f in functions if (f.end_lineno or 0) - f.lineno >= 45], "functions of more than 45 lines"


def test_most_files_are_small() -> None:
    assert statistics.median(path.read_text().count("\n") for path in FILES) < 150
