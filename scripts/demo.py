"""The main job, start to end: a refactored model resumes the run of the model that it was, and loses nothing.

Trains version 1, restores its checkpoint from half way into version 2, trains on, and compares the losses with those
of version 1, which was never refactored. Every part is a program of its own, as it would be in real life.

With --workers, both trainings run on a cluster of so many workers on this machine, started by scripts/launch_local.py.
"""

from __future__ import annotations

import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from absl import app, flags

from lm import loss_log
from lm.compare import compare

_OUT = flags.DEFINE_string("out", "demo_out", "Directory for all that the demo writes; what it left there before goes.")
_STEPS = flags.DEFINE_integer("steps", 100, "Steps before the refactor, and again after it.", lower_bound=1)
_WORKERS = flags.DEFINE_integer(
    "workers",
    0,
    "How many workers to train on, each a process of its own, under MultiWorkerMirroredStrategy. 0: one process, under "
    "MirroredStrategy.",
    lower_bound=0,
    upper_bound=16,
)
_REPLICAS = flags.DEFINE_integer(
    "replicas", 0, "Logical CPU devices to train on, of each worker. 0: two, or with --workers one.", lower_bound=0
)
_TOLERANCE = flags.DEFINE_float("tolerance", 1e-5, "Largest relative difference between two losses.", lower_bound=0.0)

_HERE = pathlib.Path(__file__).resolve().parent
_RULES = os.path.relpath(_HERE.parent / "configs" / "rules" / "lm_v1_to_v2.toml")
_MARK = "made by scripts/demo.py"


def main(argv: list[str]) -> int:
    del argv
    out = _empty(pathlib.Path(_OUT.value))
    half, whole = _STEPS.value, 2 * _STEPS.value
    saved = out / "v1" / f"ckpt-{half}"
    _title(f"1. Version 1 trains for {whole} steps on {_devices()}, and saves after {half}")
    _train(out, version=1, steps=whole, more=[f"--checkpoint_every={half}"])
    _title("2. The dry run: what would go where in version 2? No tensor is read, nothing changes")
    given = [f"--restore_from={saved}", f"--rules={_RULES}"]
    _run(out, "plan_restore", "--target=lm.targets:version_2", *given, trim=_without_moments)
    _title(f"3. Version 2 restores ckpt-{half}, and trains on from step {half} to step {whole}")
    _train(out, version=2, steps=whole, more=["--restore=required", *given])
    _title("4. The losses beside those of the run that was never refactored")
    return _compare(out)


def _replicas() -> int:
    """How many a worker has."""
    return _REPLICAS.value or (1 if _WORKERS.value else 2)


def _devices() -> str:
    of_each = f"{_replicas()} replica{'s' * (_replicas() > 1)}"
    return f"{_WORKERS.value} workers with {of_each} each" if _WORKERS.value else of_each


def _empty(out: pathlib.Path) -> pathlib.Path:
    """Removes what an earlier demo left, and nothing that is not a demo's."""
    mark = out / "README"
    if out.exists() and any(out.iterdir()) and not (mark.is_file() and mark.read_text().startswith(_MARK)):
        sys.exit(f"demo: --out={out} holds something else than a demo's output; name another directory")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    mark.write_text(f"{_MARK}, which empties this directory\n")
    return out


def _train(out: pathlib.Path, *, version: int, steps: int, more: list[str]) -> None:
    _run(
        out,
        "train_lm",
        f"--model_version={version}",
        *_strategy(),
        f"--replicas={_replicas()}",
        f"--steps={steps}",
        f"--log_every={max(1, _STEPS.value // 4)}",
        f"--checkpoint_dir={out / f'v{version}'}",
        f"--loss_log={out / f'v{version}.jsonl'}",
        f"--log_dir={out / 'tensorboard' / f'v{version}'}",
        *more,
        launcher=_launcher(out),
        trim=_without_plan,
    )


def _strategy() -> list[str]:
    if not _WORKERS.value:
        return ["--strategy=mirrored"]
    replicas = _WORKERS.value * _replicas()
    # The first multiple of their number that is not less than train_lm's own.
    return ["--strategy=multiworker", f"--batch_size={-(-16 // replicas) * replicas}"]


def _launcher(out: pathlib.Path) -> list[str]:
    if not _WORKERS.value:
        return []
    return ["launch_local", f"--workers={_WORKERS.value}", f"--stderr_dir={out / 'workers'}", "--"]


def _run(
    out: pathlib.Path,
    script: str,
    *arguments: str,
    launcher: Sequence[str] = (),
    trim: Callable[[Iterable[str]], Iterator[str]] = iter,
) -> None:
    """Runs a script of this directory; TensorFlow's chatter goes to files, and is shown when the script fails."""
    words = [*launcher, script, *arguments]
    print(f"$ {shlex.join(_command(words, 'python', 'scripts'))}\n", flush=True)
    with (out / f"{script}.stderr").open("w") as errors:
        options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": errors, "text": True}
        with subprocess.Popen(_command(words, sys.executable, str(_HERE)), **options) as running:
            for line in trim(running.stdout):
                print(line, end="", flush=True)
    if running.returncode:
        for chatter in sorted(out.rglob("*.stderr")):
            print(f"{chatter}:\n{chatter.read_text()}", file=sys.stderr)
        sys.exit(f"demo: {script} ended with {running.returncode}")


def _command(words: Sequence[str], python: str, directory: str) -> list[str]:
    """Replaces the names of scripts by what runs them."""
    scripts = ("launch_local", "plan_restore", "train_lm")
    return [part for word in words for part in ([python, f"{directory}/{word}.py"] if word in scripts else [word])]


def _without_moments(lines: Iterable[str]) -> Iterator[str]:
    """Leaves out the rows of Adam's moments: they say of each weight twice more what its own row says."""
    hidden = 0
    for line in lines:
        if re.match(r"\w+ +optimizer/(momentum|velocity)/", line):
            hidden += 1
        else:
            yield line
    yield f"(Not shown here: {hidden} rows of Adam's moments. They follow their weights, as the coverage says.)\n"


def _without_plan(lines: Iterable[str]) -> Iterator[str]:
    """Leaves out the table of the plan, which the dry run has shown; what was covered stays."""
    hidden = False
    for line in lines:
        bare = re.sub(r"^\[\d+\] ", "", line)  # Which worker says it.
        hidden = (hidden or bare.startswith("status ")) and bool(bare.strip())
        if not hidden:
            yield line


def _title(text: str) -> None:
    print(f"\n\n{text}\n{'=' * len(text)}", flush=True)


def _compare(out: pathlib.Path) -> int:
    """Prints the table of losses and says whether all agree."""
    runs = [loss_log.read(out / f"v{version}.jsonl") for version in (1, 2)]
    comparison = compare(*runs, _STEPS.value + 1, 2 * _STEPS.value)
    worst, limit = comparison.worst, _TOLERANCE.value
    print(comparison.table(10))
    verdict = "within" if worst <= limit else "NOT within"
    print(f"\nLargest relative difference of all {len(comparison.rows)} steps: {worst:.1e}, {verdict} {limit:g}.")
    same = all([_same_on_all_workers(out, version, run) for version, run in enumerate(runs, 1)])
    print(f"\nWhat was restored, and both losses, in TensorBoard:\n\n    tensorboard --logdir {out / 'tensorboard'}")
    return 0 if worst <= limit and same else 1


def _same_on_all_workers(out: pathlib.Path, version: int, chief: Mapping[int, float]) -> bool:
    """Every worker writes down what it computed itself."""
    others = range(1, _WORKERS.value)
    differ = [str(rank) for rank in others if loss_log.read(out / f"v{version}.jsonl.worker{rank}") != chief]
    if differ:
        print(f"Version {version}'s losses on worker 0 are NOT those on worker {', '.join(differ)}.")
    elif others:
        print(f"Version {version}'s losses are the same on all {_WORKERS.value} workers, to the last bit.")
    return not differ


if __name__ == "__main__":
    app.run(main)
