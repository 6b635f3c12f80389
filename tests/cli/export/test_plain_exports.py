"""Exports of one-pass language models that need no toast: plain folders of transformers, and adapters of PEFT."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.cli.conftest import TINY_DEMO, toast
from tests.language import instructions, make_model, write_json
from toast_cli.data.text.chat_templates import encode_prompt
from toast_cli.data.text.turns import Turn
from toast_cli.model.generation import choose_template
from toast_cli.storage.load_model import load_model

QUESTION = "Say yes, 3."
SHORT = ["training.epochs=4", "training.batch_size=4", "training.lr=0.03"]
ALL_LINEAR = "method.targets=[q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj]"

OPEN_PLAIN = """
import json, sys
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

folder, base, out = sys.argv[1:]
if base:
    from peft import PeftModel

    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype="auto"), folder)
else:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
tokenizer = AutoTokenizer.from_pretrained(folder)
settings = GenerationConfig.from_pretrained(folder)
turns = [{"role": "user", "content": "Say yes, 3."}]
inputs = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True, return_tensors="pt")
written = model.generate(
    **inputs, generation_config=settings, tokenizer=tokenizer, max_new_tokens=8, do_sample=False
)
with torch.no_grad():
    logits = model(input_ids=torch.arange(6, 60)[None]).logits.float()
save_file({"logits": logits}, out + ".safetensors")
start = inputs["input_ids"].shape[1]
answer = tokenizer.decode(written[0, start:], skip_special_tokens=True)
print(json.dumps({
    "prompt": inputs["input_ids"][0].tolist(),
    "answer": answer,
    "ended": written[0, -1].item() == tokenizer.eos_token_id,
    "stops": settings.eos_token_id,
    "temperature": settings.temperature,
    "toast": "toast_cli" in sys.modules,
}))
"""
"""A program that knows nothing of toast: it opens a folder, answers a question, and writes logits."""


def open_plain(folder: Path, out: Path, base: Path | None = None) -> tuple[dict[str, Any], torch.Tensor]:
    """Run `OPEN_PLAIN` in a new process. Return what it printed, and its logits."""
    command = [sys.executable, "-c", OPEN_PLAIN, str(folder), str(base or ""), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), load_file(f"{out}.safetensors")["logits"]


def tune(here: Path, method: str, *options: str, chat: bool = False, tied: bool = True, dtype: str = "float32") -> Path:
    """Tune a tiny model in a folder `model`, and return the run."""
    make_model(here / "model", chat=chat, tied=tied)
    (here / "model" / "tokenizer.model").write_bytes(b"sentencepiece")
    settings = here / "model" / "generation_config.json"  # no sampling and a temperature: some published models have it
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "temperature": 0.9}))
    if dtype != "float32":
        stored = AutoModelForCausalLM.from_pretrained(here / "model", dtype=dtype)
        stored.save_pretrained(here / "model")
    data = write_json(here / "data.json", instructions(40))
    words = ["--backbone", f"llama:{here / 'model'}", "--dataset", f"alpaca:{data}", "--method", method]
    said = toast("tune", *words, "--output-dir", here / "run", *SHORT, *options)
    assert said.code == 0, said.err
    return here / "run"


def list_names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def read_texts(folder: Path) -> str:
    return "".join(path.read_text() for path in folder.iterdir() if path.suffix in (".json", ".md", ".jinja"))


@pytest.mark.usefixtures("quickly")
@pytest.mark.parametrize(
    ("method", "chat", "tied", "dtype"),
    [
        ("lora", True, True, "float32"),
        ("full", False, True, "float32"),
        pytest.param("lora", False, False, "bfloat16", marks=pytest.mark.nightly),
    ],
)
def test_programs_without_toast_open_both_formats(here: Path, method: str, chat: bool, tied: bool, dtype: str) -> None:
    run = tune(here, method, *([ALL_LINEAR] if method == "lora" else []), chat=chat, tied=tied, dtype=dtype)
    loaded = load_model(run)
    template = choose_template(loaded.recipe, loaded.model.backbone.tokenizer)
    prompt = encode_prompt([Turn("user", QUESTION)], loaded.model.backbone.tokenizer, template)
    said = toast("generate", "--run", run, QUESTION, "--max-new-tokens", "8", "--json")
    answer = json.loads(said.out)["answer"]
    assert toast("generate", "--backbone", f"llama:{here / 'model'}", QUESTION, "--max-new-tokens", "8").out != answer
    ids = torch.arange(6, 60)[None]
    with torch.no_grad():
        stock = loaded.model({"input_ids": ids, "attention_mask": torch.ones_like(ids)}).float()

    assert (done := toast("export", "--run", run, "--format", "hf", "--out", here / "hf")).code == 0, done.err
    told, logits = open_plain(here / "hf", here / "hf-out")
    # In bfloat16, the run has not learned to end its answers.
    expected = {"prompt": prompt, "answer": answer, "stops": 2, "toast": False, "ended": dtype == "float32"}
    expected["temperature"] = 0.9
    assert told == expected
    with torch.no_grad():
        exact = loaded.model.float()({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    assert (logits - exact).abs().max() < 1e-5 * max(1, exact.std())

    with (
        safe_open(here / "hf" / "model.safetensors", "pt") as ours,
        safe_open(here / "model" / "model.safetensors", "pt") as theirs,
    ):
        assert set(ours.keys()) == set(theirs.keys())
        assert ours.metadata() == {"format": "pt"}
    own = {"README.md", "chat_template.jinja", "export_report.json", "toast_config.json"}
    assert list_names(here / "hf") - own == list_names(here / "model") - own
    config, before = (json.loads((here / name / "config.json").read_text()) for name in ("hf", "model"))
    assert config == before | {"dtype": "float32"}
    assert str(here) not in read_texts(here / "hf")
    measured = json.loads((run / "results.json").read_text())["test"]["loss"]
    data = ["--dataset", f"alpaca:{here / 'data.json'}", "--split", "test"]
    whole = toast("eval", "--run", here / "hf", *data, "--json")
    assert whole.code == 0, whole.err
    loss = json.loads(whole.out)["test"]["loss"]
    assert loss == pytest.approx(measured, rel=1e-5 if dtype == "float32" else 1e-2)
    said = toast("generate", "--run", here / "hf", QUESTION, "--max-new-tokens", "8", "--json")
    assert json.loads(said.out)["answer"] == answer

    done = toast("export", "--run", run, "--format", "peft", "--out", here / "peft")
    if method == "full":
        done.fails(2, "there is no adapter", error="export.not-a-peft-adapter")
        return
    assert done.code == 0, done.err
    told, logits = open_plain(here / "peft", here / "peft-out", base=here / "model")
    assert told == expected
    assert (logits - stock).abs().max() < 1e-5 * max(1, stock.std())
    adapter = json.loads((here / "peft" / "adapter_config.json").read_text())
    assert (adapter["peft_type"], adapter["task_type"], adapter["inference_mode"]) == ("LORA", "CAUSAL_LM", True)
    assert adapter["base_model_name_or_path"] == "./model" and adapter["target_modules"] == sorted(
        adapter["target_modules"]
    )
    assert str(here) not in read_texts(here / "peft")


@pytest.mark.usefixtures("quickly")
def test_half_precision_is_stored_measured_and_opened(here: Path) -> None:
    run = tune(here, "lora", dtype="bfloat16")
    for form in ("hf", "peft"):
        done = toast("export", "--run", run, "--format", form, "--dtype", "bfloat16", "--out", here / form, "--json")
        assert done.code == 0, done.err
        report = json.loads((here / form / "export_report.json").read_text())[form]
        assert report["rounding"] and report["dtype"] == "bfloat16"
        for file in (here / form).glob("*.safetensors"):
            assert {tensor.dtype for tensor in load_file(file).values()} == {torch.bfloat16}
    assert json.loads((here / "hf" / "config.json").read_text())["dtype"] == "bfloat16"
    assert "before rounding" in "".join(json.loads((here / "hf" / "export_report.json").read_text())["hf"]["allowed"])


@pytest.mark.usefixtures("quickly")
def test_an_adapted_output_layer_leaves_the_tied_embedding_as_it_is(here: Path) -> None:
    run = tune(here, "lora", "method.targets=[q_proj, lm_head]", tied=True)
    assert (done := toast("export", "--run", run, "--format", "hf", "--out", here / "hf")).code == 0, done.err
    stored, before = (load_file(here / name / "model.safetensors") for name in ("hf", "model"))
    assert torch.equal(stored["model.embed_tokens.weight"], before["model.embed_tokens.weight"])
    assert not torch.equal(stored["lm_head.weight"], stored["model.embed_tokens.weight"])
    assert json.loads((here / "hf" / "config.json").read_text())["tie_word_embeddings"] is False


@pytest.mark.usefixtures("quickly")
@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("peft:dora", ["method.options={r: 4}"]),
        ("peft:lora", ["method.options={r: 4, use_rslora: true}"]),
        *(
            pytest.param(f"peft:{kind}", [f"method.options={options}"], marks=pytest.mark.nightly)
            for kind, options in {
                **dict.fromkeys(("ia3", "loha", "lokr", "hra", "oft", "boft", "delora", "hira"), "{}"),
                **dict.fromkeys(("shira", "miss"), "{r: 4}"),
                "ln_tuning": "{target_modules: [input_layernorm, norm]}",
                "fourierft": "{n_frequency: 16}",
                "road": "{group_size: 8}",
            }.items()
        ),
    ],
)
def test_relatives_of_lora_are_exported_in_both_formats(here: Path, method: str, options: list[str]) -> None:
    run = tune(here, method, *options)
    for form in ("peft", "hf"):
        done = toast("export", "--run", run, "--format", form, "--out", here / form)
        assert done.code == 0, done.err


@pytest.mark.usefixtures("quickly")
def test_what_is_no_adapter_of_peft_is_refused_with_the_reason(here: Path, text_run: Path, linear_run: Path) -> None:
    for run, words in ((text_run, "second pass"), (linear_run, "trains a head alone")):
        said = toast("export", "--run", run, "--format", "peft", "--out", here / "peft")
        said.fails(2, words, "--format hf", error="export.not-a-peft-adapter")
    assert not (here / "peft").exists()


@pytest.mark.usefixtures("quickly")
def test_other_commands_name_folders_that_they_do_not_read(here: Path) -> None:
    run = tune(here, "lora")
    for form in ("hf", "peft"):
        assert toast("export", "--run", run, "--format", form, "--out", here / form).code == 0
    toast("eval", "--run", here / "peft").fails(2, "PeftModel.from_pretrained", error="adapter.peft-format")
    data = ["--dataset", f"alpaca:{here / 'data.json'}"]
    further = toast("tune", "--init-from", here / "hf", *data, *SHORT, "--output-dir", here / "further")
    assert further.code == 0 and "lora starts fresh" in further.err + further.out, further.err
    before, after = (json.loads((here / name / "results.json").read_text()) for name in ("run", "further"))
    assert after["validation_before"]["loss"] == pytest.approx(before["validation"]["loss"], rel=1e-4)
    other = ["--backbone", f"llama:{here / 'model'}"]
    toast("tune", "--init-from", here / "hf", *data, *other).fails(2, error="adapter.wrong-backbone")
    toast("export", "--run", here / "hf", "--weights", here / "model").fails(2, error="weights.not-needed")
    again = toast("export", "--run", here / "hf", "--format", "hf", "--out", here / "again")
    assert again.code == 0, again.err
    first, second = (load_file(here / name / "model.safetensors") for name in ("hf", "again"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    first["model.norm.weight"] = first["model.norm.weight"] * 1.001
    save_file(first, here / "hf" / "model.safetensors", {"format": "pt"})
    toast("eval", "--run", here / "hf").fails(1, "weights were changed", error="adapter.damaged")


@pytest.mark.usefixtures("quickly")
def test_cards_tell_how_to_prompt_and_serve(here: Path, text_run: Path) -> None:
    assert toast("export", "--run", text_run, "--format", "hf", "--out", here / "two").code == 0
    card = (here / "two" / "README.md").read_text()
    assert "toast serve --run THIS_FOLDER" in card and "### Instruction:\nName three birds.\n\n### Response:\n" in card
    assert "base_model" not in card  # the backbone is a folder of this machine
    run = tune(here, "lora", chat=True)
    for form, words in (("hf", "vllm serve"), ("peft", 'PeftModel.from_pretrained(model, "THIS_FOLDER")')):
        assert toast("export", "--run", run, "--format", form, "--out", here / form).code == 0
        card = (here / form / "README.md").read_text()
        assert words in card and "<|user|>Name three birds.</s><|assistant|>" in card and "toast serve" not in card
        exec(compile(card.split("```python\n")[1].split("```")[0].replace("THIS_FOLDER", str(here / form))
                     .replace("./model", str(here / "model")), form, "exec"), {})  # fmt: skip


@pytest.mark.usefixtures("quickly")
def test_an_adapter_of_an_image_classifier_has_its_head_as_the_classifier_of_timm(here: Path) -> None:
    torch.manual_seed(0)
    save_file(timm.create_model("test_vit", num_classes=0).state_dict(), here / "own.safetensors")
    words = ["--backbone", "vit:test_vit", "--weights", "own.safetensors", "--method", "lora", "backbone.image_size=64"]
    assert toast("tune", *TINY_DEMO, *words, "training.lr=0.01", "--output-dir", "run").code == 0
    done = toast("export", "--run", "run", "--format", "peft", "--out", "peft")
    assert done.code == 0, done.err
    images = torch.randn(3, 3, 64, 64)
    card = (here / "peft" / "README.md").read_text()
    names: dict[str, Any] = {"images": images}
    exec(card.split("```python\n")[1].split("```")[0].replace("THIS_FOLDER", str(here / "peft")), names)
    with torch.no_grad():
        assert (names["logits"] - load_model(here / "run").model(images)).abs().max() < 1e-5
    assert json.loads((here / "peft" / "adapter_config.json").read_text())["modules_to_save"] == ["head"]
    assert "64 × 64 pixels" in card and f"{len(names['logits'][0]) - 1}. " in card
    toast(
        "tune", *TINY_DEMO, "--backbone", "vit:test_vit", "--weights", "none", "--method", "lora", "--output-dir", "r"
    )
    said = toast("export", "--run", "r", "--format", "peft")
    said.fails(2, "random weights", error="export.backbone-without-source")


def test_the_base_model_is_the_one_of_the_hub(monkeypatch: pytest.MonkeyPatch, here: Path) -> None:
    from types import SimpleNamespace

    from toast_cli.export.redact_paths import find_base_model

    def find(name: str, weights: str | None = None, **of_module: Any) -> str | None:
        backbone = SimpleNamespace(name=name, weights=weights)
        module = SimpleNamespace(**of_module)
        loaded: Any = SimpleNamespace(
            recipe=SimpleNamespace(backbone=backbone), model=SimpleNamespace(backbone=SimpleNamespace(module=module))
        )
        return find_base_model(loaded)

    make_model(here / "own" / "model")
    assert find("llama:Qwen/Qwen3-0.6B") == "Qwen/Qwen3-0.6B"
    assert find("llama_7b", config=SimpleNamespace(name_or_path="huggyllama/llama-7b")) == "huggyllama/llama-7b"
    assert find("vit:vit_b", pretrained_cfg={"hf_hub_id": "timm/vit_b.x"}) == "timm/vit_b.x"
    assert find("llama:Qwen/Qwen3-0.6B", weights="mine.safetensors") is None
    assert find("llama:own/model") is None and find(f"llama:{here}/own/model") is None and find("llama:./x") is None
