"""Feature selection: the tokens and channels of the first pass that are fed back (section 3.1, step ii)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from toast_cli.backbones.base import Readout


class TokenSelection(nn.Module):
    """Weigh tokens by their similarity to the task embedding xi: `m_i = clamp(cos(z_i, xi), 0, 1)`, section 3.1.

    Args:
        width: d, the number of channels of `z`.
        channel_dim: Dimension of the channels of `z`: -1 for tokens `[B, N, d]`, 1 for maps `[B, d, H, W]`.
        by_token: False sets every `m_i` to 1, so that xi has no effect (an ablation of table 7).

    Tokens are compared with `replaced_xi` instead if it is set (see `emphasis`): `[d]`, or `[B, d]`, one per sample.
    """

    def __init__(self, width: int, channel_dim: int = -1, *, by_token: bool = True) -> None:
        super().__init__()
        self.channel_dim = channel_dim
        self.by_token = by_token
        self.xi = nn.Parameter(torch.empty(width).normal_(std=0.02))
        self.replaced_xi: Tensor | None = None

    def compute_similarity(self, first: Readout) -> Tensor:
        """Return the similarity map m: `z` without its channels, `[B, N]` or `[B, H, W]`."""
        compared = first.compared.movedim(self.channel_dim, -1)
        xi = self.xi if self.replaced_xi is None else self.replaced_xi
        if xi.dim() == 2:
            xi = xi.view(len(xi), *[1] * (compared.dim() - 2), -1)
        m = F.cosine_similarity(compared, xi, dim=-1).clamp(0, 1)
        return m if self.by_token else torch.ones_like(m)

    def forward(self, first: Readout) -> tuple[Tensor, Tensor]:
        """Return the similarity map m and `m_i z_i` (shaped like `z`)."""
        m = self.compute_similarity(first)
        z = first.z.movedim(self.channel_dim, -1)
        return m, (m.unsqueeze(-1) * z).movedim(-1, self.channel_dim)


class FeatureSelection(TokenSelection):
    """Weigh tokens, then transform channels by P: `s_i = P (m_i z_i)`, section 3.1.

    P starts at the identity, xi at a small normal draw that the start of the feedback path may replace. The arguments
    are those of `TokenSelection`.
    """

    def __init__(self, width: int, channel_dim: int = -1, *, by_token: bool = True) -> None:
        super().__init__(width, channel_dim, by_token=by_token)
        self.P = nn.Parameter(torch.eye(width))

    def forward(self, first: Readout) -> tuple[Tensor, Tensor]:
        """Return the similarity map m and the selection s (shaped like `z`)."""
        m, weighed = super().forward(first)
        s = F.linear(weighed.movedim(self.channel_dim, -1), self.P)
        return m, s.movedim(-1, self.channel_dim)
