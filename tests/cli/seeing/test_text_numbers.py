"""Language models in numbers: the loss of each text compared, swept over the feedback, and shares of attention."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from tests.cli.conftest import toast
from tests.cli.seeing.pages import page
from tests.cli.seeing.texts import tuned_on_texts
from tests.language import make_model, write_json

TALK = [
    {
        "messages": [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": f"Say {word}."},
            {"role": "assistant", "content": word},
            {"role": "user", "content": "Again."},
            {"role": "assistant", "content": f"{word} {word}"},
        ]
    }
    for word in ("yes", "no", "perhaps", "<b>never</b>", "always", "often")
]


@pytest.fixture
def data(here: Path) -> list[str]:
    return ["--dataset", f"messages:{write_json(here / 'talk.json', TALK)}"]


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_runs_are_compared_by_the_loss_of_each_text(here: Path, data: list[str]) -> None:
    runs = [tuned_on_texts(here, f"run{seed}", seed) for seed in range(3)]
    said = toast("compare", *runs, *data, "--images", "2", "--json")
    assert said.code == 0, said.err
    numbers = json.loads(said.out)
    assert (numbers["texts"], len(numbers["differences"])) == (6, 3)
    rows = read_csv(here / "comparison/losses.csv")
    losses = {name: np.array([float(row[name]) for row in rows]) for name in ("run0", "run1", "run2")}
    tokens = np.array([int(row["tokens"]) for row in rows])
    for run in numbers["runs"]:
        measured = json.loads(toast("eval", "--run", run["run"], *data, "--json").out)["all"]
        assert run["loss"] == pytest.approx(measured["loss"], rel=1e-5)
        assert run["perplexity"] == pytest.approx(math.exp(measured["loss"]), rel=1e-5)
        own = losses[run["name"]]
        assert (own * tokens).sum() / tokens.sum() == pytest.approx(run["loss"], abs=1e-5)
        assert run["loss_per_text"]["mean"] == pytest.approx(own.mean(), abs=1e-5)
    pair = numbers["differences"][0]
    change = losses["run1"] - losses["run0"]
    assert pair["loss_per_text"]["mean"] == pytest.approx(change.mean(), abs=1e-5)
    assert change.min() <= pair["loss_per_text"]["low"] < pair["loss_per_text"]["high"] <= change.max()
    assert pair["texts_with_lower_loss"]["mean"] == pytest.approx((change < 0).mean())
    widest = np.stack([*losses.values()]).max(0) - np.stack([*losses.values()]).min(0)
    assert numbers["most_disputed"] == [rows[index]["text"] for index in np.argsort(-widest, kind="stable")[:2]]
    found = page(here / "comparison/report.html")
    assert "run1 minus run0" in found.text and "Again." in found.text
    few = json.loads(toast("compare", *runs, *data, "--limit", "2", "--out", here / "few", "--json").out)
    assert few["texts"] == 2
    table = toast("compare", *runs, *data, "--out", here / "few")
    assert "texts with a lower loss" in table.out and "Bonferroni" in table.out


def test_losses_of_other_tokens_are_not_compared(here: Path, data: list[str]) -> None:
    run, other = tuned_on_texts(here, "run"), tuned_on_texts(here, "other", template="stanford")
    short = tuned_on_texts(here, "short", max_tokens=90)
    assert toast("compare", run, other, *data, "--out", "a").code == 0, "another format around the same answers"
    said = toast("compare", run, short, *data, "--out", "b")
    said.fails(1, "entry 1 has other tokens", error="text.different-tokens")
    assert not (here / "b").exists()
    toast("compare", run, "nothing", *data).fails(2, error="adapter.missing")


def test_the_sweep_begins_at_the_plain_model(here: Path, data: list[str]) -> None:
    run = tuned_on_texts(here, "run")
    said = toast("eval", "--run", run, *data, "--sweep", "--json")
    assert said.code == 0, said.err
    lines = json.loads(said.out)["strengths"]
    assert [line["alpha"] for line in lines] == [0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75, 2]
    assert lines[0]["loss_change"] == {"mean": 0, "low": 0, "high": 0, "texts": 6}
    learned = json.loads(toast("eval", "--run", run, *data, "--json").out)["all"]
    assert lines[4]["perplexity"] == pytest.approx(learned["perplexity"], rel=1e-5)
    assert lines[4]["loss_change"]["mean"] == pytest.approx(lines[4]["loss"]["mean"] - lines[0]["loss"]["mean"])
    folder = run / "attention/strength-all"
    assert (folder / "strength.png").is_file() and len(read_csv(folder / "strength.csv")) == 9
    table = toast("eval", "--run", run, *data, "--sweep", "--limit", "2")
    assert "2 texts" in table.out and "minus that of the plain model" in table.out


def test_attention_is_shared_among_the_parts_of_a_text(here: Path, data: list[str]) -> None:
    run = tuned_on_texts(here, "run")
    said = toast("eval", "--run", run, *data, "--attention", "--json")
    assert said.code == 0, said.err
    results = json.loads(said.out)
    shares = results["shares"]
    parts = ["system", "user 1", "answer 1", "user 2", "answer so far", "special tokens", "format"]
    assert [list(shares[map]) for map in ("even", "pass_one", "pass_two", "gained")] == [parts] * 4
    for map, total in (("even", 1), ("pass_one", 1), ("pass_two", 1), ("gained", 0)):
        assert sum(share["mean"] for share in shares[map].values()) == pytest.approx(total, abs=1e-5)
    assert shares["pass_one"]["system"]["texts"] == 6 and 0 < results["shift"]["mean"] < 1
    assert results["checks"]["largest_mismatch_with_fused_attention"] < 1e-3
    assert any(abs(share["mean"]) > 1e-7 for share in shares["gained"].values())
    rows = read_csv(run / "attention/numbers-all/per_text.csv")
    own = [float(row["pass_two/system"]) for row in rows]
    assert np.mean(own) == pytest.approx(shares["pass_two"]["system"]["mean"], abs=1e-5)
    table = toast("eval", "--run", run, *data, "--attention", "--layer", "0", "--head", "1", "--limit", "3")
    assert table.code == 0 and "layer 0, head 1" in table.out and "3 texts" in table.out
    toast("eval", "--run", run, *data, "--attention", "--layer", "7").fails(2, error="attention.unknown-layer")


def test_a_conversation_of_several_samples_has_the_parts_of_each(here: Path, data: list[str]) -> None:
    make_model(here / "llama", chat=True)
    tokenizer = AutoTokenizer.from_pretrained(here / "llama")
    tokenizer.chat_template = (  # earlier answers lose their first letter, so the second answer is a sample of its own
        "{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'assistant' and not loop.last %}{{ m.content[1:] }}"
        "{% else %}{{ m.content }}{% endif %}</s>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    tokenizer.save_pretrained(here / "llama")
    run = tuned_on_texts(here, "run")
    said = toast("eval", "--run", run, *data, "--attention", "--json")
    assert said.code == 0, said.err
    rows = read_csv(run / "attention/numbers-all/per_text.csv")
    assert [row["text"] for row in rows[:2]] == ["talk.json, entry 1", "talk.json, entry 1, part 2"]
    assert rows[0]["even/user 2"] == "" and float(rows[1]["even/user 2"]) > 0
    assert json.loads(said.out)["shares"]["even"]["user 2"]["texts"] == 6 == len(rows) / 2
