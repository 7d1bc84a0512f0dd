"""The report: the outcome as a value, as text, as JSON, as Markdown, and read back from TensorBoard's files."""

from __future__ import annotations

import dataclasses
import html.parser
import json
import math
import pathlib
import subprocess
import sys

import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugin_util import markdown_to_safe_html
from tensorboard.plugins.text import text_plugin

from dist_restore.core.index import Group
from dist_restore.core.tensors import TensorSpec
from dist_restore.core.text import escape_text
from dist_restore.ops import Concat
from dist_restore.planning.entries import PlanEntry, Problem, Proof, Status, Unused
from dist_restore.planning.markdown_text import markdown_table, markdown_text
from dist_restore.planning.plan import RestorePlan
from dist_restore.report import PhaseSeconds, RestoreReport, markdown, tensorboard
from places import GOLDEN

HOSTILE = "<script>alert(1)</script>|`\n`|[a](javascript:x)**_b_**&lt;\\|\x1b[2J\u202e![i](http://x) # <b> ~~~ $x$"


def entry(
    target: str, *sources: str, status: Status = Status.RENAMED, group: Group = Group.MODEL, elements: int = 16
) -> PlanEntry:
    spec = TensorSpec((4, 4), "float32")
    filled = status not in (Status.KEPT, Status.UNMATCHED, Status.AMBIGUOUS)
    return PlanEntry(
        target=target,
        sources=sources,
        ops=(Concat(axis=-1),) if status is Status.TRANSFORMED else (),
        status=status,
        evidence="rule 1",
        reason=f"{target} is {status.value}",
        bytes=spec.nbytes,
        spec=spec,
        source_specs=(spec,) * len(sources),
        group=group,
        elements=elements if filled else 0,
        problem=Problem.UNMATCHED if status is Status.UNMATCHED else Problem.NONE,
        proof=Proof.RULE if filled else Proof.NONE,
    )


def plan(*entries: PlanEntry, unused: tuple[Unused, ...] = ()) -> RestorePlan:
    return RestorePlan("/ckpt/run-1", "c" * 64, "t" * 64, entries, unused)


def small_plan() -> RestorePlan:
    blocks = [entry(f"model/blocks/{i}/kernel", f"model/block_{i}/kernel") for i in range(2)]
    slots = [entry(f"optimizer/velocity/model/blocks/{i}/kernel", f"v/{i}", group=Group.OPTIMIZER) for i in range(2)]
    fused = entry("model/qkv", "model/q", "model/k", "model/v", status=Status.TRANSFORMED)
    partial = entry("model/wide", "model/narrow", status=Status.RESIZED, elements=8)
    kept = entry("model/zero", status=Status.KEPT)
    return plan(
        *blocks,
        dataclasses.replace(fused, unchecked=("model/q",)),
        partial,
        kept,
        *slots,
        unused=(Unused("model/old", "a rule drops it"),),
    )


def report(found: RestorePlan, **fields: object) -> RestoreReport:
    seconds = PhaseSeconds((("resolve", 0.25), ("check", 0.5), ("assign", 1.25)))
    chosen = {"bytes_read": (3 << 20, 1 << 20), "world_size": 2, "verify": "replicas", "verified": True}
    chosen |= {"reads": "chief", "reads_reason": "only the chief sees the files", "hashes": (("model/qkv", "00ff"),)}
    return RestoreReport(plan=found, seconds=seconds, **(chosen | fields))


class Table(html.parser.HTMLParser):
    """Texts of the cells by row, and every tag that occurs, as a browser would see them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.tags: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.add(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data: str) -> None:
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data

    @property
    def cells(self) -> list[list[str]]:
        return [[cell.strip() for cell in row] for row in self.rows]


def shown(text: str) -> Table:
    return Table(markdown_to_safe_html(text))


def events(log_dir: pathlib.Path) -> EventAccumulator:
    found = EventAccumulator(str(log_dir), size_guidance={"tensors": 0})
    found.Reload()
    return found


def scalar(found: EventAccumulator, tag: str) -> float:
    (event,) = found.Tensors(tag)
    return float(tf.make_ndarray(event.tensor_proto))


def text(found: EventAccumulator, tag: str) -> str:
    (event,) = found.Tensors(tag)
    return tf.make_ndarray(event.tensor_proto).item().decode()


def as_page(found: EventAccumulator, tag: str) -> Table:
    """What TensorBoard's text page shows for a tag."""
    (event,) = found.Tensors(tag)
    array = tf.make_ndarray(event.tensor_proto)
    return Table(text_plugin.process_event(event.wall_time, event.step, array, enable_markdown=True)["text"])


# ---- The value -------------------------------------------------------------------------------------------


def test_seconds_are_read_by_phase() -> None:
    seconds = PhaseSeconds((("read", 1.0), ("assign", 2.0), ("read", 0.5)))
    assert seconds["read"] == 1.5
    assert seconds.total == 3.5
    assert seconds.items() == (("read", 1.5), ("assign", 2.0))
    with pytest.raises(KeyError, match="no phase 'verify'; there are read, assign"):
        seconds["verify"]


def test_a_report_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        report(small_plan()).verified = False  # type: ignore[misc]


def test_a_report_lists_what_no_checksum_covers() -> None:
    assert report(small_plan()).unchecked == ("model/q",)


def test_the_summary_is_the_golden_one() -> None:
    whole = plan(*(e for e in small_plan().entries if e.status is not Status.RESIZED))
    assert report(whole).summary() + "\n" == (GOLDEN / "report_summary.txt").read_text()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"verify": "none", "verified": False}, "Nothing was verified"),
        (
            {"verify": "checksum"},
            "Verified: what was read whole has the checksums that the checkpoint stores.",
        ),
        ({"verify": "checksum", "formats": ("tf2",)}, "has the checksums that the checkpoint stores."),
        (
            {"verify": "checksum", "formats": ("keras_weights",)},
            "Verified: the file's sizes alone are right, for its format (.weights.h5) stores no checksums.",
        ),
        (
            {"verify": "replicas", "formats": ("tf2", "safetensors")},
            "that the checkpoint stores (of safetensors there are none), and every replica of every restored variable",
        ),
        ({"verify": "replicas", "verified": False}, "NOT verified, although verify='replicas'."),
        ({"bytes_read": (), "seconds": PhaseSeconds(), "world_size": 1}, "in 0.00 s. Read 0 B with 1 worker. Reads:"),
        ({"reads": ""}, "over all phases. Verified:"),
    ],
)
def test_the_summary_says_what_was_checked_and_read(fields: dict[str, object], words: str) -> None:
    said = dataclasses.replace(report(small_plan()), **fields).summary()
    assert words in " ".join(said.split())


def test_a_hostile_checkpoint_path_stays_on_its_line() -> None:
    hostile = dataclasses.replace(small_plan(), checkpoint="/x\x1b[2J\n/y")
    assert all(line.isprintable() for line in report(hostile).summary().split("\n"))


# ---- JSON ------------------------------------------------------------------------------------------------


def test_the_json_holds_the_whole_plan() -> None:
    fields = json.loads(report(small_plan()).to_json())
    assert RestorePlan.from_json(json.dumps(fields["plan"])) == small_plan()


def test_the_json_is_canonical_and_has_a_schema() -> None:
    encoded = report(small_plan()).to_json()
    fields = json.loads(encoded)
    assert encoded == json.dumps(fields, sort_keys=True, separators=(",", ":"))
    assert (fields["schema"], fields["kind"]) == (1, "dist_restore.report")
    assert fields["seconds"] == [["resolve", 0.25], ["check", 0.5], ["assign", 1.25]]
    assert (fields["bytes_read"], fields["verified"], fields["unchecked"]) == ([3 << 20, 1 << 20], True, ["model/q"])
    assert fields["hashes"] == [["model/qkv", "00ff"]]
    assert fields["fractions"]["variables"] == 6 / 7


def test_numbers_that_json_lacks_are_refused() -> None:
    endless = dataclasses.replace(report(small_plan()), seconds=PhaseSeconds((("x", math.inf),)))
    with pytest.raises(ValueError, match="JSON"):
        endless.to_json()


# ---- Markdown --------------------------------------------------------------------------------------------


def test_the_markdown_is_the_golden_one() -> None:
    assert markdown.document(small_plan()) + "\n" == (GOLDEN / "report_markdown.txt").read_text()


def test_the_mapping_has_every_entry() -> None:
    rows = shown(markdown.mapping(small_plan())).cells
    assert [row[1] for row in rows[1:]] == [e.target for e in small_plan().entries]
    assert rows[3][:7] == [
        "transformed",
        "model/qkv",
        "float32[4, 4]",
        "model/q float32[4, 4] + model/k float32[4, 4] + model/v float32[4, 4]",
        "concat axis=-1",
        "rule",
        "rule 1",
    ]


def test_a_very_large_mapping_is_collapsed_and_says_so() -> None:
    large = plan(*(entry(f"m/blocks/{i}/k", f"m/b{i}/k") for i in range(markdown.MAX_ROWS + 1)))
    said = markdown.mapping(large)
    assert "5001 variables: more than 5000" in said
    assert "m/blocks/{0..5000}/k" in said
    assert len(said) < 2000


def test_a_very_long_list_of_unused_tensors_is_collapsed_and_cut_only_with_a_note() -> None:
    family = tuple(Unused(f"m/{i}", "dropped") for i in range(markdown.MAX_ROWS + 1))
    assert shown(markdown.unused(plan(unused=family))).cells[1:] == [["m/{0..5000}", "dropped"]]
    odd = tuple(Unused(f"m/{i}", f"no {i}") for i in range(markdown.MAX_ROWS + 3))
    assert markdown.unused(plan(unused=odd)).endswith("3 rows more are left out here; the report's JSON has every one.")


def test_a_plan_that_uses_everything_says_so() -> None:
    assert markdown.unused(plan()) == "Every tensor of the checkpoint was used."


def test_a_long_code_block_is_cut_only_with_a_note() -> None:
    assert "7 lines more are left out" in markdown.block("x\n" * (markdown.MAX_ROWS + 7))


@pytest.mark.parametrize(
    "name",
    [
        HOSTILE,
        "a|b",
        "`code`",
        "a\n\n| x | y |",
        "*a* _b_ __c__ **d** ***e***",
        "[text](http://x) ![i](x) [ref]: x <http://x>",
        "&amp; &lt; &#124;",
        "\\| \\` \\\\",
        "---|---",
        "# h",
        "\x02wzxhzdk:0\x03",
        "{0..3} {: .cls }",
    ],
)
def test_tensorboard_shows_a_hostile_name_literally_and_in_its_cell(name: str) -> None:
    page = shown(markdown_table(("name", "other"), [(escape_text(name), "x"), ("y", escape_text(name))]))
    assert page.cells == [["name", "other"], [escape_text(name), "x"], ["y", escape_text(name)]]
    assert page.tags == {"table", "thead", "tbody", "tr", "th", "td"}


def test_markdown_text_is_one_line() -> None:
    assert "\n" not in markdown_text("a\nb\r\u2028c")


# ---- TensorBoard -----------------------------------------------------------------------------------------


def test_tensorboard_has_the_scalars(tmp_path: pathlib.Path) -> None:
    tensorboard.write(report(small_plan()), str(tmp_path), step=7)
    found = events(tmp_path)
    expected = {
        "coverage/variables": 6 / 7,
        "coverage/elements": 88 / 112,
        "coverage/bytes": 88 / 112,
        "coverage/model/variables": 4 / 5,
        "coverage/model/elements": 56 / 80,
        "coverage/model/bytes": 56 / 80,
        "coverage/optimizer/variables": 1.0,
        "coverage/optimizer/elements": 1.0,
        "coverage/optimizer/bytes": 1.0,
        "count/exact": 0,
        "count/renamed": 4,
        "count/transformed": 1,
        "count/resized": 1,
        "count/kept": 1,
        "count/unmatched": 0,
        "count/ambiguous": 0,
        "proof/rule": 6,
        "proof/name": 0,
        "proof/structure": 0,
        "proof/outputs": 0,
        "proof/order": 0,
        "seconds/resolve": 0.25,
        "seconds/check": 0.5,
        "seconds/assign": 1.25,
        "bytes_read": 4 << 20,
    }
    texts = {"summary", "coverage_table", "mapping", "unused", "report_json"}
    assert set(found.Tags()["tensors"]) == {f"restore/{tag}" for tag in expected.keys() | texts}
    assert {tag: scalar(found, f"restore/{tag}") for tag in expected} == pytest.approx(expected)
    assert found.Tensors("restore/bytes_read")[0].step == 7


def test_tensorboard_shows_every_entry_and_what_was_unused(tmp_path: pathlib.Path) -> None:
    tensorboard.write(report(small_plan()), str(tmp_path))
    found = events(tmp_path)
    assert [row[1] for row in as_page(found, "restore/mapping").cells[1:]] == [e.target for e in small_plan().entries]
    assert as_page(found, "restore/unused").cells[1:] == [["model/old", "a rule drops it"]]


def test_tensorboard_shows_hostile_names_literally_everywhere(tmp_path: pathlib.Path) -> None:
    hostile = plan(
        entry(HOSTILE, HOSTILE + "s"),
        entry("z", "```", status=Status.UNMATCHED),
        unused=(Unused(HOSTILE, HOSTILE),),
    )
    tensorboard.write(report(hostile), str(tmp_path))
    found = events(tmp_path)
    mapping, unused = as_page(found, "restore/mapping"), as_page(found, "restore/unused")
    assert [row[1] for row in mapping.cells] == ["target", escape_text(HOSTILE), "z"]
    assert mapping.cells[1][3] == f"{escape_text(HOSTILE + 's')} float32[4, 4]"
    assert {len(row) for row in mapping.cells} == {9}
    assert unused.cells[1][0] == escape_text(HOSTILE)
    assert mapping.tags == unused.tags == {"table", "thead", "tbody", "tr", "th", "td"}
    for tag in ("summary", "report_json"):
        assert as_page(found, f"restore/{tag}").tags == {"pre", "code"}


def test_tensorboard_has_the_report_as_json(tmp_path: pathlib.Path) -> None:
    tensorboard.write(report(small_plan()), str(tmp_path))
    assert json.loads(text(events(tmp_path), "restore/report_json")) == json.loads(report(small_plan()).to_json())


def test_json_that_is_large_is_left_out_of_the_event_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorboard, "MAX_JSON_BYTES", 100)
    assert "report_json" not in dict(tensorboard.texts(report(small_plan())))


def test_a_callers_name_scope_and_summary_switch_do_not_matter(tmp_path: pathlib.Path) -> None:
    with tf.name_scope("outer"), tf.summary.record_if(False), tf.distribute.MirroredStrategy(["CPU:0"]).scope():
        tensorboard.write(report(small_plan()), str(tmp_path))
    assert "restore/coverage/variables" in events(tmp_path).Tags()["tensors"]


def test_the_report_does_not_import_tensorflow() -> None:
    code = "import sys, types; p = types.ModuleType('dist_restore'); "
    code += f"p.__path__ = [{str(pathlib.Path(markdown.__file__).parent.parent)!r}]; sys.modules['dist_restore'] = p; "
    code += "import dist_restore.report.markdown, dist_restore.report.progress; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
