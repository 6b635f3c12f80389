"""A stock timm `ConvNeXt` as a backbone that can run twice: signals enter where a stage samples down."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from timm.models.convnext import ConvNeXt, checkpoint_filter_fn
from torch import Tensor, nn
from torch.nn import functional as F

from toast_cli.plugin import (
    AuthorsCheckpoint,
    Backbone,
    Level,
    Preprocessing,
    Readout,
    Signal,
    State,
    ToastError,
    Trace,
    ValueSignal,
)
from toast_timm.loading import get_licence


class ConvNeXtBackbone(Backbone):
    """Any timm `ConvNeXt`, V1 or V2; a level is a stage together with what samples down before it (section 4.4).

    `X_td,l` is added to the input of a stage's down-sampling, so level 1's signal is added to the image. `z` is the
    last stage's map before any norm; what is compared with xi is that map after the model's final norm over channels.

    Where a stage's stride does not divide its input, the undoing deconvolution comes out a few pixels short of it (or
    over, under an overlapping stem): the signal is zero there, which the authors' code has no answer to.

    Raises:
        ToastError: the model is no `ConvNeXt`.
    """

    channel_dim = 1
    any_image_size = True
    adapter_targets = ("mlp.fc1", "mlp.fc2")
    module: ConvNeXt

    def __init__(self, module: nn.Module, preprocessing: Preprocessing) -> None:
        if not isinstance(module, ConvNeXt):
            raise ToastError(
                f"{type(module).__name__} is not a timm ConvNeXt.",
                what_to_do="Choose a ConvNeXt or ConvNeXtV2 model, or the plugin of its family.",
                code="backbone.wrong-family",
            )
        self.module = module
        self.width, self.head_width = module.num_features, module.head_hidden_size
        self.preprocessing = preprocessing
        self.levels = []
        self.level_modules = list(module.stages)
        width, reduction = module.in_chans, 1
        for stage in module.feature_info:
            stride = stage["reduction"] // reduction
            self.levels.append(Level(width, stage["num_chs"], "deconvolution", stride))
            width, reduction = stage["num_chs"], stage["reduction"]
        self.stride: int = reduction

    def enter(self, inputs: Tensor) -> State:
        """Images `[B, 3, H, W]` as they are: the stem belongs to level 1."""
        return State(inputs)

    def level(self, index: int, state: State, signal: Signal | None = None, trace: Trace | None = None) -> State:
        """Run one stock stage; the signal `[B, C, H, W]` is added to its input."""
        hidden = state.hidden
        if signal is not None:
            assert not isinstance(signal, ValueSignal)  # this family has no value_weight
            # Cuts or fills at the bottom and the right; nothing is done where the stride divides the input.
            rows, columns = hidden.shape[-2] - signal.shape[-2], hidden.shape[-1] - signal.shape[-1]
            hidden = hidden + F.pad(signal, (0, columns, 0, rows))
        if index == 0:
            hidden = self.module.stem(hidden)
        return State(self.module.stages[index](hidden))

    def leave(self, state: State) -> Readout:
        """The last stage's map `[B, C, H, W]`, the same normed, and the model's own pooled features `[B, d]`."""
        z, head = state.hidden, self.module.head
        normed = self.module.norm_pre(z)
        compared = head.norm(z) if hasattr(head, "norm") else normed
        return Readout(z=z, compared=compared, pooled=self.module.forward_head(normed, pre_logits=True))

    def tap(self, state: State) -> Readout:
        """A stage's map as it is: the final norm is for the last stage's channels alone."""
        return Readout(z=state.hidden, compared=state.hidden, pooled=state.hidden)

    def stock(self, inputs: Tensor) -> Tensor:
        """timm's own forward pass up to the pooled features `[B, d]`."""
        return self.module.forward_head(self.module.forward_features(inputs), pre_logits=True)

    def authors(self, tensors: Mapping[str, Tensor]) -> AuthorsCheckpoint:
        """As everywhere, but the network is Meta's ConvNeXt, and `A_l` a transposed convolution `[C, C', r, r]`."""
        found = super().authors(tensors)
        found.network = dict(checkpoint_filter_fn(found.network, self.module)) if found.network else {}
        for name, weight in found.feedback.items():
            if name.startswith("A.") and weight.ndim == 4:
                found.feedback[name] = weight.permute(1, 2, 3, 0).flatten(0, 2)[..., None, None]
        return found

    @property
    def licence(self) -> str | None:
        """As timm records it of published weights."""
        return get_licence(self.module)

    def example(self, batch: int) -> Tensor:
        """Random images `[batch, 3, H, W]` of the size that preprocessing makes."""
        return torch.randn(batch, 3, *self.require_preprocessing().image_size)

    def grid(self, inputs: Tensor) -> tuple[int, int]:
        """Rows and columns of the last stage's map."""
        rows, columns = (self._count_cells(side) for side in inputs.shape[-2:])
        return rows, columns

    def _count_cells(self, side: int) -> int:
        """What is left of a side of the image at the last stage."""
        for convolution in (part for part in self.module.stem if isinstance(part, nn.Conv2d)):
            reach = convolution.kernel_size[0] - 2 * int(convolution.padding[0])
            side = (side - reach) // convolution.stride[0] + 1
        for level in self.levels[1:]:
            side //= level.stride
        return side
