"""Suggestions: TOML that can be pasted as it is. What takes effect is proven; a guess is a comment that says so."""

from __future__ import annotations

import tomllib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from build import checkpoint, entry, filled, plan, problems, program, statuses, taken
from dist_restore.core.nearest import likeness, nearest, tokens
from dist_restore.planning.name_table import NameTable
from dist_restore.planning.proofs_by_name import could_make
from dist_restore.planning.proposals import Proposal, collapse
from dist_restore.planning.rules.rule_set import RuleSet
from dist_restore.planning.suggest import MAX_COMMENTS


def rules_of(source: str, target: str) -> list[dict[str, object]]:
    """The rules that take effect when the suggestions are pasted."""
    return tomllib.loads(plan(source, target).suggestions).get("rule", [])


def test_a_plan_without_problems_suggests_nothing() -> None:
    assert plan("m/a 4", "m/a 4").suggestions == ""


def guesses_of(source: str, target: str) -> list[dict[str, object]]:
    """The rules that somebody gets who takes every guess."""
    text = plan(source, target).suggestions
    assert "rule" not in tomllib.loads(text)
    return tomllib.loads(taken(text)).get("rule", [])


def test_the_same_words_are_a_rule() -> None:
    assert rules_of("m/fc_dense/kernel 4\nm/a 2", "m/fc/dense/kernel 4\nm/a 2") == [
        {"from": "m/fc_dense/kernel", "to": "m/fc/dense/kernel"}
    ]


def test_a_name_that_is_alike_is_a_guess() -> None:
    assert guesses_of("m/dense/kernel 4\nm/dense/bias 2", "m/fc/dense/kernel 4\nm/dense/bias 2") == [
        {"from": "m/dense/kernel", "to": "m/fc/dense/kernel"}
    ]


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("m/a_b/w 4\nm/a.b/w 4", "m/a/b/w 4"),  # two sources of these words
        ("m/a_b/w 4", "m/a/b/w 4\nm/a/b_w 4"),  # two targets
        ("m/a_b/w 5", "m/a/b/w 4"),  # another shape
        ("m/a_b/w 4 float64", "m/a/b/w 4"),
        ("m/a_1/w 4 kind:counted", "m/a/1/w 4"),  # a number that Keras counted
        ("m/a_1/w 4", "m/a/1/w 4 kind:positional"),
        ("m/a_0/w 4\nm/a_1/w 4", "m/a/0/w 4\nm/a/1/w 4\nm/a/2/w 4"),  # a block was inserted somewhere
        ("m/a_0/w 4\nm/a_1/w 4\nm/a_2/w 4", "m/a/0/w 4\nm/a/1/w 4"),
        ("m/a+b/w 4", "m/a/b/w 4"),  # no separator
    ],
)
def test_the_same_words_prove_nothing_where_something_speaks_against_it(source: str, target: str) -> None:
    assert rules_of(source, target) == []


def test_a_renamed_part_is_one_guess() -> None:
    source = "\n".join(f"m/enc/{n} 4x{k}" for k, n in enumerate(("a/k", "a/b", "c/k"), 2))
    assert guesses_of("m/y 9\n" + source, "m/y 9\n" + source.replace("enc", "encoder")) == [
        {"from": "m/enc/{rest}", "to": "m/encoder/{rest}"}
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
    assert '# from = "m/b/w"\n# to = "m/a/w"' in done.suggestions


def test_identities_are_never_suggested() -> None:
    done = plan("m/blocks/0/w 4\nm/blocks/1/w 4", "m/blocks/0/w 4\nm/blocks/1/w 4\nm/blocks/2/w 4")
    assert set(problems(done).values()) == {"ambiguous"}
    assert "from" not in done.suggestions
    assert "such as that of its own name" in done.suggestions


def test_axes_of_size_one_are_taken_away_under_an_equal_name() -> None:
    assert rules_of("m/w 1x4", "m/w 4") == [{"from": "m/w", "to": "m/w", "ops": [{"reshape": {"shape": [4]}}]}]


@pytest.mark.parametrize(
    ("found", "wanted", "ops"),
    [
        ("4x6", "4x8", [{"fit": {"fill": "keep"}}]),
        ("4 float32", "4 int32", [{"cast": {"dtype": "int32"}}]),
        ("4 float32", "4 int8", [{"cast": {"dtype": "int8"}}]),
    ],
)
def test_what_changes_the_meaning_of_an_index_or_number_is_a_guess(found: str, wanted: str, ops: object) -> None:
    assert guesses_of(f"m/w {found}", f"m/w {wanted}") == [{"from": "m/w", "to": "m/w", "ops": ops}]


@pytest.mark.parametrize(
    ("found", "wanted"),
    [("4x6", "6x4"), ("4x6", "24"), ("4x6", "4x2x3"), ("4", "4x2"), ("4 string", "4 float32")],
)
def test_where_it_is_not_clear_how_nothing_is_even_guessed(found: str, wanted: str) -> None:
    assert guesses_of(f"m/w {found}", f"m/w {wanted}") == []


@pytest.mark.parametrize(
    ("free", "wanted", "could"),
    [
        ("16x16", "16x4x4", True),  # reshape
        ("4x16x4", "16x4x4", True),  # transpose
        ("16x48", "16x4x4", True),  # a third of it
        ("16x24", "16x48", True),  # two of them
        ("40", "24", True),
        ("16x40", "16x6x4", True),
        ("4", "3x4", True),  # three of them
        ("-", "3x4", False),
        ("3x5", "7x7", False),
        ("11", "7x7", False),
    ],
)
def test_keep_takes_effect_only_where_nothing_that_is_free_could_become_the_variable(
    free: str, wanted: str, could: bool
) -> None:
    shapes = [tuple(map(int, s.split("x"))) if s != "-" else () for s in (free, wanted)]
    assert could_make(*shapes) is could
    rules = rules_of(f"z/old {free}", f"m/lora/down {wanted}")
    assert rules == ([] if could else [{"keep": "m/lora/down"}])


def test_heads_that_the_checkpoint_holds_as_one_matrix_are_its_candidates_and_not_kept() -> None:
    """BERT of TF1 into a model whose heads have an axis of their own."""
    source = "\n".join(f"bert/encoder/layer_0/attention/self/{n}/kernel 16x16" for n in ("query", "key", "value"))
    target = "\n".join(f"net/transformer/0/attn/{n}/w 16x4x4" for n in ("query", "key", "value"))
    done = plan(source, target)
    assert "keep =" not in done.suggestions
    for name in ("query", "key", "value"):
        assert entry(done, f"net/transformer/0/attn/{name}/w").candidates[0].endswith(f"self/{name}/kernel")
    assert 'self/query/kernel"  # float32[16, 16]' in done.suggestions


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


def letters(number: int) -> str:
    return "".join(chr(97 + int(digit)) for digit in f"{number:03}")


def test_comments_end_somewhere() -> None:
    source = "\n".join(f"m/old/{c}/{letters(i)}/dense/kernel 4" for i in range(75) for c in "ab")
    target = "\n".join(f"m/new/{c}/{letters(i)}/dense/kernel 4" for i in range(75) for c in "cd")
    text = plan(source, target).suggestions
    assert text.count("# [[rule]]") <= MAX_COMMENTS
    assert f"{150 - MAX_COMMENTS} more" in text


def test_comments_of_one_family_are_one_block() -> None:
    source = "\n".join(f"m/old/{c}/{i}/dense/kernel 4" for i in range(150) for c in "ab")
    target = "\n".join(f"m/new/{c}/{i}/dense/kernel 4" for i in range(150) for c in "cd")
    text = plan(source, target).suggestions
    assert text.count("choose a source") == 2
    assert "# m/new/c/{0..149}/dense/kernel float32[4] (150 alike" in text


# ---- One rule where one will do --------------------------------------------------------------------------


def few(pairs: dict[str, str], *others: str, targets: tuple[str, ...] = ()) -> list[tuple[str, str]]:
    """The proposals of renames, collapsed, beside other sources and targets."""
    sources = checkpoint("\n".join(f"{name} 4" for name in (*pairs, *others)))
    variables = program("\n".join(f"{name} 4" for name in (*pairs.values(), *targets)))
    found = collapse(
        [Proposal(s, t) for s, t in pairs.items()],
        NameTable(sources.tensors, "the checkpoint"),
        NameTable(variables.variables, "the model"),
    )
    return [(p.source, p.target) for p in found]


OLD = {f"m/old/{n}": f"m/new/{n}" for n in ("a/k", "a/b", "c/k")}


def test_a_shared_prefix_is_one_rule() -> None:
    assert few(OLD) == [("m/old/{rest}", "m/new/{rest}")]


def test_blocks_with_several_variables_are_one_rule() -> None:
    pairs = {f"m/layer_{i}/{n}": f"m/block_{i}/{n}" for i in range(3) for n in ("a/k", "b")}
    assert few(pairs) == [("m/layer_{i}/{rest}", "m/block_{i}/{rest}")]


def test_a_prefix_that_would_reach_more_is_cut_longer() -> None:
    assert few(OLD, "m/old/x", targets=("m/new/x",)) == [
        ("m/old/a/{rest}", "m/new/a/{rest}"),
        ("m/old/c/k", "m/new/c/k"),
    ]


def test_a_prefix_under_which_something_has_no_place_to_go_is_none() -> None:
    assert ("m/old/{rest}", "m/new/{rest}") not in few(OLD, "m/old/x")


def test_a_prefix_that_an_alias_shares_is_none() -> None:
    assert few({"m/old/a": "m/new/a", "m/old/b": "m/new/b"}, "m/other 4 sem:m/old/z", targets=("m/new/z",)) == [
        ("m/old/a", "m/new/a"),
        ("m/old/b", "m/new/b"),
    ]


def test_a_shared_prefix_of_what_is_new_is_one_rule() -> None:
    new = "\n".join(f"m/lora/{n} 2x7" for n in ("a/down", "a/up", "scale/w"))
    assert rules_of("m/dense/kernel 4", f"m/dense/kernel 4\n{new}") == [{"keep": "m/lora/{rest}"}]


def test_a_prefix_under_which_something_is_filled_is_not_kept() -> None:
    new = "\n".join(f"m/x/{n} 2x7" for n in ("lora/down", "lora/up"))
    assert rules_of("m/x/kernel 4", f"m/x/kernel 4\n{new}") == [{"keep": "m/x/lora/{rest}"}]


NAMES = st.lists(st.sampled_from(["a", "b", "c_1", "c_2", "d"]), min_size=1, max_size=3).map("/".join)


@settings(deadline=None)
@given(st.sets(NAMES, min_size=1, max_size=8), st.sets(NAMES, max_size=4), st.sets(NAMES, max_size=4))
def test_few_rules_do_exactly_what_the_single_ones_do(names: set[str], theirs: set[str], ours: set[str]) -> None:
    pairs = {f"old/{n}": f"brand/new/{n}" for n in names}
    others = [f"old/{n} 4" for n in theirs - names]
    sources = "\n".join([*(f"{s} 4" for s in pairs), *others])
    targets = "\n".join([*(f"{t} 4" for t in pairs.values()), *(f"brand/new/{n} 4" for n in ours - names)])
    found = few(pairs, *(o[:-2] for o in others), targets=tuple(f"brand/new/{n}" for n in ours - names))
    text = "".join(f"[[rule]]\nfrom = '{s}'\nto = '{t}'\n" for s, t in found)
    ruled = plan(sources, targets, RuleSet.from_toml(text))
    assert {e.target: e.sources[0] for e in ruled.entries if e.evidence.startswith("rule")} == {
        t: s for s, t in pairs.items()
    }


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
@given(st.lists(ROWS, min_size=1, max_size=8), st.lists(ROWS, min_size=1, max_size=8), st.booleans())
def test_suggestions_can_be_pasted_and_settle_what_they_speak_of(
    source: list[tuple[str, str]], target: list[tuple[str, str]], take: bool
) -> None:
    before = plan(text_of(source), text_of(target))
    rules = RuleSet.from_toml(taken(before.suggestions) if take else before.suggestions)
    after = plan(text_of(source), text_of(target), rules)
    ruled = {e.target for e in after.entries if e.evidence.startswith("rule")}
    assert bool(ruled) == bool(rules.rules) and not ruled & problems(after).keys()
    assert len(after.problems) + len(ruled) <= len(before.problems)
    for name, sources in filled(before).items():
        assert filled(after)[name] == sources


SHAPES = st.sampled_from(["4", "6", "4x6", "6x4", "2x12", "1x4", "5x7"])
WORD = st.sampled_from(["dense", "norm", "kernel", "bias", "attn", "query", "0", "1"])
CHANGES = st.sampled_from(["same", "separators", "renamed", "nested", "reshaped", "gone", "new"])
ROLES = st.dictionaries(
    st.lists(WORD, min_size=2, max_size=4).map(tuple), st.tuples(SHAPES, CHANGES, SHAPES, WORD), min_size=1, max_size=7
)


def changed(words: tuple[str, ...], change: str, word: str) -> str:
    """The name of a role after a change; no two roles that have a name on both sides ever have the same words."""
    match change:
        case "separators":
            return f"m/{'_'.join(words[:-1])}/{words[-1]}"
        case "renamed":
            return "m/" + "/".join(["fresh", *words[:-2], word, words[-1]])
        case "nested":
            return "m/" + "/".join(["inner", *words])
    return f"m/{'/'.join(words)}"


@settings(deadline=None, max_examples=300)
@given(ROLES)
def test_what_a_pasted_rule_fills_or_keeps_is_right(roles: dict[tuple[str, ...], tuple[str, str, str, str]]) -> None:
    """Roles that were renamed, nested, reshaped, removed and added; which source a target has is known."""
    source: dict[str, str] = {}
    truth: dict[str, tuple[str, str, str]] = {}
    for words, (shape, change, other, word) in roles.items():
        name, old = changed(words, change, word), f"m/{'/'.join(words)}"
        if change != "new":
            source[old] = shape
        if change != "gone" and name not in truth:
            truth[name] = (other if change == "reshaped" else shape, "" if change == "new" else old, shape)
    targets = "\n".join(f"{name} {shape}" for name, (shape, _, _) in truth.items())
    sources = "\n".join(f"{name} {shape}" for name, shape in source.items())
    if not source or not truth:
        return
    after = plan(sources, targets, RuleSet.from_toml(plan(sources, targets).suggestions))
    for found in after.entries:
        if found.evidence.startswith("rule"):
            shape, old, before = truth[found.target]
            assert found.sources == ((old,) if old else ())
            assert found.filled or not old
            assert shape.replace("1x", "") == before.replace("1x", "")


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
