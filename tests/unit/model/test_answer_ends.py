"""Tokens that end answers, on a base model that was never trained on them: found, reported, and trained."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.language import instructions, make_model, write_json
from toast_cli.cli.find_run import load_writer
from toast_cli.data.text.turns import Turn
from toast_cli.export.base import ExportRequest
from toast_cli.export.formats.hf import write_hf
from toast_cli.export.formats.peft import write_peft
from toast_cli.model.answer_ends import find_answer_ends
from toast_cli.model.model import build_model, get_merged_state_dict, merge_model
from toast_cli.recipe.lookup import resolve_recipe
from toast_cli.recipe.parse import load_recipe
from toast_cli.recipe.schema import Recipe
from toast_cli.storage.load_model import load_model
from toast_cli.tasks.language import AnswerMeter
from toast_cli.tasks.output_rows import add_output_rows, count_near_rows, find_output_layer, remove_output_rows
from toast_cli.training.reporter import Reporter
from toast_cli.training.tune import tune_model
from toast_cli.utils.constants import IGNORE_INDEX
from toast_cli.utils.errors import UsageError

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
UNUSED = range(150, 200)
"""Tokens that no text of these tests has."""


def forget_tokens(place: Path, tokens: list[int]) -> Path:
    """Give tokens the output row that tokens have that were never trained, and others a slightly larger one."""
    model = AutoModelForCausalLM.from_pretrained(place)
    with torch.no_grad():
        model.lm_head.weight *= 30  # a frozen layer of small random weights could learn nothing
        row = torch.linspace(-1, 1, 32)
        model.lm_head.weight[tokens] = row
        model.lm_head.weight[list(UNUSED)] = 1.05 * row
    model.save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return forget_tokens(make_model(tmp_path_factory.mktemp("base") / "model", tied=False), [2])


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_json(tmp_path_factory.mktemp("texts") / "yes.json", instructions(48))


class Listener(Reporter):
    """Keeps the messages, and stops the run after a step."""

    def __init__(self, stop: int | None = None) -> None:
        self.messages: list[str] = []
        self.stop = stop

    def report_message(self, text: str) -> None:
        self.messages.append(text)

    def report_step(self, step: int, total: int, metrics: dict[str, Any]) -> None:
        if step == self.stop:
            raise KeyboardInterrupt


def make_recipe(base: Path, texts: Path, *overrides: str, method: str = "lora") -> Recipe:
    held_out = ["dataset.val_fraction=0.2", "dataset.test_fraction=0.1", "test=false", "training.workers=0"]
    return resolve_recipe(
        backbone=f"llama:{base}",
        dataset=f"alpaca:{texts}",
        method=method,
        device="cpu",
        overrides=[*held_out, "training.checkpoint_gradients=false", "training.epochs=6", *overrides],
    ).recipe


@pytest.fixture(scope="module")
def run(base: Path, texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("runs") / "lora"
    said = Listener()
    folder, results = tune_model(make_recipe(base, texts), place, said)
    assert results["validation_before"]["end_accuracy"] == 0 and results["validation"]["end_accuracy"] == 1
    assert not any("will not stop" in text for text in results["warnings"])
    assert any("'</s>'" in text and "50 other tokens" in text for text in said.messages)
    assert any(text.startswith("Also trained") and "32 parameters" in text for text in said.messages)
    assert any("9 validation texts select" in text for text in said.messages)
    return folder.path


QUESTION = [Turn("user", "Say yes, 7.")]


def test_a_base_model_that_never_learned_its_end_token_stops_by_itself(run: Path) -> None:
    writer = load_writer(run, None, "cpu", False)
    assert writer.answer(QUESTION, max_new_tokens=30) == "yes" and writer.cut_answers == 0
    assert writer.answer_all([QUESTION] * 3, 2, max_new_tokens=2) == ["ye"] * 3 and writer.cut_answers == 3
    assert load_recipe(run / "recipe.yaml").task.end_tokens == (2,)  # type: ignore[attr-defined]


@pytest.mark.parametrize("method", ["lora", "toast"])
def test_frozen_rows_are_warned_of_before_and_after_training(
    base: Path, texts: Path, tmp_path: Path, method: str
) -> None:
    said = Listener()
    recipe = make_recipe(base, texts, "task.end_tokens=frozen", method=method)
    _, results = tune_model(recipe, tmp_path / "run", said)
    assert any(text.startswith("Warning: The model does not seem") for text in said.messages)
    assert results["validation"]["end_accuracy"] == 0 and results["validation"]["answers"] == 9
    assert any("will not stop by themselves" in text for text in results["warnings"])


def test_a_trained_end_token_stays_as_it_is(texts: Path, tmp_path: Path) -> None:
    place = make_model(tmp_path / "model", tied=False)
    folder, _ = tune_model(make_recipe(place, texts, "training.epochs=1"), tmp_path / "run", said := Listener())
    assert not any("end" in text and "trained on" in text for text in said.messages)
    assert load_recipe(folder.path / "recipe.yaml").task.end_tokens == ()  # type: ignore[attr-defined]
    full = make_recipe(place, texts, "task.end_tokens=trained", method="full")
    with pytest.raises(UsageError) as refused:
        tune_model(full, tmp_path / "full", Reporter())
    assert refused.value.code == "task.no-output-rows" and not (tmp_path / "full").exists()


def test_a_resumed_run_with_trained_rows_is_the_same_bit_for_bit(
    run: Path, base: Path, texts: Path, tmp_path: Path
) -> None:
    place = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        tune_model(make_recipe(base, texts, "training.save_every=1"), place, Listener(stop=4))
    tune_model(load_recipe(place / "recipe.yaml"), place, Reporter(), resume=True)
    own, other = (load_model(each).model.get_trained_parameters() for each in (place, run))
    assert own.keys() == other.keys() and any(name.endswith("output_rows.rows") for name in own)
    assert all(torch.equal(own[name], other[name]) for name in own)


def test_exports_have_the_trained_rows(run: Path, base: Path, tmp_path: Path) -> None:
    loaded = load_model(run)
    ids = torch.tensor([[1, 40, 41, 42]])
    expected = loaded.model.eval()({"input_ids": ids})
    write_hf(replace(loaded, model=merge_model(loaded.model)), ExportRequest("full", merge=True), tmp_path / "hf")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    torch.testing.assert_close(plain(ids).logits, expected, atol=1e-4, rtol=1e-4)
    write_peft(loaded, ExportRequest("adapter"), tmp_path / "peft")
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "peft").eval()
    torch.testing.assert_close(adapted(ids).logits, expected, atol=1e-5, rtol=1e-5)
    stock = AutoModelForCausalLM.from_pretrained(base).lm_head.weight
    changed = (plain.lm_head.weight != stock).any(1).nonzero().flatten()
    assert changed.tolist() == [2]


def test_rows_of_tied_weights_change_no_embedding_and_are_not_merged(tmp_path: Path) -> None:
    recipe = make_recipe(make_model(tmp_path / "tied"), Path("a.json"), "task.end_tokens=[2, 5]")
    model = build_model(recipe, ()).eval()
    network: Any = model.backbone.module
    ids = torch.tensor([[1, 2, 5, 42]])
    before = model({"input_ids": ids}).clone()
    assert torch.equal(model.forward_plain({"input_ids": ids}), before)
    network.lm_head.output_rows.rows.data += 1
    after = model({"input_ids": ids})
    changed = (after != before).flatten(0, 1).any(0).nonzero().flatten()
    assert changed.tolist() == [2, 5]
    with pytest.raises(UsageError) as refused:
        get_merged_state_dict(model)
    assert refused.value.code == "method.cannot-merge"
    untied = merge_model(model)
    torch.testing.assert_close(untied({"input_ids": ids}), after, atol=1e-5, rtol=1e-5)
    assert torch.equal(untied.backbone.module.get_input_embeddings().weight, network.get_input_embeddings().weight)
    remove_output_rows(network)
    assert torch.equal(model({"input_ids": ids}), before)


def test_near_rows_are_counted_and_missing_rows_refused(base: Path) -> None:
    network = AutoModelForCausalLM.from_pretrained(base)
    layer = find_output_layer(network)
    assert layer is not None
    assert count_near_rows(layer, [2, 3, UNUSED[0]]) == [len(UNUSED), 0, len(UNUSED)]
    with torch.no_grad():
        layer.weight[[2, 9, 10]] = 0
    assert count_near_rows(layer, [2]) == [2]
    with pytest.raises(UsageError) as refused:
        add_output_rows(network, [layer.out_features])
    assert refused.value.code == "task.no-output-rows"


def test_a_text_that_ends_answers_is_found_as_tokens(base: Path) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(base)
    assert find_answer_ends(tokenizer, "plain") == ((2,),) and find_answer_ends(tokenizer, None) == ()
    tokenizer.chat_template = CHATML
    expected = tuple(tokenizer("<|im_end|>", add_special_tokens=False).input_ids)
    assert find_answer_ends(tokenizer, "auto") == (expected,) and len(expected) == 10
    tokenizer.chat_template = "{{ raise_exception('no') }}"
    assert find_answer_ends(tokenizer, "chat") == ()


def test_the_end_of_an_answer_counts_if_all_of_its_tokens_are_predicted() -> None:
    meter = AnswerMeter([(7, 8)])
    labels = torch.tensor([[IGNORE_INDEX, 3, 7, 8, IGNORE_INDEX], [IGNORE_INDEX, 7, 8, 5, 5]])
    logits = torch.zeros(2, 5, 10)
    for row, place, token in [(0, 1, 7), (0, 2, 8), (1, 0, 7), (1, 1, 6)]:
        logits[row, place, token] = 5.0
    meter.add(logits, {"labels": labels})
    found = meter.result()
    assert found["answers"] == 2 and found["end_accuracy"] == 0.5 and found["tokens"] == 7
    assert found["loss_without_end"] == pytest.approx(torch.tensor(10.0).log().item(), abs=1e-6)
    assert "end_accuracy" not in AnswerMeter([(9,)]).result()


def test_the_recipe_of_a_run_lists_rows_as_numbers(run: Path) -> None:
    config = json.loads((run / "adapter" / "adapter_config.json").read_text())
    assert config["recipe"]["task"]["end_tokens"] == [2]
