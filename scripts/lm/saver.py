"""Saves a run's checkpoints, named by the step, and remembers what there is to say about them."""

from __future__ import annotations

import tensorflow as tf


class Saver:
    """Saves into a directory, or nowhere if there is none."""

    def __init__(self, checkpoint: tf.train.Checkpoint, directory: str | None, keep: int) -> None:
        self._manager = tf.train.CheckpointManager(checkpoint, directory, keep) if directory else None
        self._last = ""

    def save(self, step: int) -> None:
        """Saves the state after this step."""
        if self._manager is not None:
            self._last = self._manager.save(checkpoint_number=step)

    def summary(self, left: int) -> str:
        """Says what was saved last and what to do with it, when so many steps are left to do."""
        if self._manager is None:
            return "nothing was saved, for there is no --checkpoint_dir"
        command = "the same command" if left else "the same command with more --steps"
        return f"saved {self._last}; {command} goes on from there"
