"""Names that Keras makes up, read as templates."""

from __future__ import annotations

import pytest

from dist_restore.naming.automatic_names import Template, Vocabulary, looks_automatic, without_counter


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("dense_1", "dense"),
        ("dense", "dense"),
        ("dense_123456789", "dense"),
        ("dense_1234567890", "dense_1234567890"),
        ("dense_1_2", "dense_1"),
        ("conv2d", "conv2d"),
        ("_7", ""),
    ],
)
def test_a_counter_is_a_number_of_at_most_nine_digits_at_the_end(name: str, expected: str) -> None:
    assert without_counter(name) == expected


@pytest.mark.parametrize("name", ["dense", "dense_4", "conv2d_transpose", "conv2d_transpose_11", "up_sampling1d"])
def test_what_keras_makes_up_for_its_own_classes_looks_automatic(name: str) -> None:
    assert looks_automatic(name)


@pytest.mark.parametrize("name", ["stem", "block_1", "dense_a", "my_dense", "", "dense_1_2", "Dense"])
def test_what_somebody_chose_does_not(name: str) -> None:
    assert not looks_automatic(name)


@pytest.mark.parametrize(
    ("text", "template", "counters"),
    [
        ("net/dense_2", "net/dense{}", (2,)),
        ("net/dense", "net/dense{}", (0,)),
        ("dense_3/conv2d_12/dense", "dense{}/conv2d{}/dense{}", (3, 12, 0)),
        ("block_1/stem", "block_1/stem", ()),
        ("dense_stem", "dense_stem", ()),
        ("", "", ()),
    ],
)
def test_a_path_is_read_part_by_part(text: str, template: str, counters: tuple[int, ...]) -> None:
    assert Vocabulary().path(text) == Template(template, counters)


@pytest.mark.parametrize(
    ("text", "template", "counters"),
    [
        ("net_block_1_dense_5_kernel", "net_block_1_dense{}_kernel", (5,)),
        ("dense_kernel", "dense{}_kernel", (0,)),
        ("dense_1_dense_2", "dense{}_dense{}", (1, 2)),
        ("conv2d_transpose_3_bias", "conv2d_transpose{}_bias", (3,)),
        ("my_densest_kernel", "my_densest_kernel", ()),
        ("condense_kernel", "condense_kernel", ()),
        ("dense_1234567890", "dense{}_1234567890", (0,)),
    ],
)
def test_a_flat_name_is_read_by_its_longest_words(text: str, template: str, counters: tuple[int, ...]) -> None:
    assert Vocabulary().flat(text) == Template(template, counters)


def test_the_words_of_a_program_are_automatic_too() -> None:
    words = Vocabulary(["my_block", "res+net"])
    assert words.path("net/my_block_2/dense") == Template("net/my_block{}/dense{}", (2, 0))
    assert words.flat("net_my_block_2_kernel") == Template("net_my_block{}_kernel", (2,))
    assert words.flat("res+net_1") == Template("res+net{}", (1,))
    assert Vocabulary().path("my_block_2") == Template("my_block_2", ())


def test_a_word_that_ends_like_a_counter_is_whole() -> None:
    """A class `Layer_2` of the user's: its first instance is `layer_2`, its second `layer_2_1`."""
    words = Vocabulary(["layer_2"])
    assert words.path("layer_2") == Template("layer_2{}", (0,))
    assert words.path("layer_2_1") == Template("layer_2{}", (1,))


def test_paths_and_flat_names_of_one_text_are_kept_apart() -> None:
    words = Vocabulary()
    assert words.path("dense_kernel") == Template("dense_kernel", ())
    assert words.flat("dense_kernel") == Template("dense{}_kernel", (0,))
    assert words.path("dense_kernel") is words.path("dense_kernel")
