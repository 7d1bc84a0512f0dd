"""KerasHub: every backbone that can be built tiny from a few numbers. Nothing is downloaded."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping

from keras import Model
from keras_hub import models

# What the constructors call the same thing; each takes those that it names.
SIZES = {
    "vocabulary_size": 17,
    "vocab_size": 17,
    "num_layers": 2,
    "num_heads": 2,
    "num_attention_heads": 2,
    "num_query_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 4,
    "hidden_dim": 8,
    "embedding_dim": 4,
    "intermediate_dim": 16,
    "mlp_dim": 16,
    "max_sequence_length": 12,
    "num_experts": 2,
    "top_k": 1,
    "moe_intermediate_dim": 8,
    "shared_expert_intermediate_dim": 8,
    "shared_expert_intermediate_size": 8,
    "encoder_num_layers": 2,
    "decoder_num_layers": 2,
    "encoder_num_heads": 2,
    "decoder_num_heads": 2,
    "filter_dim": 8,
    "num_layers_enc": 2,
    "num_layers_dec": 2,
    "image_shape": (16, 16, 3),
    "patch_size": 8,
}
OPTIONAL = ("max_sequence_length",)


def tiny(name: str, **options: object) -> Model:
    make = getattr(models, name)
    accepted = inspect.signature(make.__init__).parameters
    sizes = {
        k: v for k, v in SIZES.items() if k in accepted and (k in OPTIONAL or accepted[k].default is inspect._empty)
    }
    return make(**{**sizes, **options})


def named(*names: str) -> dict[str, Callable[[], Model]]:
    return {name: functools.partial(tiny, f"{name}Backbone") for name in names}


IMAGES: Mapping[str, Callable[[], Model]] = {
    "ViT": functools.partial(tiny, "ViTBackbone", patch_size=(8, 8)),
    "DINOV2": functools.partial(tiny, "DINOV2Backbone", image_shape=(16, 16, 3)),
    "DeiT": functools.partial(tiny, "DeiTBackbone", patch_size=(8, 8)),
    "DenseNet": functools.partial(
        tiny, "DenseNetBackbone", stackwise_num_repeats=[2, 2], growth_rate=4, image_shape=(32, 32, 3)
    ),
    "VGG": functools.partial(
        tiny, "VGGBackbone", stackwise_num_repeats=[1, 2], stackwise_num_filters=[4, 4], image_shape=(16, 16, 3)
    ),
    "MiT": functools.partial(
        tiny,
        "MiTBackbone",
        layerwise_depths=[1, 1],
        num_layers=2,
        layerwise_num_heads=[1, 2],
        layerwise_sr_ratios=[8, 4],
        max_drop_path_rate=0.1,
        layerwise_patch_sizes=[7, 3],
        layerwise_strides=[4, 2],
        hidden_dims=[4, 8],
        image_shape=(32, 32, 3),
    ),
    "SwinTransformer": functools.partial(
        tiny,
        "SwinTransformerBackbone",
        image_shape=(32, 32, 3),
        embed_dim=8,
        depths=[1, 1],
        num_heads=[1, 2],
        window_size=4,
    ),
}
SOUND: Mapping[str, Callable[[], Model]] = {
    "Whisper": functools.partial(
        tiny, "WhisperBackbone", num_mels=4, max_encoder_sequence_length=12, max_decoder_sequence_length=12
    ),
    "Moonshine": functools.partial(tiny, "MoonshineBackbone"),
}
# Those whose containers of layers differ; all modes are tried with them.
SMALL: Mapping[str, Callable[[], Model]] = {
    **named("Albert", "Bart", "Bert", "DebertaV3", "DistilBert", "Electra", "GPT2", "OPT", "Roberta", "T5"),
    **IMAGES,
    **SOUND,
}
MORE: Mapping[str, Callable[[], Model]] = {
    **named("Bloom", "ESM", "ESM2", "FNet", "Falcon", "GPTNeoX", "Gemma", "GptOss", "Llama", "Llama3", "Mistral"),
    **named("Mixtral", "Phi3", "Qwen", "Qwen2", "Qwen3", "Qwen3Moe", "QwenMoe", "XLMRoberta", "XLNet", "EdRec"),
    "RoformerV2": functools.partial(tiny, "RoformerV2Backbone", head_size=4),
    "RWKV7": functools.partial(
        tiny, "RWKV7Backbone", hidden_size=8, head_size=4, gate_lora=4, mv_lora=4, aaa_lora=4, decay_lora=4
    ),
}
