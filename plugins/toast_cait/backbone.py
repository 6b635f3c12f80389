"""A stock timm `Cait` as a backbone with two passes: signals enter at the values of the self-attention blocks."""

from __future__ import annotations

from timm.models.cait import Cait, TalkingHeadAttn
from torch import Tensor

from toast_cli.plugin import Readout, State
from toast_timm.any_model import make_wrap
from toast_timm.flat_transformer import FlatTransformer


class CaitBackbone(FlatTransformer):
    """Any timm `Cait`. A level is a self-attention block, whose values are linear in its tokens despite talking heads.

    The class-attention stage is the end of the network, as a pooling is: its blocks compute only the class token, from
    patch tokens that they do not change, so there is no token for a signal and nothing to undo. `z` is therefore the
    patch tokens after the final norm, which are the tokens of every level; the class token has no place in the levels.

    Maps are the softmax of every head. The second projection of talking heads then mixes them linearly: the mixtures
    multiply the values, but they are no distributions over the tokens, as weights can be negative.
    """

    attention_classes = (TalkingHeadAttn,)
    takes_prompts = True
    module: Cait

    def enter(self, inputs: Tensor) -> State:
        """Return patch tokens `[B, N, d]` of images `[B, 3, H, W]`, with position embeddings."""
        return State(self.module.pos_drop(self.module.patch_embed(inputs) + self.module.pos_embed))

    def leave(self, state: State) -> Readout:
        """Return the patch tokens after the final norm `[B, N, d]`, and the pooled features of class attention."""
        cait = self.module
        tokens = state.hidden if cait.blocks_token_only is None else cait.forward_cls(state.hidden)
        tokens = cait.norm(tokens)
        z = tokens[:, cait.num_prefix_tokens :]
        return Readout(z=z, compared=z, pooled=cait.forward_head(tokens, pre_logits=True))

    def tap(self, state: State) -> Readout:
        """Return the patch tokens after the final norm, without the class-attention stage."""
        z = self.module.norm(state.hidden)
        return Readout(z=z, compared=z, pooled=z.mean(dim=1))


wrap_cait = make_wrap(CaitBackbone, Cait, lambda cait: cait.patch_embed.img_size)
