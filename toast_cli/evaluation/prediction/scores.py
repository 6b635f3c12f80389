"""Scores and features of new images: batches as in an evaluation, without images that cannot be read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import torch

from toast_cli.data.base import BatchOptions
from toast_cli.data.images.loader import ImageLoader
from toast_cli.evaluation.open_run import OpenedRun
from toast_cli.evaluation.prediction.answers import ScoreAnswers
from toast_cli.evaluation.prediction.samples import PredictedSample
from toast_cli.evaluation.prediction.sources import PredictionImages
from toast_cli.model.model import Model
from toast_cli.model.recipe_data import build_batches
from toast_cli.recipe.parse import replace_recipe_fields
from toast_cli.steering.folding import fold_during_evaluation
from toast_cli.utils.constants import IGNORE_INDEX
from toast_cli.utils.table_files import Cell


def make_prediction_loader(
    run: OpenedRun, images: PredictionImages, batch_size: int | None, workers: int | None
) -> ImageLoader:
    """Return the loader of an evaluation, which skips unreadable images; None stands for the settings of the run.

    Raises:
        UsageError: the batch size is smaller than the number of processes.
    """
    training, options = run.recipe.training, run.recipe.images
    size = batch_size or training.eval_batch_size or training.batch_size
    recipe = replace_recipe_fields(
        run.recipe,
        training={**training.model_dump(mode="json"), "workers": training.workers if workers is None else workers},
        images={**options.model_dump(mode="json"), "on_error": "skip", "cache": False},
    )
    process, processes = run.accelerator.process_index, run.accelerator.num_processes
    batches = BatchOptions(size, process=process, processes=processes)
    loader = build_batches(images, recipe, run.model.backbone, batches)
    assert isinstance(loader, ImageLoader)
    return loader


@torch.no_grad()
def predict_batches(
    run: OpenedRun,
    images: PredictionImages,
    loader: ImageLoader,
    answers: ScoreAnswers | None,
    features: Literal["last", "first"] | None,
) -> Iterator[dict[int, PredictedSample]]:
    """Yield the rows of this process's share of every batch, with the features of a pass if they are asked for."""
    run.model.eval()
    columns = 0 if answers is None else len(answers.columns)
    with fold_during_evaluation(run.model.adapted.steering, run.model.backbone, len(loader)):
        for indices, batch in zip(loader.batch_sampler, loader, strict=True):
            tensors: dict[str, Any] = {
                name: tensor.to(run.accelerator.device, non_blocking=True) for name, tensor in batch.items()
            }
            with run.accelerator.autocast():
                vectors, cells = compute_batch(run.model, tensors, answers, features)
            samples = {
                index: PredictedSample((images.names[index], *each, None), vector)
                for index, label, each, vector in zip(
                    batch["index"].tolist(), batch["label"].tolist(), cells, vectors, strict=True
                )
                if label != IGNORE_INDEX
            }
            for index in indices:
                if (reason := loader.skipped.pop(images.names[index], None)) is not None:
                    samples[index] = PredictedSample((images.names[index], *[None] * columns, reason))
            yield samples


def compute_batch(
    model: Model, batch: Mapping[str, Any], answers: ScoreAnswers | None, features: Literal["last", "first"] | None
) -> tuple[Sequence[Any], Sequence[Sequence[Cell]]]:
    """Return the features and the cells of a batch, from one run of the model where both come from its last pass."""
    objective, count = model.objective, len(batch["image"])
    pooled = None if features is None else model.compute_features(batch["image"], first_pass=features == "first")
    vectors = [None] * count if pooled is None else list(pooled.float().cpu().numpy())
    if answers is None:
        return vectors, [()] * count
    if pooled is None or features == "first" or objective.reads_levels:
        outputs = objective.predict(model, batch)
    else:
        outputs = model.compute_outputs(pooled)
    return vectors, answers.format_cells(objective.compute_scores(outputs).cpu())
