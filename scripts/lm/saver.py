"""Saves a run's checkpoints, named by the step, and remembers what there is to say about them."""

from __future__ import annotations

import tempfile

import tensorflow as tf

from lm.workers import Workers


class Saver:
    """Saves into a directory, or nowhere if there is none.

    Of several workers all must save, for saving a variable that is the sum of what each replica has (ON_READ) adds
    these up over all workers. What is kept is the chief's, and its directory need not exist for the others: these write
    to a temporary directory (below TMPDIR), which they remove.
    """

    def __init__(self, checkpoint: tf.train.Checkpoint, directory: str | None, keep: int, workers: Workers) -> None:
        self._checkpoint, self._workers = checkpoint, workers
        self._saves = bool(directory)
        chief = self._saves and workers.is_chief
        self._manager = tf.train.CheckpointManager(checkpoint, directory, keep) if chief else None
        self._last = ""

    def save(self, step: int, nbytes: int = 0) -> None:
        """Saves the state after this step; returns when that is done on all workers.

        Args:
          step: how many steps are done.
          nbytes: about how much is saved: by so much longer may it take.
        """
        if self._saves:
            self._last = self._workers.together("save", lambda: self._save(step), nbytes)

    def summary(self, left: int) -> str:
        """Says what was saved last and what to do with it, when so many steps are left to do."""
        if not self._saves:
            return "nothing was saved, for there is no --checkpoint_dir"
        command = "the same command" if left else "the same command with more --steps"
        return f"saved {self._last}; {command} goes on from there"

    def _save(self, step: int) -> str:
        if self._manager is not None:
            return str(self._manager.save(checkpoint_number=step))
        with tempfile.TemporaryDirectory(prefix="train_lm_") as directory:
            return str(tf.train.CheckpointManager(self._checkpoint, directory, 1).save(checkpoint_number=step))
