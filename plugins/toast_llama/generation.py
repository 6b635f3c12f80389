"""transformers' `generate` for a model that runs two passes per token."""

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
"""Names of transformers' growing cache. The last one is used in configurations of earlier versions."""


class TwoPassLanguageModel(PreTrainedModel, GenerationMixin):
    """A causal language model for transformers' `generate`, with its sampling, beams, stopping and streaming.

    Causal attention makes selection and feedback local to a token (section 4.3), so a new token never changes the
    selection of earlier ones. With a cache for each pass, each new token costs two runs of the layers.

    Args:
        stock: The stock model, which defines the configuration and the output layer.
        pooled: Function from the model's inputs to the features of every token after the final norm, `[B, N, d]`.
    """

    # The implementation of attention and experts was chosen, and checked, when the stock model was built.
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
        """Return the stock model's output layer."""
        return self.stock.get_output_embeddings()

    def generate(self, *arguments: Any, **settings: Any) -> Any:
        """Generate with the settings of transformers. Keys and values of both passes are cached by default.

        Raises:
            UsageError: Another kind of cache is requested.
        """
        config = settings.get("generation_config") or self.generation_config
        cache_kind = settings.pop("cache_implementation", None) or config.cache_implementation
        if cache_kind not in DYNAMIC_CACHE_NAMES:
            raise UsageError(
                f"cache_implementation='{cache_kind}' is not supported.",
                "Each of the two passes needs a cache of its own that grows with the text.",
                "Leave cache_implementation out.",
                code="backbone.unsupported-cache",
            )
        if settings.get(CACHE_ARGUMENT) is None and settings.get("use_cache", config.use_cache) is not False:
            settings[CACHE_ARGUMENT] = TwoPassCache(self.config)
        # The type of this method differs between versions of transformers.
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
        """Return logits `[B, N, vocabulary]` of token ids `[B, N]`, or only those of the last `logits_to_keep` tokens.

        The cache is passed as `cache` or as `past_key_values`, depending on the version of transformers.
        """
        both = past_key_values if cache is None else cache
        named = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "caches": both,
        }
        pooled = self.pooled({name: value for name, value in named.items() if value is not None})
        logits = self._logits(pooled[:, -logits_to_keep:])
        return CausalLMOutputWithPast(**{"logits": logits, CACHE_ARGUMENT: both})
