"""Selection: similarity is a clamped cosine, and P acts on channels after tokens were weighted."""

from __future__ import annotations

import torch

from toast_cli.backbones.base import Readout
from toast_cli.steering.selection import FeatureSelection


def readout(z: torch.Tensor, compared: torch.Tensor | None = None) -> Readout:
    return Readout(z=z, compared=z if compared is None else compared, pooled=z)


def test_a_token_along_xi_passes_whole_one_across_or_against_it_not_at_all() -> None:
    selection = FeatureSelection(2)
    selection.xi.data = torch.tensor([3.0, 0.0])
    z = torch.tensor([[[5.0, 0.0], [0.0, 7.0], [-2.0, 0.0], [1.0, 1.0]]])
    m, s = selection(readout(z))
    assert torch.allclose(m, torch.tensor([[1.0, 0.0, 0.0, 2**-0.5]]))
    assert torch.allclose(s, m.unsqueeze(-1) * z)


def test_P_multiplies_from_the_left() -> None:
    selection = FeatureSelection(2)
    selection.xi.data = torch.tensor([1.0, 0.0])
    selection.P.data = torch.tensor([[0.0, 2.0], [1.0, 0.0]])
    _, s = selection(readout(torch.tensor([[[1.0, 0.0]]])))
    assert torch.allclose(s, torch.tensor([[[0.0, 1.0]]]))


def test_a_map_is_selected_cell_by_cell_like_the_same_tokens() -> None:
    torch.manual_seed(0)
    tokens, maps = FeatureSelection(4), FeatureSelection(4, channel_dim=1)
    maps.load_state_dict(tokens.state_dict())
    z, compared = torch.randn(2, 6, 4), torch.randn(2, 6, 4)

    def as_map(values: torch.Tensor) -> torch.Tensor:
        return values.transpose(1, 2).unflatten(2, (2, 3))

    m, s = tokens(readout(z, compared))
    map_m, map_s = maps(readout(as_map(z), as_map(compared)))
    assert torch.allclose(map_m, m.unflatten(1, (2, 3)), atol=1e-6)
    assert torch.allclose(map_s, as_map(s), atol=1e-6)
