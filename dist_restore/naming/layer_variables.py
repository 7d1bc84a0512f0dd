"""What Keras' layers call their variables, in the order in which `.weights.h5` numbers them (Keras 2.16 - 3.15). Pure.

Only where class and number leave one answer: a BatchNormalization of three variables may lack gamma or beta.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

_KERNEL_BIAS = (("kernel",), ("kernel", "bias"))
_RECURRENT = (("kernel", "recurrent_kernel"), ("kernel", "recurrent_kernel", "bias"))
_SEPARABLE = (("depthwise_kernel", "pointwise_kernel"), ("depthwise_kernel", "pointwise_kernel", "bias"))
_MOVING = ("moving_mean", "moving_variance")
KNOWN: Mapping[str, tuple[tuple[str, ...], ...]] = {
    **dict.fromkeys(("dense", "einsum_dense", "conv1d", "conv2d", "conv3d"), _KERNEL_BIAS),
    **dict.fromkeys(("conv1d_transpose", "conv2d_transpose", "conv3d_transpose"), _KERNEL_BIAS),
    **dict.fromkeys(("depthwise_conv1d", "depthwise_conv2d"), _KERNEL_BIAS),
    **dict.fromkeys(("separable_conv1d", "separable_conv2d"), _SEPARABLE),
    **dict.fromkeys(("lstm_cell", "gru_cell", "simple_rnn_cell", "conv_lstm_cell"), _RECURRENT),
    **dict.fromkeys(("layer_normalization", "group_normalization"), (("gamma", "beta"),)),
    "batch_normalization": (_MOVING, ("gamma", "beta", *_MOVING)),
    "embedding": (("embeddings",),),
    "rms_normalization": (("scale",),),
    "p_re_lu": (("alpha",),),
    # Under the attributes that hold them; where the numbers are given in the program, it has no variables.
    "normalization": (("adapt_mean", "adapt_variance", "count"),),
    "stft_spectrogram": (("real_kernel", "imag_kernel"),),
    "additive_attention": (("scale",),),
    "attention": (("scale", "concat_score_weight"),),
}
# What tf_keras calls a variable -> what Keras 3 does.
OF_KERAS_2: Mapping[str, str] = {"depthwise_kernel": "kernel"}
_SCALED = frozenset({"batch_normalization", "layer_normalization", "group_normalization"})


def variable_names(
    layer_class: str, shapes: Sequence[tuple[int, ...]], config: Mapping[str, object] | None = None
) -> tuple[str, ...] | None:
    """The names of a layer's numbered variables, or None where class, number and config do not tell.

    Args:
      layer_class: in snake case.
      shapes: of the variables, in their order.
      config: the layer's, where the file has it.
    """
    options = KNOWN.get(layer_class, ())
    if config is not None and layer_class in _SCALED:
        options = (_scaled_names(layer_class, config),)
    found = [names for names in options if len(names) == len(shapes)]
    return found[0] if len(found) == 1 and _fit(found[0], shapes) else None


def _scaled_names(layer_class: str, config: Mapping[str, object]) -> tuple[str, ...]:
    flags = (("gamma", config.get("scale", True)), ("beta", config.get("center", True)))
    rest = _MOVING if layer_class == "batch_normalization" and not config.get("renorm") else ()
    return (*(name for name, wanted in flags if wanted), *rest)


def _fit(names: Sequence[str], shapes: Sequence[tuple[int, ...]]) -> bool:
    """Whether kernels have two axes and more, and no bias has more than the kernel before it."""
    ranks = {name: len(shape) for name, shape in zip(names, shapes, strict=True)}
    matrices = all(rank >= 2 for name, rank in ranks.items() if name.endswith("kernel") or name == "embeddings")
    return matrices and ranks.get("bias", 0) <= ranks.get("kernel", 99)
