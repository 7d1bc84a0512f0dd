"""Suggestions: TOML that can be pasted as it is, does what it says, and proposes nothing that is not clear."""

from __future__ import annotations

import tomllib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from build import entry, filled, plan, problems, statuses
from dist_restore.resolve.nearest import likeness, nearest, tokens
from dist_restore.resolve.rules import RuleSet
from dist_restore.resolve.suggest import MAX_COMMENTS


def rules_of(source: str, target: str) -> list[dict[str, object]]:
    """The rules that take effect when the suggestions are pasted."""
    return tomllib.loads(plan(source, target).suggestions).get("rule", [])


def test_a_plan_without_problems_suggests_nothing() -> None:
    assert plan("m/a 4", "m/a 4").suggestions == ""


def test_a_clear_candidate_is_a_rule() -> None:
    assert rules_of("m/dense/kernel 4\nm/dense/bias 2", "m/fc/dense/kernel 4\nm/dense/bias 2") == [
        {"from": "m/dense/kernel", "to": "m/fc/dense/kernel"}
    ]


def test_a_candidate_that_is_a_number_is_told_by_what_its_slots_call_it_too() -> None:
    source = "optimizer/tv/7 4x3 kind:positional flat:net_block_0_k_kernel\noptimizer/tv/8 4x3 kind:positional"
    text = plan(source, "model/k/kernel 4x3\nmodel/q/kernel 4x3").suggestions
    assert '# from = "optimizer/tv/7"  # or "net_block_0_k_kernel"\n' in text
    assert '# from = "optimizer/tv/8"\n' in text


def test_blocks_become_one_rule() -> None:
    source = "\n".join(f"m/block_{i}_mlp/kernel 4" for i in range(12))
    target = "\n".join(f"m/block_{i}/mlp/kernel 4" for i in range(12))
    assert rules_of(source, target) == [{"from": "m/block_{i}_mlp/kernel", "to": "m/block_{i}/mlp/kernel"}]


def test_blocks_that_the_pattern_would_overreach_stay_single_rules() -> None:
    source = "\n".join(f"m/block_{i}_mlp/kernel 4" for i in range(3))
    target = "m/block_2_mlp/kernel 4\n" + "\n".join(f"m/block_{i}/mlp/kernel 4" for i in range(2))
    found = rules_of(source, target)
    assert [r["from"] for r in found] == ["m/block_0_mlp/kernel", "m/block_1_mlp/kernel"]


def test_what_nothing_resembles_is_kept() -> None:
    source = "m/dense/kernel 4"
    assert rules_of(source, "m/dense/kernel 4\nm/lora/down 2x7") == [{"keep": "m/lora/down"}]


def test_what_resembles_something_of_another_shape_is_a_comment() -> None:
    source = "m/attn/query/kernel 4x4\nm/attn/key/kernel 4x4\nm/attn/value/kernel 4x4"
    done = plan(source, "m/attn/qkv/kernel 4x12")
    assert tomllib.loads(done.suggestions) == {}
    for name in ("query", "key", "value"):
        assert f'# from = "m/attn/{name}/kernel"' in done.suggestions
    assert entry(done, "m/attn/qkv/kernel").candidates[0] == "m/attn/key/kernel"


def test_what_resembles_a_used_source_only_is_kept() -> None:
    assert rules_of("m/dense/kernel 4", "m/dense/kernel 4\nm/dense/kernel_b 5") == [{"keep": "m/dense/kernel_b"}]


def test_two_equal_candidates_are_a_comment() -> None:
    done = plan("m/x/dense/kernel 4\nm/y/dense/kernel 4", "m/z/dense/kernel 4")
    assert tomllib.loads(done.suggestions) == {}
    assert done.suggestions.count("# from") == 2


def test_two_targets_that_want_one_source_are_comments() -> None:
    done = plan("m/dense/kernel 4", "m/x/dense/kernel 4\nm/y/dense/kernel 4")
    assert tomllib.loads(done.suggestions) == {}


def test_ambiguous_targets_are_comments_only() -> None:
    done = plan("m/a/w 4\nm/b/w 4", "m/a/w 4 sem:m/b/w")
    assert tomllib.loads(done.suggestions) == {}
    assert '# from = "m/a/w"\n# from = "m/b/w"\n# to = "m/a/w"' in done.suggestions


@pytest.mark.parametrize(
    ("found", "wanted", "ops"),
    [
        ("4x6", "4x8", [{"fit": {"fill": "keep"}}]),
        ("1x4", "4", [{"reshape": {"shape": [4]}}]),
        ("4 float32", "4 int32", [{"cast": {"dtype": "int32"}}]),
        ("4x6", "6x4", None),
        ("4x6", "24", None),
        ("4x6", "4x2x3", None),
        ("4", "4x2", None),
        ("4 string", "4 float32", None),
    ],
)
def test_a_shape_or_dtype_is_mended_only_where_it_is_clear_how(found: str, wanted: str, ops: object) -> None:
    expected = [] if ops is None else [{"from": "m/w", "to": "m/w", "ops": ops}]
    assert rules_of(f"m/w {found}", f"m/w {wanted}") == expected


def test_what_a_rule_decided_gets_no_second_rule() -> None:
    done = plan("m/a 4", "m/b 5", {"m/a": "m/b"})
    assert problems(done) == {"m/b": "shape"}
    assert tomllib.loads(done.suggestions) == {}


@pytest.mark.parametrize(
    "name", ["m/{i}/dense/kernel", "m/\udcff/dense/kernel", "m/dense\0/kernel", "m/dense" + "x" * 3000]
)
def test_names_that_no_rule_can_mean_are_comments(name: str) -> None:
    done = plan(f"{name} 4", "m/dense/kernel 4 sem:zz")
    assert tomllib.loads(done.suggestions) == {}


def test_quotes_and_newlines_cannot_leave_their_string() -> None:
    name = 'm/"]\\n[[rule]]\x85\rkeep="x"\\/dense/kernel'
    done = plan(f"{name} 4", "m/dense/kernel 4")
    assert set(tomllib.loads(done.suggestions)) <= {"rule"}
    assert all("keep" not in r for r in tomllib.loads(done.suggestions).get("rule", []))


def test_comments_end_somewhere() -> None:
    source = "\n".join(f"m/old/{c}/{i}/dense/kernel 4" for i in range(150) for c in "ab")
    target = "\n".join(f"m/new/{c}/{i}/dense/kernel 4" for i in range(150) for c in "cd")
    text = plan(source, target).suggestions
    assert text.count("choose a source") == MAX_COMMENTS
    assert "100 more" in text


def test_too_many_pairs_propose_nothing() -> None:
    """A part of the candidates may not look like all of them."""
    source = "\n".join(f"m/old/x{i:x}z/kernel 4" for i in range(3000))
    target = "\n".join(f"m/new/x{i:x}z/kernel 4" for i in range(3000))
    for rule in rules_of(source, target):
        assert str(rule["from"]).split("/")[2] == str(rule["to"]).split("/")[2]


WORDS = st.sampled_from(["a", "b", "dense_1", "dense_2", "block_0", "block_1", "kernel", "bias"])
ROWS = st.tuples(st.lists(WORDS, min_size=1, max_size=3).map("/".join), st.sampled_from(["4", "4", "5", "2x2"]))


def text_of(rows: list[tuple[str, str]]) -> str:
    return "\n".join(f"m/{name} {shape}" for name, shape in dict(rows).items())


@settings(deadline=None)
@given(st.lists(ROWS, min_size=1, max_size=8), st.lists(ROWS, min_size=1, max_size=8))
def test_suggestions_can_be_pasted_and_settle_what_they_speak_of(
    source: list[tuple[str, str]], target: list[tuple[str, str]]
) -> None:
    before = plan(text_of(source), text_of(target))
    rules = RuleSet.from_toml(before.suggestions)
    after = plan(text_of(source), text_of(target), rules)
    named = {e.target for e in before.problems if f'to = "{e.target}"' in before.suggestions.replace("# to", "")}
    for name in named:
        assert name not in problems(after)
    assert len(after.problems) + len(rules.rules) <= len(before.problems) or not rules.rules
    for name, sources in filled(before).items():
        assert filled(after)[name] == sources


def test_pasting_all_of_a_renamed_model_restores_it() -> None:
    source = "\n".join(
        f"m/block_{i}_{n} 4x{k}" for i in range(3) for k, n in enumerate(("attn/kernel", "mlp/kernel"), 2)
    )
    target = "\n".join(
        f"m/block_{i}/{n} 4x{k}" for i in range(3) for k, n in enumerate(("attn/kernel", "mlp/kernel"), 2)
    )
    done = plan(source, target, RuleSet.from_toml(plan(source, target).suggestions))
    assert set(statuses(done).values()) == {"renamed"}


# ---- Nearness --------------------------------------------------------------------------------------------


def test_numbers_count_by_their_place() -> None:
    assert tokens("block_1/norm_2") != tokens("block_2/norm_1")
    assert likeness(tokens("a/b_1"), tokens("b/1/a")) == 1.0
    assert likeness(tokens("a/b"), tokens("a/c")) == pytest.approx(1 / 3)
    assert likeness(frozenset(), frozenset()) == 0.0


def test_the_nearest_names_come_first_and_do_not_depend_on_order() -> None:
    names = ["m/dense/kernel", "m/dense/bias", "m/other", "x"]
    assert nearest("m/dense/kernal", names) == nearest("m/dense/kernal", names[::-1])
    assert nearest("m/dense/kernal", names)[0] == "m/dense/kernel"
    assert nearest("zzzz", names) == ()


def test_names_of_megabytes_are_compared_by_their_ends() -> None:
    assert nearest("m/" + "a" * 10**6, ["m/" + "a" * 10**6 + "b"]) != ()
