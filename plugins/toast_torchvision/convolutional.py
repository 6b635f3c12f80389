"""Stock torchvision `ResNet` and `ConvNeXt` models as backbones with two passes."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from toast_cli.plugin import Preprocessing, Readout, State
from toast_timm.staged_convnet import StagedConvNet
from toast_torchvision.classifier import leave_out


class ResNetBackbone(StagedConvNet):
    """Any torchvision `ResNet`, ResNeXt and Wide ResNet included. A level is a stage (section 4.4)."""

    adapter_targets = ("conv1", "conv2", "conv3")

    def __init__(self, module: nn.Module, preprocessing: Preprocessing) -> None:
        stem = ["conv1", "bn1", "relu", "maxpool"]
        super().__init__(module, preprocessing, [[*stem, "layer1"], ["layer2"], ["layer3"], ["layer4"]])
        self.unused_parts = [module.get_submodule("fc")]

    def leave(self, state: State) -> Readout:
        """Return the last stage's map `[B, C, H, W]`, twice, and its mean `[B, d]`."""
        z, network = state.hidden, self.module
        return Readout(z=z, compared=z, pooled=network.get_submodule("avgpool")(z).flatten(1))

    def stock(self, inputs: Tensor) -> Tensor:
        """Run torchvision's own forward pass up to the pooled features `[B, d]`."""
        with leave_out(self.module, "fc"):
            return self.module(inputs)


class TorchvisionConvNeXtBackbone(StagedConvNet):
    """Any torchvision `ConvNeXt`. A level is a stage with the down-sampling before it (section 4.4).

    The map compared with xi is the last stage's map after the final norm over channels.
    """

    adapter_targets = ("block.3", "block.5")

    def __init__(self, module: nn.Module, preprocessing: Preprocessing) -> None:
        count = len(list(module.get_submodule("features").children()))
        places = range(0, count, 2)  # stem or down-sampling, then blocks
        stages = [[f"features.{place}", f"features.{place + 1}"] for place in places]
        super().__init__(module, preprocessing, stages, rounding="down")
        self.unused_parts = [module.get_submodule("classifier.2")]

    def leave(self, state: State) -> Readout:
        """Return the last stage's map `[B, C, H, W]`, the normalized map, and the pooled features `[B, d]`."""
        z = state.hidden
        network: Any = self.module
        norm, flatten = network.classifier[0], network.classifier[1]
        return Readout(z=z, compared=norm(z), pooled=flatten(norm(network.avgpool(z))))

    def stock(self, inputs: Tensor) -> Tensor:
        """Run torchvision's own forward pass up to the pooled features `[B, d]`."""
        with leave_out(self.module, "classifier.2"):
            return self.module(inputs)
