"""Integrated gradients (Sundararajan et al., ICML 2017) of either pass, with the library Captum."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from toast_cli.attention.explanations.base import (
    ExplainedBatch,
    Explanation,
    disable_gradients,
    find_mismatch,
    pool_to_grid,
    require_image_classifier,
)
from toast_cli.model.model import Model
from toast_cli.steering.steering import run_first_pass
from toast_cli.utils.errors import ToastError, UsageError

STEPS = 32
"""Number of points on the straight path from the mean colour to the image."""
POINTS_AT_A_TIME = 8
"""Number of points that are computed together."""


def run_differentiable_passes(model: Model, images: Tensor) -> Tensor:
    """Return the logits of a steered model, with gradients through both passes.

    In training, the first pass keeps no graph, since no trained parameter acts in it. The signals do depend on the
    image, so the gradient of the logits at the image needs the first pass as well.
    """
    backbone, steering = model.backbone, model.adapted.steering
    assert steering is not None
    shared, first, _ = run_first_pass(backbone, steering.levels, images)
    signals = steering.expand_to_levels(steering.compute_signals(first)[-1], len(backbone.levels))
    state = backbone.run(backbone.again(shared, images), signals, first=steering.levels.start)
    return model.compute_outputs(backbone.leave(state).pooled)


def compute_integrated_gradients(
    model: Model, images: Tensor, outputs: Tensor, steps: int = STEPS
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the attributions `[B, 3, H, W]` of one output per image, and their error `[B]`, by pass.

    The names are `pass_one` and, with two passes, `pass_two`. The path begins at the mean colour, which is zero in
    normalized images. Attributions should sum to the output at the image less the output at the mean colour; the error
    is the difference, and falls with more steps.

    Raises:
        UsageError: the library is not installed, or the model does not classify images.
        ToastError: the recomputed passes give other logits than the model.
    """
    try:
        from captum.attr import IntegratedGradients
    except ImportError as error:
        raise UsageError(
            "Integrated gradients need the package captum.",
            what_to_do='pip install "captum>=0.8"',
            code="cli.missing-package",
        ) from error
    require_image_classifier(model, "The method of integrated gradients")
    # Model.forward keeps no graph of a backbone that is not trained; forward_plain does.
    predict: dict[str, Callable[[Tensor], Tensor]] = {"pass_one": model.forward_plain}
    if model.adapted.steering is not None:
        predict["pass_two"] = lambda inputs: run_differentiable_passes(model, inputs)
    attributed = {}
    with disable_gradients(model):
        for name, function in predict.items():
            with torch.no_grad():
                expected = model(images) if name == list(predict)[-1] else function(images)
                difference = find_mismatch(function(images), expected)
            if difference is not None:
                raise ToastError(
                    "Integrated gradients are not supported for this model.",
                    f"The recomputed pass gives logits that differ by {difference:.1%}, because the method adds "
                    "something between the levels.",
                    "Leave integrated-gradients out.",
                    code="attention.gradients-mismatch",
                )
            maps, delta = IntegratedGradients(function).attribute(
                images,
                baselines=torch.zeros_like(images),
                target=outputs,
                n_steps=steps,
                internal_batch_size=max(POINTS_AT_A_TIME, len(images)),
                return_convergence_delta=True,
            )
            attributed[name] = (maps.detach(), delta.detach())
    return attributed


def _compute_maps(batch: ExplainedBatch) -> Mapping[str, Tensor]:
    found = compute_integrated_gradients(batch.model, batch.images, batch.outputs)
    return {name: pool_to_grid(maps.sum(1), batch) for name, (maps, _) in found.items()}


INTEGRATED_GRADIENTS = Explanation(
    "integrated-gradients", "integrated gradients", depends_on_class=True, compute=_compute_maps
)
