"""A two-block attention network in plain PyTorch, and the contract that lets toast steer it."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from toast_cli.plugin import Backbone, BackboneOptions, Level, Preprocessing, Readout, State, Trace

SIDE, PATCH, WIDTH, DEPTH = 64, 16, 32, 2


class Block(nn.Module):
    """Single-head attention with separate projections, so that the values can be steered on their own."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x: Tensor, signal: Tensor | None = None) -> Tensor:
        """Apply attention. The signal is added to the input of the values."""
        normed = self.norm(x)
        values = normed if signal is None else normed + signal
        return x + F.scaled_dot_product_attention(self.query(normed), self.key(normed), self.value(values))


class Network(nn.Module):
    """Patch embedding, blocks and norm. The pooled features are the mean over tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, WIDTH, PATCH, PATCH)
        self.blocks = nn.ModuleList(Block() for _ in range(DEPTH))
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, images: Tensor) -> Tensor:
        """Map images `[B, 3, 64, 64]` to features `[B, 32]`."""
        x = self.embed(images).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        return self.norm(x).mean(1)


class ExampleBackbone(Backbone):
    """The backbone contract for `Network`."""

    def __init__(self, module: Network) -> None:
        self.module = module
        self.width = self.head_width = WIDTH
        self.levels = [Level(WIDTH, WIDTH)] * DEPTH
        self.preprocessing = Preprocessing((SIDE, SIDE), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))

    def enter(self, inputs: Tensor) -> State:
        """Return the patch tokens of the images."""
        return State(self.module.embed(inputs).flatten(2).transpose(1, 2))

    def level(self, index: int, state: State, signal: Tensor | None = None, trace: Trace | None = None) -> State:
        """Run one block, steered in its values."""
        return State(self.module.blocks[index](state.hidden, signal))

    def leave(self, state: State) -> Readout:
        """Return the normalized tokens and their mean."""
        z = self.module.norm(state.hidden)
        return Readout(z=z, compared=z, pooled=z.mean(1))

    def grid(self, inputs: Tensor) -> tuple[int, int]:
        """Return the rows and columns of patches."""
        return inputs.shape[-2] // PATCH, inputs.shape[-1] // PATCH

    def stock(self, inputs: Tensor) -> Tensor:
        """Run the network's own forward pass."""
        return self.module(inputs)

    def example(self, batch: int) -> Tensor:
        """Return random images."""
        return torch.randn(batch, 3, SIDE, SIDE)


def build_example(options: BackboneOptions) -> ExampleBackbone:
    """Build the network with the weights of a file, or of a fixed seed."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Network()
    if options.weights not in (None, "none"):
        network.load_state_dict(load_file(Path(options.weights)))
    return ExampleBackbone(network)
