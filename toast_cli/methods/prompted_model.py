"""A backbone with learned tokens appended to its input (Jia et al., Visual Prompt Tuning, ECCV 2022)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from toast_cli.backbones.base import Backbone, State, Trace
from toast_cli.methods.adapted_model import AdaptedModel
from toast_cli.steering.steering import PassOutputs


class PromptedModel(AdaptedModel):
    """A model of one pass in which every level, or only the first, receives prompts.

    Attention does not depend on the order of tokens without positions. Prompts are therefore appended at the end, where
    they do not affect code that counts class tokens or patches. Deep prompts are removed after their level, shallow
    ones after the last level. Attention maps are cropped to the original tokens, so their rows sum to less than one.

    Args:
        backbone: A backbone with `takes_prompts`.
        prompts: Number of prompts.
        deep: Whether every level has prompts of its own.
    """

    def __init__(self, backbone: Backbone, prompts: int, deep: bool) -> None:
        drawn = torch.empty(len(backbone.levels) if deep else 1, prompts, backbone.width)
        # For ViT-B/16, this is the bound used by the authors of VPT, sqrt(6 / (3 * 16 * 16 + d)).
        bound = math.sqrt(6 / (2 * backbone.width))
        parameter = nn.Parameter(nn.init.uniform_(drawn, -bound, bound))
        super().__init__(backbone, [])
        self.prompts = parameter  # [levels or 1, prompts, d]

    def forward(self, inputs: Any, first_trace: Trace | None = None, last_trace: Trace | None = None) -> PassOutputs:
        """Run the pass."""
        with torch.no_grad():
            state = self.backbone.enter(inputs)
        count, deep = state.hidden.shape[1], len(self.prompts) > 1
        for index in range(len(self.backbone.levels)):
            if deep or index == 0:
                prompts = self.prompts[index].to(state.hidden.dtype)
                prompts = prompts.expand(
                    state.hidden.shape[0], -1, -1
                )  # len() would fix the batch size of an exported graph
                state = State(torch.cat([state.hidden[:, :count], prompts], dim=1), state.context)
            state = self.backbone.run(state, first=index, last=index + 1, trace=first_trace)
        if first_trace is not None:
            first_trace.attention = {level: map[..., :count, :count] for level, map in first_trace.attention.items()}
            first_trace.inputs = [hidden[:, :count] for hidden in first_trace.inputs]
            first_trace.outputs = [hidden[:, :count] for hidden in first_trace.outputs]
        readout = self.backbone.leave(State(state.hidden[:, :count], state.context))
        return PassOutputs(readout, readout, readout)
