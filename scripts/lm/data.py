"""Text that every machine has: the sources of Python's standard library, as bytes.

An example is a function of the seed and of its number alone, and the batch of a step holds the examples
`step * batch_size ...`: a resumed run sees what an uninterrupted one would have seen.
"""

from __future__ import annotations

import pathlib
import sysconfig

import tensorflow as tf

# Named one by one, and not globbed: what else is installed must not change the text.
FILES = (
    "argparse.py",
    "ast.py",
    "calendar.py",
    "codecs.py",
    "collections/__init__.py",
    "configparser.py",
    "contextlib.py",
    "csv.py",
    "dataclasses.py",
    "datetime.py",
    "difflib.py",
    "email/message.py",
    "enum.py",
    "fractions.py",
    "ftplib.py",
    "functools.py",
    "gzip.py",
    "heapq.py",
    "http/client.py",
    "inspect.py",
    "json/decoder.py",
    "json/encoder.py",
    "logging/__init__.py",
    "mailbox.py",
    "os.py",
    "pickle.py",
    "random.py",
    "shutil.py",
    "socket.py",
    "statistics.py",
    "subprocess.py",
    "tarfile.py",
    "tempfile.py",
    "textwrap.py",
    "threading.py",
    "typing.py",
    "urllib/parse.py",
    "urllib/request.py",
    "uuid.py",
    "zipfile.py",
)


def read_corpus() -> bytes:
    """Returns the text to train on: those of `FILES` that this Python has, one after the other."""
    library = pathlib.Path(sysconfig.get_paths()["stdlib"])
    text = b"".join(path.read_bytes() for path in (library / name for name in FILES) if path.is_file())
    if not text:
        raise FileNotFoundError(f"none of the standard library's sources are under {library}")
    return text


def batches(
    text: bytes, *, context: int, batch_size: int, seed: int, first_step: int, last_step: int
) -> tf.data.Dataset:
    """Returns the global batches of the steps `first_step` up to, not including, `last_step`.

    Args:
      text: what to cut examples from.
      context: bytes that the model sees; an example has one more, the last to be predicted.
      batch_size: examples per step, over all replicas.
      seed: another seed gives other examples.
      first_step: number of steps already done.
      last_step: number of steps when the run is done.

    Returns:
      A dataset of int32 tensors of shape `[batch_size, context + 1]`.
    """
    tokens = tf.constant(list(text), tf.uint8)

    def example(number: tf.Tensor) -> tf.Tensor:
        begin = tf.random.stateless_uniform([], [seed, number], 0, len(text) - context, tf.int64)
        return tf.cast(tokens[begin : begin + context + 1], tf.int32)

    numbers = tf.data.Dataset.range(first_step * batch_size, last_step * batch_size)
    examples = numbers.map(example).map(lambda tokens: tf.ensure_shape(tokens, [context + 1]))
    return examples.batch(batch_size, drop_remainder=True).with_options(_options()).prefetch(2)


def _options() -> tf.data.Options:
    options = tf.data.Options()
    # There is nothing to tune, and the tuner's thread may sleep for a minute before an iterator can be deleted.
    options.autotune.enabled = False
    return options
