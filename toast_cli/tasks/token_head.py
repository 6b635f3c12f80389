"""The head of token labels: a linear layer on the pooled features and one on every patch token."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from toast_cli.backbones.base import Backbone, Readout


@dataclass
class TokenFeatures:
    """Pooled features `[B, d]` and patch tokens `[B, N, d]`. The cells of a map `[B, C, h, w]` are read row by row."""

    pooled: Tensor
    patches: Tensor


def extract_token_features(backbone: Backbone, readout: Readout) -> TokenFeatures:
    """Return the pooled features and the patch tokens of a readout, without prefix tokens."""
    z = readout.z.movedim(backbone.channel_dim, -1)
    patches = z.flatten(1, 2) if backbone.channel_dim == 1 else z[:, backbone.prefix_tokens :]
    return TokenFeatures(readout.pooled, patches)


class TokenHead(nn.Module):
    """Linear scores of the image and of every patch, `[B, 1 + N, K]`.

    Args:
        backbone: The backbone, which defines the widths of the layers.
        outputs: Number of outputs K.
    """

    def __init__(self, backbone: Backbone, outputs: int) -> None:
        super().__init__()
        self.image = nn.Linear(backbone.head_width, outputs)
        self.patch = nn.Linear(backbone.width, outputs)
        for layer in (self.image, self.patch):
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def forward(self, tokens: TokenFeatures) -> Tensor:
        """Return the scores of the image, followed by those of its patches."""
        return torch.cat([self.image(tokens.pooled)[:, None], self.patch(tokens.patches)], dim=1)
