"""Running text is kept on disk: memory does not grow with it, and it comes back as it was."""

from __future__ import annotations

import tracemalloc
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import IterableDataset

from tests.language import make_model, make_tokenizer
from toast_cli.data.base import BatchOptions, LoaderOptions
from toast_cli.data.splits import hold_out, hold_out_indices
from toast_cli.data.text import documents
from toast_cli.data.text.loader import build_document_loader
from toast_cli.data.text.text_store import TextStore, memory_map_tokens
from toast_cli.recipe.parse import build_recipe

PARAGRAPH = "It was a fine day, and nothing happened at all. " * 100


def streamed(count: int) -> IterableDataset:
    def entries() -> Iterator[dict[str, Any]]:
        for number in range(count):
            yield {"text": f"{number}. {PARAGRAPH}"}

    return IterableDataset.from_generator(entries)


def peak(count: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    """Bytes of Python's at most, and blocks, of a text of so many documents that is opened, cut up and read through."""
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: streamed(count))
    monkeypatch.setattr(documents, "require_hub_dataset", lambda *_: None)
    dataset = {"name": "text", "path": "some/where", "block_tokens": 64}
    raw = {"backbone": f"llama:{folder}", "dataset": dataset, "method": "toast"}
    recipe = build_recipe(raw, {}, origin="a test")

    tokenizer = make_tokenizer()
    tracemalloc.start()
    data = documents.open_documents(recipe.dataset, None)  # type: ignore[arg-type]
    batches = build_document_loader(data.splits["train"], tokenizer, BatchOptions(16), LoaderOptions())  # type: ignore[arg-type]
    blocks = sum(len(batch["input_ids"]) for batch in batches)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return most, blocks


@pytest.mark.nightly
def test_memory_does_not_grow_with_the_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("toast_cli.data.text.loader.TOKENIZER_BATCH_CHARACTERS", 20_000)
    model = make_model(tmp_path / "model")
    peak(10, model, monkeypatch)  # whatever is made once is made
    (little, few), (much, many) = (peak(count, model, monkeypatch) for count in (20, 200))
    assert many > 9 * few
    assert much < little + 150_000, "180 more documents are 860,000 characters and 3.5 MB of tokens"


def test_texts_and_tokens_come_back_as_they_went() -> None:
    texts = ["a", "", "caf\u00e9 \U0001f600", "b" * 10_000, "\ud800"]
    spool = TextStore(texts)
    assert [spool.read(number) for number in (4, 0, 3, 1, 2)] == [texts[number] for number in (4, 0, 3, 1, 2)]
    assert memory_map_tokens([array("i", [1, 2]), array("i"), array("i", [3])]).tolist() == [1, 2, 3]
    assert len(memory_map_tokens([])) == 0


@pytest.mark.parametrize("fraction", [0.0, 0.01, 0.3])
def test_numbers_are_held_out_as_names_are(fraction: float) -> None:
    numbers = np.array([3, 5, 8, 13, 21, 34, 55, 89])
    names = [str(number) for number in numbers]
    kept, held = hold_out(names, [0] * len(names), fraction, seed=4)
    assert [part.tolist() for part in hold_out_indices(numbers, fraction, 4)] == [
        [int(names[index]) for index in part] for part in (kept, held)
    ]
