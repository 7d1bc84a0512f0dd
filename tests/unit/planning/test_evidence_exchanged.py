"""Layers whose names are exchanged, as three kinds of names read them: full names, flat ones, and those in files."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from build import checkpoint, program
from dist_restore.core.index import SourceTensor
from dist_restore.core.tensors import TensorSpec
from dist_restore.naming.automatic_names import Vocabulary
from dist_restore.planning.matching.exchanged import (
    Reading,
    flat_names_of,
    in_files,
    in_flat_names,
    in_full_names,
    names_in_files,
    refuse_exchanged,
)
from dist_restore.planning.matching.moved_members import refuse_moved_members
from dist_restore.planning.matching.outcome import Conflict, Match
from scenes import live, stored

WORDS = Vocabulary(("my_block",))


def refused(
    ours: Mapping[str, str], theirs: Mapping[str, str], reading: Reading | None = None, **pairs: str
) -> dict[str, str]:
    """Targets that are refused, and why; `pairs` is target -> source where that is not the same name."""
    tensors = {name: SourceTensor(name, TensorSpec((4,), "float32")) for name in {*ours, *theirs}}
    found = {name: Match(tensors[pairs.get(name.replace("/", "_"), name)], "place") for name in ours}
    done = refuse_exchanged(found, ours, theirs, reading or in_full_names(WORDS))
    assert done.keys() == found.keys()
    return {name: one.reason for name, one in done.items() if isinstance(one, Conflict)}


def test_a_place_whose_layer_lives_elsewhere_in_the_checkpoint_is_refused() -> None:
    done = refused({"m/a/w": "net/head/w"}, {"m/a/w": "net/stem/w", "m/b/w": "net/head/w"})
    assert done == {
        "m/a/w": "its place is that of 'm/a/w', which is called 'net/stem' in the checkpoint; it is called 'net/head' "
        "itself, and so is what 'm/b' holds there"
    }


@pytest.mark.parametrize(
    ("mine", "theirs"),
    [
        ("net/stem/w", {"m/a/w": "net/stem/w", "m/b/w": "net/head/w"}),  # equal names
        ("net/head/w", {"m/a/w": "net/stem/w"}),  # nobody has the name: it was given anew
        ("w", {"m/a/w": "net/stem/w", "m/b/w": "w"}),  # no name of a layer here
        ("net/head/w", {"m/a/w": "w", "m/b/w": "net/head/w"}),  # none there
        ("net/head/w", {"m/a/w": "net/stem/w", "m/a/x": "net/head/x"}),  # in the same place
        ("net/head/w", {"m/a/w": "net/stem/w", "m/a/x": "net/head/x", "m/b/x": "net/head/x"}),  # at several
        ("dense_1/w", {"m/a/w": "stem/w", "m/b/w": "dense/w"}),  # the name was given up
        ("net/dense_1/w", {"m/a/w": "net/dense/w", "m/b/w": "net/dense_1/w"}),  # counters
    ],
)
def test_what_names_do_not_contradict_is_left(mine: str, theirs: dict[str, str]) -> None:
    assert not refused({"m/a/w": mine}, theirs)


def test_a_name_that_both_have_is_none_that_was_given_up() -> None:
    theirs = {"m/a/w": "net/dense/w", "m/b/w": "net/head/w"}
    assert refused({"m/a/w": "net/head/w"}, theirs).keys() == {"m/a/w"}
    theirs = {"m/a/w": "net/stem/dense/w", "m/b/w": "net/head/dense/w"}
    assert refused({"m/a/w": "net/head/dense_3/w"}, theirs).keys() == {"m/a/w"}


def test_in_files_only_what_the_programs_words_do_not_make_up_is_chosen() -> None:
    reading = in_files(WORDS)
    assert reading.label("stem/dense_2/my_block/w") == "stem" == reading.chosen("stem/dense_2/w", "w")
    assert refused({"m/a/w": "head/w"}, {"m/a/w": "stem/w", "m/b/w": "head/w"}, reading).keys() == {"m/a/w"}


def test_flat_names_are_read_with_the_variables_own() -> None:
    reading = in_flat_names(WORDS)
    assert reading.chosen("net_head_kernel", "kernel") == "net_head"
    theirs = {"m/a/kernel": "net_stem_kernel", "m/b/kernel": "net_head_kernel"}
    assert refused({"m/a/kernel": "net_head_kernel"}, theirs, reading).keys() == {"m/a/kernel"}


def test_flat_names_are_those_that_slots_carry_and_those_that_keras_counted_up() -> None:
    variables = program("a/w 4 flat:net_a_w\nb/w 4 cnt:net/b/w cnt:net_b_w\nc/w 4 sem:c_w\nd/w 4 pos:d_w").variables
    assert flat_names_of(variables) == {"a/w": "net_a_w", "b/w": "net_b_w"}
    assert flat_names_of(checkpoint("a/w 4").tensors) == {}


BLOCKS = "m/a/w 4\nm/b/inner/w 5\nm layer:net\nm/a layer:x/y\nm/b layer:second\nm/b/inner layer:in\nm/loose 3"


def test_names_in_files_are_those_of_the_layers_above() -> None:
    expected = {"m/a/w": "x|y/w", "m/b/inner/w": "second/in/w"}
    assert names_in_files(live(BLOCKS).scene) == expected  # type: ignore[arg-type]
    found = names_in_files(stored(BLOCKS, by_layer=True).scene)  # type: ignore[arg-type]
    assert found == {"m/a/w": "net/x|y/w", "m/b/inner/w": "net/second/in/w", "m/loose": "net/loose"}


# ---- Members of lists that have names themselves ---------------------------------------------------------


def moved(ours: Mapping[str, str], theirs: Mapping[str, str], **pairs: str) -> dict[str, str]:
    """Targets that are refused, and why."""
    tensors = {name: SourceTensor(name, TensorSpec((4,), "float32")) for name in {*ours, *theirs}}
    found = {name: Match(tensors[pairs.get(name.replace("/", "_"), name)], "place") for name in ours}
    done = refuse_moved_members(found, ours, theirs, WORDS)
    assert done.keys() == found.keys()
    return {name: one.reason for name, one in done.items() if isinstance(one, Conflict)}


def test_a_member_whose_name_has_another_place_in_the_checkpoints_list_is_refused() -> None:
    done = moved({"l/0": "b", "l/1": "a", "l/2": "c"}, {"l/0": "a", "l/1": "b", "l/2": "c"})
    assert done.keys() == {"l/0", "l/1"}
    assert done["l/0"] == (
        "its place in a list is that of 'l/0', which is called 'a' in the checkpoint; it is called 'b' itself, and so "
        "is 'l/1' there"
    )


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"l/0": "b", "l/1": "c"}, {"l/0": "a", "l/1": "c"}),  # a name that is new
        ({"l/0": "b", "l/1": "c"}, {"l/0": "a", "l/1": "c", "k/0": "b"}),  # in another list
        ({"l/0": "b"}, {"l/0": "a", "l/1": "b", "l/2": "b"}),  # twice there
        ({"l/0": "b", "l/1": "b"}, {"l/0": "a", "l/1": "b"}),  # twice here
        ({"l/0": "dense_1/w", "l/1": "dense/w"}, {"l/0": "dense/w", "l/1": "dense_1/w"}),  # counters
        ({"m/a": "y", "m/b": "x"}, {"m/a": "x", "m/b": "y"}),  # attributes are names
        ({"l/0": "", "l/1": "a"}, {"l/0": "a", "l/1": ""}),  # no names
    ],
)
def test_members_that_names_do_not_find_elsewhere_are_left(ours: dict[str, str], theirs: dict[str, str]) -> None:
    assert not moved(ours, theirs)


def test_what_is_matched_with_the_member_of_its_name_is_left() -> None:
    assert not moved({"l/0": "b", "l/1": "a"}, {"l/0": "a", "l/1": "b"}, l_0="l/1", l_1="l/0")
