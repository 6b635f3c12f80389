"""Language modelling: the model's own head and the cross-entropy of the next token, on target tokens only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import exp
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from toast_cli.tasks.base import Meter, Objective, Task
from toast_cli.utils.config import NamedOptions
from toast_cli.utils.constants import BATCH_METADATA_KEYS, IGNORE_INDEX
from toast_cli.utils.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from toast_cli.backbones.base import Backbone


PROBE_TOKENS = 17
"""Tokens of the text on which the memory of the loss is measured."""


class LanguageModelingOptions(NamedOptions):
    """Options of language modelling."""

    name: Literal["language"] = Field("language", description="the task")
    end_tokens: Literal["frozen", "auto", "trained"] | tuple[Annotated[int, Field(ge=0)], ...] = Field(
        "frozen",
        examples=["auto"],
        description="output rows of the tokens that end answers: trained, frozen, or auto, which trains those that the "
        "model was never trained on; a run records their numbers",
    )


def next_token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the summed cross-entropy of the logits `[B, N, V]` at each token and the label `[B, N]` of the next."""
    from torch.nn import functional as F

    learned = labels[:, 1:] != IGNORE_INDEX
    return F.cross_entropy(logits[:, :-1][learned].float(), labels[:, 1:][learned], reduction="sum")


def measure_texts(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the cross-entropy of every text, summed over its target tokens, and their number, both `[B]`.

    `logits` are `[B, N, V]` and `labels` `[B, N]`, as for `next_token_loss`.
    """
    from torch.nn import functional as F

    learned = labels[:, 1:] != IGNORE_INDEX
    losses = logits.new_zeros(learned.shape).float()
    losses[learned] = F.cross_entropy(logits[:, :-1][learned].float(), labels[:, 1:][learned], reduction="none")
    return losses.sum(1), learned.sum(1)


class LanguageMeter(Meter):
    """Loss per target token, and perplexity."""

    def __init__(self) -> None:
        super().__init__(loss=0.0, tokens=0, texts=0)

    def add(self, outputs: Tensor, batch: Mapping[str, Any]) -> None:
        """Add logits `[B, N, V]` with labels `batch["labels"]` `[B, N]`."""
        self.sums["loss"] += next_token_loss(outputs, batch["labels"]).item()
        self.sums["tokens"] += count_target_tokens(batch)
        self.sums["texts"] += len(batch["labels"])

    def result(self) -> dict[str, float]:
        """Return `loss`, `perplexity`, and the numbers of `tokens` and `texts`."""
        loss = self.sums["loss"] / max(self.sums["tokens"], 1)
        return {
            "perplexity": exp(loss) if loss < 700 else float("inf"),
            "loss": loss,
            "tokens": self.sums["tokens"],
            "texts": self.sums["texts"],
        }


class AnswerMeter(LanguageMeter):
    """Also how often the model predicts the end of an answer at its place, and the loss of all other tokens.

    Args:
        ends: The sequences of tokens that end answers.
    """

    def __init__(self, ends: Sequence[tuple[int, ...]]) -> None:
        super().__init__()
        self.ends = tuple(ends)
        self.sums |= {"end_loss": 0.0, "end_tokens": 0, "answers": 0, "ended": 0}

    def add(self, outputs: Tensor, batch: Mapping[str, Any]) -> None:
        """Add logits `[B, N, V]` with labels `batch["labels"]` `[B, N]`."""
        from torch.nn import functional as F

        super().add(outputs, batch)
        labels, logits = batch["labels"][:, 1:], outputs[:, :-1]
        for end in self.ends:
            if labels.shape[1] < len(end):
                continue
            windows = labels.unfold(1, len(end), 1)  # [B, N - n, n]
            rows, starts = (windows == windows.new_tensor(end)).all(-1).nonzero(as_tuple=True)
            places = starts[:, None] + starts.new_tensor(range(len(end)))
            chosen = logits[rows[:, None], places]  # [answers, n, V]
            target = windows.new_tensor(end).expand(len(rows), -1)
            self.sums["end_loss"] += F.cross_entropy(
                chosen.flatten(0, 1).float(), target.flatten(), reduction="sum"
            ).item()
            self.sums["ended"] += int((chosen.argmax(-1) == target).all(-1).sum())
            self.sums["answers"] += len(rows)
            self.sums["end_tokens"] += target.numel()

    def result(self) -> dict[str, float]:
        """Return the metrics of texts; if there are ends of answers, also `end_accuracy`, their number (`answers`), and
        `loss_without_end`, the loss per token of all other tokens.
        """
        found, others = super().result(), self.sums["tokens"] - self.sums["end_tokens"]
        if not self.sums["answers"] or others <= 0:
            return found
        return {
            **found,
            "answers": self.sums["answers"],
            "end_accuracy": self.sums["ended"] / self.sums["answers"],
            "loss_without_end": (self.sums["loss"] - self.sums["end_loss"]) / others,
        }


def count_target_tokens(batch: Mapping[str, Any]) -> int:
    """Return the number of predicted tokens: all labels except the first, which has no preceding token."""
    return int((batch["labels"][:, 1:] != IGNORE_INDEX).sum())


class LanguageModeling(Objective):
    """Next-token prediction with the model's own output layer.

    `ends` are the sequences of tokens that end answers; none for documents.
    """

    target = "text"
    ends: tuple[tuple[int, ...], ...] = ()

    def __init__(self, head: nn.Module) -> None:
        self.head = head

    def inputs(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return the token ids `[B, N]` and the masks that come with them."""
        return {name: tensor for name, tensor in batch.items() if name not in ("labels", *BATCH_METADATA_KEYS)}

    def count(self, batch: Mapping[str, Any]) -> int:
        """Return the number of target tokens."""
        return count_target_tokens(batch)

    def loss(self, outputs: Tensor, batch: Mapping[str, Any]) -> Tensor:
        """Return the cross-entropy of the target tokens, summed."""
        return next_token_loss(outputs, batch["labels"])

    def make_loss_probe(self, outputs: Tensor, sample: Mapping[str, Any]) -> tuple[Tensor, Mapping[str, Any]]:
        """Return the outputs for a few tokens, all of them learned: those of a long text may not fit into memory."""
        import torch

        tokens = min(PROBE_TOKENS, outputs.shape[1])
        labels = torch.zeros(1, tokens, dtype=torch.int64)
        return torch.zeros(1, tokens, outputs.shape[2], dtype=outputs.dtype), {"labels": labels}

    def meter(self) -> LanguageMeter:
        """Return a new meter of loss and perplexity."""
        return LanguageMeter()

    def evaluation_meter(self) -> LanguageMeter:
        """Return a new meter that also measures the ends of answers, if it is known what ends them."""
        return AnswerMeter(self.ends) if self.ends else LanguageMeter()


def build_language_modeling(
    options: LanguageModelingOptions, backbone: Backbone, classes: tuple[str, ...]
) -> LanguageModeling:
    """Build the objective with the backbone's own head, which is trained only by methods that train the backbone.

    The output rows of the tokens that `end_tokens` lists are trained.

    Raises:
        UsageError: The backbone is not a language model, or has no such output rows.
    """
    head = backbone.output()
    if head is None:
        raise UsageError(
            f"{type(backbone.module).__name__} is not a language model.",
            what_to_do="Choose a language model: llama:<model>.",
            code="task.not-a-language-model",
        )
    if options.end_tokens and not isinstance(options.end_tokens, str):
        from toast_cli.tasks.output_rows import add_output_rows

        add_output_rows(backbone.module, options.end_tokens)
    return LanguageModeling(head)


TASK = Task(LanguageModelingOptions, build_language_modeling)
