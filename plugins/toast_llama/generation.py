"""transformers' own `generate` over a model that runs twice for every token."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from toast_cli.plugin import UsageError
from toast_llama.kv_cache import CACHE_ARGUMENT, TwoPassCache
from toast_llama.logits import LogitsHead

DYNAMIC_CACHE_NAMES = (None, "dynamic", "hybrid")
"""What a cache that grows with the text is called by transformers; the last by configurations of earlier versions."""


class TwoPassLanguageModel(PreTrainedModel, GenerationMixin):
    """A causal language model as `generate` wants it: sampling, beams, stopping and streaming are transformers' own.

    Causal attention makes selection and feedback local to a token (section 4.3), so a token once written never
    changes what was selected before it: with a cache for either pass, each new token costs two runs of the layers.

    Args:
        stock: the model underneath, which gives its configuration and its output layer.
        pooled: from the model's inputs to every token's features after the final norm, `[B, N, d]`.
    """

    # How attention and experts are computed was decided, and checked, when the stock model was built.
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = True
    pooled: Callable[[dict[str, Any]], Tensor]
    _logits: LogitsHead

    def __init__(self, stock: PreTrainedModel, pooled: Callable[[dict[str, Any]], Tensor]) -> None:
        super().__init__(stock.config)
        self.__dict__["pooled"] = pooled
        self.stock = stock
        self.generation_config = stock.generation_config
        self.__dict__["_logits"] = LogitsHead(stock)

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        return True

    def get_output_embeddings(self) -> nn.Module:
        """The stock model's output layer."""
        return self.stock.get_output_embeddings()

    def generate(self, *arguments: Any, **settings: Any) -> Any:
        """As transformers': see there for every setting. Keys and values of both passes are kept unless told not to.

        Raises:
            UsageError: another kind of cache is asked for.
        """
        config = settings.get("generation_config") or self.generation_config
        asked = settings.pop("cache_implementation", None) or config.cache_implementation
        if asked not in DYNAMIC_CACHE_NAMES:
            raise UsageError(
                f"Two passes cannot keep their keys and values in a '{asked}' cache.",
                "They need a cache each, which grows with the text.",
                "Leave cache_implementation out.",
                code="backbone.unsupported-cache",
            )
        if settings.get(CACHE_ARGUMENT) is None and settings.get("use_cache", config.use_cache) is not False:
            settings[CACHE_ARGUMENT] = TwoPassCache(self.config)
        # Whose method it is, is typed otherwise from version to version.
        return cast(Any, super()).generate(*arguments, **settings)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: TwoPassCache | None = None,
        cache: TwoPassCache | None = None,
        logits_to_keep: int = 0,
        **_: Any,
    ) -> CausalLMOutputWithPast:
        """Token ids `[B, N]` to logits `[B, N, vocabulary]`, or to those of the last tokens alone.

        What is kept comes as `cache` or as `past_key_values`, as the version of transformers has it.
        """
        kept = past_key_values if cache is None else cache
        named = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "caches": kept,
        }
        pooled = self.pooled({name: value for name, value in named.items() if value is not None})
        logits = self._logits(pooled[:, -logits_to_keep:])
        return CausalLMOutputWithPast(**{"logits": logits, CACHE_ARGUMENT: kept})
