"""The main job, start to end: a refactored model resumes the run of the model that it was, and loses nothing.

Trains version 1, restores its checkpoint from half way into version 2, trains on, and compares the losses with those
of version 1, which was never refactored. Every part is a program of its own, as it would be in real life.
"""

from __future__ import annotations

import pathlib
import shlex
import shutil
import subprocess
import sys

from absl import app, flags

from lm import loss_log
from lm.compare import compare

_OUT = flags.DEFINE_string("out", "demo_out", "Directory for all that the demo writes; what it left there before goes.")
_STEPS = flags.DEFINE_integer("steps", 100, "Steps before the refactor, and again after it.", lower_bound=1)
_REPLICAS = flags.DEFINE_integer("replicas", 2, "Logical CPU devices to train on.", lower_bound=1)
_TOLERANCE = flags.DEFINE_float("tolerance", 1e-5, "Largest relative difference between two losses.", lower_bound=0.0)

_HERE = pathlib.Path(__file__).resolve().parent
_RULES = _HERE.parent / "configs" / "rules" / "lm_v1_to_v2.toml"
_MARK = "made by scripts/demo.py"


def main(argv: list[str]) -> int:
    del argv
    out = _empty(pathlib.Path(_OUT.value))
    half, whole = _STEPS.value, 2 * _STEPS.value
    saved = out / "v1" / f"ckpt-{half}"
    _title(f"1. Version 1 trains for {whole} steps on {_REPLICAS.value} replicas, and saves after {half}")
    _train(out, version=1, steps=whole, more=[f"--checkpoint_every={half}"])
    _title("2. The dry run: what would go where in version 2? No tensor is read, nothing changes")
    _run(out, "plan_restore", "--target=lm.targets:version_2", f"--restore_from={saved}", f"--rules={_RULES}")
    _title(f"3. Version 2 restores ckpt-{half}, and trains on from step {half} to step {whole}")
    _train(out, version=2, steps=whole, more=["--restore=required", f"--restore_from={saved}", f"--rules={_RULES}"])
    _title("4. The losses beside those of the run that was never refactored")
    return _compare(out)


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
        "--strategy=mirrored",
        f"--replicas={_REPLICAS.value}",
        f"--steps={steps}",
        f"--log_every={max(1, _STEPS.value // 4)}",
        f"--checkpoint_dir={out / f'v{version}'}",
        f"--loss_log={out / f'v{version}.jsonl'}",
        f"--log_dir={out / 'tensorboard' / f'v{version}'}",
        *more,
    )


def _run(out: pathlib.Path, script: str, *arguments: str) -> None:
    """Runs a script of this directory; TensorFlow's chatter goes to a file, and is shown when the script fails."""
    command = [str(_HERE / f"{script}.py"), *arguments]
    print(f"$ python scripts/{script}.py {shlex.join(arguments)}\n", flush=True)
    chatter = out / f"{script}.stderr"
    with chatter.open("w") as errors:
        code = subprocess.run(
            [sys.executable, *command], stderr=errors, stdin=subprocess.DEVNULL, check=False
        ).returncode
    if code:
        print(chatter.read_text(), file=sys.stderr)
        sys.exit(f"demo: {script} ended with {code}")


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
    print(f"\nWhat was restored, and both losses, in TensorBoard:\n\n    tensorboard --logdir {out / 'tensorboard'}")
    return 0 if worst <= limit else 1


if __name__ == "__main__":
    app.run(main)
