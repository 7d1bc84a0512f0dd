"""The rule files from Hugging Face to KerasHub: both models, one input, equal outputs.

The torch models are small and random, in every parameter. torch, transformers and keras_hub are the extra `hub`; they
take long to import, so only the tests that need them do, in one worker (`--dist loadgroup`).
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections.abc import Callable
from types import ModuleType

import keras
import numpy as np
import pytest
import tensorflow as tf

import dist_restore as dr
from conftest import make_strategy
from dist_restore.core.index import TargetIndex, TargetVariable
from dist_restore.core.tensors import TensorSpec
from dist_restore.ops import Method, Resize, apply, describe
from dist_restore.planning.planner import Options, resolve
from live import replicas
from places import CORPUS, ROOT

RULES = ROOT / "configs" / "rules"
FAMILIES = ("bert", "gpt2", "vit")
VOCABULARY, POSITIONS, WIDTH, LAYERS, HEADS, WIDE = 50, 20, 32, 2, 4, 48
TOLERANCE = 1e-4
Arrays = dict[str, np.ndarray]
one_worker = pytest.mark.xdist_group("hugging_face")


# ---- The true mapping, traced through KerasHub's own converters (`corpus/README.md`) -----------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_every_variable_comes_from_where_kerashubs_converter_takes_it(family: str) -> None:
    pair = CORPUS / f"hf_{family}__kerashub"
    source = dr.open_checkpoint(str(pair / "source.safetensors"))
    rows = json.loads((pair / "target.json").read_text())
    names = {f"model/{row['attribute']}": row["name"] for row in rows}
    variables = [
        TargetVariable(f"model/{row['attribute']}", TensorSpec(tuple(row["shape"]), row["dtype"])) for row in rows
    ]
    rules = dr.RuleSet.load(RULES / f"hf_{family}.toml")
    plan = resolve(source.index(), TargetIndex(tuple(sorted(variables, key=lambda v: v.name)), ()), rules, Options())
    keys = {tensor.name: tensor.key for tensor in source.index().tensors}
    found = {names[name]: [keys[s] for s in sources] for name, sources in plan.mapping().items()}
    truth = json.loads((pair / "truth.json").read_text())
    assert found == {name: row["sources"] for name, row in truth.items()}
    right = dr.open_checkpoint(str(pair / "expected.safetensors"))
    values = {tensor.key: tensor.name for tensor in right.index().tensors}
    for entry in plan.entries:
        result = apply(entry.ops, [source.read(name) for name in entry.sources])
        np.testing.assert_array_equal(result, right.read(values[names[entry.target]]))
    unused = {keys[tensor.name] for tensor in plan.unused}
    assert unused == set(json.loads((pair / "notes.json").read_text())["unused_sources"])
    assert all("rule" in tensor.reason for tensor in plan.unused)


# ---- Both models -------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Hub:
    """The three packages, imported once."""

    torch: ModuleType
    transformers: ModuleType
    keras_hub: ModuleType


@pytest.fixture(scope="module")
def hub() -> Hub:
    why = "torch, transformers and keras-hub are needed to compare outputs: pip install -e '.[hub]'"
    found = Hub(*(pytest.importorskip(name, reason=why) for name in ("torch", "transformers", "keras_hub")))
    found.transformers.logging.set_verbosity_error()
    found.transformers.logging.disable_progress_bar()
    return found


def torch_model(hub: Hub, name: str, **changes: object) -> object:
    """A model of `transformers`, random in all of its parameters, biases and norms too."""
    family = next(f for f in FAMILIES if name.lower().startswith(f))
    config = {
        "bert": lambda: hub.transformers.BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=WIDTH,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            intermediate_size=WIDE,
            max_position_embeddings=POSITIONS,
            hidden_act="gelu_pytorch_tanh",  # what KerasHub's BERT computes
        ),
        "gpt2": lambda: hub.transformers.GPT2Config(
            vocab_size=VOCABULARY,
            n_embd=WIDTH,
            n_layer=LAYERS,
            n_head=HEADS,
            n_positions=POSITIONS,
            n_inner=WIDE,
            bos_token_id=0,
            eos_token_id=0,
        ),
        "vit": lambda: hub.transformers.ViTConfig(
            hidden_size=WIDTH,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            intermediate_size=WIDE,
            image_size=16,
            patch_size=4,
        ),
    }[family]()
    for key, value in changes.items():
        setattr(config, key, value)
    hub.torch.manual_seed(7)
    model = getattr(hub.transformers, name)(config).eval()
    with hub.torch.no_grad():
        for key, parameter in model.named_parameters():
            centre = 1.0 if parameter.ndim == 1 and key.endswith("weight") else 0.0
            parameter.normal_(centre, 0.3)
    return model


def backbone(hub: Hub, family: str, *, layers: int = LAYERS, heads: int = HEADS, image: int = 16) -> keras.Model:
    sizes = {"num_layers": layers, "num_heads": heads, "hidden_dim": WIDTH}
    if family == "vit":
        shape, patch = (image, image, 3), (4, 4)
        return hub.keras_hub.models.ViTBackbone(shape, patch, mlp_dim=WIDE, layer_norm_epsilon=1e-12, **sizes)
    model = {"bert": hub.keras_hub.models.BertBackbone, "gpt2": hub.keras_hub.models.GPT2Backbone}[family]
    return model(VOCABULARY, intermediate_dim=WIDE, max_sequence_length=POSITIONS, **sizes)


def inputs_of(family: str, *, image: int = 16) -> Arrays:
    random = np.random.default_rng(3)
    if family == "vit":
        return {"images": random.normal(size=(2, image, image, 3)).astype(np.float32)}
    tokens = random.integers(0, VOCABULARY, (2, 12)).astype(np.int32)
    mask = np.ones_like(tokens)
    mask[1, 8:] = 0
    segments = {"segment_ids": (np.arange(12)[None] > [[5], [2]]).astype(np.int32)} if family == "bert" else {}
    return {"token_ids": tokens, "padding_mask": mask, **segments}


def torch_outputs(hub: Hub, model: object, inputs: Arrays) -> Arrays:
    names = {"token_ids": "input_ids", "padding_mask": "attention_mask", "segment_ids": "token_type_ids"}
    if "images" in inputs:
        pixels = np.ascontiguousarray(inputs["images"].transpose(0, 3, 1, 2))
        given = {"pixel_values": hub.torch.tensor(pixels), "interpolate_pos_encoding": True}
    else:
        given = {names[key]: hub.torch.tensor(value).long() for key, value in inputs.items()}
    base = getattr(model, "base_model", model)
    with hub.torch.no_grad():
        found = base(**given)
    result = {"sequence_output": found.last_hidden_state.numpy()}
    if "segment_ids" in inputs and found.pooler_output is not None:
        result["pooled_output"] = found.pooler_output.numpy()
    return result


def keras_outputs(model: keras.Model, inputs: Arrays) -> Arrays:
    found = model(inputs.get("images", inputs), training=False)
    found = found if isinstance(found, dict) else {"sequence_output": found}
    return {key: np.asarray(value) for key, value in found.items()}


def assert_equal_outputs(right: Arrays, found: Arrays, inputs: Arrays, tolerance: float = TOLERANCE) -> None:
    """What stands at padded positions means nothing and is left out."""
    assert right["sequence_output"].std() > 0.1
    mask = inputs.get("padding_mask", np.ones(right["sequence_output"].shape[:2])) > 0
    for key, value in right.items():
        cut = mask if key == "sequence_output" else slice(None)
        np.testing.assert_allclose(found[key][cut], value[cut], rtol=0, atol=tolerance, err_msg=key)


def saved(model: object, path: pathlib.Path, **options: object) -> str:
    model.save_pretrained(path, **options)  # type: ignore[attr-defined]
    index = path / "model.safetensors.index.json"
    return os.fspath(index if index.exists() else path / "model.safetensors")


def restored(root: object, path: str, family: str, **options: object) -> dr.RestoreReport:
    return dr.DistributedRestorer(root, rules=RULES / f"hf_{family}.toml", **options).restore(path)


def assert_all_mapped(report: dr.RestoreReport) -> None:
    """Every weight is filled, and every tensor of the file is used, or dropped by a rule."""
    left = [e.target for e in report.plan.entries if not e.filled]
    assert all(name == "save_counter" or name.endswith("seed_generator/state") for name in left), left
    assert all("rule" in tensor.reason for tensor in report.plan.unused), report.plan.unused


@one_worker
@pytest.mark.parametrize(
    "name",
    [
        "BertModel",
        "BertForPreTraining",
        "BertForSequenceClassification",
        "GPT2Model",
        "GPT2LMHeadModel",
        "GPT2ForSequenceClassification",
        "ViTModel",
        "ViTForImageClassification",
        "ViTForMaskedImageModeling",
    ],
)
def test_outputs_are_those_of_the_torch_model(hub: Hub, tmp_path: pathlib.Path, name: str) -> None:
    family = next(f for f in FAMILIES if name.lower().startswith(f))
    theirs, ours, inputs = torch_model(hub, name), backbone(hub, family), inputs_of(family)
    right = torch_outputs(hub, theirs, inputs)
    with pytest.raises(AssertionError):
        assert_equal_outputs(right, keras_outputs(ours, inputs), inputs)
    assert_all_mapped(restored(ours, saved(theirs, tmp_path), family))
    assert_equal_outputs(right, keras_outputs(ours, inputs), inputs)
    assert ("pooled_output" in right) == (family == "bert")


@one_worker
@pytest.mark.parametrize("family", FAMILIES)
def test_other_sizes_need_no_other_rules_and_several_files_are_one(
    hub: Hub, tmp_path: pathlib.Path, family: str
) -> None:
    name = {"bert": "BertModel", "gpt2": "GPT2LMHeadModel", "vit": "ViTModel"}[family]
    theirs = torch_model(hub, name, num_hidden_layers=3, num_attention_heads=8)
    ours, inputs = backbone(hub, family, layers=3, heads=8), inputs_of(family)
    path = saved(theirs, tmp_path, max_shard_size="20KB")
    assert path.endswith("index.json") and len(list(tmp_path.glob("model-*.safetensors"))) > 2
    assert_all_mapped(restored(tf.train.Checkpoint(model=ours), path, family))
    assert_equal_outputs(torch_outputs(hub, theirs, inputs), keras_outputs(ours, inputs), inputs)


@one_worker
@pytest.mark.parametrize(("family", "strategy"), [*((f, "mirrored2") for f in FAMILIES), ("bert", "tpu")])
def test_every_replica_has_the_weights(hub: Hub, tmp_path: pathlib.Path, family: str, strategy: str) -> None:
    name = {"bert": "BertModel", "gpt2": "GPT2Model", "vit": "ViTModel"}[family]
    theirs, inputs = torch_model(hub, name), inputs_of(family)
    path = saved(theirs, tmp_path)
    plain = backbone(hub, family)
    restored(plain, path, family)
    with make_strategy(strategy).scope():
        ours = backbone(hub, family)
    assert_all_mapped(restored(ours, path, family))
    for variable, right in zip(ours.weights, plain.weights, strict=True):
        held = replicas(variable)
        assert len(held) == 2
        for array in held:
            np.testing.assert_array_equal(array, right.numpy())
    assert_equal_outputs(torch_outputs(hub, theirs, inputs), keras_outputs(plain, inputs), inputs)


@one_worker
def test_a_file_without_pooler_leaves_the_pooler_to_the_user(hub: Hub, tmp_path: pathlib.Path) -> None:
    theirs, ours, inputs = torch_model(hub, "BertForMaskedLM"), backbone(hub, "bert"), inputs_of("bert")
    path, before = saved(theirs, tmp_path), ours.get_weights()
    with pytest.raises(dr.UnmatchedError, match="pooled_dense/kernel"):
        restored(ours, path, "bert")
    assert all(np.array_equal(a, b) for a, b in zip(before, ours.get_weights(), strict=True))
    report = restored(ours, path, "bert", unmatched="keep")
    kept = {e.target for e in report.plan.entries if not e.filled and "seed_generator" not in e.target}
    assert kept == {"pooled_dense/bias", "pooled_dense/kernel"}
    assert_equal_outputs(torch_outputs(hub, theirs, inputs), keras_outputs(ours, inputs), inputs)


@one_worker
@pytest.mark.parametrize("family", FAMILIES)
def test_another_number_of_layers_is_refused(hub: Hub, tmp_path: pathlib.Path, family: str) -> None:
    name = {"bert": "BertModel", "gpt2": "GPT2Model", "vit": "ViTModel"}[family]
    path = saved(torch_model(hub, name), tmp_path)
    with pytest.raises(dr.UnmatchedError, match=r"layers/2/"):
        restored(backbone(hub, family, layers=3), path, family)


@one_worker
def test_norms_by_their_old_names_and_stored_masks_are_known(hub: Hub, tmp_path: pathlib.Path) -> None:
    """`bert-base-uncased` has LayerNorm.gamma and beta, `gpt2` its causal masks."""
    save_file, change = _safetensors(), {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    old = {"bert": {"bert.embeddings.position_ids": np.arange(POSITIONS)[None]}, "gpt2": {}}
    old["gpt2"] = {f"h.{i}.attn.bias": np.ones((1, 1, 4, 4), np.float32) for i in range(LAYERS)}
    for family, name in (("bert", "BertForPreTraining"), ("gpt2", "GPT2Model")):
        theirs, ours, inputs = torch_model(hub, name), backbone(hub, family), inputs_of(family)
        state = dict(old[family])
        for key, value in theirs.state_dict().items():  # type: ignore[attr-defined]
            for new, before in change.items():
                key = key.replace(new, before) if family == "bert" else key
            state[key] = value.numpy()
        save_file(state, os.fspath(tmp_path / f"{family}.safetensors"))
        assert_all_mapped(restored(ours, os.fspath(tmp_path / f"{family}.safetensors"), family))
        assert_equal_outputs(torch_outputs(hub, theirs, inputs), keras_outputs(ours, inputs), inputs)


RESIZED = (ROOT / "configs" / "examples" / "vit_resolution.toml").read_text()


@one_worker
@pytest.mark.parametrize(("method", "mode"), [("cubic_torch", "bicubic"), ("linear", "bilinear")])
@pytest.mark.parametrize("strategy", ["default", "mirrored2"])
def test_a_vit_sees_larger_images_as_in_torch(
    hub: Hub, tmp_path: pathlib.Path, method: str, mode: str, strategy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """4 x 4 patches to 6 x 6; the model of transformers interpolates by itself, here also with another mode."""
    interpolate, modes = hub.torch.nn.functional.interpolate, []

    def other(*args: object, **options: object) -> object:
        modes.append(options["mode"])
        return interpolate(*args, **{**options, "mode": mode})

    monkeypatch.setattr(hub.torch.nn.functional, "interpolate", other)
    theirs, inputs = torch_model(hub, "ViTForImageClassification"), inputs_of("vit", image=24)
    right = torch_outputs(hub, theirs, inputs)
    assert modes == ["bicubic"]
    with make_strategy(strategy).scope():
        ours = backbone(hub, "vit", image=24)
    text = RESIZED.replace("grid = [14, 14]", "grid = [4, 4]").replace('"cubic_torch", axes', f'"{method}", axes')
    (tmp_path / "rules.toml").write_text(text)
    path = saved(theirs, tmp_path / "vit")
    with pytest.raises(dr.ShapeMismatchError, match="position_embedding"):
        restored(ours, path, "vit")
    report = dr.DistributedRestorer(ours, rules=tmp_path / "rules.toml").restore(path)
    assert_all_mapped(report)
    (entry,) = [e for e in report.plan.entries if "position_embedding" in e.target]
    assert describe(entry.ops).endswith(f"resize {method} 4x4->6x6 prefix=1")
    embeddings = theirs.vit.embeddings  # type: ignore[attr-defined]
    table = embeddings.interpolate_pos_encoding(hub.torch.zeros(1, 37, WIDTH), 24, 24)[0].detach().numpy()
    for held in replicas(ours.get_layer("vit_patching_and_embedding").position_embedding.embeddings):
        np.testing.assert_array_equal(held[0], table[0])
        np.testing.assert_allclose(held, table, rtol=0, atol=1e-5)
    if strategy == "default":
        assert_equal_outputs(right, keras_outputs(ours, inputs), inputs)


@one_worker
@pytest.mark.parametrize(
    ("size", "new"), [((14, 14), (24, 24)), ((24, 24), (14, 14)), ((3, 5), (7, 2)), ((1, 2), (4, 4))]
)
@pytest.mark.parametrize(("method", "mode"), [(Method.CUBIC_TORCH, "bicubic"), (Method.LINEAR, "bilinear")])
def test_resize_is_pytorchs_interpolate(
    hub: Hub, size: tuple[int, int], new: tuple[int, int], method: Method, mode: str
) -> None:
    x = np.random.default_rng(1).normal(size=(*size, 3)).astype(np.float32)
    image = hub.torch.tensor(x.transpose(2, 0, 1)[None].copy())
    right = hub.torch.nn.functional.interpolate(image, size=new, mode=mode, align_corners=False)[0].numpy()
    op = Resize(method, (0, 1), sizes=new)
    np.testing.assert_allclose(apply((op,), [x]), right.transpose(1, 2, 0), rtol=0, atol=1e-5)


@one_worker
def test_a_pickle_of_torch_is_refused_with_what_to_do(hub: Hub, tmp_path: pathlib.Path) -> None:
    theirs, ours = torch_model(hub, "BertModel"), backbone(hub, "bert")
    for name in ("pytorch_model.bin", "model.pt", "model.ckpt"):
        hub.torch.save(theirs.state_dict(), tmp_path / name)  # type: ignore[attr-defined]
        with pytest.raises(dr.UnsupportedFormatError, match="export it to safetensors"):
            restored(ours, os.fspath(tmp_path / name), "bert")


def _safetensors() -> Callable[[Arrays, str], None]:
    from safetensors.numpy import save_file

    return save_file
