"""Rules: every form that they are written in, what they decide, and what is refused."""

from __future__ import annotations

import pathlib

import pytest

from build import checkpoint, entry, filled, plan, program, statuses
from dist_restore.core.errors import RuleError
from dist_restore.planning.rules.rule import Rule
from dist_restore.planning.rules.rule_set import RuleSet
from places import ROOT

SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"
DESIGN = """
[[rule]]                                   # rename; {i} captures a number, {rest} any path
from = "model/encoder/layer_{i}/{rest}"
to   = "model/blocks/{i+1}/{rest}"

[[rule]]                                   # three tensors into one, per block
from = ["model/h/{i}/q/kernel", "model/h/{i}/k/kernel", "model/h/{i}/v/kernel"]
to   = "model/fused/{i}/qkv/kernel"
ops  = [{ concat = { axis = -1 } }]

[[rule]]                                   # one into three
from = "model/old/{i}/qkv/kernel"
to   = ["model/new/{i}/q/kernel", "model/new/{i}/k/kernel", "model/new/{i}/v/kernel"]
ops  = [{ split = { axis = -1 } }]

[[rule]]
from = "model/embed/embeddings"
to   = "model/embed/embeddings"
ops  = [{ fit = { fill = "keep" } }]

[[rule]]
keep = "model/dropout_adapter/{rest}"      # new in this model: keep the present value

[[rule]]
drop = "model/old_head/{rest}"             # in the checkpoint, on purpose not used
"""
OLD = """
model/encoder/layer_0/w 4x4
model/encoder/layer_1/w 4x4
model/h/7/q/kernel 4x2
model/h/7/k/kernel 4x2
model/h/7/v/kernel 4x2
model/old/0/qkv/kernel 4x6
model/embed/embeddings 10x4
model/old_head/w 4x4
"""
NEW = """
model/blocks/1/w 4x4
model/blocks/2/w 4x4
model/fused/7/qkv/kernel 4x6
model/new/0/q/kernel 4x2
model/new/0/k/kernel 4x2
model/new/0/v/kernel 4x2
model/embed/embeddings 12x4
model/dropout_adapter/w 4x4
"""


def refused(rules: str, source: str = "a/w 4", target: str = "b/w 4") -> str:
    with pytest.raises(RuleError) as caught:
        plan(source, target, rules)
    return str(caught.value)


# ---- What rules decide -----------------------------------------------------------------------------------


def test_the_rule_file_of_the_design_does_what_it_says() -> None:
    done = plan(OLD, NEW, DESIGN)
    assert filled(done) == {
        "model/blocks/1/w": "model/encoder/layer_0/w",
        "model/blocks/2/w": "model/encoder/layer_1/w",
        "model/fused/7/qkv/kernel": "model/h/7/q/kernel + model/h/7/k/kernel + model/h/7/v/kernel",
        "model/new/0/q/kernel": "model/old/0/qkv/kernel",
        "model/new/0/k/kernel": "model/old/0/qkv/kernel",
        "model/new/0/v/kernel": "model/old/0/qkv/kernel",
        "model/embed/embeddings": "model/embed/embeddings",
    }
    assert statuses(done)["model/embed/embeddings"] == "resized"
    assert statuses(done)["model/dropout_adapter/w"] == "kept"
    assert [tuple(u) for u in done.unused] == [("model/old_head/w", "dropped by rule 6")]
    assert done.problems == ()


def test_the_parts_of_a_split_go_to_the_targets_in_order() -> None:
    done = plan(OLD, NEW, DESIGN)
    parts = [entry(done, f"model/new/0/{name}/kernel").ops[0].part for name in "qkv"]  # type: ignore[attr-defined]
    assert parts == [0, 1, 2]


@pytest.mark.parametrize(
    ("ops", "source", "target"),
    [
        ("{ transpose = { perm = [1, 0] } }", "2x3", "3x2"),
        ("{ reshape = { shape = [3, -1] } }", "2x6", "3x4"),
        ("{ slice = { begin = [1, 0], size = [2, -1] } }", "4x3", "2x3"),
        ("{ pad = { before = [0, 0], after = [2, 0], fill = 'keep' } }", "2x3", "4x3"),
        ("{ pad = { before = [0, 0], after = [2, 0], fill = 'zeros' } }", "2x3", "4x3"),
        ("{ fit = { fill = 'mean' } }", "2x3", "4x2"),
        ("{ fit = { fill = 'normal' } }", "2x3", "4x2"),
        ("{ cast = { dtype = 'float32', lossy = true } }", "2x3", "2x3"),
        ("{ scale = { by = 0.5 } }", "2x3", "2x3"),
        ("{ transpose = { perm = [1, 0] } }, { reshape = { shape = [6] } }", "2x3", "6"),
    ],
)
def test_ops_of_one_tensor_are_read_and_bound(ops: str, source: str, target: str) -> None:
    rules = f'[[rule]]\nfrom = "a"\nto = "b"\nops = [{ops}]'
    assert filled(plan(f"a {source}", f"b {target}", rules)) == {"b": "a"}


def test_stack_and_unstack_are_read_and_bound() -> None:
    stack = '[[rule]]\nfrom = ["a", "b"]\nto = "c"\nops = [{ stack = { axis = 0 } }]'
    unstack = '[[rule]]\nfrom = "c"\nto = ["a", "b"]\nops = [{ unstack = { axis = 0 } }]'
    assert filled(plan("a 3\nb 3", "c 2x3", stack)) == {"c": "a + b"}
    assert filled(plan("c 2x3", "a 3\nb 3", unstack)) == {"a": "c", "b": "c"}


def test_one_source_fans_out_to_several_targets() -> None:
    done = plan("m/{} 4".format("w"), "m/a 4\nm/b 4", '[[rule]]\nfrom = "m/w"\nto = ["m/a", "m/b"]')
    assert filled(done) == {"m/a": "m/w", "m/b": "m/w"}


def test_literal_rules_may_share_a_source() -> None:
    rules = '[[rule]]\nfrom = "w"\nto = "a"\n[[rule]]\nfrom = "w"\nto = "b"'
    assert filled(plan("w 4", "a 4\nb 4", rules)) == {"a": "w", "b": "w"}


def test_depth_grows_by_computing_on_the_from_side() -> None:
    old = "\n".join(f"m/h/{i}/w 4" for i in range(12))
    new = "\n".join(f"m/b/{i}/w 4" for i in range(24))
    done = plan(old, new, '[[rule]]\nfrom = "m/h/{i//2}/{rest}"\nto = "m/b/{i}/{rest}"')
    assert filled(done) == {f"m/b/{i}/w": f"m/h/{i // 2}/w" for i in range(24)}


def test_the_first_match_wins() -> None:
    rules = """
    [[rule]]
    from = "m/special/w"
    to = "n/exception/w"
    [[rule]]
    from = "m/{name}/w"
    to = "n/{name}/w"
    """
    done = plan("m/special/w 4\nm/other/w 4", "n/special/w 4\nn/exception/w 4\nn/other/w 4", rules)
    assert filled(done) == {"n/exception/w": "m/special/w", "n/other/w": "m/other/w"}
    assert statuses(done)["n/special/w"] == "unmatched"


def test_a_pattern_passes_over_targets_that_are_decided() -> None:
    rules = '[[rule]]\nkeep = "n/b"\n[[rule]]\nfrom = "m/{name}"\nto = "n/{name}"'
    done = plan("m/a 4\nm/b 4", "n/a 4\nn/b 4", rules)
    assert filled(done) == {"n/a": "m/a"}
    assert done.unused[0].name == "m/b"
    assert "rule 2" in done.unused[0].reason and "rule 1" in done.unused[0].reason


@pytest.mark.parametrize("to_side", [False, True])
def test_a_pattern_passes_over_sources_that_are_dropped(to_side: bool) -> None:
    index = "{i//1}" if to_side else "{i}"
    rules = f'[[rule]]\ndrop = "m/0/w"\n[[rule]]\nfrom = "m/{index}/w"\nto = "n/{{i}}/w"'
    assert filled(plan("m/0/w 4\nm/1/w 4", "n/0/w 4\nn/1/w 4", rules)) == {"n/1/w": "m/1/w"}


def test_a_computed_pattern_passes_over_sources_that_are_used() -> None:
    rules = '[[rule]]\nfrom = "m/1/w"\nto = "x"\n[[rule]]\nfrom = "m/{i//2}/w"\nto = "n/{i}/w"'
    done = plan("m/0/w 4\nm/1/w 4", "x 4\nn/0/w 4\nn/1/w 4\nn/2/w 4", rules)
    assert filled(done) == {"x": "m/1/w", "n/0/w": "m/0/w", "n/1/w": "m/0/w"}


def test_a_joining_pattern_passes_over_what_an_earlier_rule_took() -> None:
    rules = """
    [[rule]]
    from = "m/0/k"
    to = "x"
    [[rule]]
    from = ["m/{i}/q", "m/{i}/k"]
    to = "n/{i}"
    ops = [{ concat = { axis = 0 } }]
    """
    done = plan("m/0/q 2\nm/0/k 2\nm/1/q 2\nm/1/k 2", "x 2\nn/0 4\nn/1 4", rules)
    assert filled(done) == {"x": "m/0/k", "n/1": "m/1/q + m/1/k"}


def test_keys_may_have_the_attribute_suffix() -> None:
    rules = {f"a/w{SUFFIX}": f"b/w{SUFFIX}", "a/v": f"b/v{SUFFIX}"}
    assert filled(plan("a/w 4\na/v 4", "b/w 4\nb/v 4", rules)) == {"b/w": "a/w", "b/v": "a/v"}


def test_a_literal_rule_may_use_any_alias() -> None:
    source = checkpoint("model/dense/kernel 4 pos:optimizer/_trainable_variables/0")
    rules = {f"optimizer/_trainable_variables/0{SUFFIX}": "net/dense/kernel"}
    assert filled(plan(source, program("x/dense/kernel 4 sem:net/dense/kernel"), rules)) == {
        "x/dense/kernel": "model/dense/kernel"
    }


def test_a_pattern_matches_semantic_names_only() -> None:
    source = "model/w 4 pos:optimizer/variables/0\noptimizer/rate 4"
    done = plan(source, "model/w 4", '[[rule]]\ndrop = "optimizer/{rest}"')
    assert filled(done) == {"model/w": "model/w"}
    assert ("optimizer/rate", "dropped by rule 1") in [tuple(u) for u in done.unused]


def test_a_pattern_takes_a_tensor_with_two_fitting_names_once() -> None:
    done = plan("m/a/w 4 sem:m/b/w", "n/a/w 4\nn/b/w 4", '[[rule]]\nfrom = "m/{name}/w"\nto = "n/{name}/w"')
    assert filled(done) == {"n/a/w": "m/a/w"}


def test_a_regex_rule_maps_by_groups() -> None:
    rules = r"""
    [[rule]]
    from = 'm/h_(\d+)/(?P<rest>.+)'
    to = 'n/\1/\g<rest>'
    regex = true
    """
    assert filled(plan("m/h_3/a/w 4", "n/3/a/w 4", rules)) == {"n/3/a/w": "m/h_3/a/w"}


def test_regexes_join_keep_and_drop() -> None:
    rules = r"""
    [[rule]]
    from = ['m/(\d)/q', 'm/\1/k']
    to = 'n/\1'
    ops = [{ concat = { axis = 0 } }]
    regex = true
    [[rule]]
    keep = 'n/new_[ab]'
    regex = true
    [[rule]]
    drop = 'm/old.*'
    regex = true
    """
    done = plan("m/1/q 2\nm/1/k 2\nm/old_x 1", "n/1 4\nn/new_a 1", rules)
    assert filled(done) == {"n/1": "m/1/q + m/1/k"}
    assert done.problems == ()


def test_an_optional_rule_may_match_nothing() -> None:
    rules = '[[rule]]\nfrom = "a/{rest}"\nto = "b/{rest}"\n[[rule]]\nkeep = "no/such"\noptional = true'
    assert filled(plan("a/w 4", "b/w 4", rules)) == {"b/w": "a/w"}


def test_a_result_below_zero_is_no_target() -> None:
    done = plan("h/0/w 4\nh/1/w 4", "b/0/w 4", '[[rule]]\nfrom = "h/{i}/w"\nto = "b/{i-1}/w"')
    assert filled(done) == {"b/0/w": "h/1/w"}
    assert "rule 1 maps it to b/{i-1}/w" in done.unused[0].reason


# ---- What is refused when it is applied ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ('[[rule]]\nfrom = "a/ww"\nto = "b/w"', ["rule 1", "matches 'a/ww'", "'a/w'"]),
        ('[[rule]]\nfrom = "a/w"\nto = "b/ww"', ["rule 1", "matches 'b/ww'", "'b/w'"]),
        ('[[rule]]\nfrom = "a/{rest}"\nto = "c/{rest}"', ["rule 1", "matches 'c/{rest}'"]),
        ('[[rule]]\nfrom = "{name}/w"\nto = "{name}/w"', ["would map 'a/w' to 'a/w'", "'b/w'"]),
        ('[[rule]]\nkeep = "c/{rest}"', ["rule 1", "matches 'c/{rest}'"]),
        ('[[rule]]\ndrop = "c/w"', ["rule 1", "matches 'c/w'", "'a/w'"]),
        ('[[rule]]\ndrop = "a/w"\n[[rule]]\ndrop = "a/{name}"', ["rule 2", "Earlier rules took"]),
        ('[[rule]]\nfrom = "x(y)?"\nto = "b/w"\nregex = true', ["rule 1", "matched nothing"]),
        ('[[rule]]\ndrop = "a/w"\n[[rule]]\nfrom = "a/w"\nto = "b/w"', ["rule 2", "dropped by rule 1"]),
        ('[[rule]]\nfrom = "a/w"\nto = "b/w"\n[[rule]]\ndrop = "a/w"', ["rule 2", "used by rule 1"]),
        ('[[rule]]\nkeep = "b/w"\n[[rule]]\nfrom = "a/w"\nto = "b/w"', ["rule 2", "decided by rule 1"]),
        ('[[rule]]\nfrom = "a/w"\nto = ["b/w", "b/w"]', ["one target", "'b/w'"]),
        ('[[rule]]\nfrom = "a/w"\nto = ["b/w", "b/v"]', ["'b/v'", "other targets"]),
        ('[[rule]]\nfrom = "a/w"\nto = ["b/v", "b/w"]', ["'b/v'", "other targets"]),
        ('[[rule]]\nfrom = ["a/w", "a/v"]\nto = "b/w"', ["'a/w'", "'a/v'", "joins it"]),
        ('[[rule]]\nfrom = ["a/w", "a/w"]\nto = "b/w"', ["'b/w'", "concat"]),
        ('[[rule]]\nfrom = "a/{name}"\nto = "b/{nam}"', ["nam"]),
        ('[[rule]]\nfrom = "{i+1}/w"\nto = "b/{i-1}"', ["both compute"]),
        ('[[rule]]\nfrom = "{i+1}/w"\nto = "b/w"', ["both compute"]),
        ('[[rule]]\nfrom = "a/w"\nto = "b/w"\nops = [{ split = { axis = 0, sizes = [2, 2] } }]', ["rule 1", "'b/w'"]),
    ],
)
def test_a_rule_that_cannot_be_applied_is_refused(rules: str, words: list[str]) -> None:
    message = refused(rules)
    assert [w for w in words if w not in message] == []


def test_two_sources_of_one_pattern_for_one_target_are_refused() -> None:
    message = refused('[[rule]]\nfrom = "{name}/w"\nto = "b/w"', source="a/w 4\nc/w 4")
    assert "'b/w'" in message and "one target" in message


def test_a_name_of_two_tensors_is_refused() -> None:
    message = refused('[[rule]]\nfrom = "x"\nto = "b/w"', source="a/w 4 pos:x\nc/w 4 pos:x")
    assert "'a/w', 'c/w'" in message


def test_an_alias_that_is_a_name_of_another_means_the_other() -> None:
    assert filled(plan("a 4 sem:c\nc 4", "b 4", {"c": "b"})) == {"b": "c"}


# ---- How rules are read ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "[[rule]]\nfrm = 'a'\nto = 'b'",
        "[[rules]]\nfrom = 'a'\nto = 'b'",
        "[rule]\nfrom = 'a'\nto = 'b'",
        "rule = ['a']",
        "[[rule]]\nfrom = 1\nto = 'b'",
        "[[rule]]\nfrom = ['a', 1]\nto = 'b'",
        "[[rule]]\nfrom = 'a'\nto = { b = 1 }",
        "[[rule]]\nfrom = 'a'",
        "[[rule]]\nto = 'a'",
        "[[rule]]",
        "[[rule]]\nfrom = []\nto = []",
        "[[rule]]\nkeep = ''",
        "[[rule]]\nkeep = ['a']",
        "[[rule]]\nkeep = 'a'\ndrop = 'b'",
        "[[rule]]\nfrom = 'a'\nto = 'b'\nkeep = 'c'",
        "[[rule]]\nkeep = 'a'\nops = [{ scale = { by = 2.0 } }]",
        "[[rule]]\nfrom = 'a'\nto = 'b'\noptional = 'yes'",
        "[[rule]]\nfrom = 'a'\nto = 'b'\nregex = 1",
        "[[rule]]\nfrom = 'a'\nto = 'b'\nops = { scale = { by = 2.0 } }",
        "[[rule]]\nfrom = 'a'\nto = 'b'\nops = ['transpose']",
        "[[rule]]\nfrom = 'a'\nto = 'b'\nops = [{ explode = {} }]",
        "[[rule]]\nfrom = 'a'\nto = 'b'\nops = [{ concat = { axes = 0 } }]",
        "[[rule]]\nfrom = 'a'\nto = 'b'\nops = [{ scale = { by = 1979-05-27 } }]",
        "[slots]\nvelocity = 1",
        "slots = 'velocity'",
        "[slots]\nvelocity = 'momentum'\naverage = 'momentum'",
        "[[rule",
        "[[rule]]\nfrom = 'a'\nfrom = 'b'",
        "x = " + "[" * 100_000,
        "x = " + "9" * 10_000,
    ],
)
def test_what_is_no_rule_file_is_refused(text: str) -> None:
    with pytest.raises(RuleError):
        RuleSet.from_toml(text)


def test_messages_say_which_rule_of_which_file(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "fuse.toml"
    path.write_text("[[rule]]\nkeep = 'a'\n[[rule]]\nkep = 'b'\n")
    with pytest.raises(RuleError, match=r"rule 2 of fuse\.toml: unknown key 'kep'"):
        RuleSet.load(path)


def test_a_syntax_error_is_named_with_its_line() -> None:
    with pytest.raises(RuleError, match="line 2"):
        RuleSet.from_toml("[[rule]]\nfrom = = 'a'")


@pytest.mark.parametrize("name", ["missing.toml", "", "null\0byte.toml", "bytes.toml"])
def test_a_file_that_cannot_be_read_is_refused(tmp_path: pathlib.Path, name: str) -> None:
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RuleError):
        RuleSet.load(f"{tmp_path}/{name}")


@pytest.mark.parametrize("value", [5, [1], [Rule(keep="a"), "b"], {"a": 1}, {1: "a"}, {"rule": [{"from": 1}]}])
def test_what_is_no_form_of_rules_is_refused(value: object) -> None:
    with pytest.raises(RuleError):
        RuleSet.of(value)  # type: ignore[arg-type]


def test_all_forms_of_one_rule_are_equal(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text("[[rule]]\nfrom = 'a'\nto = 'b'\n")
    expected = (Rule(from_="a", to="b"),)
    forms = [path, str(path), [Rule(from_=["a"], to=("b",))], {"a": "b"}, {"rule": [{"from": "a", "to": "b"}]}]
    assert [RuleSet.of(form).rules for form in forms] == [expected] * 5  # type: ignore[arg-type]
    assert RuleSet.of(None) == RuleSet()


def test_tensors_may_be_called_rule_and_slots() -> None:
    assert RuleSet.of({"rule": "a", "slots": "b"}).rules == (Rule(from_="rule", to="a"), Rule(from_="slots", to="b"))
    assert RuleSet.of({"slots": "b"}).rules == (Rule(from_="slots", to="b"),)


def test_slots_are_read() -> None:
    assert RuleSet.from_toml("[slots]\nvelocity = 'momentum'").slots == (("velocity", "momentum"),)


# ---- Rules that come with the package --------------------------------------------------------------------


def test_a_plain_name_means_rules_that_come_with_the_package(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    monkeypatch.chdir(tmp_path)
    copied = ROOT / "configs" / "rules" / "hf_bert.toml"
    assert RuleSet.of("hf_bert").rules == RuleSet.load(copied).rules != ()


def test_a_file_of_that_name_comes_first(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hf_bert").write_text('[[rule]]\nfrom = "a"\nto = "b"\n')
    assert RuleSet.of("hf_bert").rules == (Rule(from_=("a",), to=("b",)),)


def test_a_name_that_is_neither_says_which_there_are(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        RuleError, match=r"no rule file 'hf_berd'.*Nearest names of these: 'hf_bert'.*'hf_gpt2', 'hf_vit'"
    ):
        RuleSet.of("hf_berd")
    with pytest.raises(RuleError, match=r"'rules/hf_berd' cannot be read"):
        RuleSet.of("rules/hf_berd")


def test_a_regular_expression_that_matches_nothing_says_what_there_is() -> None:
    with pytest.raises(RuleError, match=r"matches no name in the checkpoint, which has names such as 'a/w'"):
        plan("a/w 4", "b/w 4", '[[rule]]\nregex = true\nfrom = "z/(.*)"\nto = "b/\\\\1"')


def test_a_single_rule_table_says_how_a_rule_begins() -> None:
    with pytest.raises(RuleError, match=r"expected \[\[rule\]\], found \[rule\]"):
        RuleSet.from_toml('[rule]\nfrom = "a"\nto = "b"')
