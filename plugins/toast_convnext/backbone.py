"""A stock timm `ConvNeXt` as a backbone with two passes: signals enter before the down-sampling of a stage."""

from __future__ import annotations

from collections.abc import Mapping

from timm.models.convnext import ConvNeXt, checkpoint_filter_fn
from torch import Tensor, nn

from toast_cli.plugin import (
    AuthorsCheckpoint,
    Level,
    Preprocessing,
    Readout,
    Signal,
    State,
    ToastError,
    Trace,
    ValueSignal,
)
from toast_timm.backbone import TimmBackbone
from toast_timm.map_layout import fit_map


class ConvNeXtBackbone(TimmBackbone):
    """Any timm `ConvNeXt`, V1 or V2. A level is a stage with the down-sampling before it (section 4.4).

    `X_td,l` is added to the input of a stage's down-sampling, so level 1's signal is added to the image. `z` is the
    last stage's map before any norm. The map compared with xi is `z` after the model's final norm over channels.

    If a stage's stride does not divide its input, the deconvolution gives a few pixels less than the input (or more,
    with an overlapping stem). The signal is zero in the missing pixels. The authors' code does not handle this case.

    Raises:
        ToastError: The model is not a `ConvNeXt`.
    """

    channel_dim = 1
    any_image_size = True
    adapter_targets = ("mlp.fc1", "mlp.fc2")
    signal_entry = "the input of every stage, before its down-sampling; that of the first stage is the image"
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
        """Return the images `[B, 3, H, W]`: the stem belongs to level 1."""
        return State(inputs)

    def level(self, index: int, state: State, signal: Signal | None = None, trace: Trace | None = None) -> State:
        """Run one stock stage. The signal `[B, C, H, W]` is added to its input."""
        hidden = state.hidden
        if signal is not None:
            assert not isinstance(signal, ValueSignal)  # this family has no value_weight
            hidden = hidden + fit_map(signal, hidden)
        if index == 0:
            hidden = self.module.stem(hidden)
        return State(self.module.stages[index](hidden))

    def leave(self, state: State) -> Readout:
        """Return the last stage's map `[B, C, H, W]`, the normalized map, and the pooled features `[B, d]`."""
        z, head = state.hidden, self.module.head
        normed = self.module.norm_pre(z)
        compared = head.norm(z) if hasattr(head, "norm") else normed
        return Readout(z=z, compared=compared, pooled=self.module.forward_head(normed, pre_logits=True))

    def tap(self, state: State) -> Readout:
        """Return a stage's map: the final norm only fits the channels of the last stage."""
        return Readout(z=state.hidden, compared=state.hidden, pooled=state.hidden)

    def authors(self, tensors: Mapping[str, Tensor]) -> AuthorsCheckpoint:
        """Sort the tensors; the network is Meta's ConvNeXt, and `A_l` is a transposed convolution `[C, C', r, r]`."""
        checkpoint = super().authors(tensors)
        checkpoint.network = dict(checkpoint_filter_fn(checkpoint.network, self.module)) if checkpoint.network else {}
        for name, weight in checkpoint.feedback.items():
            if name.startswith("A.") and weight.ndim == 4:
                checkpoint.feedback[name] = weight.permute(1, 2, 3, 0).flatten(0, 2)[..., None, None]
        return checkpoint

    def grid(self, inputs: Tensor) -> tuple[int, int]:
        """Return the rows and columns of the last stage's map."""
        rows, columns = (self._count_cells(side) for side in inputs.shape[-2:])
        return rows, columns

    def _count_cells(self, side: int) -> int:
        """Return the size of a side of the image at the last stage."""
        for convolution in (part for part in self.module.stem if isinstance(part, nn.Conv2d)):
            reach = convolution.kernel_size[0] - 2 * int(convolution.padding[0])
            side = (side - reach) // convolution.stride[0] + 1
        for level in self.levels[1:]:
            side //= level.stride
        return side
