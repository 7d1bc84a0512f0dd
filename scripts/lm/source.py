"""What a run starts from: its own checkpoint, another run's, or nothing."""

from __future__ import annotations

import dataclasses
import json
import os

import tensorflow as tf

from lm.paths import Paths, describe_paths


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a run starts from.

    Attributes:
      path: a checkpoint or a directory of such, or several by name; empty: from scratch.
      rules: rule file, if names change on the way.
      why: why this and nothing else.
    """

    path: Paths
    rules: str | None
    why: str

    def to_json(self) -> str:
        """Returns it as text, for other workers."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Source:
        """Reads what `to_json` wrote."""
        return cls(**json.loads(text))


@dataclasses.dataclass(frozen=True)
class Wish:
    """What the flags say about it: --checkpoint_dir, --restore_from, --rules and --restore."""

    own: str | None
    given: Paths | None
    rules: str | None
    mode: str | None


def choose(wish: Wish) -> Source:
    """Own checkpoint first: rules have done their work once a run has saved, and must not be applied again.

    Looks at files, so that of several workers the chief alone may ask.

    Raises:
      ValueError: the flags contradict each other, or what they require is not there.
    """
    own, given, mode = wish.own, wish.given, wish.mode
    if wish.rules and not given:
        raise ValueError("--rules says how names change on the way from --restore_from, which is not given")
    if mode == "never":
        _refuse_to_mix(own)
        return Source("", None, "--restore=never")
    if own and _has_checkpoints(own):
        return Source(own, None, "the run's own checkpoint")
    if given and (mode != "if_present" or _is_anything(given)):
        return Source(given, wish.rules, "--restore_from")
    if mode == "required":
        raise ValueError(
            f"--restore=required, but there is no --restore_from and no checkpoint in {own or 'no directory'}"
        )
    return Source("", None, f"nothing at {describe_paths(given)}" if given else "nothing to restore")


def _refuse_to_mix(directory: str | None) -> None:
    if directory and _has_checkpoints(directory):
        raise ValueError(f"--restore=never, but {directory} holds another run's checkpoints: give this run its own")


def _has_checkpoints(directory: str) -> bool:
    return tf.io.gfile.exists(os.path.join(directory, "checkpoint")) or bool(
        tf.io.gfile.glob(os.path.join(directory, "*.index"))
    )


def _is_anything(path: Paths) -> bool:
    """Whether a checkpoint is meant to be there: a damaged one is an error, and no reason to start from scratch.

    One of several that is missing is an error too.
    """
    if not isinstance(path, str):
        return any(map(_is_anything, path.values()))
    if tf.io.gfile.isdir(path):
        return bool(tf.io.gfile.listdir(path))
    return bool(tf.io.gfile.glob(path + "*"))
