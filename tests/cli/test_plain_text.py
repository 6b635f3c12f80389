"""Running text on the command line: read from files of every kind, joined, cut into blocks, and learned."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from datasets import Dataset

from tests.cli.conftest import toast
from tests.language import make_model

TEXTS = [f"The {number}th day was fine, and nothing happened." for number in range(60)]
SHORT = ["dataset.block_tokens=64", "dataset.val_fraction=0.2", "training.batch_size=8"]


def plain(path: Path) -> Path:
    path.write_text("\n".join([*TEXTS, "", "  "]))
    return path


def lines(path: Path) -> Path:
    path.write_text("\n".join(json.dumps({"text": text, "id": 1}) for text in TEXTS))
    return path


def zipped(path: Path) -> Path:
    path.write_bytes(gzip.compress(lines(path).read_bytes()))
    return path


def parquet_of(texts: list[str], path: Path) -> Path:
    Dataset.from_dict({"text": texts}).to_parquet(path)
    return path


def parquet(path: Path) -> Path:
    return parquet_of(TEXTS, path)


def folder(path: Path) -> Path:
    path.mkdir()
    (path / "a.txt").write_text("\n".join(TEXTS[:30]))
    (path / "b.txt").write_text("\n".join(TEXTS[30:]))
    return path


@pytest.mark.parametrize(
    ("make", "name"),
    [(plain, "text.txt"), (lines, "text.jsonl"), (zipped, "text.jsonl.gz"), (parquet, "text.parquet"), (folder, "f")],
)
def test_every_kind_of_file_gives_the_same_blocks(here: Path, make: Callable[[Path], Path], name: str) -> None:
    model, data = make_model(here / "model"), make(here / name)
    chosen = ["--backbone", f"llama:{model}", "--dataset", f"text:{data}", "--method", "toast"]
    said = toast("tune", *chosen, "--dry-run", "--json", *SHORT)
    assert said.code == 0, said.err
    found = json.loads(said.out)
    assert found["samples"] == {"train": 48, "val": 12}
    assert found["first_batch"] == {"input_ids": [8, 64], "labels": [8, 64], "attention_mask": [8, 64]}


def test_a_model_learns_running_text(here: Path) -> None:
    chosen = ["--backbone", f"llama:{make_model(here / 'model')}", "--dataset", f"text:{plain(here / 'text.txt')}"]
    more = ["training.epochs=3", "training.optimizer=adamw", "training.lr=0.01"]
    said = toast("tune", *chosen, "--method", "full", "--output-dir", here / "run", *SHORT, *more)
    assert said.code == 0, said.err
    assert "tokens are not used" in said.err
    epochs = [json.loads(line) for line in (here / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["validation"]["loss"] for line in epochs if line["kind"] == "epoch"]
    assert losses[-1] < losses[0] - 0.5


def test_no_more_documents_are_used_than_asked_for(here: Path) -> None:
    chosen = ["--backbone", f"llama:{make_model(here / 'model')}", "--dataset", f"text:{plain(here / 'text.txt')}"]
    few = toast("tune", *chosen, "--method", "toast", "--dry-run", "--json", *SHORT, "dataset.documents=10")
    assert json.loads(few.out)["samples"] == {"train": 8, "val": 2}
    many = toast("tune", *chosen, "--method", "toast", "--dry-run", *SHORT, "dataset.documents=1000")
    assert "has only 60 documents, not 1,000" in " ".join(many.out.split())


def hub_clone(folder: Path) -> Path:
    """A data set as it lies on the hub: a card that names its subsets, and Parquet files in several parts."""
    (folder / "prose").mkdir(parents=True)
    for number in (0, 1):
        parquet_of(TEXTS[30 * number : 30 * number + 30], folder / "prose" / f"train-0000{number}-of-00002.parquet")
    parquet_of(["Other words."] * 40, folder / "verse.parquet")
    subsets = "- config_name: prose\n  data_files: prose/*\n- config_name: verse\n  data_files: verse.parquet\n"
    (folder / "README.md").write_text(f"---\nconfigs:\n{subsets}---\nA card.\n")
    return folder


def test_a_data_set_of_the_hub_is_streamed_by_subset_and_no_further_than_asked(here: Path) -> None:
    folder = hub_clone(here / "set")
    chosen = ["tune", "--backbone", f"llama:{make_model(here / 'model')}", "--dataset", f"text:{folder}", "--dry-run"]
    more = ["--method", "toast", "--json", *SHORT, "dataset.subset=prose"]
    whole = toast(*chosen, *more)
    assert whole.code == 0, whole.err
    assert json.loads(whole.out)["samples"] == {"train": 48, "val": 12}
    (folder / "prose" / "train-00001-of-00002.parquet").write_bytes(b"never fetched")
    part = toast(*chosen, *more, "dataset.documents=20")
    assert part.code == 0, part.err
    assert json.loads(part.out)["samples"] == {"train": 16, "val": 4}
    toast(*chosen, *more).fails(1, "document 30", error="data.unreadable-file")


def test_wrong_text_is_said(here: Path) -> None:
    chosen = ["tune", "--backbone", f"llama:{make_model(here / 'model')}", "--method", "toast", "--dry-run"]
    toast(*chosen, "--dataset", "text:none.txt").fails(2, "none.txt", error="data.missing-file")
    table = lines(here / "text.jsonl")
    missing, short = "text.missing-field", "text.less-than-one-block"
    toast(*chosen, "--dataset", f"text:{table}", "dataset.field=body").fails(1, "'body'", "text, id", error=missing)
    toast(*chosen, "--dataset", f"text:{table}", "dataset.field=id").fails(1, "'id'", error="text.not-a-string")
    few = ["dataset.documents=3", "dataset.block_tokens=200"]
    toast(*chosen, "--dataset", f"text:{table}", *few).fails(1, "200", error=short)
    (here / "broken.jsonl").write_text('{"text": "fine"}\n{"text": \n')
    toast(*chosen, "--dataset", f"text:{here / 'broken.jsonl'}").fails(1, "broken.jsonl", error="data.unreadable-file")
    (here / "empty").mkdir()
    toast(*chosen, "--dataset", f"text:{here / 'empty'}").fails(1, ".jsonl", error="text.unsupported-files")
    offline = toast(*chosen, "--dataset", "text:nobody/nothing")
    offline.fails(1, "'nobody/nothing'", "dataset.subset", error="data.cannot-open")
