"""Answers of a language model to files of prompts."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from toast_cli.data.base import get_split_kind
from toast_cli.data.text.prompts import Prompt, drop_answer, read_prompts
from toast_cli.evaluation.open_run import OpenedRun
from toast_cli.evaluation.prediction.samples import PredictedSample
from toast_cli.evaluation.prediction.sources import check_dataset_options, is_dataset, open_dataset, select_splits
from toast_cli.model.generation import TextGenerator
from toast_cli.recipe.schema import Recipe
from toast_cli.utils.errors import ToastError, UsageError
from toast_cli.utils.table_files import Row

BATCH_SIZE = 8
"""Number of answers that are generated together by default."""
EXPECTED_SOURCES = (
    "Give files of prompts: one per line, or .json or .jsonl with 'prompt' or 'messages'; or a data set such as "
    "alpaca:FILE."
)


@dataclass(frozen=True)
class PromptList:
    """The prompts of all sources in one order."""

    prompts: tuple[Prompt, ...]
    notes: tuple[str, ...] = ()

    @cached_property
    def names(self) -> tuple[str, ...]:
        """File and number of every prompt."""
        return tuple(prompt.name for prompt in self.prompts)

    @property
    def digest(self) -> str:
        """A hash of names and texts in their order."""
        return sha256(repr([(prompt.name, prompt.text) for prompt in self.prompts]).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.prompts)

    def take(self, indices: Sequence[int]) -> PromptList:
        """Return the prompts at `indices`, in that order."""
        return PromptList(tuple(self.prompts[index] for index in indices))

    def is_current(self, row: Row) -> bool:
        """Return whether the row of a table has the prompt that the sources have under its name, if they have one."""
        return self._texts.get(str(row[0]), row[1]) == row[1]

    @cached_property
    def _texts(self) -> dict[str, str]:
        return {prompt.name: prompt.text for prompt in self.prompts}


def open_prompts(
    sources: Sequence[str], recipe: Recipe, split: str | None, overrides: Sequence[str] = ()
) -> PromptList:
    """Read the prompts of all sources. A file that several sources name is read once.

    Args:
        sources: files, patterns, and data sets of conversations, whose answers are left out.
        recipe: the recipe of the run: its data set is opened with its own settings.
        split: the split of data sets; None: all of them.
        overrides: dotted fields of the data sets, such as `dataset.val_fraction=0`.

    Raises:
        UsageError: there is no such source, it has no such split, or an override is invalid.
        ToastError: a source cannot be read, or has no prompts.
    """
    prompts: dict[str, Prompt] = {}
    for source in sources:
        path = Path(source).expanduser()
        if path.is_file():
            found = read_prompts(path)
        elif is_dataset(source):
            found = list(_read_dataset(source, recipe, split, overrides))
        elif glob.has_magic(source) and (files := sorted(glob.glob(str(path), recursive=True))):  # noqa: PTH207
            found = [prompt for file in files if Path(file).is_file() for prompt in read_prompts(Path(file))]
        else:
            raise UsageError(
                f"There is no file of prompts or data set '{source}'.",
                what_to_do=EXPECTED_SOURCES,
                code="data.missing-source",
            )
        prompts |= {prompt.name: prompt for prompt in found}
    check_dataset_options(sources, split, overrides)
    return PromptList(tuple(prompts.values()))


def _read_dataset(source: str, recipe: Recipe, split: str | None, overrides: Sequence[str]) -> Iterator[Prompt]:
    """Yield the prompts of a data set of conversations."""
    data = open_dataset(source, recipe, overrides)
    for each in select_splits(data.splits, source, split).values():
        if get_split_kind(each) != "conversations":
            raise UsageError(
                f"'{source}' has no conversations.", what_to_do=EXPECTED_SOURCES, code="text.not-conversations"
            )
        conversations: Any = each
        for conversation in conversations.conversations:
            yield Prompt(f"{source}: {conversation.name}", drop_answer(conversation.turns))


def predict_texts(
    run: OpenedRun, writer: TextGenerator, prompts: PromptList, batch_size: int, settings: Mapping[str, Any], seed: int
) -> Iterator[dict[int, PredictedSample]]:
    """Yield the rows of every batch. Processes divide the prompts of a batch, which have similar lengths."""
    process, processes = run.accelerator.process_index, run.accelerator.num_processes
    run.model.eval()
    torch.manual_seed(seed + process)
    order = sorted(range(len(prompts)), key=lambda index: sum(len(turn.whole) for turn in prompts.prompts[index].turns))
    for start in range(0, len(order), batch_size):
        own = order[start : start + batch_size][process::processes]
        errors = {index: _find_error(writer, prompts.prompts[index]) for index in own}
        usable = [index for index in own if errors[index] is None]
        texts = writer.answer_all([prompts.prompts[index].turns for index in usable], batch_size, **settings)
        answers = dict(zip(usable, texts, strict=True))
        yield {
            index: PredictedSample(
                (prompts.names[index], prompts.prompts[index].text, answers.get(index), errors[index])
            )
            for index in own
        }


def _find_error(writer: TextGenerator, prompt: Prompt) -> str | None:
    """Return why a prompt cannot be answered: it is no prompt, or does not fit into the model."""
    if prompt.error is not None:
        return prompt.error
    try:
        writer.encode_prompt(prompt.turns)
    except ToastError as error:
        return " ".join(filter(None, [error.what, error.why]))
    return None
