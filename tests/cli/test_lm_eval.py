"""lm-evaluation-harness on runs: likelihoods and answers as of its own model of transformers, and its tasks.

'make test-lm-eval' installs the harness; elsewhere these tests are skipped.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

pytest.importorskip("lm_eval")

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from tests.cli.conftest import toast
from tests.cli.seeing.texts import tuned_on_texts
from tests.language import make_model
from toast_cli.evaluation.harness.language_model import HarnessModel
from toast_cli.evaluation.open_run import RunRequest, make_text_generator, open_run
from toast_cli.model.model import build_model, get_merged_state_dict
from toast_cli.recipe.parse import build_recipe
from toast_cli.storage.adapter import build_adapter_config, save_adapter_folder

PAIRS = [("Hello", " there"), ("Hello", " you"), ("A question?", " yes no"), ("", "alone"), ("a" * 300, "b" * 20)]
TEXTS = ["some text " * 60, "short"]
QUESTIONS = [("Hello", {"until": ["z"], "max_gen_toks": 12}), ("Bye now", {"until": ["\n\n"], "max_gen_toks": 12})]

TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""


def request(kind: str, *arguments: Any) -> list[Instance]:
    return [Instance(kind, {}, each, index) for index, each in enumerate(arguments)]


def ask(model: Any) -> tuple[list[float], list[float], list[str]]:
    """Return the likelihoods of continuations and of texts, and the answers of a model of the harness."""
    likelihoods = model.loglikelihood(request("loglikelihood", *PAIRS))
    rolling = model.loglikelihood_rolling(request("loglikelihood_rolling", *((text,) for text in TEXTS)))
    answers = model.generate_until(request("generate_until", *QUESTIONS))
    return [value for value, _ in likelihoods], rolling, answers


@pytest.fixture(autouse=True)
def sharp(here: Path) -> Path:
    """A model that prefers some tokens, at the place where runs of these tests expect theirs."""
    folder = make_model(here / "llama")
    model = LlamaForCausalLM.from_pretrained(folder)
    torch.manual_seed(1)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def merged(here: Path) -> tuple[Path, Path]:
    """A run of LoRA whose layers change the model, and the model with them merged, as a folder of transformers."""
    folder = here / "llama"
    raw = {"backbone": f"llama:{folder}", "dataset": "alpaca:none.json", "device": "cpu", "method": "lora"}
    recipe = build_recipe({**raw, "task": "language"}, {}, origin="a test")
    model = build_model(recipe, ())
    torch.manual_seed(0)
    for weight in model.get_trained_parameters().values():
        torch.nn.init.normal_(weight, std=0.5)
    config = build_adapter_config(model, recipe, ())
    save_adapter_folder(here / "lora", model.get_trained_parameters(), model.get_frozen_additions(), config, "")
    plain = LlamaForCausalLM.from_pretrained(folder)
    plain.load_state_dict(get_merged_state_dict(model), strict=False)
    plain.save_pretrained(here / "merged")
    AutoTokenizer.from_pretrained(folder).save_pretrained(here / "merged")
    return here / "lora", here / "merged"


def test_a_merged_model_measures_the_same_in_transformers(here: Path, merged: tuple[Path, Path]) -> None:
    run, folder = merged
    ours = ask(HarnessModel(run, device="cpu", batch_size=2))
    theirs = ask(HFLM(pretrained=str(folder), dtype="float32", device="cpu", batch_size=2))
    plain = ask(HFLM(pretrained=str(here / "llama"), dtype="float32", device="cpu", batch_size=2))
    assert ours[0] == pytest.approx(theirs[0], abs=1e-4) and ours[1] == pytest.approx(theirs[1], abs=1e-4)
    assert ours[2] == theirs[2]
    assert all(abs(own - other) > 1e-2 for own, other in zip(ours[0] + ours[1], plain[0] + plain[1], strict=True))


def test_two_passes_are_measured_as_toast_computes_them(here: Path) -> None:
    run = tuned_on_texts(here, "run")
    plain = ask(HFLM(pretrained=str(here / "llama"), dtype="float32", device="cpu", batch_size=2))
    off = ask(HarnessModel(run, device="cpu", alpha=0.0, batch_size=2))
    assert off[0] == pytest.approx(plain[0], abs=1e-4) and off[1] == pytest.approx(plain[1], abs=1e-4)
    assert off[2] == plain[2]
    likelihoods, rolling, answers = ask(HarnessModel(run, device="cpu", batch_size=2))
    opened = open_run(RunRequest(run, device="cpu"))
    tokenizer = opened.model.backbone.require_tokenizer()

    def compute(context: str, continuation: str) -> float:
        before = tokenizer.encode(context, add_special_tokens=False) or [tokenizer.bos_token_id]
        ids = torch.tensor([before + tokenizer.encode(continuation, add_special_tokens=False)])
        with torch.no_grad():
            scores = opened.model({"input_ids": ids}).double().log_softmax(-1)[0]
        return float(sum(scores[place - 1, ids[0, place]] for place in range(len(before), ids.shape[1])))

    assert likelihoods[:4] == pytest.approx([compute(*pair) for pair in PAIRS[:4]], abs=1e-4)
    assert rolling[1] == pytest.approx(compute("", TEXTS[1]), abs=1e-4)
    assert abs(rolling[1] - plain[1][1]) > 1e-2
    writer = make_text_generator(opened, print, raw=True)
    for (prompt, _), answer in zip(QUESTIONS, answers, strict=True):
        ids = torch.tensor([tokenizer.encode(prompt, add_special_tokens=False)])
        generator = opened.model.backbone.generator(lambda inputs: opened.model.adapted(inputs).last.pooled)
        written = generator.generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=0,
                                     eos_token_id=writer.stop_tokens)  # fmt: skip
        assert (
            tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True).split("\n\n")[0].startswith(answer)
        )


@pytest.fixture
def tasks(here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a task on questions of this machine."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(here / "cache"))
    questions = [{"question": f"Say {word}:", "choices": [" yes", " no"], "answer": index % 2}
                 for index, word in enumerate(("yes", "no", "yes again", "no again"))]  # fmt: skip
    (here / "questions.jsonl").write_text("\n".join(json.dumps(question) for question in questions))
    (here / "tasks").mkdir()
    (here / "tasks/local.yaml").write_text(TASK.format(name="local_words", data=here / "questions.jsonl"))
    return here / "tasks"


def test_runs_are_evaluated_on_a_task_file(here: Path, tasks: Path, merged: tuple[Path, Path]) -> None:
    run, folder = merged
    steered = tuned_on_texts(here, "steered")
    asked = ["eval", "--tasks", "local_*", "--tasks-path", tasks, "--run", run, "--run", steered, "--device", "cpu"]
    said = toast(*asked, "--json", "--out", "results.json")
    assert said.code == 0, said.err
    results = json.loads(said.out)
    assert results == json.loads((here / "results.json").read_text())
    model = HFLM(pretrained=str(folder), dtype="float32", device="cpu")
    chosen = []
    for line in (here / "questions.jsonl").read_text().splitlines():
        question = json.loads(line)
        pairs = [(question["question"], choice) for choice in question["choices"]]
        scores = [value for value, _ in model.loglikelihood(request("loglikelihood", *pairs))]
        chosen.append(scores.index(max(scores)) == question["answer"])
    assert results[str(run)]["results"]["local_words"]["acc,none"] == pytest.approx(sum(chosen) / 4)
    assert set(results) == {str(run), str(steered)}
    table = toast(*asked, "--limit", "2", "--shots", "0")
    assert "local_words" in table.out and "acc ↑" in table.out and "the first 2 questions" in table.out
    toast(*asked[:2], "local_word", *asked[3:]).fails(2, "Did you mean 'local_words'?", error="task.unknown-task")
    toast(*asked, "--attention").fails(2, error="cli.conflicting-options")
    (tasks / "broken.yaml").write_text(TASK.format(name="local_broken", data=here / "missing.jsonl"))
    toast(*asked[:2], "local_broken", *asked[3:]).fails(1, error="task.harness-failed")


def test_the_command_line_of_the_harness_knows_the_model(here: Path, tasks: Path) -> None:
    run = tuned_on_texts(here, "run")
    start = "from toast_cli.evaluation.harness.tasks import run_harness; run_harness()"
    program = [sys.executable, "-c", start, "--model", "toast"]
    program += ["--model_args", f"run={run}", "--tasks", "local_words", "--include_path", str(tasks), "--device", "cpu"]
    done = subprocess.run(
        [*program, "--output_path", str(here / "out")], capture_output=True, text=True, timeout=300, env={**os.environ}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    program[program.index("--model_args") + 1] = "run=nothing"
    wrong = subprocess.run(program, capture_output=True, text=True, timeout=300)
    assert wrong.returncode == 1 and "Error: There is no run" in wrong.stderr and "Traceback" not in wrong.stderr
    assert "local_words" in done.stdout
    (written,) = (here / "out").rglob("results*.json")
    own = toast("eval", "--tasks", "local_words", "--tasks-path", tasks, "--run", run, "--device", "cpu", "--json")
    expected = json.loads(own.out)[str(run)]["results"]["local_words"]["acc,none"]
    assert json.loads(written.read_text())["results"]["local_words"]["acc,none"] == expected
