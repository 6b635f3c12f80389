"""Attention of a language model over the parts of its texts, and its loss at several strengths of the feedback."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from toast_cli.attention.map_validation import AttentionChecks
from toast_cli.attention.maps import AttentionRecorder
from toast_cli.attention.text_shares import TextAttentionTable
from toast_cli.data.text.text_parts import label_conversation_tokens, label_document_tokens
from toast_cli.evaluation.attention_evaluation import DEFAULT_ALPHAS, AttentionEvalRequest, check_zero_strength
from toast_cli.evaluation.compare_runs import merge_attention_checks
from toast_cli.evaluation.open_run import set_feedback_strength
from toast_cli.evaluation.texts.runs import TextRun, measure_text_losses, open_text_run
from toast_cli.training.reporter import Reporter
from toast_cli.utils.errors import UsageError
from toast_cli.utils.statistics import MeanEstimate, bootstrap_mean


@dataclass(frozen=True)
class TextAttentionResult:
    """The shares of attention of a run on the parts of its texts, and the result of validating the maps."""

    run: TextRun
    table: TextAttentionTable
    checks: AttentionChecks | None


@torch.no_grad()
def evaluate_text_attention(request: AttentionEvalRequest, reporter: Reporter) -> TextAttentionResult:
    """Measure how much of its attention a run gives to each part of a text while it reads and writes answers.

    The attention is that of the tokens that predict a learned token, in the level and head of the request.

    Raises:
        UsageError: the split, the level or the head does not exist, or the backbone has no attention.
        ToastError: a map differs from the model's attention, or the run or its data cannot be loaded.
    """
    run = open_text_run(request, reporter)
    recorder = run.viewer.recorder
    if not isinstance(recorder, AttentionRecorder):
        raise UsageError("The backbone has no attention.", code="attention.no-maps")
    table, checks = TextAttentionTable(), []
    objective = run.session.model.objective
    for part, loader, batch in reporter.track_progress(run.iterate_batches(), run.batches, "attention"):
        with run.session.accelerator.autocast():
            weights = recorder.record_weights(objective.inputs(batch))
        checks.append(weights.checks)
        for row, index in enumerate(batch["index"].tolist()):
            text = loader.texts[index]
            tokens = len(text.ids)
            last = None if weights.last is None else weights.last[row, :tokens, :tokens].cpu()
            first = weights.first[row, :tokens, :tokens].cpu()
            table.add(run.get_name(part, index), first, last, label_tokens(run, part, index), text.labels)
    return TextAttentionResult(run, table, merge_attention_checks(checks))


def label_tokens(run: TextRun, part: str, index: int) -> list[str]:
    """Return the part of each token of a text of a split, by its place in the loader."""
    loader, tokenizer = run.loaders[part], run.session.model.backbone.tokenizer
    text = loader.texts[index]
    if not loader.origins:
        return label_document_tokens(text.ids, tokenizer)
    conversation, sample = loader.origins[index]
    split: Any = run.session.data.splits[part]
    labelled = label_conversation_tokens(split.load(conversation).turns, tokenizer, split.options.template)
    return labelled[sample][: len(text.ids)]


@dataclass(frozen=True)
class TextSweepResult:
    """The losses at every feedback strength: means with intervals, and differences from the plain backbone."""

    run: TextRun
    lines: list[dict[str, Any]]


@torch.no_grad()
def sweep_text_loss(
    request: AttentionEvalRequest, reporter: Reporter, alphas: Sequence[float] = DEFAULT_ALPHAS
) -> TextSweepResult:
    """Measure the loss of each text at each feedback strength.

    Raises:
        UsageError: the model has no feedback path, or the split does not exist.
        ToastError: with strength 0 the model differs from the plain backbone, or the run cannot be loaded.
    """
    run = open_text_run(request, reporter)
    model = run.session.model
    if model.adapted.steering is None:
        raise UsageError(
            "--sweep varies the strength of the feedback, and this model has no feedback path.",
            what_to_do="Leave --sweep out.",
            code="method.no-feedback-path",
        )
    check_plain_at_zero(run)
    losses: dict[float, np.ndarray] = {}
    perplexity = {}
    for alpha in alphas:
        set_feedback_strength(model, alpha)
        measured = measure_text_losses(run, reporter, f"alpha {alpha:g}")
        losses[alpha], perplexity[alpha] = measured.losses, float(np.exp(measured.compute_token_loss()))
    set_feedback_strength(model, 1.0)
    lines = []
    for alpha in alphas:
        line: dict[str, Any] = {"alpha": alpha, "loss": describe_mean(bootstrap_mean(losses[alpha]))}
        if 0.0 in losses:
            line["loss_change"] = describe_mean(bootstrap_mean(losses[alpha] - losses[0.0]))
        lines.append({**line, "perplexity": perplexity[alpha]})
    return TextSweepResult(run, lines)


def check_plain_at_zero(run: TextRun) -> None:
    """Check on the first batch that with strength 0 the model is the plain backbone.

    Raises:
        ToastError: the logits differ.
    """
    model = run.session.model
    _, _, batch = next(run.iterate_batches())
    inputs = model.objective.inputs(batch)
    set_feedback_strength(model, 0.0)
    with run.session.accelerator.autocast():
        check_zero_strength(model, inputs, model(inputs))


def describe_mean(mean: MeanEstimate | None) -> dict[str, Any] | None:
    """Return a mean over texts for a JSON record."""
    if mean is None:
        return None
    values = asdict(mean)
    return {**{name: values[name] for name in ("mean", "low", "high")}, "texts": values["images"]}
