r"""Trains a byte-level language model under tf.distribute, and resumes runs of older versions of the model.

Version 1 from scratch, on two replicas:

    python scripts/train_lm.py --strategy=mirrored --model_version=1 --steps=40 --checkpoint_dir=/tmp/v1

Its refactor goes on from there, with its weights, Adam's moments and step:

    python scripts/train_lm.py --strategy=mirrored --model_version=2 --steps=80 --checkpoint_dir=/tmp/v2 \
        --restore_from=/tmp/v1 --rules=configs/rules/lm_v1_to_v2.toml

Stopped by Ctrl-C or by the machine? The same command once more resumes from /tmp/v2.

With several workers, each runs the same command, with --strategy=multiworker; configs/clusters/ has a file to copy for
Kubernetes, SLURM and Cloud TPU. Two on this machine:

    python scripts/launch_local.py --workers=2 -- python scripts/train_lm.py --strategy=multiworker --steps=40

One of them is the chief: it alone looks for checkpoints, prints, and writes those that are kept. Who is stopped stops
all, after the same step.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator

import tensorflow as tf
from absl import app, flags

import dist_restore as dr
from lm import data, source
from lm.clusters import CLUSTERS
from lm.interrupt import StopRequest
from lm.loss_log import LossLog
from lm.paths import describe_paths, parse_paths
from lm.saver import Saver
from lm.sizes import Sizes
from lm.state import State, build
from lm.strategies import STRATEGIES, Devices
from lm.training import Step, steps
from lm.workers import LOST, Workers, lost

_SIZES = Sizes()

_STRATEGY = flags.DEFINE_enum(
    "strategy",
    "default",
    list(STRATEGIES),
    "The tf.distribute strategy to train under. default: one device. mirrored: all GPUs of this machine. multiworker: "
    "several machines, each of which runs this command. tpu: the TPU that --tpu names.",
)
_REPLICAS = flags.DEFINE_integer(
    "replicas",
    0,
    "How many replicas --strategy=mirrored has, or each worker of --strategy=multiworker. 0: all GPUs, or, where there "
    "are none, two for mirrored and one for multiworker. On a machine without GPUs the CPU is divided into so many "
    "logical devices.",
    lower_bound=0,
)
_CLUSTER = flags.DEFINE_enum(
    "cluster",
    "auto",
    list(CLUSTERS),
    "Where --strategy=multiworker learns who the workers are. tf_config: the environment variable TF_CONFIG, as "
    "Kubernetes operators and launch_local.py set it; a job called chief is worker 0. slurm: the variables that srun "
    "sets. auto: whichever of the two is there. alone: this is the only worker.",
)
_SLURM_PORT = flags.DEFINE_integer(
    "slurm_port",
    0,
    "With --cluster=slurm, the port of the first worker on each node; others on it have the next ones. 0: one that "
    "follows from the job's number.",
    lower_bound=0,
    upper_bound=65535,
)
_TPU = flags.DEFINE_string(
    "tpu",
    "",
    "The TPU for --strategy=tpu. local: that of the TPU VM that this runs on. A name: that TPU or pod slice, found by "
    "Cloud TPU's own service. An address such as 10.0.0.2:8470: that one. Empty: what TPU_NAME says, if it is set.",
)
_TPU_ZONE = flags.DEFINE_string("tpu_zone", "", "Zone of a TPU that is given by its name. Empty: this machine's zone.")
_TPU_PROJECT = flags.DEFINE_string("tpu_project", "", "Project of a TPU given by name. Empty: this machine's project.")
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
    "without --restore_from and --rules. Not given: nothing is saved. Of several workers, only the chief looks at it.",
)
_CHECKPOINT_EVERY = flags.DEFINE_integer(
    "checkpoint_every", 0, "Save after every so many steps; 0: only at the end.", lower_bound=0
)
_KEEP = flags.DEFINE_integer("keep", 3, "How many checkpoints stay in --checkpoint_dir.", lower_bound=1)
_RESTORE_FROM = flags.DEFINE_multi_string(
    "restore_from",
    None,
    "What to start from when --checkpoint_dir has no checkpoint yet: a checkpoint prefix such as /runs/v1/ckpt-40, or "
    "a directory, for its latest checkpoint. Several into one model, or their average: give it once for each, as in "
    "--restore_from=a=/runs/v1/ckpt-40 --restore_from=b=/runs/v1/ckpt-50; rules then say a:model/...",
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
_ORDER = flags.DEFINE_enum(
    "order",
    "accept",
    ["accept", "refuse"],
    "What becomes of variables for which nothing but the order of equal layers speaks: filled and named, or refused.",
)
# absl has a flag of this name for its own log files, which are not used here.
_LOG_DIR = flags.DEFINE_string(
    "log_dir",
    None,
    "TensorBoard directory, for the losses and for what was restored; only the chief writes it.",
    allow_override=True,
)
_LOSS_LOG = flags.DEFINE_string(
    "loss_log",
    None,
    "File for the loss of every step, as JSON lines in full precision. Workers other than the chief add .worker1, "
    ".worker2 and so on to its name; all hold the same losses.",
)
_LOG_EVERY = flags.DEFINE_integer("log_every", 10, "Print the loss after every so many steps.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Determines the first weights and the order of the examples.", lower_bound=0)
_LEARNING_RATE = flags.DEFINE_float("learning_rate", 1e-3, "Adam's learning rate.", lower_bound=0.0)
_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", 16, "Examples per step over all replicas of all workers; a multiple of their number.", lower_bound=1
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
    except LOST as error:
        if _STRATEGY.value != "multiworker":
            raise
        sys.exit(f"train_lm: {lost(error)}")
    except KeyboardInterrupt:
        print("\nstopped at once: what was saved before stays as it is, nothing was saved now", flush=True)
        return 130


def _run() -> int:
    sizes = Sizes(_LAYERS.value, _WIDTH.value, _HEADS.value, _CONTEXT.value, _DROPOUT.value)
    strategy = _make_strategy()
    workers = Workers(strategy)
    workers.compare({flag.name: flag.value for flag in _SHARED} | {"checkpoint_dir": _given(_CHECKPOINT_DIR)})
    start = source.Source.from_json(workers.ask_chief("choose what to restore", _choose_source))
    with strategy.scope():
        state = build(int(_MODEL_VERSION.value), sizes, seed=_SEED.value, learning_rate=_LEARNING_RATE.value)
    checkpoint = state.checkpoint()
    _restore(checkpoint, start, workers)
    code = _train(state, strategy, checkpoint, workers)
    # Who ends first takes away what others still wait for in the last reduction.
    workers.together("end", lambda: None)
    return code


# What a worker may have for itself is what only the chief looks at.
_SHARED = (
    _REPLICAS,
    _MODEL_VERSION,
    _STEPS,
    _CHECKPOINT_EVERY,
    _SEED,
    _LEARNING_RATE,
    _BATCH_SIZE,
    _LAYERS,
    _WIDTH,
    _HEADS,
    _CONTEXT,
    _DROPOUT,
)


def _given(flag: flags.FlagHolder[str]) -> str:
    return "given" if flag.value else "not given"


def _make_strategy() -> tf.distribute.Strategy:
    tf.get_logger().setLevel("WARNING")
    tf.config.experimental.enable_op_determinism()
    devices = Devices(
        _REPLICAS.value, _CLUSTER.value, _SLURM_PORT.value, _TPU.value, _TPU_ZONE.value, _TPU_PROJECT.value
    )
    strategy = STRATEGIES[_STRATEGY.value](devices)
    replicas = strategy.num_replicas_in_sync
    if _BATCH_SIZE.value % replicas:
        raise ValueError(f"--batch_size={_BATCH_SIZE.value} cannot be divided over {replicas} replicas")
    return strategy


def _choose_source() -> str:
    wish = source.Wish(_CHECKPOINT_DIR.value, parse_paths(_RESTORE_FROM.value), _RULES.value, _RESTORE.value)
    return source.choose(wish).to_json()


def _restore(checkpoint: tf.train.Checkpoint, start: source.Source, workers: Workers) -> None:
    say = _say if workers.is_chief else _say_nothing
    if not start.path:
        say(f"training from scratch: {start.why}")
        return
    say(f"restoring from {describe_paths(start.path)} ({start.why})")
    # The chief plans for all: the others need neither see its rule file nor the path.
    rules, log_dir = (start.rules, _LOG_DIR.value) if workers.is_chief else (None, None)
    restorer = workers.together(
        "read the rules",
        lambda: dr.DistributedRestorer(checkpoint, rules=rules, order=_ORDER.value, log_dir=log_dir),
    )
    report = restorer.restore(start.path)
    filled, total = report.coverage.filled().variables, report.coverage.total().variables
    # A resume is no news; what rules did should be seen, and so should what rests on order alone.
    short = f"restored {filled} of {total} variables"
    say(report.summary() if start.rules else "\n".join(filter(None, (short, report.plan.order_note))))


def _say(text: str) -> None:
    print(text, flush=True)


def _say_nothing(text: str) -> None:
    del text


def _train(state: State, strategy: tf.distribute.Strategy, checkpoint: tf.train.Checkpoint, workers: Workers) -> int:
    say = _say if workers.is_chief else _say_nothing
    first, last = int(state.step.numpy()), _STEPS.value
    if first >= last:
        say(f"nothing to do: {first} steps are done, --steps={last}")
        return 0
    saver = Saver(checkpoint, _CHECKPOINT_DIR.value, _KEEP.value, workers)
    with StopRequest() as stop, _record(first, workers) as record:
        for step in steps(state, strategy, _batches(first, last), stop):
            record(step)
            if step.exit_code or step.number == last or _is_every(_CHECKPOINT_EVERY.value, step.number):
                saver.save(step.number, state.nbytes)
            if step.exit_code:
                break
    end = "stopped" if step.number < last else "done"
    say(f"{end} after step {step.number}: {saver.summary(last - step.number)}")
    return step.exit_code


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
def _record(first: int, workers: Workers) -> Iterator[Callable[[Step], None]]:
    """Yields what is called with each step: it writes to --loss_log, and the chief prints and writes to --log_dir."""
    with contextlib.ExitStack() as open_files:
        if _LOSS_LOG.value:
            suffix = "" if workers.is_chief else f".worker{workers.rank}"
            loss_log = open_files.enter_context(LossLog(_LOSS_LOG.value + suffix, first))
        if _LOG_DIR.value and workers.is_chief:
            writer = tf.summary.create_file_writer(os.path.join(_LOG_DIR.value, "train"))
            open_files.enter_context(writer.as_default())

        def record(step: Step) -> None:
            if _LOSS_LOG.value:
                loss_log.write(step.number, step.loss)
            if workers.is_chief:
                _show(step, is_first=step.number == first + 1)

        yield record


def _show(step: Step, *, is_first: bool) -> None:
    if _LOG_DIR.value:
        tf.summary.scalar("loss", step.loss, step.number)
    if is_first or step.number == _STEPS.value or _is_every(_LOG_EVERY.value, step.number):
        _say(f"step {step.number:6d}  loss {step.loss:.6f}")


def _is_every(count: int, step: int) -> bool:
    return count > 0 and step % count == 0


if __name__ == "__main__":
    app.run(main)
