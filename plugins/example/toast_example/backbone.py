"""A small attention network in plain PyTorch, and the contract that lets toast steer it."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from toast_cli.plugin import (
    Backbone,
    Level,
    Preprocessing,
    Readout,
    State,
    ToastError,
    Trace,
    require_regular_file,
)

SIDE, PATCH, WIDTH = 64, 16, 32


class Block(nn.Module):
    """Single-head attention with separate projections, so that the values can be steered on their own."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x: Tensor, signal: Tensor | None = None) -> Tensor:
        """Apply attention. The signal is added to the input of the values."""
        return x + F.scaled_dot_product_attention(*self.project(x, signal))

    def project(self, x: Tensor, signal: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values `[B, N, 32]`."""
        normed = self.norm(x)
        steered = normed if signal is None else normed + signal
        return self.query(normed), self.key(normed), self.value(steered)

    def attention(self, x: Tensor, signal: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the map `[B, N, N]` inside the fused attention, and how much its own output differs from that."""
        q, k, v = self.project(x, signal)
        map = (q @ k.mT / WIDTH**0.5).softmax(-1)
        fused = F.scaled_dot_product_attention(q, k, v)
        return map, (map @ v - fused).abs().max() / fused.abs().max()


class Network(nn.Module):
    """Patch embedding, blocks and norm. The pooled features are the mean over tokens."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, WIDTH, PATCH, PATCH)
        self.blocks = nn.ModuleList(Block() for _ in range(depth))
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, images: Tensor) -> Tensor:
        """Map images `[B, 3, 64, 64]` to features `[B, 32]`."""
        x = self.embed(images).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        return self.norm(x).mean(1)


class ExampleBackbone(Backbone):
    """The backbone contract for `Network`."""

    has_attention = True
    adapter_targets = ("query", "value")

    def __init__(self, module: Network) -> None:
        self.module = module
        self.width = self.head_width = WIDTH
        self.levels = [Level(WIDTH, WIDTH)] * len(module.blocks)
        self.preprocessing = Preprocessing((SIDE, SIDE), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))

    def enter(self, inputs: Tensor) -> State:
        """Return the patch tokens of the images."""
        return State(self.module.embed(inputs).flatten(2).transpose(1, 2))

    def level(self, index: int, state: State, signal: Tensor | None = None, trace: Trace | None = None) -> State:
        """Run one block, steered in its values, and record its attention if it is asked for."""
        block = self.module.blocks[index]
        if trace is not None and index in trace.attention_of:
            map, trace.mismatch[index] = block.attention(state.hidden, signal)
            trace.attention[index] = map[:, None]  # [B, heads, N, N]
        return State(block(state.hidden, signal))

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


def build_example(depth: int, weights: str | None) -> ExampleBackbone:
    """Build the network with the weights of a file, or of a fixed seed."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Network(depth)
    if weights not in (None, "none"):
        try:
            network.load_state_dict(load_file(require_regular_file(Path(weights))))
        except (OSError, SafetensorError, RuntimeError) as error:
            raise ToastError(
                f"Cannot load weights from {weights}.", str(error).partition("\n")[0], code="weights.cannot-load"
            ) from error
    return ExampleBackbone(network)
