"""Plan and outcome as text, JSON, Markdown and TensorBoard summaries; and the progress bar.

`report.py` holds the frozen outcome, `json.py`, `markdown.py` and `tensorboard.py` each one form of it. Only
`tensorboard.py` imports TensorFlow, and nothing here imports it.
"""

from dist_restore.report.report import PhaseSeconds, RestoreReport

__all__ = ["PhaseSeconds", "RestoreReport"]
