"""`toast import`: a dump in the layout of the authors' code gives the logits that their code gave."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models import register_model
from timm.models.convnext import ConvNeXt
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from transformers import LlamaConfig

from tests.parity.agreement import read, under
from toast_cli.export.import_authors import import_checkpoint
from toast_cli.storage.checksums import read_checksummed_json
from toast_cli.storage.load_model import load_model
from toast_cli.storage.pretuned import initialize_from_artifact
from toast_cli.utils.errors import ToastError
from toast_cli.utils.hashing import hash_file

VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3}
CONVNEXT = {"depths": (1, 1, 2, 1), "dims": (16, 32, 64, 128)}


def _golden(kind: Any, shape: dict[str, Any], pretrained: bool = False, **settings: Any) -> Any:
    from timm.models import build_model_with_cfg

    return build_model_with_cfg(kind, "golden", pretrained, **{**shape, **settings})


@pytest.fixture(autouse=True, scope="module")
def in_timm() -> None:
    """timm knows the golden models' shapes, under names that a user could give to --backbone."""
    for name, kind, shape in (("vit_golden", VisionTransformer, VIT), ("convnext_golden", ConvNeXt, CONVNEXT)):
        if not timm.is_model(name):
            entry = partial(_golden, kind, shape)
            entry.__name__, entry.__module__ = name, __name__  # type: ignore[attr-defined]
            register_model(entry)


def weights_of(file: str, prefix: str = "weights.") -> dict[str, Tensor]:
    return {name: tensor.float() for name, tensor in under(read(file)[0], prefix).items()}


def as_full_model(weights: dict[str, Tensor]) -> Any:
    return {"model": weights, "epoch": 7, "args": argparse.Namespace(lr=0.1), "optimizer": {"state": {}}}


def as_state_dict(weights: dict[str, Tensor]) -> Any:
    return {"model_state_dict": weights}


def from_several_processes(weights: dict[str, Tensor]) -> Any:
    return {f"module.{name}": tensor for name, tensor in weights.items()}


def dump(folder: Path, content: Any, name: str = "theirs.pth") -> Path:
    torch.save(content, folder / name)
    return folder / name


def logits(run: Path, inputs: Any) -> Tensor:
    with torch.no_grad():
        return load_model(run).model(inputs)


def assert_same(ours: Tensor, theirs: Tensor) -> None:
    assert (ours.double() - theirs.double()).abs().max() < 1e-5


@pytest.mark.parametrize("wrapped", [as_full_model, as_state_dict, from_several_processes, dict])
def test_a_full_vit_is_read_whatever_it_is_wrapped_in(tmp_path: Path, wrapped: Callable[..., Any]) -> None:
    file = dump(tmp_path, wrapped(weights_of("vit_value_bias_twice.safetensors")))
    folder, account = import_checkpoint(file, "vit:vit_golden", output_dir=tmp_path / "run")
    numbers, _ = read("vit_value_bias_twice.safetensors")
    assert_same(logits(folder.path, numbers["input"].float()), numbers["logits"])
    assert account["departures"] == {"value_bias": "twice"}
    assert account["network"] + account["feedback"] + account["head"] == account["tensors"]
    assert read_checksummed_json(folder.path / "results.json") == account and account["file_sha256"] == hash_file(file)


def test_the_departure_can_be_switched_off_by_its_name(tmp_path: Path) -> None:
    file = dump(tmp_path, weights_of("vit_value_bias_once.safetensors"))
    how = {"overrides": ["backbone.value_bias=once"], "output_dir": tmp_path / "run"}
    folder, _ = import_checkpoint(file, "vit:vit_golden", **how)
    numbers, _ = read("vit_value_bias_once.safetensors")
    assert_same(logits(folder.path, numbers["input"].float()), numbers["logits"])


def test_lite_with_its_factors_is_read(tmp_path: Path) -> None:
    weights = weights_of("vit_seed0.safetensors") | weights_of("vit_seed0.safetensors", "lite_weights.")
    folder, _ = import_checkpoint(dump(tmp_path, weights), "vit:vit_golden", output_dir=tmp_path / "run")
    numbers, _ = read("vit_seed0.safetensors")
    assert_same(logits(folder.path, numbers["input.image"].float()), numbers["lite_ref.f32.second.logits"])
    assert load_model(folder.path).recipe.method.name == "toast-lite"


def test_a_convnext_is_read(tmp_path: Path) -> None:
    file = dump(tmp_path, {"model": weights_of("convnext.safetensors")})
    folder, _ = import_checkpoint(file, "convnext:convnext_golden", output_dir=tmp_path / "run")
    numbers, _ = read("convnext.safetensors")
    assert_same(logits(folder.path, numbers["input"].float()), numbers["logits"])


def llama(folder: Path, **how: Any) -> str:
    """The golden LLaMA's configuration, as a user names it."""
    shape = {"vocab_size": 97, "hidden_size": 64, "intermediate_size": 172, "num_hidden_layers": 3}
    LlamaConfig(**shape, num_attention_heads=4, **how).save_pretrained(folder)
    return f"llama:{folder}"


def test_a_llama_is_read_from_a_bin(tmp_path: Path) -> None:
    name = llama(tmp_path / "llama")
    weights = weights_of("llama.safetensors") | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}
    file = dump(tmp_path, weights, "pytorch_model.bin")
    folder, account = import_checkpoint(file, name, output_dir=tmp_path / "run")
    numbers, _ = read("llama.safetensors")
    inputs = {name: numbers[name] for name in ("input_ids", "attention_mask")}
    real = numbers["attention_mask"].bool()
    assert_same(logits(folder.path, inputs)[real], numbers["logits"][real])
    assert list(account["left_out"]) == ["model.layers.0.self_attn.rotary_emb.inv_freq"]


def test_a_checkpoint_in_parts_is_one(tmp_path: Path) -> None:
    """As transformers saves large models: some tensors to a file, an index beside them."""
    name, weights = llama(tmp_path / "llama"), weights_of("llama.safetensors")
    names, parts = sorted(weights), tmp_path / "parts"
    parts.mkdir()
    for number, some in enumerate((names[:20], names[20:])):
        dump(parts, {name: weights[name] for name in some}, f"pytorch_model-0000{number + 1}-of-00002.bin")
    (parts / "pytorch_model.bin.index.json").write_text("{}")
    folder, account = import_checkpoint(parts, name, output_dir=tmp_path / "run")
    numbers, _ = read("llama.safetensors")
    inputs = {name: numbers[name] for name in ("input_ids", "attention_mask")}
    real = numbers["attention_mask"].bool()
    assert_same(logits(folder.path, inputs)[real], numbers["logits"][real])
    assert account["tensors"] == len(weights) and account["imported_from"] == "parts"
    dump(parts, {names[0]: weights[names[0]]}, "pytorch_model-00003-of-00002.bin")
    with pytest.raises(ToastError) as refused:
        import_checkpoint(parts, name, output_dir=tmp_path / "again")
    assert refused.value.code == "checkpoint.not-one-checkpoint"
    with pytest.raises(ToastError) as refused:
        import_checkpoint(tmp_path / "llama", name, output_dir=tmp_path / "again")
    assert refused.value.code == "checkpoint.missing"


def test_a_llama_of_lite_with_its_factors_is_read(tmp_path: Path) -> None:
    """The golden numbers are of plain TOAST: what the factors add is taken off the weights under them."""
    rank, weights = 4, weights_of("llama.safetensors")
    torch.manual_seed(0)
    for layer in [name for name in weights if ".decoders." in name]:
        out, into = weights[layer].shape
        A, B = torch.randn(rank, into) / 8, torch.randn(out, rank) / 8
        weights |= {layer.replace("weight", "lora_A"): A, layer.replace("weight", "lora_B"): B}
        weights[layer] = weights[layer] - B @ A / rank  # loralib's scaling, with its alpha of 1
    file = dump(tmp_path, weights, "pytorch_model.bin")
    folder, _ = import_checkpoint(file, llama(tmp_path / "llama"), output_dir=tmp_path / "run")
    assert load_model(folder.path).recipe.method.name == "toast-lite"
    numbers, _ = read("llama.safetensors")
    inputs = {name: numbers[name] for name in ("input_ids", "attention_mask")}
    real = numbers["attention_mask"].bool()
    assert_same(logits(folder.path, inputs)[real], numbers["logits"][real])


def test_a_tied_llama_is_read_whether_its_one_matrix_is_saved_once_or_twice(tmp_path: Path) -> None:
    weights = weights_of("llama.safetensors")
    embedded, ids = weights["model.embed_tokens.weight"], {"input_ids": torch.randint(0, 97, (2, 7))}
    twice = weights | {"lm_head.weight": embedded.clone()}
    once = {name: tensor for name, tensor in weights.items() if name != "lm_head.weight"}
    untied, tied = llama(tmp_path / "untied"), llama(tmp_path / "tied", tie_word_embeddings=True)
    expected = logits(import_checkpoint(dump(tmp_path, twice), untied, output_dir=tmp_path / "a")[0].path, ids)
    for name, saved in (("b", twice), ("c", once)):
        folder, _ = import_checkpoint(dump(tmp_path, saved), tied, output_dir=tmp_path / name)
        assert_same(logits(folder.path, ids), expected)
    with pytest.raises(ToastError) as refused:
        import_checkpoint(dump(tmp_path, weights), tied, output_dir=tmp_path / "d")
    assert refused.value.code == "checkpoint.tied-weights-differ"


def test_top_down_parts_alone_become_a_start_for_the_backbone_that_is_named(tmp_path: Path) -> None:
    weights = weights_of("vit_seed0.safetensors")
    added = ("prompt", "top_down", "decoders")
    parts = {name: tensor for name, tensor in weights.items() if name.startswith(added)}
    own = {name: tensor for name, tensor in weights.items() if not name.startswith((*added, "head"))}
    file, plain = dump(tmp_path, parts), dump(tmp_path, own, "plain.pth")
    folder, account = import_checkpoint(file, "vit:vit_golden", weights=str(plain), output_dir=tmp_path / "run")
    assert account["kind"] == "artifact"
    whole, _ = import_checkpoint(dump(tmp_path, weights), "vit:vit_golden", output_dir=tmp_path / "whole")
    loaded = load_model(whole.path)
    model, recipe = loaded.model, loaded.recipe
    before = model.state_dict()["adapted.steering.feedback.A.1.weight"].clone()
    model.adapted.steering.feedback.A[1].weight.data.zero_()
    initialize_from_artifact(
        folder.path, model, recipe
    )  # refuses another backbone by its fingerprint, so both found the same weights
    assert torch.equal(model.state_dict()["adapted.steering.feedback.A.1.weight"], before)


class Touches:
    """Runs code when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def spoiled(weights: dict[str, Tensor], how: str) -> dict[str, Tensor]:
    if how == "unknown":
        return weights | {"surprise": torch.ones(2)}
    if how == "missing":
        return {name: tensor for name, tensor in weights.items() if name != "decoders.1.linear2.weight"}
    if how == "missing in the backbone":
        return {name: tensor for name, tensor in weights.items() if name != "blocks.1.norm1.bias"}
    if how == "too many levels":
        return weights | {"decoders.3.linear.weight": weights["decoders.0.linear.weight"]}
    if how == "of another shape":
        return weights | {"prompt": torch.ones(47)}
    odd: dict[str, Tensor] = {
        "nan": torch.full((48,), float("nan")),
        "sparse": torch.eye(48).to_sparse(),
        "complex": torch.ones(48, dtype=torch.complex64),
        "without content": torch.empty(48, device="meta"),
        "no fractions": torch.ones(48, dtype=torch.int32),
    }
    return weights | {"prompt": odd[how]}


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("unknown", "surprise"),
        ("missing", "B.1"),
        ("missing in the backbone", "blocks.1.norm1.bias"),
        ("too many levels", "A.3"),
        ("of another shape", "xi"),
        ("nan", "NaN"),
        ("sparse", "unsupported tensors"),
        ("complex", "unsupported tensors"),
        ("without content", "unsupported tensors"),
        ("no fractions", "wrong type"),
    ],
)
def test_a_tensor_without_a_place_or_a_place_without_a_tensor_is_an_error(tmp_path: Path, how: str, words: str) -> None:
    file = dump(tmp_path, spoiled(weights_of("vit_seed0.safetensors"), how))
    with pytest.raises(ToastError, match=words):
        import_checkpoint(file, "vit:vit_golden", output_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    file = dump(tmp_path, {"model": weights_of("vit_seed0.safetensors"), "x": Touches(tmp_path / "ran")})
    with pytest.raises(ToastError, match=r"\S*getattr"):
        import_checkpoint(file, "vit:vit_golden", output_dir=tmp_path / "run")
    assert not (tmp_path / "ran").exists() and not (tmp_path / "run").exists()


@pytest.mark.parametrize("content", [b"", b"no checkpoint", None])
def test_a_damaged_file_is_called_damaged(tmp_path: Path, content: bytes | None) -> None:
    file = dump(tmp_path, weights_of("vit_seed0.safetensors"))
    file.write_bytes(file.read_bytes()[:20_000] if content is None else content)
    with pytest.raises(ToastError) as refused:
        import_checkpoint(file, "vit:vit_golden", output_dir=tmp_path / "run")
    assert refused.value.code == "checkpoint.damaged"


def test_a_changed_byte_in_a_file_is_noticed(tmp_path: Path) -> None:
    weights = weights_of("vit_seed0.safetensors")
    file = dump(tmp_path, weights)
    content = bytearray(file.read_bytes())
    place = content.index(weights["prompt"].numpy().tobytes())
    content[place + 1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ToastError, match="checksum"):
        import_checkpoint(file, "vit:vit_golden", output_dir=tmp_path / "run")


def test_an_import_that_has_moved_finds_the_backbone_that_it_brought(tmp_path: Path) -> None:
    file = dump(tmp_path, weights_of("vit_seed0.safetensors"))
    folder, _ = import_checkpoint(file, "vit:vit_golden", output_dir=tmp_path / "run")
    image = torch.randn(1, 3, 32, 32)
    before = logits(folder.path, image)
    folder.path.rename(tmp_path / "moved")
    assert torch.equal(logits(tmp_path / "moved", image), before)
    assert torch.equal(logits(tmp_path / "moved" / "adapter", image), before)


def test_the_method_of_a_checkpoint_is_not_for_choosing(tmp_path: Path) -> None:
    file = dump(tmp_path, weights_of("vit_seed0.safetensors"))
    with pytest.raises(ToastError) as refused:
        import_checkpoint(file, "vit:vit_golden", overrides=["method=linear"], output_dir=tmp_path / "run")
    assert refused.value.code == "recipe.wrong-method"


def test_classes_are_as_many_as_the_head_has_rows(tmp_path: Path) -> None:
    file = dump(tmp_path, weights_of("vit_seed0.safetensors"))
    with pytest.raises(ToastError, match="10 rows, but 3 class"):
        import_checkpoint(file, "vit:vit_golden", classes=["a", "b", "c"], output_dir=tmp_path / "run")
    names = [f"bird {index}" for index in range(10)]
    folder, _ = import_checkpoint(file, "vit:vit_golden", classes=names, output_dir=tmp_path / "named")
    assert load_model(folder.path).classes == tuple(names)
