"""Feature selection: which tokens and which channels of the first pass are sent back (section 3.1, step ii)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from toast_cli.backbones.base import Readout


class TokenSelection(nn.Module):
    """Weigh tokens by their similarity to the task embedding xi: `m_i = clamp(cos(z_i, xi), 0, 1)`, section 3.1.

    Args:
        width: d, the channels of `z`.
        channel_dim: where the channels of `z` are: -1 for tokens `[B, N, d]`, 1 for maps `[B, d, H, W]`.
        by_token: False sets every `m_i` to 1, so that xi has no part (an ablation of table 7).
    """

    def __init__(self, width: int, channel_dim: int = -1, *, by_token: bool = True) -> None:
        super().__init__()
        self.channel_dim = channel_dim
        self.by_token = by_token
        self.xi = nn.Parameter(torch.empty(width).normal_(std=0.02))

    def similarity(self, first: Readout) -> Tensor:
        """The similarity map m: `z` without its channels, `[B, N]` or `[B, H, W]`."""
        compared = first.compared.movedim(self.channel_dim, -1)
        m = F.cosine_similarity(compared, self.xi, dim=-1).clamp(0, 1)
        return m if self.by_token else torch.ones_like(m)

    def forward(self, first: Readout) -> tuple[Tensor, Tensor]:
        """The similarity map m and `m_i z_i` (as `z`)."""
        m = self.similarity(first)
        z = first.z.movedim(self.channel_dim, -1)
        return m, (m.unsqueeze(-1) * z).movedim(-1, self.channel_dim)


class FeatureSelection(TokenSelection):
    """Select tokens by weighing them, then channels by the transform P: `s_i = P (m_i z_i)`, section 3.1.

    P starts at the identity, xi at a small normal draw that the feedback path's start may replace. Arguments as above.
    """

    def __init__(self, width: int, channel_dim: int = -1, *, by_token: bool = True) -> None:
        super().__init__(width, channel_dim, by_token=by_token)
        self.P = nn.Parameter(torch.eye(width))

    def forward(self, first: Readout) -> tuple[Tensor, Tensor]:
        """The similarity map m and the selection s (as `z`)."""
        m, weighed = super().forward(first)
        s = F.linear(weighed.movedim(self.channel_dim, -1), self.P)
        return m, s.movedim(-1, self.channel_dim)
