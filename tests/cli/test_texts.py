"""Files of texts on the command line: splits of their own, measured whole, checked, and shown as tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import toast_cli
from tests.cli.conftest import toast
from tests.language import instructions, make_model, write_json

ENTRIES = instructions(60)


@pytest.fixture
def model(here: Path) -> Path:
    write_json(here / "train.json", ENTRIES[:20])
    write_json(here / "val.json", ENTRIES[20:24])
    write_json(here / "test.json", ENTRIES[24:30])
    return make_model(here / "model", chat=True)


TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
TOOL_TEMPLATE = (
    "{% if tools %}<|system|>{{ tools | tojson }}</s>{% endif %}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}"
    "{% for c in m.tool_calls or [] %}[{{ c.function.name }} {{ c.function.arguments | tojson }}]{% endfor %}</s>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def ask_weather(day: int) -> dict[str, Any]:
    """A conversation with a call of a tool, and an answer that is not learned."""
    call = {"function": {"name": "weather", "arguments": json.dumps({"day": day})}}
    return {
        "tools": [TOOL],
        "messages": [
            {"role": "user", "content": f"Hello {day * 7919}"},
            {"role": "assistant", "content": "Hi", "weight": 0},
            {"role": "user", "content": f"Warm on day {day}?"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": f"{day * 104729} degrees"},
            {"role": "assistant", "content": "Yes."},
        ],
    }


def set_chat_template(model: Path, template: str) -> None:
    """Replace the chat template of a model."""
    config = json.loads((model / "tokenizer_config.json").read_text())
    (model / "chat_template.jinja").unlink(missing_ok=True)
    (model / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": template}))


def rejecting(word: str) -> str:
    """A chat template that fails on a text with a word."""
    return (
        f"{{% for m in messages %}}{{% if '{word}' in m.content %}}{{{{ 1 // 0 }}}}{{% endif %}}"
        "<|{{ m.role }}|>{{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )


def test_other_texts_are_measured_whole_and_as_the_run_was_trained(here: Path, model: Path) -> None:
    chosen = ["--backbone", f"llama:{model}", "--dataset", "alpaca:train.json", "--method", "toast-lite"]
    own = ["dataset.val_path=val.json", "dataset.test_path=test.json", "dataset.template=plain"]
    own.append("dataset.max_tokens=48")
    done = toast("tune", *chosen, "--output-dir", here / "run", *own, "training.epochs=1", "training.batch_size=10")
    assert done.code == 0, done.err
    results = json.loads((here / "run" / "results.json").read_text())
    assert results["samples"] == {"train": 20, "val": 4, "test": 6}

    def measure(*arguments: str) -> dict[str, Any]:
        said = toast("eval", "--run", here / "run", *arguments, "--json")
        assert said.code == 0, said.err
        return json.loads(said.out)

    other = measure("--dataset", "alpaca:test.json")
    assert other["split"] == "all" and (other["measured"]["texts"], other["measured"]["of"]) == (6, 6)
    assert any("truncated to 48 tokens (dataset.max_tokens)" in note for note in other["measured"]["notes"])
    assert other["all"]["loss"] == pytest.approx(results["test"]["loss"], rel=1e-5)  # the same texts and format
    assert other["warnings"] == []
    assert measure()["measured"]["texts"] == 6 and measure()["split"] == "test"
    part = measure("--dataset", "alpaca:test.json", "--split", "test")
    assert part["measured"]["texts"] == 1 and part["measured"]["of"] == 6
    assert "measured" in (shown := toast("eval", "--run", here / "run", "--dataset", "alpaca:test.json")).out
    assert "all 6 texts" in shown.out
    write_json(here / "mixed.json", [*ENTRIES[18:22], *ENTRIES[40:44]])
    assert measure("--dataset", "alpaca:mixed.json")["warnings"] == [
        "2 of 8 texts are among those that the model was trained on, so the results say little about new texts.",
        "2 of 8 texts are among those that the model was selected on, so the results say little about new texts.",
    ]
    told = toast_cli.evaluate(here / "run", "alpaca:test.json", device="cpu")
    assert told["all"] == pytest.approx(other["all"])
    # The validation file belongs to the data of the run.
    write_json(here / "val.json", ENTRIES[50:54])
    changed = toast("eval", "--run", here / "run", "--split", "val")
    assert "The data has changed since" in changed.err and "val: 4 with other content" in changed.err
    # Settings of a run are the run's.
    extended = toast("tune", "--resume", here / "run", "training.epochs=2")
    extended.fails(1, "val.json, entry 1", error="resume.changed-data")


def test_data_check_names_the_texts_that_a_model_does_not_learn_whole(here: Path, model: Path) -> None:
    set_chat_template(model, rejecting("odd"))
    ordinary = [{"instruction": f"{number * 7919} {number * 104729}?", "output": "yes"} for number in range(10)]
    texts = [
        *ordinary,
        {"instruction": "An odd one.", "output": "no"},
        {"instruction": "b", "output": "c" * 100},
        {"instruction": "d" * 100, "output": "e"},
        {"instruction": "empty", "output": " "},
        {"instruction": "none"},
        {"instruction": ordinary[0]["instruction"].upper(), "output": "YES"},
    ]
    write_json(here / "texts.json", texts)
    none = ["dataset.val_fraction=0", "dataset.test_fraction=0"]
    command = ["data", "check", "alpaca:texts.json", "--backbone", f"llama:{model}", *none, "dataset.max_tokens=64"]
    said = toast(*command, "--json")
    report = json.loads(said.out)
    assert said.code == 1, said.err
    assert report["left_out_by_reason"] == {"'output' is empty": 1, "'output' is missing; found 'instruction'": 1}
    found = report["splits"]["train"]
    assert found["token_limit"] == 64 and found["tokens"]["most"] > 100
    assert {text["name"] for text in found["truncated"]["texts"]} == {"texts.json, entry 12", "texts.json, entry 13"}
    assert found["unlearnable"] == {"count": 1, "texts": [{"name": "texts.json, entry 13"}]}
    (rejected,) = found["rejected"]["texts"]
    assert rejected["name"] == "texts.json, entry 11" and "ZeroDivisionError" in rejected["why"]
    assert report["duplicates"]["copies"]["pairs"] == [
        {"first": "train: texts.json, entry 1", "second": "train: texts.json, entry 16"}
    ]
    assert len(report["problems"]) == 2 and "rejects" in report["problems"][1]
    assert "2 entries cannot be used and are left out" in report["warnings"]
    most = found["tokens"]["most"]
    assert any(f"dataset.max_tokens={most} truncates none" in warning for warning in report["warnings"])
    shown = toast(*command)
    assert shown.code == 1
    for line in ("truncated: train: texts.json, entry 12 (", "no token to learn: train: texts.json, entry 13"):
        assert line in shown.out
    assert "ZeroDivisionError" in shown.out and "Traceback" not in shown.out + shown.err
    # A template that fails on every text is one message for all splits.
    set_chat_template(model, "{{ nobody.name.first }}")
    failing = toast("data", "check", "alpaca:train.json", "--backbone", f"llama:{model}", "--json")
    assert failing.code == 1 and sum("UndefinedError" in each for each in json.loads(failing.out)["problems"]) == 1
    tuned = toast("tune", "--backbone", f"llama:{model}", "--dataset", "alpaca:train.json", "--output-dir", here / "r")
    tuned.fails(1, "UndefinedError", error="text.refused-by-chat-template")
    assert not (here / "r").exists()


def test_data_check_finds_near_duplicates_of_the_same_split(here: Path) -> None:
    long = " ".join(str(number * 7919) for number in range(40))
    write_json(
        here / "near.json",
        [
            {"instruction": long, "output": "yes"},
            *({"instruction": f"{number * 104729} {number * 1299709}", "output": "no"} for number in range(8)),
            {"instruction": f"{long} too", "output": "yes"},
        ],
    )
    said = toast("data", "check", "alpaca:near.json", "dataset.val_fraction=0", "dataset.test_fraction=0", "--json")
    report = json.loads(said.out)
    assert said.code == 0 and report["duplicates"]["nearly_within_a_split"] == {
        "count": 1,
        "pairs": [{"first": "train: near.json, entry 1", "second": "train: near.json, entry 10"}],
    }
    assert "1 text is nearly the same as an earlier one of the same split" in report["warnings"]
    plain = toast("data", "check", "alpaca:near.json").out
    assert "Add --backbone lm:MODEL to measure tokens" in plain


def test_data_show_prints_texts_as_tokens(here: Path, model: Path) -> None:
    command = ["data", "show", "alpaca:train.json", "--backbone", f"llama:{model}", "--texts", "2"]
    said = toast(*command)
    assert said.code == 0, said.err
    lines = said.out.splitlines()
    assert len(lines) == 6 and lines[0].startswith("train: train.json, entry ") and lines[0].endswith(" 4 trained")
    assert lines[1].startswith("  context  ⟪<|user|>⟫│S│a│y│ │y│e│s│,│ │")
    assert lines[1].endswith("⟪</s>⟫│⟪<|assistant|>⟫") and lines[2] == "  trained  y│e│s│⟪</s>⟫"
    report = json.loads(toast(*command, "--json").out)
    assert report["split"] == "train" and report["of"] == 18 and len(report["texts"]) == 2
    trained = [token for token in report["texts"][0]["tokens"] if token["trained"]]
    assert [token["text"] for token in trained] == ["y", "e", "s", "</s>"]
    assert [token["special"] for token in trained] == [False, False, False, True]
    assert not (here / "contact-sheet.png").exists()


@pytest.mark.parametrize(
    ("arguments", "words", "code"),
    [
        (["alpaca:train.json"], "--backbone lm:MODEL", "cli.missing-option"),
        (["alpaca:train.json", "--images", "3"], "--images is for images", "cli.conflicting-options"),
        (["demo", "--texts", "3"], "--texts is for texts", "cli.conflicting-options"),
        (["alpaca:train.json", "--split", "new"], "train, val, test", "data.unknown-split"),
    ],
)
@pytest.mark.usefixtures("model")
def test_options_of_the_other_kind_of_data_are_refused(arguments: list[str], words: str, code: str) -> None:
    toast("data", "show", *arguments).fails(2, words, error=code)


def test_conversations_with_tools_are_tuned_checked_shown_and_measured(here: Path, model: Path) -> None:
    set_chat_template(model, TOOL_TEMPLATE)
    write_json(here / "chat.json", [ask_weather(number) for number in range(12)])
    write_json(here / "more.json", ENTRIES[:6])
    write_json(here / "held.json", [{"prompt": f"Is it {word}?", "completion": "no"} for word in ("wet", "dry", "hot")])
    write_json(here / "new.json", [ask_weather(number) for number in range(11, 16)])
    chosen = ["messages:chat.json", "--backbone", f"llama:{model}", "dataset.mix={more.json: 2}"]
    chosen += ["dataset.val_path=held.json", "dataset.test_fraction=0"]
    checked = toast("data", "check", *chosen, "--json")
    report = json.loads(checked.out)
    assert checked.code == 0 and not report["problems"], (checked.err, report)
    assert {part: found["texts"] for part, found in report["splits"].items()} == {"train": 18, "val": 3}
    for name, form in (("chat", "messages (12"), ("more", "alpaca (6"), ("held", "pairs (3")):
        assert any(note.startswith(f"Format of {name}.json: {form} entries)") for note in report["notes"])
    shown = json.loads(toast("data", "show", *chosen, "--texts", "18", "--json").out)["texts"]
    learned = ["".join(token["text"] for token in text["tokens"] if token["trained"]) for text in shown]
    assert sorted(learned) == sorted([f'[weather {{"day": {day}}}]</s>Yes.</s>' for day in range(12)] + ["yes</s>"] * 6)
    train = ["tune", "--dataset", *chosen, "--method", "toast-lite", "--output-dir", here / "run"]
    done = toast(*train, "training.epochs=1", "training.batch_size=8")
    assert done.code == 0, done.err
    assert "more.json, weight 2: an epoch has 12 texts, 6 of its 6 training texts." in done.err
    other = json.loads(toast("eval", "--run", here / "run", "--dataset", "messages:new.json", "--json").out)
    assert other["split"] == "all" and (other["measured"]["texts"], other["measured"]["of"]) == (5, 5)
    assert other["warnings"] == [
        "1 of 5 texts are among those that the model was trained on, so the results say little about new texts."
    ]
    for name, part in (("more.json", "train"), ("held.json", "val")):
        kept = (here / name).read_text()
        (here / name).write_text(kept.replace("yes", "maybe").replace("no", "maybe"))
        changed = toast("tune", "--resume", here / "run", "training.epochs=2")
        changed.fails(1, f"{part}: ", f"{name}, entry 1", error="resume.changed-data")
        (here / name).write_text(kept)
    assert toast("tune", "--resume", here / "run", "training.epochs=2").code == 0
