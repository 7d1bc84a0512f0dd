"""A report as Markdown: every variable with its evidence, what was unused and why, and the coverage.

Meant for TensorBoard's text page, a pull request or a file. Names show literally, whatever they contain.
"""

from __future__ import annotations

from dist_restore.core.index import Group
from dist_restore.core.text import escape_text, human_bytes
from dist_restore.ops import describe
from dist_restore.planning.entries import Coverage, PlanEntry, Tally, Unused
from dist_restore.planning.markdown_text import markdown_block, markdown_table, markdown_text
from dist_restore.planning.plan import RestorePlan
from dist_restore.planning.row_families import patterns
from dist_restore.planning.summary import share

# A table of this many rows is what a browser and TensorBoard's renderer still show within seconds.
MAX_ROWS = 5000


def mapping(plan: RestorePlan) -> str:
    """A table with one row per variable; of very large plans the table with families collapsed, and a note."""
    if len(plan.entries) > MAX_ROWS:
        note = f"{len(plan.entries)} variables: more than {MAX_ROWS}, so that families of names are collapsed. "
        return f"{note}The report's JSON has every one.\n\n{block(plan.summary())}"
    header = ("status", "target", "shape", "sources", "ops", "proof", "evidence", "reason", "bytes")
    return markdown_table(header, (_entry(entry) for entry in plan.entries))


def unused(plan: RestorePlan) -> str:
    """A table of the source tensors that nothing used, each with its reason."""
    if not plan.unused:
        return "Every tensor of the checkpoint was used."
    rows = _collapsed(plan.unused) if len(plan.unused) > MAX_ROWS else list(plan.unused)
    table = markdown_table(("source", "reason"), ((escape_text(name), reason) for name, reason in rows[:MAX_ROWS]))
    if len(rows) > MAX_ROWS:
        table += f"\n\n{len(rows) - MAX_ROWS} rows more are left out here; the report's JSON has every one."
    return table


def checkpoints(plan: RestorePlan) -> str:
    """A table of several checkpoints, and how much of each is used; empty for a single one."""
    rows = [(u.name, escape_text(u.path), str(u.used), str(u.unused)) for u in plan.uses]
    return markdown_table(("checkpoint", "path", "tensors used", "unused"), rows) if rows else ""


def order(plan: RestorePlan) -> str:
    """What rests on order alone, as one line of text; empty when nothing does."""
    return markdown_text(" ".join(plan.order_note.split("\n")))


def coverage(found: Coverage) -> str:
    """A table of how much was filled: by group, by status within it, and in all."""
    rows = [row for group in found.groups for row in _group(found, group)]
    rows.append(("all", "", *_counts(found.filled(), found.total())))
    return markdown_table(("group", "status", "variables", "elements", "bytes"), rows)


def document(plan: RestorePlan) -> str:
    """Coverage, what rests on order alone, mapping and unused tensors, under headings."""
    sections = (
        *((("Checkpoints", checkpoints(plan)),) if plan.checkpoints else ()),
        ("Coverage", coverage(plan.coverage)),
        *((("Order", order(plan)),) if plan.order_note else ()),
        ("Mapping", mapping(plan)),
        ("Unused", unused(plan)),
    )
    return "\n\n".join(f"## {title}\n\n{text}" for title, text in sections)


def block(text: str) -> str:
    """Text as a code block; beyond `MAX_ROWS` lines it is cut, and says so."""
    lines = text.splitlines()
    if len(lines) <= MAX_ROWS:
        return markdown_block(text)
    rest = f"{len(lines) - MAX_ROWS} lines more are left out here; the report's JSON has all."
    return f"{markdown_block(chr(10).join(lines[:MAX_ROWS]))}\n\n{rest}"


def _entry(entry: PlanEntry) -> tuple[str, ...]:
    specs = entry.source_specs or (None,) * len(entry.sources)
    sources = (f"{escape_text(n)}{f' {s}' if s else ''}" for n, s in zip(entry.sources, specs, strict=False))
    return (
        entry.status.value,
        escape_text(entry.target),
        str(entry.spec),
        " + ".join(sources),
        describe(entry.ops),
        entry.proof.value,
        entry.evidence,
        entry.reason,
        human_bytes(entry.bytes),
    )


def _collapsed(found: tuple[Unused, ...]) -> list[Unused]:
    by_reason: dict[str, list[str]] = {}
    for name, reason in found:
        by_reason.setdefault(reason, []).append(name)
    return [Unused(pattern, reason) for reason, names in by_reason.items() for pattern, _ in patterns(names)]


def _group(found: Coverage, group: Group) -> list[tuple[str, ...]]:
    rows = [row for row in found.rows if row.group is group]
    by_status = [(group.value, row.status.value, *_counts(row.filled, row.total)) for row in rows]
    return [(group.value, "all", *_counts(found.filled(group=group), found.total(group=group))), *by_status]


def _counts(filled: Tally, total: Tally) -> tuple[str, str, str]:
    return (
        f"{filled.variables}/{total.variables} ({share(filled.variables, total.variables)})",
        f"{filled.elements}/{total.elements} ({share(filled.elements, total.elements)})",
        f"{human_bytes(filled.bytes)}/{human_bytes(total.bytes)} ({share(filled.bytes, total.bytes)})",
    )
