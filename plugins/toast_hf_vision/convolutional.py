"""Stock ConvNeXt, ResNet and RegNet models of transformers as backbones with two passes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn
from transformers import PreTrainedModel

from toast_cli.plugin import Preprocessing, Readout, State
from toast_timm.staged_convnet import StagedConvNet


@dataclass(frozen=True)
class StagedLayout:
    """The layout of a kind of staged model: the path of its stem, if it is outside the stages, and of the stages.

    `norm` is the path of the final norm over channels, which is applied to the mean of the map. `rounding` is as in
    `StagedConvNet`.
    """

    stem: str | None
    stages: str
    norm: str | None
    rounding: Literal["down", "up"]
    adapter_targets: tuple[str, ...]


_CONVNEXT = StagedLayout("embeddings", "encoder.stages", "layernorm", "down", ("pwconv1", "pwconv2"))
_RESNET = StagedLayout("embedder", "encoder.stages", None, "up", ("convolution",))

LAYOUTS: Mapping[str, StagedLayout] = {
    "convnext": _CONVNEXT,
    "convnextv2": _CONVNEXT,
    "dinov3_convnext": StagedLayout(None, "model.stages", "layer_norm", "down", ("pointwise_conv1", "pointwise_conv2")),
    "resnet": _RESNET,
    "regnet": _RESNET,
}
"""The layouts by the type of the model's configuration."""


class HfStagedBackbone(StagedConvNet):
    """A staged convolutional model of transformers. A level is a stage with the down-sampling before it (section 4.4).

    The map compared with xi is the last stage's map after the final norm over channels, if the model has one.
    """

    module: PreTrainedModel

    def __init__(self, module: PreTrainedModel, preprocessing: Preprocessing) -> None:
        self.layout = LAYOUTS[module.config.model_type]
        stages = [
            [f"{self.layout.stages}.{name}"] for name, _ in module.get_submodule(self.layout.stages).named_children()
        ]
        if self.layout.stem is not None:
            stages[0].insert(0, self.layout.stem)
        self.adapter_targets = self.layout.adapter_targets
        super().__init__(module, preprocessing, stages, self.layout.rounding)

    definition: Mapping[str, str] = {}

    def files(self) -> Mapping[str, str]:
        """Return the configuration and the preprocessing, as transformers writes them."""
        return self.definition

    def leave(self, state: State) -> Readout:
        """Return the last stage's map `[B, C, H, W]`, the normalized map, and the pooled features `[B, d]`."""
        z, network = state.hidden, self.module
        if self.layout.norm is None:
            return Readout(z=z, compared=z, pooled=network.get_submodule("pooler")(z).flatten(1))
        norm = network.get_submodule(self.layout.norm)
        return Readout(z=z, compared=_normalize(norm, z), pooled=self._pool(norm, z))

    def stock(self, inputs: Tensor) -> Tensor:
        """Run transformers' own forward pass up to the pooled features `[B, d]`."""
        return self.module(pixel_values=inputs, return_dict=True).pooler_output.flatten(1)

    def _pool(self, norm: nn.Module, z: Tensor) -> Tensor:
        pool: Callable[[Tensor], Any] | None = getattr(self.module, "pool", None)
        return norm(z.mean([-2, -1]) if pool is None else pool(z).flatten(1))


def _normalize(norm: nn.Module, z: Tensor) -> Tensor:
    """Apply a norm over channels to a map `[B, C, H, W]`."""
    return norm(z.movedim(1, -1)).movedim(-1, 1)
