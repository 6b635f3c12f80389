"""Runs of language models with the texts to measure them on, and what is measured of each text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import send_to_device

from toast_cli.data.base import TEXT_KINDS, get_split_kind
from toast_cli.data.text.loader import TextLoader
from toast_cli.evaluation.attention_evaluation import AttentionEvalRequest, build_viewer
from toast_cli.evaluation.open_run import ALL_SPLITS, choose_split, open_run, open_session
from toast_cli.storage.adapter import find_model_file, read_adapter_config
from toast_cli.storage.run_folder import is_unfinished
from toast_cli.tasks.language import measure_texts
from toast_cli.training.reporter import Reporter
from toast_cli.training.session import Session
from toast_cli.utils.errors import UsageError
from toast_cli.visualize.view import AttentionViewer


def is_language_run(path: Path) -> bool:
    """Return whether a finished run, an adapter or an export is of the task `language`.

    Raises:
        UsageError: there is none at `path`.
        ToastError: its configuration is damaged.
    """
    if is_unfinished(path):  # opening it says so
        return False
    task = read_adapter_config(find_model_file(path)).recipe.get("task")
    return (task.get("name") if isinstance(task, dict) else task) == "language"


@dataclass(frozen=True)
class TextRun:
    """A run of a language model in evaluation mode, with a loader of each split that is measured."""

    request: AttentionEvalRequest
    viewer: AttentionViewer
    session: Session
    split: str
    loaders: dict[str, TextLoader]

    @property
    def texts(self) -> int:
        """Return the number of texts."""
        return sum(loader.samples for loader in self.loaders.values())

    @property
    def batches(self) -> int:
        """Return the number of batches."""
        return sum(map(len, self.loaders.values()))

    def iterate_batches(self) -> Iterator[tuple[str, TextLoader, dict[str, Any]]]:
        """Yield the batches on the device, each with the split and the loader that it comes from."""
        for part, loader in self.loaders.items():
            for batch in loader:
                yield part, loader, send_to_device(batch, self.session.accelerator.device)

    def list_names(self) -> list[str]:
        """Return the name of every text: that of its conversation, or the number of a block of documents."""
        return [self.get_name(part, index) for part, loader in self.loaders.items() for index in range(loader.samples)]

    def get_name(self, part: str, index: int) -> str:
        """Return the name of a text of a split, by its place in the loader."""
        origins = self.loaders[part].origins
        if not origins:
            return f"block {index + 1}"
        conversation, sample = origins[index]
        name = self.session.data.splits[part].load(conversation).name
        return name if sample == 0 else f"{name}, part {sample + 1}"

    def decode_text(self, index: int) -> str:
        """Return a text as the model reads it, by its place among all texts."""
        for loader in self.loaders.values():
            if index < loader.samples:
                return self.session.model.backbone.require_tokenizer().decode(loader.texts[index].ids)
            index -= loader.samples
        raise IndexError(index)


def open_text_run(
    request: AttentionEvalRequest, reporter: Reporter, name: str | None = None, seed: int | None = None
) -> TextRun:
    """Open a run of a language model with the texts of a request.

    Args:
        request: the run, its data and the number of texts.
        reporter: receives notes on texts that are truncated or left out.
        name: the name of the run in tables; None for the name of its folder.
        seed: the seed that draws texts with a `limit`; None for the run's own seed.

    Raises:
        UsageError: the split does not exist, or does not hold texts.
        ToastError: the run or its data cannot be loaded.
    """
    run = open_run(request)
    if run.accelerator.num_processes > 1:
        raise UsageError(
            "Texts are compared in a single process.",
            what_to_do="Start it without a launcher.",
            code="attention.several-processes",
        )
    session = open_session(run, reporter)
    split = choose_split(request, session.data)
    parts = tuple(session.data.splits) if split == ALL_SPLITS else (split,)
    if any(get_split_kind(session.data.splits[part]) not in TEXT_KINDS for part in parts):
        raise UsageError(
            f"{session.recipe.dataset.name} contains no texts, and {request.path} is a language model.",
            what_to_do="Give a data set of texts with --dataset.",
            code="data.not-texts",
        )
    loaders: dict[str, TextLoader] = {}
    for part in parts:
        loader = session.make_loader(part)
        assert isinstance(loader, TextLoader)
        for note in loader.notes:
            reporter.report_message(note if split == ALL_SPLITS else f"{part}: {note}")
        loaders[part] = loader.draw_texts(request.limit, run.recipe.seed if seed is None else seed)
    viewer = replace(build_viewer(run, name or request.path.resolve().name), level=request.layer, head=request.head)
    return TextRun(request, viewer, session, split, loaders)


@dataclass(frozen=True)
class TextLosses:
    """The loss of each text, in nats per target token, and its number of target tokens, both `[texts]`."""

    losses: np.ndarray
    tokens: np.ndarray

    def compute_token_loss(self) -> float:
        """Return the mean loss over all target tokens, as `toast eval` has it."""
        return float((self.losses * self.tokens).sum() / self.tokens.sum())


@torch.no_grad()
def measure_text_losses(run: TextRun, reporter: Reporter, what: str) -> TextLosses:
    """Return the loss of a run on each of its texts, in their order. `what` names the run on the progress bar."""
    losses, tokens = [], []
    objective, model = run.session.model.objective, run.session.model
    for _, _, batch in reporter.track_progress(run.iterate_batches(), run.batches, what):
        with run.session.accelerator.autocast():
            logits = objective.predict(model, batch)
        loss, count = measure_texts(logits, batch["labels"])
        losses.append((loss / count.clamp_min(1)).double().cpu().numpy())
        tokens.append(count.cpu().numpy())
    return TextLosses(np.concatenate(losses), np.concatenate(tokens))
