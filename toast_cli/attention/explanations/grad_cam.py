"""Grad-CAM (Selvaraju et al., ICCV 2017) of either pass, with the library `grad-cam`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from toast_cli.attention.explanations.base import (
    ExplainedBatch,
    Explanation,
    disable_gradients,
    find_mismatch,
    pool_to_grid,
    require_image_classifier,
)
from toast_cli.backbones.base import State, Trace
from toast_cli.backbones.lazy_signal import Signal
from toast_cli.model.model import Model
from toast_cli.utils.errors import ToastError, UsageError


class FinalLevelModule(nn.Module):
    """The last level of a pass and the head, with `target_layer` as the target layer of Grad-CAM.

    For levels of tokens, the target is the input of the last level: this is the last time that the class token reads
    the other tokens. For levels of feature maps, the target is the output of the last level.

    Args:
        model: the model.
        inputs, outputs: the input and output of the last level in this pass.
        signal: the feedback signal of that level, if any.
    """

    def __init__(self, model: Model, inputs: Tensor, outputs: Tensor, signal: Signal | None) -> None:
        super().__init__()
        self.model = model
        self.target_layer = nn.Identity()
        self.inputs, self.outputs, self.signal = inputs, outputs, signal

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits, computed from the stored tensors; the images are not used."""
        backbone = self.model.backbone
        if backbone.channel_dim == 1:
            state = State(self.target_layer(self.outputs.detach().requires_grad_()))
        else:
            hidden = self.target_layer(self.inputs.detach().requires_grad_())
            state = backbone.level(len(backbone.levels) - 1, State(hidden), self.signal)
        return self.model.compute_outputs(backbone.leave(state).pooled)


def compute_grad_cam(model: Model, images: Tensor, output: int | Sequence[int] | None = None) -> dict[str, Tensor]:
    """Return Grad-CAM maps `[B, H, W]`, 0 to 1, of one output of the model, one for each pass.

    `output` is the index of a class, label or number, or one for each image; None for the class that the last pass
    predicts. The names are `grad_cam_one` and, with two passes, `grad_cam_two`.

    Raises:
        UsageError: the library is not installed, or the model does not classify images.
        ToastError: the recomputed last level gives other logits than the model.
    """
    try:
        from pytorch_grad_cam import GradCAM
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
    except ImportError as error:
        raise UsageError(
            "Grad-CAM needs the package grad-cam.",
            what_to_do='pip install "grad-cam>=1.5.5"',
            code="cli.missing-package",
        ) from error
    require_image_classifier(model, "Grad-CAM")
    backbone = model.backbone
    first, last = Trace(levels=True), Trace(levels=True)
    with torch.no_grad():
        logits, passes = model.forward_passes(images, first, last)
    if output is None:
        output = logits.argmax(-1).tolist()
    indices = [output] * len(images) if isinstance(output, int) else output
    targets = [ClassifierOutputTarget(index) for index in indices]
    ends: dict[str, tuple[Trace, Signal | None, Tensor | None]]
    ends = {"grad_cam_one": (first, None, None if last.outputs else logits)}
    if last.outputs:
        ends["grad_cam_two"] = (last, passes.signals[-1] if passes.signals else None, logits)
    maps = {}
    with disable_gradients(model):
        for name, (trace, signal, expected) in ends.items():
            final_level = FinalLevelModule(model, trace.inputs[-1], trace.outputs[-1], signal)
            cam = GradCAM(
                final_level,
                [final_level.target_layer],
                None if backbone.channel_dim == 1 else _build_reshape_transform(model, images),
            )
            try:
                maps[name] = torch.from_numpy(cam(images, targets))
            finally:
                cam.activations_and_grads.release()
            if expected is not None:
                check_final_logits(cam.outputs.detach(), expected)
    return maps


def check_final_logits(logits: Tensor, expected: Tensor) -> None:
    """Check that the recomputed last level gives the model's logits.

    Raises:
        ToastError: the logits differ.
    """
    if (difference := find_mismatch(logits, expected)) is not None:
        raise ToastError(
            "Grad-CAM is not supported for this model.",
            f"The recomputed last level gives logits that differ by {difference:.1%}, because the method adds "
            "something between the levels.",
            "Leave Grad-CAM out.",
            code="attention.grad-cam-mismatch",
        )


def _build_reshape_transform(model: Model, images: Tensor) -> Callable[[Tensor], Tensor]:
    grid, prefix = model.backbone.grid(images), model.backbone.prefix_tokens
    return lambda tokens: tokens[:, prefix : prefix + grid[0] * grid[1]].unflatten(1, grid).movedim(-1, 1)


def _compute_maps(batch: ExplainedBatch) -> Mapping[str, Tensor]:
    maps = compute_grad_cam(batch.model, batch.images, batch.outputs.tolist())
    passes = {"grad_cam_one": "pass_one", "grad_cam_two": "pass_two"}
    return {passes[name]: pool_to_grid(map, batch) for name, map in maps.items()}


GRAD_CAM = Explanation("grad-cam", "Grad-CAM", depends_on_class=True, compute=_compute_maps)
