r"""Trains a byte-level language model under tf.distribute, and resumes runs of older versions of the model.

Version 1 from scratch, on two replicas:

    python scripts/train_lm.py --strategy=mirrored --model_version=1 --steps=40 --checkpoint_dir=/tmp/v1

Its refactor goes on from there, with its weights, Adam's moments and step:

    python scripts/train_lm.py --strategy=mirrored --model_version=2 --steps=80 --checkpoint_dir=/tmp/v2 \
        --restore_from=/tmp/v1 --rules=configs/rules/lm_v1_to_v2.toml

Stopped by Ctrl-C or by the machine? The same command once more resumes from /tmp/v2.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
from collections.abc import Callable, Iterator

import tensorflow as tf
from absl import app, flags

import dist_restore as dr
from lm import data
from lm.interrupt import StopRequest
from lm.loss_log import LossLog
from lm.saver import Saver
from lm.sizes import Sizes
from lm.state import State, build
from lm.strategies import STRATEGIES, Devices
from lm.training import losses

_SIZES = Sizes()

_STRATEGY = flags.DEFINE_enum("strategy", "default", list(STRATEGIES), "The tf.distribute strategy to train under.")
_REPLICAS = flags.DEFINE_integer(
    "replicas",
    0,
    "How many replicas --strategy=mirrored has. 0: all GPUs, or two where there are none. "
    "On a machine without GPUs the CPU is divided into so many logical devices.",
    lower_bound=0,
)
_TPU = flags.DEFINE_string("tpu", "", "Name or address of the TPU for --strategy=tpu; empty: the machine's own.")
_MODEL_VERSION = flags.DEFINE_enum(
    "model_version", "1", ["1", "2"], "Which model to train: 1 as first written, or 2, its refactor."
)
_STEPS = flags.DEFINE_integer(
    "steps", 100, "Train until so many steps are done, restored ones included.", lower_bound=0
)
_CHECKPOINT_DIR = flags.DEFINE_string(
    "checkpoint_dir",
    None,
    "The run's own directory. Checkpoints are saved here, and a run that finds one here resumes from it as it is, "
    "without --restore_from and --rules. Not given: nothing is saved.",
)
_CHECKPOINT_EVERY = flags.DEFINE_integer(
    "checkpoint_every", 0, "Save after every so many steps; 0: only at the end.", lower_bound=0
)
_KEEP = flags.DEFINE_integer("keep", 3, "How many checkpoints stay in --checkpoint_dir.", lower_bound=1)
_RESTORE_FROM = flags.DEFINE_string(
    "restore_from",
    None,
    "What to start from when --checkpoint_dir has no checkpoint yet: a checkpoint prefix such as /runs/v1/ckpt-40, or "
    "a directory, for its latest checkpoint.",
)
_RULES = flags.DEFINE_string(
    "rules", None, "TOML file that says how the names in --restore_from become this model's (see configs/rules)."
)
_RESTORE = flags.DEFINE_enum(
    "restore",
    None,
    ["required", "if_present", "never"],
    "required: it is an error when there is nothing to restore. if_present: then train from scratch, and say so. "
    "never: train from scratch. Default: required with --restore_from, else if_present.",
)
# absl has a flag of this name for its own log files, which are not used here.
_LOG_DIR = flags.DEFINE_string(
    "log_dir", None, "TensorBoard directory, for the losses and for what was restored.", allow_override=True
)
_LOSS_LOG = flags.DEFINE_string("loss_log", None, "File for the loss of every step, as JSON lines in full precision.")
_LOG_EVERY = flags.DEFINE_integer("log_every", 10, "Print the loss after every so many steps.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Determines the first weights and the order of the examples.", lower_bound=0)
_LEARNING_RATE = flags.DEFINE_float("learning_rate", 1e-3, "Adam's learning rate.", lower_bound=0.0)
_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", 16, "Examples per step over all replicas; a multiple of their number.", lower_bound=1
)
_LAYERS = flags.DEFINE_integer("layers", _SIZES.layers, "Transformer blocks.", lower_bound=1)
_WIDTH = flags.DEFINE_integer("width", _SIZES.width, "Features per token; a multiple of --heads.", lower_bound=1)
_HEADS = flags.DEFINE_integer("heads", _SIZES.heads, "Attention heads per block.", lower_bound=1)
_CONTEXT = flags.DEFINE_integer("context", _SIZES.context, "Bytes that the model sees at once.", lower_bound=1)
_DROPOUT = flags.DEFINE_float(
    "dropout",
    _SIZES.dropout,
    "Share of features dropped in training. Which ones is not saved by tf.train.Checkpoint, so with dropout a resumed "
    "run is not step for step the uninterrupted one.",
    lower_bound=0.0,
)


def main(argv: list[str]) -> int:
    del argv
    try:
        return _run()
    except (dr.RestoreError, ValueError) as error:
        sys.exit(f"train_lm: {type(error).__name__}: {error}")
    except KeyboardInterrupt:
        print("\nstopped at once: what was saved before stays as it is, nothing was saved now", flush=True)
        return 130


def _run() -> int:
    source = _choose_source()
    sizes = Sizes(_LAYERS.value, _WIDTH.value, _HEADS.value, _CONTEXT.value, _DROPOUT.value)
    strategy = _make_strategy()
    with strategy.scope():
        state = build(int(_MODEL_VERSION.value), sizes, seed=_SEED.value, learning_rate=_LEARNING_RATE.value)
    checkpoint = state.checkpoint()
    _restore(checkpoint, source)
    return _train(state, strategy, checkpoint)


def _make_strategy() -> tf.distribute.Strategy:
    tf.get_logger().setLevel("WARNING")
    tf.config.experimental.enable_op_determinism()
    strategy = STRATEGIES[_STRATEGY.value](Devices(_REPLICAS.value, _TPU.value))
    replicas = strategy.num_replicas_in_sync
    if _BATCH_SIZE.value % replicas:
        raise ValueError(f"--batch_size={_BATCH_SIZE.value} cannot be divided over {replicas} replicas")
    return strategy


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a run starts from; an empty path is from scratch."""

    path: str
    rules: str | None
    why: str


def _choose_source() -> Source:
    """Own checkpoint first: rules have done their work once a run has saved, and must not be applied again."""
    own, given, mode = _CHECKPOINT_DIR.value, _RESTORE_FROM.value, _RESTORE.value
    if _RULES.value and not given:
        raise ValueError("--rules says how names change on the way from --restore_from, which is not given")
    if mode == "never":
        _refuse_to_mix(own)
        return Source("", None, "--restore=never")
    if own and _has_checkpoints(own):
        return Source(own, None, "the run's own checkpoint")
    if given and (mode != "if_present" or _is_anything(given)):
        return Source(given, _RULES.value, "--restore_from")
    if mode == "required":
        raise ValueError(
            f"--restore=required, but there is no --restore_from and no checkpoint in {own or 'no directory'}"
        )
    return Source("", None, f"nothing at {given}" if given else "nothing to restore")


def _refuse_to_mix(directory: str | None) -> None:
    if directory and _has_checkpoints(directory):
        raise ValueError(f"--restore=never, but {directory} holds another run's checkpoints: give this run its own")


def _has_checkpoints(directory: str) -> bool:
    return tf.io.gfile.exists(os.path.join(directory, "checkpoint")) or bool(
        tf.io.gfile.glob(os.path.join(directory, "*.index"))
    )


def _is_anything(path: str) -> bool:
    """Whether a checkpoint is meant to be there: a damaged one is an error, and no reason to start from scratch."""
    if tf.io.gfile.isdir(path):
        return bool(tf.io.gfile.listdir(path))
    return bool(tf.io.gfile.glob(path + "*"))


def _restore(checkpoint: tf.train.Checkpoint, source: Source) -> None:
    if not source.path:
        print(f"training from scratch: {source.why}", flush=True)
        return
    print(f"restoring from {source.path} ({source.why})", flush=True)
    restorer = dr.DistributedRestorer(checkpoint, rules=source.rules, log_dir=_LOG_DIR.value)
    report = restorer.restore(source.path)
    filled, total = report.coverage.filled().variables, report.coverage.total().variables
    # A resume is no news; what rules did should be seen.
    print(report.summary() if source.rules else f"restored {filled} of {total} variables", flush=True)


def _train(state: State, strategy: tf.distribute.Strategy, checkpoint: tf.train.Checkpoint) -> int:
    first, last = int(state.step.numpy()), _STEPS.value
    if first >= last:
        print(f"nothing to do: {first} steps are done, --steps={last}")
        return 0
    saver = Saver(checkpoint, _CHECKPOINT_DIR.value, _KEEP.value)
    with StopRequest() as stop, _record(first) as record:
        for step, loss in losses(state, strategy, _batches(first, last)):
            record(step, loss)
            if stop.exit_code or step == last or _is_every(_CHECKPOINT_EVERY.value, step):
                saver.save(step)
            if stop.exit_code:
                break
    print(f"{'stopped' if step < last else 'done'} after step {step}: {saver.summary(last - step)}", flush=True)
    return stop.exit_code


def _batches(first: int, last: int) -> tf.data.Dataset:
    return data.batches(
        data.read_corpus(),
        context=_CONTEXT.value,
        batch_size=_BATCH_SIZE.value,
        seed=_SEED.value,
        first_step=first,
        last_step=last,
    )


@contextlib.contextmanager
def _record(first: int) -> Iterator[Callable[[int, float], None]]:
    """Yields what is called with each step's loss: it prints, and writes to --loss_log and --log_dir."""
    with contextlib.ExitStack() as open_files:
        if _LOSS_LOG.value:
            loss_log = open_files.enter_context(LossLog(_LOSS_LOG.value, first))
        if _LOG_DIR.value:
            writer = tf.summary.create_file_writer(os.path.join(_LOG_DIR.value, "train"))
            open_files.enter_context(writer.as_default())

        def record(step: int, loss: float) -> None:
            if _LOSS_LOG.value:
                loss_log.write(step, loss)
            if _LOG_DIR.value:
                tf.summary.scalar("loss", loss, step)
            if step == first + 1 or step == _STEPS.value or _is_every(_LOG_EVERY.value, step):
                print(f"step {step:6d}  loss {loss:.6f}", flush=True)

        yield record


def _is_every(count: int, step: int) -> bool:
    return count > 0 and step % count == 0


if __name__ == "__main__":
    app.run(main)
