r"""Compares the plans that two checkouts of this repository make: a change of the house must change none.

    python scripts/compare_plans.py --before=/tmp/old --after=. --random=200

Each checkout is asked in a process of its own, which imports its package and its tests: every checkpoint of its corpus
and of its golden files against names that it has itself and against the corpus' targets, the models of the demo, and
random programs of its differential test. Plans are compared by their digests, refusals by their texts.
Exit code 0: all are equal. 1: some differ; each is shown. 2: flags are bad.
"""

from __future__ import annotations

import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator

from absl import app, flags

from target_function import flags_parser

_BEFORE = flags.DEFINE_string("before", None, "A checkout of the code before.", required=True)
_AFTER = flags.DEFINE_string("after", ".", "A checkout of the code after.")
_RANDOM = flags.DEFINE_integer("random", 100, "How many random programs to try.", lower_bound=0)
_START = flags.DEFINE_integer("start", 0, "The seed of the first of them.")
_WORKER = flags.DEFINE_string("worker", "", "For the script itself: the checkout to ask.")

Line = tuple[str, str]
# Directories of one run are of no other.
_FOLDER = re.compile(r"/tmp/[A-Za-z0-9_./-]*")


def _said(work: object) -> str:
    """A plan's digest, or what was refused."""
    import dist_restore as dr

    try:
        return work().digest  # type: ignore[operator]
    except dr.RestoreError as error:
        return f"{type(error).__name__}: {_FOLDER.sub('...', str(error))}"


def _plan(target: object, path: str, rules: object = None, **options: object) -> str:
    import dist_restore as dr

    return _said(lambda: dr.DistributedRestorer(target, rules=rules, progress=False, **options).plan(path))


def _corpus(root: pathlib.Path) -> Iterator[Line]:
    """Every pair of the corpus: the names of its target, and its own names, with and without what is written for it."""
    import tensorflow as tf

    import dist_restore as dr

    corpus = _data(root) / "corpus"
    rules = corpus / "rules"
    for pair in sorted(corpus.glob("*/source.ckpt.index")):
        folder, path = pair.parent, str(pair).removesuffix(".index")
        rows = json.loads((folder / "target.json").read_text())
        targets = {r["name"]: tf.Variable(tf.zeros(r["shape"], r.get("dtype", "float32"))) for r in rows}
        yield f"corpus {folder.name}", _plan(targets, path)
        yield f"corpus {folder.name} kept", _plan(targets, path, unmatched="keep")
        for file in sorted(rules.glob(f"{folder.name}*.toml")):
            yield f"corpus {folder.name} {file.name}", _plan(targets, path, str(file))
        yield f"corpus {folder.name} itself", _plan(_own(dr.open_checkpoint(path).index()), path)


def _own(index: object) -> dict[str, object]:
    """Variables of the names that a checkpoint has."""
    import tensorflow as tf

    tensors = index.tensors  # type: ignore[attr-defined]
    return {t.name: tf.Variable(tf.zeros(t.spec.shape, t.spec.dtype)) for t in tensors if t.spec.dtype != "string"}


def _data(root: pathlib.Path) -> pathlib.Path:
    """Where the tests' data are; in older checkouts among the tests themselves."""
    return root / "tests" / "data" if (root / "tests" / "data").exists() else root / "tests"


def _golden(root: pathlib.Path) -> Iterator[Line]:
    import dist_restore as dr

    for file in sorted((_data(root) / "golden").glob("*.index")):
        path = str(file).removesuffix(".index")
        yield f"golden {file.name}", _plan(_own(dr.open_checkpoint(path).index()), path)


def _demo(root: pathlib.Path) -> Iterator[Line]:
    from lm import targets

    with tempfile.TemporaryDirectory() as folder:
        path = targets.version_1().write(os.path.join(folder, "ckpt"))
        rules = str(root / "configs" / "rules" / "lm_v1_to_v2.toml")
        yield "demo", _plan(targets.version_2(), path, rules)
        yield "demo without rules", _plan(targets.version_2(), path)


def _random(count: int, start: int) -> Iterator[Line]:
    """What the differential test's programs are told."""
    import dist_restore as dr
    from outcomes import case_of, run

    said: list[str] = []
    restore = dr.DistributedRestorer.restore

    def noting(self: dr.DistributedRestorer, path: object) -> object:
        said.append(_said(lambda: self.plan(path)))
        return restore(self, path)

    dr.DistributedRestorer.restore = noting  # type: ignore[method-assign]
    for seed in range(start, start + count):
        said.clear()
        kind = run(case_of(seed)).kind
        yield f"random {seed}", "\n".join([kind, *said])


def _work(root: pathlib.Path) -> None:
    tests = root / "tests"
    places = [root, root / "scripts", tests, tests / "support", tests / "differential"]
    sys.path[:0] = [str(place) for place in places]
    for lines in (_corpus(root), _golden(root), _demo(root), _random(_RANDOM.value, _START.value)):
        for name, said in lines:
            print(json.dumps([name, said]), flush=True)


def _ask(root: str) -> subprocess.Popen[str]:
    place = str(pathlib.Path(root).resolve())
    # Without this file's own folder, in which are the scripts of one checkout only.
    code = (
        "import runpy, sys; sys.path.pop(0); sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    script = [os.path.abspath(__file__), f"--worker={place}", f"--before={place}"]
    options = [f"--random={_RANDOM.value}", f"--start={_START.value}"]
    environment = {**os.environ, "PYTHONPATH": f"{place}:{place}/scripts", "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-P", "-c", code, *script, *options]
    return subprocess.Popen(command, env=environment, cwd=place, stdout=subprocess.PIPE, text=True)


def _answers(process: subprocess.Popen[str]) -> dict[str, str]:
    text, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"compare_plans: a checkout could not be asked: exit code {process.returncode}")
    return dict(json.loads(line) for line in text.splitlines() if line.startswith('["'))


def main(argv: list[str]) -> int:
    """Asks both, and compares."""
    del argv
    if _WORKER.value:
        _work(pathlib.Path(_WORKER.value))
        return 0
    before, after = map(_answers, [_ask(_BEFORE.value), _ask(_AFTER.value)])
    differ = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    for name in differ:
        print(f"{name}\n  before: {before.get(name, '-')[:400]}\n  after:  {after.get(name, '-')[:400]}")
    print(f"{len(before)} plans and refusals before, {len(after)} after; {len(differ)} differ.")
    return 1 if differ else 0


if __name__ == "__main__":
    app.run(main, flags_parser=flags_parser("compare_plans"))
