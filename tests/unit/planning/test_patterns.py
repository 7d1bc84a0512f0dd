"""Name patterns: what they capture, what they compute, and that no pattern and no name makes them slow."""

from __future__ import annotations

import re

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dist_restore.core.errors import RuleError
from dist_restore.core.index import SourceTensor
from dist_restore.core.tensors import TensorSpec
from dist_restore.planning.name_table import NameTable
from dist_restore.planning.rules.patterns import MAX_PATTERN, compile_pattern, compile_template


def captured(pattern: str, name: str, *, regex: bool = False) -> dict[str, str] | None:
    found = compile_pattern(pattern, regex=regex).match(name)
    return None if found is None else dict(found)


def renamed(old: str, new: str, name: str, *, regex: bool = False) -> str | None:
    found = compile_pattern(old, regex=regex).match(name)
    assert found is not None
    return compile_template(new, regex=regex).fill(found)


# ---- What the captures take ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "name", "expected"),
    [
        ("a/b", "a/b", {}),
        ("a/{i}/b", "a/12/b", {"i": "12"}),
        ("layer_{i}/w", "layer_7/w", {"i": "7"}),
        ("a/{name}/b", "a/x_1/b", {"name": "x_1"}),
        ("a_{name}_b/w", "a_x_y_b/w", {"name": "x_y"}),
        ("a/{rest}", "a/b/c/d", {"rest": "b/c/d"}),
        ("{rest}/kernel", "a/b/kernel", {"rest": "a/b"}),
        ("{name}/{i}/{rest}", "h/3/q/w", {"name": "h", "i": "3", "rest": "q/w"}),
        ("h/{i}/x_{i}", "h/4/x_4", {"i": "4"}),
        ("a/{rest}", "a/line\nbreak", {"rest": "line\nbreak"}),
        ("a/{name}", "a/line\nbreak", {"name": "line\nbreak"}),
        ("a.b/{name}", "a.b/é", {"name": "é"}),
        ("{name}/w", "日本/w", {"name": "日本"}),
    ],
)
def test_a_pattern_captures(pattern: str, name: str, expected: dict[str, str]) -> None:
    assert captured(pattern, name) == expected


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        ("a/{i}/b", "a/x/b"),
        ("a/{i}/b", "a/1/b/c"),
        ("a/{i}/b", "z/a/1/b"),
        ("a/{i}/b", "a//b"),
        ("a/{i}/b", "a/٣/b"),
        ("a/{i}/b", "a/²/b"),
        ("a/{name}/b", "a/x/y/b"),
        ("a/{rest}", "a"),
        ("a/{rest}", "a/"),
        ("a.b/{i}", "axb/1"),
        ("h/{i}/x_{i}", "h/4/x_5"),
        ("a/b", "a/b\n"),
        ("a/{name}", "a/x\n/"),
    ],
)
def test_a_pattern_passes_over_other_names(pattern: str, name: str) -> None:
    assert captured(pattern, name) is None


def test_names_that_are_no_utf8_match_only_when_spelled_out() -> None:
    name = b"a/\xff/w".decode("utf-8", "surrogateescape")
    assert captured("a/{name}/w", name) is None
    assert captured(".*", name, regex=True) is None
    assert captured(name, name) == {}


def test_a_pattern_that_is_no_utf8_is_refused() -> None:
    with pytest.raises(RuleError, match="cannot be read"):
        compile_pattern("a/\udcff/{i}")


# ---- What is filled in -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "i", "expected"),
    [
        ("i", "007", "007"),
        ("i+0", "007", "7"),
        ("i+1", "3", "4"),
        ("i + 1", "3", "4"),
        ("1+i", "3", "4"),
        ("i-1", "3", "2"),
        ("2*i", "3", "6"),
        ("i//2", "7", "3"),
        ("1+2*i", "3", "7"),
        ("2*i+1", "3", "7"),
        ("i*i-i", "3", "6"),
        ("10-i//2*2", "5", "6"),
        ("2-1-i", "1", "0"),
        ("5", "3", "5"),
        ("i-4", "3", None),
        ("i+1", "999999998", "999999999"),
        ("i+1", "999999999", None),
        ("i+1", "9" * 5000, None),
        ("i*999999999*999999999*999999999//999999999", "999999999", None),
        ("999999999999*i", "1", None),
    ],
)
def test_index_arithmetic(expression: str, i: str, expected: str | None) -> None:
    assert compile_pattern(f"{{{expression}}}").fill({"i": i, "rest": "a/b"}) == expected


def test_a_number_in_an_expression_is_a_number_and_no_group() -> None:
    assert renamed("a/{i}/{rest}", "b/{i+1}/{2*i}/{rest}", "a/5/x/y") == "b/6/10/x/y"


def test_arithmetic_takes_several_captures() -> None:
    assert renamed("stage_{s}/block_{b}/{rest}", "blocks/{4*s+b}/{rest}", "stage_2/block_3/w") == "blocks/11/w"


@pytest.mark.parametrize(
    "text",
    [
        "a/{",
        "a/}",
        "a/{i",
        "a/i}",
        "{{i}}",
        "a/{i}}",
        "{}",
        "{ }",
        "{i+}",
        "{+i}",
        "{i j}",
        "{i/2}",
        "{i**2}",
        "{(i)}",
        "{i//0}",
        "{-1}",
        "{i%2}",
        "{1.5}",
        "{٣}",
    ],
)
def test_what_is_no_pattern_is_refused_before_any_name_is_seen(text: str) -> None:
    with pytest.raises(RuleError):
        compile_pattern(text)


def test_division_by_a_capture_that_is_zero_is_refused() -> None:
    with pytest.raises(RuleError, match="division by zero"):
        renamed("a/{i}/{j}", "{i//j}", "a/1/0")


def test_arithmetic_over_words_is_refused() -> None:
    with pytest.raises(RuleError, match="no digit capture"):
        renamed("a/{name}", "{name+1}", "a/x")


@pytest.mark.parametrize("text", ["", "x" * (MAX_PATTERN + 1)])
def test_absurd_lengths_are_refused(text: str) -> None:
    with pytest.raises(RuleError, match="characters"):
        compile_pattern(text)


LITERALS = st.text(st.characters(exclude_characters="{}/", exclude_categories=("Cs",)), max_size=4)
PLACES = {"{i}": st.from_regex(r"[0-9]{1,6}", fullmatch=True), "{word}": st.text("ab_1.é", min_size=1, max_size=4)}
PLACES["{rest}"] = st.text("ab/1", min_size=1, max_size=6)


@st.composite
def patterns_with_values(draw: st.DrawFn) -> tuple[str, dict[str, str]]:
    chosen = draw(st.permutations(sorted(PLACES)))[: draw(st.integers(1, 3))]
    parts = [draw(LITERALS) + "/" + place for place in chosen]
    values = {place[1:-1]: draw(PLACES[place]) for place in chosen}
    return "".join([*parts, "/", draw(LITERALS)]), values


@settings(deadline=None)
@given(patterns_with_values())
def test_what_is_filled_in_is_matched_again(case: tuple[str, dict[str, str]]) -> None:
    text, values = case
    pattern = compile_pattern(text)
    name = pattern.fill(values)
    assert name is not None
    found = pattern.match(name)
    assert found is not None
    assert pattern.fill(found) == name


@settings(deadline=None)
@given(st.text(max_size=40))
def test_any_text_is_a_pattern_or_a_rule_error(text: str) -> None:
    try:
        pattern = compile_pattern(text)
    except RuleError:
        assume(False)
    assert pattern.literal == ("{" not in text)


# ---- Regular expressions ---------------------------------------------------------------------------------


def test_a_template_refers_to_groups_by_number_and_by_name() -> None:
    assert renamed(r"h_(\d+)/(?P<rest>.+)", r"b/\1/\g<rest>", "h_3/a/w", regex=True) == "b/3/a/w"
    assert renamed(r"h_(\d+)/(x)?", r"b\\\1\2", "h_3/", regex=True) == r"b\3"


def test_a_regex_matches_whole_names_only() -> None:
    assert captured("a", "ab", regex=True) is None
    assert captured("a.?", "ab", regex=True) is not None


def test_a_template_that_refers_to_no_group_is_refused() -> None:
    with pytest.raises(RuleError, match="'3'"):
        renamed("(a)", r"\3", "a", regex=True)


@pytest.mark.parametrize("text", [r"(a)\1", "(?=a)b", "(", "a**", "((a{1000}){1000}){1000}"])
def test_what_re2_does_not_take_is_refused(text: str) -> None:
    with pytest.raises(RuleError, match="RE2"):
        compile_pattern(text, regex=True)


def test_a_regex_that_explodes_elsewhere_is_answered() -> None:
    text, name = "(a+)+(a*)*b", "a" * 5000
    assert re.compile(text)  # Python's engine would take 2**5000 steps to say no
    assert captured(text, name, regex=True) is None


def test_many_captures_over_a_long_name_are_answered() -> None:
    pattern = "/".join(["{rest}", *(f"{{rest{n}}}" for n in range(30))])
    assert captured(pattern + "/z", "a/" * 5000) is None


def test_braces_are_plain_in_a_regex() -> None:
    assert captured(r"a{2}/\{x\}", "aa/{x}", regex=True) == {"0": "aa/{x}"}


# ---- The first, cheap tests ------------------------------------------------------------------------------


@settings(max_examples=60)
@given(
    st.lists(st.text("ab/1\U0010ffff", min_size=1, max_size=6), max_size=12, unique=True),
    st.text("ab/1\U0010ffff", max_size=3),
    st.text("ab/1\U0010ffff", max_size=3),
)
def test_names_that_begin_and_end_so_are_all_found(names: list[str], prefix: str, suffix: str) -> None:
    table = NameTable([SourceTensor(name, TensorSpec((), "float32")) for name in names], "the checkpoint")
    expected = sorted(name for name in names if name.startswith(prefix) and name.endswith(suffix))
    assert [name for name, _ in table.framed(prefix, suffix)] == expected


def test_a_group_of_half_a_character_is_no_name() -> None:
    assert captured(r"a/(?P<x>\C)\C", "a/\u00e9", regex=True)["x"] == "\ufffd"
