r"""Changes the given files in small ways, one at a time, and says which changes no test notices.

    python scripts/mutate.py --files='dist_restore/planning/matching/*.py' --tests=tests/unit/planning

Libraries are imported once; each mutant is a forked process that imports the package anew, with the changed file, and
runs the tests up to the first that fails. The same seed gives the same mutants of the same files. Nothing is written.
Exit code 0: all were killed. 1: some survived; each is shown with its changed lines. 2: flags are bad, or the tests
fail by themselves.
"""

from __future__ import annotations

import ast
import dataclasses
import glob
import importlib.abc
import importlib.machinery
import importlib.util
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from types import CodeType, ModuleType

import hypothesis
import pytest
from absl import app, flags

from mutants import Mutant, mutants_of
from target_function import flags_parser

_FILES = flags.DEFINE_list("files", None, "Files to change; patterns are expanded.", required=True)
_TESTS = flags.DEFINE_list("tests", None, "What pytest gets: test files, and options.", required=True)
_COUNT = flags.DEFINE_integer("count", 200, "How many mutants to try; 0 for all that there are.", lower_bound=0)
_SEED = flags.DEFINE_integer("seed", 0, "Which of them.")
_JOBS = flags.DEFINE_integer("jobs", 2, "How many at a time.", lower_bound=1)
_SECONDS = flags.DEFINE_float("seconds", 300.0, "How long one may take; what takes longer counts as killed.")
_EXAMPLES = flags.DEFINE_integer("examples", 30, "How many examples each property gets.", lower_bound=1)
_ONLY = flags.DEFINE_list("only", [], "Of these the ones with these numbers, in the order of files and lines.")
_LIST = flags.DEFINE_bool("list", False, "Show the mutants and run nothing.")


class _Loader(importlib.machinery.SourceFileLoader):
    """Loads a syntax tree in place of a file."""

    def __init__(self, name: str, path: str, tree: ast.Module) -> None:
        super().__init__(name, path)
        self._tree = tree

    def get_code(self, fullname: str) -> CodeType:
        """The changed code."""
        del fullname
        return compile(self._tree, self.path, "exec", dont_inherit=True)


class _Finder(importlib.abc.MetaPathFinder):
    """Finds one module's mutant."""

    def __init__(self, mutant: Mutant) -> None:
        self._name = mutant.path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        self._mutant = mutant

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """The mutant's, for its own name."""
        del path, target
        if fullname != self._name:
            return None
        file = os.path.abspath(self._mutant.path)
        return importlib.util.spec_from_file_location(fullname, file, loader=_Loader(fullname, file, self._mutant.tree))


@dataclasses.dataclass(frozen=True)
class _First:
    """A plugin of pytest that writes down the first test that fails."""

    file: str

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._write(report.nodeid)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._write(f"{report.nodeid} (does not import)")

    def _write(self, text: str) -> None:
        with open(self.file, "w", encoding="utf-8") as file:
            file.write(text)


def _warm_up() -> None:
    """Imports what the package imports, and forgets the package itself."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    importlib.import_module("dist_restore.restore.restorer")
    importlib.import_module("hypothesis.strategies")
    for name in [n for n in sys.modules if n.partition(".")[0] == "dist_restore"]:
        del sys.modules[name]


def _run(mutant: Mutant | None, tests: Sequence[str], file: str) -> int:
    """In a process of its own: pytest's exit code."""
    if mutant is not None:
        sys.meta_path.insert(0, _Finder(mutant))
    hypothesis.settings.register_profile("mutate", derandomize=True, database=None, max_examples=_EXAMPLES.value)
    options = [
        "-x",
        "-q",
        "--no-header",
        "--tb=no",
        "--assert=plain",
        "-p",
        "no:cacheprovider",
        "--hypothesis-profile=mutate",
    ]
    return int(pytest.main([*options, *tests], plugins=[_First(file)]))


def _fork(mutant: Mutant | None, tests: Sequence[str], file: str) -> int:
    sys.stdout.flush()
    process = os.fork()
    if process:
        return process
    code = 3
    try:
        os.setpgid(0, 0)
        quiet = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(quiet, number)
        code = _run(mutant, tests, file)
    finally:
        os._exit(code)


@dataclasses.dataclass(frozen=True)
class Result:
    """What became of a mutant: the test that killed it, or nothing."""

    mutant: Mutant
    killer: str


def _results(mutants: Iterable[Mutant], tests: Sequence[str], folder: str) -> Iterator[Result]:
    """Runs some at a time; gives each as it ends."""
    left = iter(mutants)
    running: dict[int, tuple[Mutant, float, str]] = {}
    while True:
        while len(running) < _JOBS.value and (mutant := next(left, None)) is not None:
            file = os.path.join(folder, str(id(mutant)))
            running[_fork(mutant, tests, file)] = (mutant, time.monotonic(), file)
        if not running:
            return
        for process, (mutant, start, file) in [*running.items()]:
            late = time.monotonic() - start > _SECONDS.value
            killer = _ended(process, file, late=late)
            if killer is not None:
                del running[process]
                yield Result(mutant, killer)
        time.sleep(0.05)


def _ended(process: int, file: str, *, late: bool) -> str | None:
    """The test that failed, empty for none; nothing while it runs."""
    if late:
        os.killpg(process, signal.SIGKILL)
        os.waitpid(process, 0)
        return "(time is up)"
    done, status = os.waitpid(process, os.WNOHANG)
    if not done:
        return None
    if os.waitstatus_to_exitcode(status) == 0:
        return ""
    try:
        with open(file, encoding="utf-8") as text:
            return text.read()
    except OSError:
        return f"(ended with {os.waitstatus_to_exitcode(status)})"


def _chosen() -> list[Mutant]:
    files = sorted({file for pattern in _FILES.value for file in glob.glob(pattern)})
    makers = []
    for path in files:
        with open(path, encoding="utf-8") as file:
            makers += mutants_of(path, file.read())
    if _COUNT.value:
        makers = random.Random(_SEED.value).sample(makers, min(_COUNT.value, len(makers)))
    found = sorted((make() for make in makers), key=lambda m: (m.path, m.line))
    return [found[int(number) - 1] for number in _ONLY.value] or found


def _show(mutant: Mutant) -> None:
    print(f"{mutant.path}:{mutant.line}: {mutant.what}")
    print("\n".join(f"    {line}" for line in mutant.diff), flush=True)


def main(argv: list[str]) -> int:
    """Runs the mutants."""
    del argv
    mutants = _chosen()
    if _LIST.value or not mutants:
        for mutant in mutants:
            _show(mutant)
        return 0 if mutants else 2
    _warm_up()
    with tempfile.TemporaryDirectory() as folder:
        file = os.path.join(folder, "none")
        process = _fork(None, _TESTS.value, file)
        while (killer := _ended(process, file, late=False)) is None:
            time.sleep(0.05)
        if killer:
            print(f"mutate: the tests fail without any change: {killer}", file=sys.stderr)
            return 2
        survived = 0
        for number, result in enumerate(_results(mutants, _TESTS.value, folder), 1):
            print(f"{number}/{len(mutants)} {result.killer or 'SURVIVED'}")
            survived += not result.killer
            _show(result.mutant)
    print(f"{len(mutants)} mutants, {survived} survived.")
    return 1 if survived else 0


if __name__ == "__main__":
    app.run(main, flags_parser=flags_parser("mutate"))
