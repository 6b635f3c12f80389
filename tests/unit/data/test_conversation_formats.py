"""Formats of conversations and the files that hold them: read as turns, and only the answers that count learned."""

from __future__ import annotations

import bz2
import csv
import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.language import make_tokenizer
from toast_cli.data.base import BatchOptions, DataSet, LoaderOptions
from toast_cli.data.streams.hugging_face import HuggingFaceOptions, open_hf
from toast_cli.data.text.chat_templates import encode_prompt, find_end_tokens, set_chat_template, tokenize_conversation
from toast_cli.data.text.conversation_format import load_formats
from toast_cli.data.text.documents import TextDocumentOptions, open_documents
from toast_cli.data.text.formats.messages import MessagesOptions, open_messages
from toast_cli.data.text.loader import build_conversation_loader
from toast_cli.data.text.turn_formats import ChatTemplateError
from toast_cli.data.text.turns import Turn, to_messages
from toast_cli.storage.run_folder import WorkingFolders
from toast_cli.training.data.recorded_paths import _find_key
from toast_cli.utils.constants import IGNORE_INDEX
from toast_cli.utils.errors import ToastError, UsageError

ASKED = {"role": "user", "content": "Is it warm in Rome?"}
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
PARSED = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}
DESCRIBED = {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}
TOOL = {"type": "function", "function": DESCRIBED}
WITH_TOOLS = {
    "tools": [TOOL],
    "messages": [
        ASKED,
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c1", "content": "30 degrees"},
        {"role": "assistant", "content": "Yes."},
    ],
}
TOOL_TEMPLATE = (
    "{% if tools %}<|system|>{{ tools | tojson }}</s>{% endif %}"
    "{% for m in messages %}<|{{ 'user' if m.role == 'tool' else m.role }}|>{{ m.content or '' }}"
    "{% for c in m.tool_calls or [] %}[{{ c.function.name }} {{ c.function.arguments | tojson }}]{% endfor %}</s>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

U, A = Turn("user", "Hi"), Turn("assistant", "Hello")
CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
PAIR = {"prompt": "Hi", "completion": "Hello"}
CALLED = Turn("assistant", "", fields=json.dumps({"tool_calls": [PARSED]}))
UNNAMED_CALL = Turn(
    "assistant", "", fields=json.dumps({"tool_calls": [{key: PARSED[key] for key in ("type", "function")}]})
)
DECLARED = Turn("tools", json.dumps([TOOL]))

ENTRIES: dict[str, tuple[str, dict[str, Any], list[Turn]]] = {
    "messages": ("messages", {"messages": CHAT}, [U, A]),
    "parts": (
        "messages",
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "H"}, {"text": "i"}]}, CHAT[1]]},
        [U, A],
    ),
    "developer": (
        "messages",
        {"messages": [{"role": "developer", "content": "S"}, *CHAT]},
        [Turn("system", "S"), U, A],
    ),
    "conversations with roles": ("messages", {"conversations": CHAT}, [U, A]),
    "JSON in a cell": ("messages", {"messages": json.dumps(CHAT), "tools": ""}, [U, A]),
    "weights": (
        "messages",
        {"messages": [*CHAT[:1], {**CHAT[1], "weight": 0}, *CHAT[:1], {**CHAT[1], "weight": 1.0}]},
        [U, Turn("assistant", "Hello", trained=False), U, A],
    ),
    "tools": (
        "messages",
        WITH_TOOLS,
        [
            DECLARED,
            Turn("user", "Is it warm in Rome?"),
            CALLED,
            Turn("tool", "30 degrees", fields='{"tool_call_id": "c1"}'),
            Turn("assistant", "Yes."),
        ],
    ),
    "the form before tools": (
        "messages",
        {
            "functions": [DESCRIBED],
            "messages": [
                ASKED,
                {"role": "assistant", "content": "", "function_call": CALL["function"]},
                {"role": "function", "name": "weather", "content": "30"},
                CHAT[1],
            ],
        },
        [
            DECLARED,
            Turn("user", "Is it warm in Rome?"),
            UNNAMED_CALL,
            Turn("tool", "30", fields='{"name": "weather"}'),
            A,
        ],
    ),
    "a pair": ("pairs", PAIR, [U, A]),
    "a pair with more": (
        "pairs",
        {**PAIR, "system": "S", "tools": [TOOL]},
        [DECLARED, Turn("system", "S"), U, A],
    ),
    "a pair of messages": ("pairs", {"prompt": CHAT[:1], "completion": CHAT[1:]}, [U, A]),
    "sharegpt": (
        "sharegpt",
        {
            "system": "S",
            "tools": json.dumps([DESCRIBED]),
            "conversations": [
                {"from": "human", "value": "Hi"},
                {"from": "function_call", "value": json.dumps({"name": "weather", "arguments": {"city": "Rome"}})},
                {"from": "observation", "value": "30"},
                {"from": "gpt", "value": "Hello", "weight": 1},
            ],
        },
        [DECLARED, Turn("system", "S"), U, UNNAMED_CALL, Turn("tool", "30"), A],
    ),
    "alpaca": (
        "alpaca",
        {"instruction": "Hi", "output": "Hello", "system": "S", "history": [["a", "b"]], "tools": [DESCRIBED]},
        [DECLARED, Turn("system", "S"), Turn("user", "a"), Turn("assistant", "b"), U, A],
    ),
}


def opened(path: Path | str, data_dir: Path | None = None, **options: Any) -> DataSet:
    chosen = {"val_fraction": 0, "test_fraction": 0, **options}
    return open_messages(MessagesOptions(path=str(path), **chosen), data_dir)


def open_text(path: str) -> DataSet:
    return open_documents(TextDocumentOptions(path=path), None)


def open_images(path: str) -> DataSet:
    return open_hf(HuggingFaceOptions(path=path), None)


def turns_of(data: DataSet, part: str = "train") -> list[list[Turn]]:
    return [list(text.turns) for text in data.splits[part].conversations]  # type: ignore[attr-defined]


def learned(turns: list[Turn], tokenizer: Any, template: str) -> str:
    samples = tokenize_conversation(turns, tokenizer, template)
    return "".join(tokenizer.decode([label for label in labels if label != IGNORE_INDEX]) for _, labels in samples)


@pytest.mark.parametrize("name", ENTRIES)
def test_a_format_is_detected_printed_and_read(name: str, tmp_path: Path) -> None:
    form, entry, turns = ENTRIES[name]
    (tmp_path / "d.jsonl").write_text(json.dumps(entry) + "\n" + json.dumps(entry))
    data = opened(tmp_path / "d.jsonl")
    assert turns_of(data) == [turns, turns]
    assert f"Format of d.jsonl: {form} (2 entries)." in data.notes
    assert not any("Not used" in note for note in data.notes)
    formats = load_formats()
    assert [known for known, each in formats.items() if each.recognize(entry)] == [form]


@pytest.mark.parametrize(
    ("entry", "unused"),
    [
        ({"messages": [{**CHAT[0], "ts": 1}, CHAT[1]], "id": 3}, ["'id' of 1", "'messages.ts' of 1"]),
        ({"messages": [*CHAT, CHAT[0]]}, ["the messages after the last answer of 1"]),
        ({"messages": [{**CHAT[0], "weight": 1}, CHAT[1]]}, ["'messages.weight' of another role"]),
        ({**PAIR, "score": 0.5}, ["'score' of 1"]),
        ({"prompt": [{**CHAT[0], "ts": 1}], "completion": [{**CHAT[1], "x": 2}]}, ["'prompt.ts'", "'completion.x'"]),
    ],
)
def test_fields_that_are_not_used_are_named(entry: dict[str, Any], unused: list[str], tmp_path: Path) -> None:
    (tmp_path / "d.json").write_text(json.dumps(entry))
    notes = " ".join(opened(tmp_path / "d.json").notes)
    assert all(words in notes for words in ["Not used in d.json", *unused])


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"text": "x"}, "the fields of no known format; found 'text'"),
        ({"messages": CHAT, **PAIR}, "several formats: messages, pairs; set dataset.format"),
        ({"messages": CHAT[:1]}, "no answer to learn"),
        ({"messages": [CHAT[0], {**CHAT[1], "weight": 0}]}, "every answer has the weight 0"),
        ({"messages": [CHAT[0], {**CHAT[1], "weight": 0.5}]}, "'weight' is 0.5, expected 0 or 1"),
        ({"messages": [{"role": "bot", "content": "x"}, *CHAT]}, "unknown role 'bot'"),
        ({"messages": [CHAT[0], {"role": "assistant", "content": ""}]}, "its answer is empty"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}, CHAT[1]]},
            "a part of the type 'image_url'",
        ),
        ({"messages": [ASKED, {"role": "assistant", "tool_calls": [{"function": {}}]}, CHAT[1]]}, "'name' is missing"),
        (
            {"messages": [ASKED, {"role": "assistant", "tool_calls": [{"name": "f", "arguments": "["}]}, CHAT[1]]},
            "'arguments' is not valid JSON",
        ),
        ({"messages": CHAT, "tools": [{"type": "function"}]}, "'name' is missing"),
        ({"messages": CHAT, "tools": "no"}, "'tools' is not valid JSON"),
        ({"prompt": "Hi", "completion": " "}, "'completion' is empty"),
        (
            {"conversations": [{"from": "human", "value": "x"}, {"from": "function_call", "value": "f(x)"}]},
            "'function_call' is not valid JSON",
        ),
        ("Hi", "not a JSON object"),
    ],
)
def test_an_entry_that_cannot_be_used_is_counted_with_its_reason(entry: Any, words: str, tmp_path: Path) -> None:
    (tmp_path / "d.json").write_text(json.dumps([PAIR, entry, PAIR]))
    data = opened(tmp_path / "d.json")
    assert list(data.left_out) == ["entry 2"] and words in data.left_out["entry 2"]
    assert data.notes[-1].startswith("1 of 3 entries of d.json were left out: entry 2 (")
    assert len(data.splits["train"]) == 2


def test_every_entry_may_have_a_format_of_its_own_and_fields_may_be_renamed(tmp_path: Path) -> None:
    (tmp_path / "d.json").write_text(json.dumps([PAIR, {"messages": CHAT}, {"question": "Hi", "answer": "Hello"}]))
    data = opened(tmp_path / "d.json", fields={"question": "prompt", "answer": "completion"})
    assert turns_of(data) == [[U, A]] * 3
    assert "Format of d.json: pairs (2 entries), messages (1 entry)." in data.notes
    chosen = opened(tmp_path / "d.json", format="messages")
    assert list(chosen.left_out) == ["entry 1", "entry 3"]
    with pytest.raises(UsageError, match="'xml'"):
        opened(tmp_path / "d.json", format="xml")
    (tmp_path / "e.json").write_text(json.dumps([{"question": "Hi", "prompt": "x", "answer": "y"}]))
    with pytest.raises(ToastError) as refused:
        opened(tmp_path / "e.json", fields={"question": "prompt"})
    assert "two fields 'prompt'" in refused.value.why


@pytest.mark.parametrize("template", ["chat", "plain"])
def test_calls_and_answers_of_the_assistant_are_learned_and_tools_are_in_the_prompt(template: str) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = TOOL_TEMPLATE
    turns = list(ENTRIES["tools"][2])
    call = '[weather {"city": "Rome"}]' if template == "chat" else json.dumps([PARSED])
    assert learned(turns, tokenizer, template) == f"{call}</s>Yes.</s>"
    ((ids, labels),) = tokenize_conversation(turns, tokenizer, template)
    assert json.dumps([TOOL]) in tokenizer.decode(ids)
    for count in (2, 4):  # before the call, and before the answer
        prompt = encode_prompt(turns[:count], tokenizer, template)
        assert ids[: len(prompt)] == prompt and labels[len(prompt) - 1] == IGNORE_INDEX != labels[len(prompt)]
    assert find_end_tokens(tokenizer, template) == {tokenizer.eos_token_id}


def test_the_exported_format_writes_tools_as_training_does() -> None:
    tokenizer = make_tokenizer()
    turns = list(ENTRIES["tools"][2])
    ((ids, _),) = tokenize_conversation(turns, tokenizer, "plain")
    messages, tools = to_messages(turns)
    exported = set_chat_template(tokenizer, "plain")
    assert exported.apply_chat_template(messages, tools=tools, tokenize=False) == tokenizer.decode(ids)


@pytest.mark.parametrize("template", ["chat", "plain", "stanford"])
def test_an_answer_of_weight_0_is_read_and_not_learned(template: str) -> None:
    tokenizer = make_tokenizer(chat=True)
    turns = [U, Turn("assistant", "No", trained=False), Turn("user", "Bye"), Turn("assistant", "See you")]
    assert learned(turns, tokenizer, template) == "See you</s>"
    ((ids, _),) = tokenize_conversation(turns, tokenizer, template)
    trained = [U, Turn("assistant", "No"), *turns[2:]]
    assert [ids] == [ids for ids, _ in tokenize_conversation(trained, tokenizer, template)]


def test_a_sample_without_a_learned_token_is_not_made() -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = (  # earlier turns are written otherwise: every answer is a sample of its own
        "{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' and loop.last %}!{% endif %}</s>{% endfor %}"
    )
    turns = [U, Turn("assistant", "No", trained=False), Turn("user", "Bye"), Turn("assistant", "See you")]
    (sample,) = tokenize_conversation(turns, tokenizer, "chat")
    assert tokenizer.decode([label for label in sample[1] if label != IGNORE_INDEX]) == "See you!</s>"


@pytest.mark.parametrize(
    ("chat_template", "omitted"),
    [
        (TOOL_TEMPLATE.replace("tools", "none_of_them"), "the tool 'weather'"),
        (TOOL_TEMPLATE.replace("m.tool_calls", "m.calls"), "the call of the tool 'weather'"),
        (TOOL_TEMPLATE.replace("messages %}", "messages if m.role != 'tool' %}"), "the answer of a tool"),
    ],
)
def test_a_chat_template_that_omits_tools_is_refused(chat_template: str, omitted: str) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = chat_template
    turns = list(ENTRIES["tools"][2])
    if omitted.startswith("the call"):
        turns[0] = Turn("tools", json.dumps([{**TOOL, "function": {**DESCRIBED, "name": "other"}}]))
    with pytest.raises(ChatTemplateError) as refused:
        tokenize_conversation(turns, tokenizer, "chat")
    assert refused.value.code == "text.omitted-by-chat-template" and omitted in refused.value.what
    with pytest.raises(ChatTemplateError):
        tokenize_conversation(turns, tokenizer, "stanford")


def write_as(kind: str, folder: Path, entries: list[dict[str, Any]]) -> Path:
    path = folder / f"d{kind}"
    lines = "".join(json.dumps(entry) + "\n" for entry in entries)
    if kind in (".json", ".json.gz", ".json.bz2"):
        content = json.dumps(entries).encode()
        path.write_bytes({".json": bytes, ".json.gz": gzip.compress, ".json.bz2": bz2.compress}[kind](content))
    elif kind == ".list.json":
        path.write_text(json.dumps({"version": 2, "data": entries}))
    elif kind == ".jsonl":
        path.write_text("\ufeff" + lines, encoding="utf-8")
    elif kind in (".csv", ".tsv", ".semicolon.csv"):
        with path.open("w", newline="", encoding="utf-8") as file:
            separator = {".csv": ",", ".tsv": "\t", ".semicolon.csv": ";"}[kind]
            writer = csv.DictWriter(file, ["messages", "tools"], delimiter=separator)
            writer.writeheader()
            cells = [{key: v if isinstance(v, str) else json.dumps(v) for key, v in each.items()} for each in entries]
            writer.writerows(cells)
    else:
        datasets = pytest.importorskip("datasets")
        table = datasets.Dataset.from_list(entries)
        if kind == ".parquet":
            table.to_parquet(path)
        else:
            table.save_to_disk(path)
    return path


KINDS = [
    ".json",
    ".json.gz",
    ".json.bz2",
    ".list.json",
    ".jsonl",
    ".csv",
    ".tsv",
    ".semicolon.csv",
    ".parquet",
    " saved",
]


@pytest.mark.parametrize("kind", KINDS)
def test_conversations_are_read_from_any_kind_of_file(kind: str, tmp_path: Path) -> None:
    other = {
        "type": "function",
        "function": {"name": "go", "parameters": {"properties": {"place": {"type": "string"}}}},
    }
    entries: list[dict[str, Any]] = [
        {"messages": [{"role": "user", "content": 'a, "b"; c\n\u2028d'}, CHAT[1]], "tools": []},
        WITH_TOOLS,
        {"messages": CHAT, "tools": [other]},
    ]
    data = opened(write_as(kind, tmp_path, entries))
    first, second, third = turns_of(data)
    assert first == [Turn("user", 'a, "b"; c\n\u2028d'), A]
    assert json.loads(second[0].text) == [TOOL] and second[1:] == ENTRIES["tools"][2][1:]
    assert json.loads(third[0].text) == [other] and third[1:] == [U, A]
    if kind == ".list.json":
        assert "The entries of d.list.json are in 'data'." in data.notes
        assert "Not used in d.list.json: 'version' beside 'data'." in data.notes


def test_one_of_several_lists_is_chosen(tmp_path: Path) -> None:
    path = tmp_path / "d.json"
    path.write_text(json.dumps({"train": [PAIR], "extra": [PAIR, PAIR]}))
    with pytest.raises(ToastError) as refused:
        opened(path)
    assert "'train', 'extra'" in refused.value.why and "dataset.list_field" in refused.value.what_to_do
    assert len(opened(path, list_field="extra").splits["train"]) == 2


def test_the_splits_of_a_data_set_are_kept(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    tables = {
        name: datasets.Dataset.from_list([{"prompt": f"{name} {n}", "completion": "x"} for n in range(20)])
        for name in ("train_sft", "test_sft", "extra")
    }
    datasets.DatasetDict(tables).save_to_disk(tmp_path / "saved")
    data = opened("saved", tmp_path, val_fraction=0.2, test_fraction=0.2)
    assert {part: len(split) for part, split in data.splits.items()} == {"train": 16, "val": 4, "test": 20}
    assert {turns[0].text.split()[0] for turns in turns_of(data, "test")} == {"test_sft"}
    assert any("not read: extra" in note for note in data.notes)


def test_files_of_a_folder_are_splits_if_their_names_say_so(tmp_path: Path) -> None:
    for name in ("train-0", "train-1", "test"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(PAIR) + "\n" + json.dumps(PAIR))
    data = opened(tmp_path)
    assert {part: len(split) for part, split in data.splits.items()} == {"train": 4, "test": 2}
    (tmp_path / "more.json").write_text(json.dumps([PAIR]))
    data = opened(tmp_path)
    assert {part: len(split) for part, split in data.splits.items()} == {"train": 7}
    assert any("test.jsonl" in note and "divided anew" in note for note in data.notes)
    assert len(opened(tmp_path / "train-*.jsonl").splits["train"]) == 4


def test_sources_are_mixed_with_weights_in_training_alone(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps([{"prompt": f"a{n}", "completion": "x"} for n in range(40)]))
    (tmp_path / "b.json").write_text(json.dumps([{"instruction": f"b{n}", "output": "y"} for n in range(40)]))
    options = {"mix": {"alpaca:b.json": 2.5}, "weight": 0.5, "val_fraction": 0.25}
    data = opened("a.json", tmp_path, **options)
    assert len(data.splits["train"]) == 60 and len(data.splits["val"]) == 20
    tokenizer = make_tokenizer(chat=True)
    counts = {}
    for part, augment in (("train", True), ("train", False), ("val", False)):
        loader = build_conversation_loader(
            data.splits[part],  # type: ignore[arg-type]
            tokenizer,
            BatchOptions(4, augment=augment),
            LoaderOptions(),
        )
        texts = [tokenizer.decode(text.ids) for text in loader.texts]
        counts[part, augment] = [sum(f"|>{name}" in text for text in texts) for name in "ab"]
    own = [sum(turns[0].text.startswith(name) for turns in turns_of(data)) for name in "ab"]
    assert counts["train", True] == [round(own[0] / 2), own[1] * 2 + round(own[1] / 2)]
    assert counts["train", False] == own and sum(counts["val", False]) == 20
    assert (
        f"b.json, weight 2.5: an epoch has {counts['train', True][1]:,} texts, {own[1]} of its {own[1]} training"
        in (" ".join(data.notes))
    )
    assert data.splits["train"] == opened("a.json", tmp_path, **options).splits["train"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("suffix", [".json", ".csv"])
def test_another_encoding_is_named_with_the_command_that_converts_it(
    encoding: str, suffix: str, tmp_path: Path
) -> None:
    text = json.dumps([PAIR]) if suffix == ".json" else "prompt,completion\nHi,Hello\n"
    path = tmp_path / f"d{suffix}"
    path.write_bytes(text.replace("Hi", "H\xef\x84").encode(encoding, "replace"))
    with pytest.raises(ToastError) as refused:
        opened(path)
    name = {"utf-16-le": "UTF-16LE", "utf-16-be": "UTF-16BE"}.get(encoding, encoding.upper())
    assert name in refused.value.why
    assert f"UTF-8, for example with: iconv -f {name} -t UTF-8 {path}" in refused.value.what_to_do


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("d.json.gz", b"not gzip", "data.unreadable-file"),
        ("d.json.gz", gzip.compress(b"[]" * 99, mtime=0)[:15], "data.unreadable-file"),
        ("d.parquet", b"PAR1", "data.unreadable-file"),
        ("d.csv", b"prompt,completion\na,b,c\n", "text.invalid-table"),
        ("d.csv", b'prompt,completion\n"a,b\n', "text.invalid-table"),
        ("d.json", b"", "text.no-conversations"),
    ],
)
def test_a_damaged_file_is_one_message(name: str, content: bytes, code: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ToastError) as refused:
        opened(tmp_path / name)
    assert refused.value.code == code and name in refused.value.what


PLACES = {"messages": opened, "text": open_text, "hf": open_images}


@pytest.mark.parametrize("source", PLACES)
@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("./data/chats", "data.missing-file"),
        ("data/more/chats", "data.missing-file"),
        ("chats.jsonl", "data.missing-file"),
        ("data/chats", "data.cannot-open"),
        ("nobody/nothing", "data.cannot-open"),
    ],
)
def test_a_wrong_path_is_refused_after_one_short_request_at_most(
    source: str, name: str, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets, hub = pytest.importorskip("datasets"), pytest.importorskip("huggingface_hub")
    asked: list[tuple[str, float]] = []

    def refuse(self: Any, repo: str, *, repo_type: str, timeout: float) -> None:
        asked.append((repo, timeout))
        raise ConnectionError("no network")

    monkeypatch.setattr(hub.HfApi, "repo_info", refuse)
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: pytest.fail("the library would retry"))
    with pytest.raises(ToastError) as refused:
        PLACES[source](name)
    assert refused.value.code == code and name.removeprefix("./") in refused.value.what
    assert len(asked) == (code == "data.cannot-open") and all(seconds <= 5 for _, seconds in asked)


def test_documents_that_are_not_read_to_the_end_leave_no_reader_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    closed = []

    class Reader:
        """An endless reader that refers to itself, as those of the library do."""

        def __init__(self) -> None:
            self.itself = self

        def __iter__(self) -> Iterator[dict[str, str]]:
            return self

        def __next__(self) -> dict[str, str]:
            return {"text": "a"}

        def __del__(self) -> None:
            closed.append(True)

    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: Reader())
    (tmp_path / "a.txt").write_text("a")
    data = open_documents(TextDocumentOptions(path=str(tmp_path / "a.txt"), documents=5, val_fraction=0), None)
    assert len(data.splits["train"]) == 5 and closed == [True]


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".csv"])
def test_documents_in_another_encoding_are_named(suffix: str, tmp_path: Path) -> None:
    text = {".txt": "H\xef\n", ".jsonl": '{"text": "H\xef"}\n', ".csv": "text\nH\xef\n"}[suffix]
    (tmp_path / f"d{suffix}").write_bytes(text.encode("cp1252") * 3)
    with pytest.raises(ToastError) as refused:
        open_text(str(tmp_path / f"d{suffix}"))
    assert "its encoding is not known" in refused.value.why and "iconv" in refused.value.what_to_do


def test_mixed_files_are_found_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "b.json").write_text(json.dumps([PAIR]))
    started = WorkingFolders(tmp_path, tmp_path / "data")
    for key, found in {
        "b.json": str(tmp_path / "b.json"),
        "pairs:b.json": f"pairs:{tmp_path / 'b.json'}",
        "owner/name": "owner/name",
    }.items():
        assert _find_key(key, None, started) == found
    assert MessagesOptions.list_path_key_fields() == ["mix"]


def test_a_mixed_source_may_have_options_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps([{"q": f"a{n}", "completion": "x"} for n in range(4)]))
    (tmp_path / "b.json").write_text(json.dumps({"data": [{"ask": "b", "say": "y"}], "more": [{"ask": "c"}]}))
    own = {"weight": 2, "fields": {"ask": "prompt", "say": "completion"}, "list_field": "data"}
    data = opened("a.json", tmp_path, fields={"q": "prompt"}, mix={"pairs:b.json": own})
    assert [turns[0].text for turns in turns_of(data)] == ["a0", "a1", "a2", "a3", "b"]
    assert data.splits["train"].repeats == (1, 1, 1, 1, 2)  # type: ignore[union-attr]
    options = MessagesOptions(path="a.json", mix={"b.json": own, "c.json": 0.5})
    assert MessagesOptions(**options.model_dump(mode="json")) == options and options.mix["c.json"] == 0.5
    with pytest.raises(ValueError, match="weights"):
        MessagesOptions(path="a.json", mix={"b.json": {"weights": 2}})
