"""The tables: families, their order, hostile names, and work in proportion to the rows."""

from __future__ import annotations

import collections
import itertools
import re
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dist_restore.core.text import escape_text, human_bytes
from dist_restore.planning import markdown_text, row_families
from dist_restore.planning import summary as tables
from dist_restore.planning.row_families import TableRow, collapse, families
from dist_restore.planning.summary import plan_table
from places import GOLDEN

UNFILLED = ("unmatched", "ambiguous", "kept")


def row(
    target: str,
    *sources: str,
    status: str = "renamed",
    ops: str = "",
    shape: tuple[int, ...] = (4, 4),
    group: str = "model",
    reason: str = "",
    dtype: str = "float32",
) -> TableRow:
    size = 4 * shape[0] * shape[1]
    return TableRow(target, sources, ops, status, group, shape, dtype, 1, int(status not in UNFILLED), size, "", reason)


def pairs(*rows: TableRow) -> list[tuple[str, tuple[str, ...]]]:
    return [(r.target, r.sources) for r in families(rows)]


def expand(pattern: str) -> list[str]:
    """All names that a pattern stands for, written without a look at how patterns are made."""
    parts = re.split(r"\{([0-9.,]+)\}", pattern)
    choices = [[p] if i % 2 == 0 else list(_numbers(p)) for i, p in enumerate(parts)]
    return ["".join(choice) for choice in itertools.product(*choices)]


def _numbers(text: str) -> list[str]:
    found = []
    for run in text.split(","):
        first, _, last = run.partition("..")
        found += [str(n).zfill(len(first)) for n in range(int(first), int(last or first) + 1)]
    return found


def transformer() -> tuple[TableRow, ...]:
    rows = []
    for i in range(24):
        block, layer = f"model/blocks/{i}", f"model/block_{i}"
        qkv = [f"{layer}/{x}/kernel" for x in "qkv"]
        rows.append(row(f"{block}/attn/qkv/kernel", *qkv, status="transformed", ops="concat axis=-1", shape=(64, 192)))
        rows.append(row(f"{block}/norm/gamma", f"{layer}/norm/gamma", shape=(1, 64)))
        slot = f"optimizer/velocity/{block}/norm/gamma"
        rows.append(row(slot, f"optimizer/velocity/{layer}/norm/gamma", shape=(1, 64), group="optimizer"))
        if i in (3, 4, 9):
            reason = (
                f"nothing fills it; the nearest names are '{layer}/adapter' [8, 8] and '{layer}/mlp/kernel' [64, 8]."
            )
            rows.append(row(f"{block}/adapter/kernel", status="unmatched", shape=(64, 8), reason=reason))
    rows.append(row("model/head/kernel", status="ambiguous", reason="2 tensors would do: 'model/out', 'model/tied'."))
    rows.append(row("model/position", "model/position", status="resized", ops="fit fill=zeros", shape=(512, 64)))
    rows.append(row("model/dropout/seed", status="kept", shape=(1, 2), reason="plain TensorFlow never saves it."))
    rows.append(row("optimizer/iteration", "optimizer/iteration", status="exact", shape=(1, 2), group="optimizer"))
    return tuple(rows)


def test_the_table_of_a_plan_is_the_golden_one() -> None:
    unused = (("model/old/0", "a rule drops it"), ("model/old/1", "a rule drops it"), ("x", "no target wants it"))
    assert plan_table(transformer(), unused) + "\n" == (GOLDEN / "plan_table.txt").read_text()


def test_an_empty_plan_has_a_table() -> None:
    assert plan_table(()).startswith("status")


@pytest.mark.parametrize(
    ("names", "pattern"),
    [
        ([f"m/blocks/{i}/k" for i in range(24)], "m/blocks/{0..23}/k"),
        ([f"m/blocks/{i}/k" for i in (10, 2, 0, 1, 9, 11, 3, 7)], "m/blocks/{0..3,7,9..11}/k"),
        (["m/blocks/0/k"], "m/blocks/0/k"),
        (["block_12/k", "block_13/k"], "block_{12..13}/k"),
        (["a2", "a10", "a1"], "a{1..2,10}"),
        (["a_08", "a_09"], "a_{08..09}"),
        (["a/0/0", "a/0/1", "a/1/0", "a/1/1"], "a/{0..1}/{0..1}"),
        (["a/0/0", "a/1/1"], "a/0/0, a/1/1"),
        (["a/0/0", "a/0/1", "a/1/0", "a/1/1", "a/2/0"], "a/2/0, a/{0..1}/{0..1}"),
        (["x", "x", "y"], "x, y"),
        ([], ""),
    ],
)
def test_names_that_differ_in_numbers_collapse(names: list[str], pattern: str) -> None:
    assert collapse(names) == pattern


@given(st.sets(st.tuples(*[st.integers(0, 5)] * 3), min_size=1))
@settings(deadline=None)
def test_collapsed_names_expand_to_just_the_names(numbers: set[tuple[int, ...]]) -> None:
    names = sorted("a/{}/b_{}/c{}".format(*n) for n in numbers)
    found = row_families.patterns(names)
    assert sorted(name for pattern, _ in found for name in expand(pattern)) == names
    assert all(len(expand(pattern)) == count for pattern, count in found)


@given(
    st.dictionaries(st.tuples(st.integers(0, 4), st.integers(0, 3)), st.tuples(st.integers(0, 5), st.integers(0, 4)))
)
@settings(max_examples=300, deadline=None)
def test_the_nth_target_of_a_family_has_the_nth_source(mapping: dict[tuple[int, int], tuple[int, int]]) -> None:
    named = {"a/{}/b{}".format(*t): "x{}/{}".format(*s) for t, s in mapping.items()}
    found = {}
    for target, (source,) in pairs(*(row(t, s) for t, s in named.items())):
        targets, sources = expand(target), expand(source)
        if len(sources) == len(targets):
            found.update(zip(targets, _paired(target, source, targets, sources, named), strict=True))
        else:
            found.update({t: named[t] for t in targets if named[t] in sources})
    assert found == named


def _paired(target: str, source: str, targets: list[str], sources: list[str], named: dict[str, str]) -> list[str]:
    # With two sets the order in which a product runs need not be that of the other side: compare them as sets.
    if target.count("{") == source.count("{") == 1:
        return sources
    assert {named[t] for t in targets} == set(sources)
    return [named[t] for t in targets]


def test_sources_collapse_with_their_targets() -> None:
    rows = [row(f"blocks/{i}/k", f"layer_{i}/q/k", f"layer_{i}/v/k") for i in range(3)]
    assert pairs(*rows) == [("blocks/{0..2}/k", ("layer_{0..2}/q/k", "layer_{0..2}/v/k"))]


def test_an_inserted_block_shows_as_two_sets_in_the_same_order() -> None:
    rows = [row(f"b/{i + (i > 1)}", f"a/{i}") for i in range(4)]
    assert pairs(*rows) == [("b/{0..1,3..4}", ("a/{0..3}",))]


def test_a_source_that_all_share_stays_as_it_is() -> None:
    assert pairs(*(row(f"b/{i}", "a/7") for i in range(4))) == [("b/{0..3}", ("a/7",))]


def test_swapped_blocks_are_not_hidden_in_one_row() -> None:
    assert pairs(row("b/0", "a/1"), row("b/1", "a/0")) == [("b/0", ("a/1",)), ("b/1", ("a/0",))]


def test_blocks_used_twice_are_rows_of_their_own() -> None:
    rows = [row(f"b/{i}", f"a/{i if i < 6 else i - 3}") for i in range(9)]
    assert pairs(*rows) == [("b/{0..5}", ("a/{0..5}",)), ("b/{6..8}", ("a/{3..5}",))]


@pytest.mark.parametrize(
    "other", [{"shape": (4, 8)}, {"dtype": "float16"}, {"ops": "scale by=2.0"}, {"status": "exact"}]
)
def test_what_differs_in_more_than_numbers_stays_apart(other: dict[str, str]) -> None:
    assert len(families([row("b/0", "a/0"), row("b/1", "a/1", **other)])) == 2


def test_a_family_adds_up_its_variables_and_bytes() -> None:
    (family,) = families([row(f"b/{i}", f"a/{i}") for i in range(5)])
    assert (family.variables, family.filled_variables, family.bytes, family.bytes_from_sources) == (5, 5, 320, 320)


def test_what_needs_attention_comes_first_and_block_2_before_block_10() -> None:
    statuses = ["exact", "renamed", "transformed", "kept", "resized", "ambiguous", "unmatched"]
    rows = [row("a", "s", status=s) for s in statuses]
    assert [r.status for r in families(rows)] == statuses[::-1]
    apart = [row(f"b/{i}", f"a/{100 - i}") for i in (10, 2, 1)]
    assert [r.target for r in families(apart)] == ["b/1", "b/2", "b/10"]


def test_problems_with_reasons_of_different_kinds_stay_apart() -> None:
    rows = [
        row(f"b/{i}", status="unmatched", reason=f"no 'a/{i}'." if i else "shape [4] is not [5].") for i in range(3)
    ]
    assert [r.target for r in families(rows)] == ["b/0", "b/{1..2}"]
    assert "no 'a/1'. (and 1 more like it)" in plan_table(tuple(rows))


def test_many_sources_of_one_target_collapse_and_few_do_not() -> None:
    assert tables.joined_sources(tuple(f"l/{i}" for i in range(96))) == ("l/{0..95}",)
    assert tables.joined_sources(tuple(f"l/{i}" for i in (1, 0, 2, 3, 4))) == tuple(f"l/{i}" for i in (1, 0, 2, 3, 4))
    assert tables.joined_sources(("l/0", "l/1")) == ("l/0", "l/1")


def test_long_sources_show_what_they_share_once() -> None:
    sources = [f"model/transformer/encoder/self_attention/{x}/kernel" for x in ("query", "key", "value")]
    text = plan_table((row("t", *sources),))
    assert "model/trans…/self_attention/(query + key + value)/kernel" in text


def test_only_the_table_shortens_names() -> None:
    name = "model/" + "deep/" * 40 + "kernel"
    text = plan_table((row(name, status="unmatched", reason=f"no {name!r}."),))
    assert text.count(name) == 2  # beside the problem, and in its reason
    assert "…" in text.splitlines()[2]
    assert max(map(len, text.splitlines()[:3])) < 120


def test_the_coverage_of_part_of_a_variable_counts_part_of_its_bytes() -> None:
    half = TableRow("e", ("e",), "", "resized", "model", (2,), "float32", 1, 1, 8, filled_bytes=4)
    assert tables.coverage_lines([half]).splitlines()[-1].split() == "all 1/1 (100.0%) 4 B/8 B (50.0%)".split()


def test_almost_all_is_not_shown_as_all() -> None:
    assert tables.share(9999, 10000) == "99.9%"
    assert tables.share(0, 0) == tables.share(3, 3) == "100.0%"


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (1024**2 - 1, "1.0 MiB"),
        (24 << 20, "24.0 MiB"),
        (3 << 40, "3.0 TiB"),
        (1 << 80, "1048576.0 EiB"),
    ],
)
def test_bytes_are_shown_in_binary_units(count: int, text: str) -> None:
    assert human_bytes(count) == text


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("model/kernel", "model/kernel"),
        ("größe/重み", "größe/重み"),
        ("a\nb\r\t", r"a\nb\r\t"),
        ("\x1b[31mred", r"\x1b[31mred"),
        ("a\u202eb\u200b", r"a\u202eb\u200b"),
        ("a\ud800\u2028", r"a\ud800\u2028"),
        ("a\\n", r"a\\n"),
        (" a  b ", r"\x20a  b\x20"),
        ("  ", r"\x20\x20"),
        ("", ""),
    ],
)
def test_unprintable_characters_are_escaped(name: str, shown: str) -> None:
    assert escape_text(name) == shown


@given(st.text(st.characters(), max_size=20))
@settings(deadline=None)
def test_an_escaped_name_is_one_printable_line_and_says_which_name_it_was(name: str) -> None:
    shown = escape_text(name)
    assert shown.isprintable() and shown == shown.strip(" ")
    back = re.sub(r"\\(\\|[nrt]|x..|u....|U.{8})", lambda m: eval(f"'{m[0]}'"), shown)
    assert back == name


@given(st.lists(st.text(st.characters(), max_size=30), min_size=1, max_size=5, unique=True))
@settings(deadline=None)
def test_hostile_names_break_no_row_of_the_table(names: list[str]) -> None:
    text = plan_table(tuple(row(name, name, status="exact") for name in names))
    head = text.split("\n\n")[0].split("\n")
    assert len(head) == 2 + len(families(row(name, name, status="exact") for name in names))
    assert all(line.isprintable() for line in text.split("\n"))


def test_names_full_of_numbers_or_very_long_stay_rows_of_their_own() -> None:
    many = ["/".join(["1"] * 500), "9" * 10_000, "a" * 1_000_000 + "1", "a" * 1_000_000 + "2"]
    assert len(plan_table(tuple(row(name, *many) for name in many))) < 10_000


@pytest.mark.parametrize("name", ["blocks/{i}/kernel", "{i:x}z/{j}/kernel"], ids=["one family", "no families"])
def test_work_grows_in_proportion_to_the_rows(name: str) -> None:
    """Counted in calls, and not in seconds."""

    def calls(count: int) -> int:
        rows = tuple(row(name.format(i=i, j=i * 7919 % count), f"a/{i}") for i in range(count))
        found = collections.Counter[str]()
        sys.setprofile(lambda frame, event, argument: found.update([event]))
        try:
            plan_table(rows)
        finally:
            sys.setprofile(None)
        return found["call"] + found["c_call"]

    calls(100)
    assert calls(4_000) < 15 * calls(400)


def test_a_code_block_cannot_be_closed_from_inside() -> None:
    assert markdown_text.markdown_block("a\n```\n````\nb").startswith("`````\n")


def test_usual_names_are_readable_as_markdown_source() -> None:
    assert markdown_text.markdown_text("model/dense_1/kernel") == "model/dense_1/kernel"
    assert markdown_text.markdown_text("_a_|`<&") == "&#95;a&#95;&#124;&#96;&#60;&#38;"


def long_row(target: str, source: str = "") -> TableRow:
    return TableRow(target, (source or target,), "", "renamed", "optimizer", (2,), "float32", 1, 1, 8)


def test_long_names_that_differ_in_the_middle_still_differ_when_they_are_cut() -> None:
    start, end = "optimizer/inner_optimizer", "model/decoder/blocks/attention/query_projection/kernel"
    names = [f"{start}/{role}/{end}" for role in ("momentum", "velocity")]
    table = plan_table(tuple(long_row(name, f"old/{name}") for name in names))
    lines = [line for line in table.splitlines() if line.startswith("renamed")]
    assert len({line.split()[1] for line in lines}) == 2
    assert ["momentum" in line for line in lines] == [True, False]
    assert ["velocity" in line for line in lines] == [False, True]
    assert all(line.count("momentum") == 2 or line.count("velocity") == 2 for line in lines)
    assert all("…" in line for line in lines)


def test_names_whose_difference_is_too_long_to_show_are_whole() -> None:
    names = [f"model/{'a' * 30}{end}{'b' * 40}/{'c' * 40}" for end in ("x" * 60, "y" * 60)]
    table = plan_table(tuple(long_row(name) for name in names))
    assert all(name in table for name in names)


def test_unused_tensors_whose_reasons_name_their_own_block_are_one_family_in_natural_order() -> None:
    unused = tuple(
        (f"slot/{role}/blocks/{i}/w", f"slot {role!r} of 'blocks/{i}/w', which no target has")
        for role in ("velocity", "momentum")
        for i in (0, 1, 10, 11, 2, 3, 4, 5, 6, 7, 8, 9)
    )
    text = plan_table((long_row("w"),), unused)
    assert "slot/momentum/blocks/{0..11}/w" in text and "slot/velocity/blocks/{0..11}/w" in text
    assert "of 'blocks/{0..11}/w', which no target has" in text
    assert text.count("unused:") == 2


def test_unused_tensors_that_cannot_be_one_family_are_in_natural_order() -> None:
    unused = tuple((f"block_{i}/w", f"used by rule {(7 * i) % 5}") for i in (10, 11, 2, 0))
    text = plan_table((long_row("w"),), unused)
    places = [text.index(name) for name in ("block_0/", "block_2/", "block_10/", "block_11/")]
    assert places == sorted(places), text
