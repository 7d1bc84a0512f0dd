"""Names that Keras makes up: the class in snake case, and a counter (`dense`, `dense_1`). Pure.

A counter tells in which order layers were made in one process, and nothing else: `dense_7` here may be `dense_2` there.
So a name is read as a template, with a hole for each counter, and the numbers that were in the holes. Numbers that
somebody chose (`block_1`) stay.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from typing import NamedTuple

_COUNTER = re.compile(r"_[0-9]{1,9}\Z")
# The layers of Keras 3.15 and tf_keras 2.21, and the models that have no class of their own.
_CLASSES = frozenset(
    """
    abstract_rnn_cell activation activity_regularization adaptive_average_pooling1d adaptive_average_pooling2d
    adaptive_average_pooling3d adaptive_max_pooling1d adaptive_max_pooling2d adaptive_max_pooling3d add
    additive_attention alpha_dropout attention aug_mix auto_contrast average average_pooling1d average_pooling2d
    average_pooling3d batch_normalization bidirectional category_encoding center_crop concatenate
    contrast_limited_adaptive_histogram_equalization conv1d conv1d_transpose conv2d conv2d_transpose conv3d
    conv3d_transpose conv_lstm1d conv_lstm2d conv_lstm3d cropping1d cropping2d cropping3d cut_mix dense
    dense_features depthwise_conv1d depthwise_conv2d discretization dot dropout einsum_dense elu embedding
    equalization flatten flax_layer functional gaussian_dropout gaussian_noise global_average_pooling1d
    global_average_pooling2d global_average_pooling3d global_max_pooling1d global_max_pooling2d
    global_max_pooling3d group_normalization grouped_query_attention gru gru_cell hashed_crossing hashing identity
    input_layer integer_lookup jax_layer lambda layer_normalization leaky_re_lu locally_connected1d
    locally_connected2d lstm lstm_cell masking max_num_bounding_boxes max_pooling1d max_pooling2d max_pooling3d
    maximum mel_spectrogram minimum mix_up model multi_head_attention multiply normalization p_re_lu permute
    pipeline rand_augment random_brightness random_color_degeneration random_color_jitter random_contrast
    random_crop random_elastic_transform random_erasing random_flip random_gaussian_blur random_grayscale
    random_height random_hue random_invert random_perspective random_posterization random_rotation
    random_saturation random_sharpness random_shear random_translation random_width random_zoom re_lu
    repeat_vector rescaling reshape resizing reversible_embedding rms_normalization rnn seed_generator
    separable_conv1d separable_conv2d sequential simple_rnn simple_rnn_cell softmax solarization spatial_dropout1d
    spatial_dropout2d spatial_dropout3d spectral_normalization stacked_rnn_cells stft_spectrogram string_lookup
    subtract text_vectorization tfsm_layer thresholded_re_lu time_distributed torch_module_wrapper
    unit_normalization up_sampling1d up_sampling2d up_sampling3d zero_padding1d zero_padding2d zero_padding3d
    """.split()
)

# What optimizers of Keras 3 and tf_keras are called where nobody named them.
_OPTIMIZERS = frozenset(
    """
    SGD sgd RMSprop rmsprop rm_sprop Adam adam AdamW adamw adam_w Adadelta adadelta Adafactor adafactor Adagrad adagrad
    Adamax adamax Ftrl ftrl Lamb lamb Lion lion Muon muon Nadam nadam loss_scale_optimizer multi_optimizer
    schedule_free_adam_w
    """.split()
)
# How `Bidirectional` calls the two layers that it holds, before their own names.
_WRAPPED = re.compile(r"(?:forward|backward)_(?=.)")
# What Keras calls the parts of an attention layer.
_PARTS = frozenset({"query", "key", "value", "attention_output"})
_WITH_PARTS = ("multi_head_attention", "grouped_query_attention")


class Template(NamedTuple):
    """A name without its counters.

    Attributes:
      text: the name, with `{}` behind each automatic word.
      counters: the number behind each; 0 where there was none, as behind the first of a class.
    """

    text: str
    counters: tuple[int, ...]


def without_counter(name: str) -> str:
    """`dense_1` -> `dense`."""
    return _COUNTER.sub("", name)


def looks_automatic(name: str) -> bool:
    """Whether a layer's name is one that Keras makes up for a class of its own."""
    name = _WRAPPED.sub("", name, count=1)
    return without_counter(name) in _CLASSES or name in _CLASSES


class Vocabulary:
    """The words that Keras makes names of: its own classes, and those of the program."""

    def __init__(self, words: Iterable[str] = ()) -> None:
        """Adds the words of a program's own classes, such as `my_block`."""
        # What a weight without a name of its own is called.
        self._words = _CLASSES.union(_OPTIMIZERS, words, ("variable",))
        self._known: dict[tuple[str, str], Template] = {}

    def path(self, text: str) -> Template:
        """Reads a path, whose parts are names: `net/dense_2` is `net/dense{}` with (2,)."""
        return self._read(text, "/")

    def flat(self, text: str) -> Template:
        """Reads a path without separators: `net_block_1_dense_5_kernel` is `net_block_1_dense{}_kernel` with (5,)."""
        return self._read(text, "_")

    def _read(self, text: str, separator: str) -> Template:
        found = self._known.get((text, separator))
        if found is None:
            found = self._known[text, separator] = self._of_path(text) if separator == "/" else self._of_flat(text)
        return found

    def chosen_in_path(self, text: str) -> str:
        """The parts of a path that somebody chose."""
        found: list[str] = []
        before = ""  # the automatic word of the part before
        for part in text.split("/"):
            word = self._word(part)
            if not word and not (part in _PARTS and before in _WITH_PARTS):
                found.append(part)
            before = word
        return "/".join(found)

    def chosen_in_flat(self, text: str) -> str:
        """The same of a path without separators, with the variable's own name."""
        parts = self._attention.sub("", text)
        return "_".join(filter(None, self._wrapped_pattern.sub("", parts).split("_")))

    def _word(self, part: str) -> str:
        """The automatic word that a part of a path is, counter apart; empty where it is none."""
        inner = _WRAPPED.sub("", part, count=1)
        for name in dict.fromkeys((part, inner)):
            for word in (name, without_counter(name)):
                if word in self._words:
                    return word
        return ""

    def _of_path(self, text: str) -> Template:
        parts, counters = text.split("/"), []
        for position, part in enumerate(parts):
            word = self._word(part)
            if not word:
                continue
            base = part if part.endswith(word) else without_counter(part)
            parts[position] = f"{base}{{}}"
            counters.append(int(part[len(base) + 1 :] or 0))
        return Template("/".join(parts), tuple(counters))

    def _of_flat(self, text: str) -> Template:
        counters: list[int] = []

        def hole(match: re.Match[str]) -> str:
            counters.append(int(match.group(2) or 0))
            return f"{match.group(1)}{{}}"

        return Template(self._pattern.sub(hole, text), tuple(counters))

    @functools.cached_property
    def _pattern(self) -> re.Pattern[str]:
        # Of fixed words alone, the longest first: no repetition inside, so that it cannot hang.
        words = "|".join(map(re.escape, sorted(self._words, key=lambda w: (-len(w), w))))
        return re.compile(rf"(?<![^_])({words})(?:_([0-9]{{1,9}}))?(?![^_])")

    @functools.cached_property
    def _wrapped_pattern(self) -> re.Pattern[str]:
        words = self._pattern.pattern.removeprefix("(?<![^_])")
        return re.compile(rf"(?<![^_])(?:(?:forward|backward)_)?{words}")

    @functools.cached_property
    def _attention(self) -> re.Pattern[str]:
        layers, parts = "|".join(_WITH_PARTS), "|".join(sorted(_PARTS, key=len, reverse=True))
        return re.compile(rf"(?<![^_])(?:{layers})(?:_[0-9]{{1,9}})?_(?:{parts})(?![^_])")
