"""A report as TensorBoard summaries. The only part of the report that imports TensorFlow.

Called by the chief alone: every worker has the same report, and event files of several would show it twice.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import tensorflow as tf

from dist_restore.core.errors import RestoreError
from dist_restore.planning.entries import Coverage, Status, Tally
from dist_restore.planning.proofs import count_proofs
from dist_restore.report import markdown
from dist_restore.report.report import RestoreReport

# TensorBoard holds text summaries in memory and sends them whole: beyond this the JSON belongs in a file.
MAX_JSON_BYTES = 1_000_000


def write(report: RestoreReport, log_dir: str, step: int = 0) -> None:
    """Writes one event file with the report's scalars and texts. Called by the chief.

    Args:
      report: what is written.
      log_dir: TensorBoard directory; made if it does not exist.
      step: the step that the summaries have.
    """
    writer = tf.summary.create_file_writer(log_dir, filename_suffix=".dist_restore")
    try:
        # A caller's name scope would become part of the tags, and a caller may have switched summaries off.
        with tf.name_scope(""), writer.as_default(step), tf.summary.record_if(True):
            _write_all(report)
    finally:
        writer.close()


def require_writable(log_dir: str) -> None:
    """Makes the directory and a file in it, which is removed again. Called by the chief, before a variable changes.

    Raises:
      RestoreError: that cannot be done.
    """
    probe = f"{log_dir.rstrip('/')}/.dist_restore-{uuid.uuid4().hex}"
    try:
        tf.io.gfile.makedirs(log_dir)
        with tf.io.gfile.GFile(probe, "w") as file:
            file.write("")
        tf.io.gfile.remove(probe)
    except (tf.errors.OpError, OSError) as error:
        raise RestoreError(
            f"log_dir={log_dir!r}: summaries cannot be written there: {error}. Nothing was changed. Pass a directory "
            "that this process may write to, or log_dir=None."
        ) from error


def _write_all(report: RestoreReport) -> None:
    for tag, value in scalars(report):
        tf.summary.scalar(f"restore/{tag}", value)
    for tag, text in texts(report):
        tf.summary.text(f"restore/{tag}", text)


def scalars(report: RestoreReport) -> Iterator[tuple[str, float]]:
    """`(tag, value)` of all scalars: coverage as fractions, counts by status and proof, seconds, bytes read."""
    yield from _coverage(report.coverage)
    for status in Status:
        yield f"count/{status.value}", float(report.coverage.total(status=status).variables)
    yield from ((f"proof/{kind}", float(count)) for kind, count in count_proofs(report.plan.entries).items())
    yield from ((f"seconds/{phase}", taken) for phase, taken in report.seconds.items())
    yield "bytes_read", float(sum(report.bytes_read))


def texts(report: RestoreReport) -> Iterator[tuple[str, str]]:
    """`(tag, Markdown)` of all texts; the JSON only if it is small."""
    yield "summary", markdown.block(report.summary())
    if report.plan.order_note:
        yield "order", markdown.order(report.plan)
    yield "coverage_table", markdown.coverage(report.coverage)
    if report.plan.checkpoints:
        yield "checkpoints", markdown.checkpoints(report.plan)
    yield "mapping", markdown.mapping(report.plan)
    yield "unused", markdown.unused(report.plan)
    json = report.to_json()
    if len(json) < MAX_JSON_BYTES:
        # Four blanks make it a code block for people, and leave it JSON for programs.
        yield "report_json", f"    {json}"


def _coverage(coverage: Coverage) -> Iterator[tuple[str, float]]:
    yield from _fractions("coverage", coverage.filled(), coverage.total())
    for group in coverage.groups:
        yield from _fractions(f"coverage/{group.value}", coverage.filled(group=group), coverage.total(group=group))


def _fractions(prefix: str, filled: Tally, total: Tally) -> Iterator[tuple[str, float]]:
    yield f"{prefix}/variables", _fraction(filled.variables, total.variables)
    yield f"{prefix}/elements", _fraction(filled.elements, total.elements)
    yield f"{prefix}/bytes", _fraction(filled.bytes, total.bytes)


def _fraction(part: int, whole: int) -> float:
    return part / whole if whole else 1.0
