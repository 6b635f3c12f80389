"""The model `toast` of lm-evaluation-harness: a run of toast, or an export of one.

The harness has no entry points for models of other packages (0.4.13). Importing this module registers the model;
`toast-lm-eval` does so, and then runs the harness's own command line.
"""

from __future__ import annotations

import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM

from toast_cli.data.text.chat_templates import set_chat_template
from toast_cli.evaluation.open_run import RunRequest, make_text_generator, open_run


def print_notice(text: str) -> None:
    """Print a notice on stderr."""
    print(text, file=sys.stderr)


@register_model("toast")
class HarnessModel(HFLM):
    """A run as a model of the harness, which computes likelihoods and answers as for a model of transformers.

    A method with feedback runs both passes for every token. A chat template (`--apply_chat_template`) is the format of
    the run, and answers end where those of the run do.

    Args:
        run: the run folder, adapter folder or exported file.
        weights: the weights that replace those of the recipe.
        alpha: the scale of the feedback signals.
        device: `cpu`, `cuda` and so on; `cuda` on a machine without it, the default of the harness, is `auto`.
        max_length: the largest number of tokens of a text; by default, the positions of the model.
        settings: further settings of `HFLM`, such as `batch_size` or `add_bos_token`.

    Raises:
        UsageError: there is no run, or it is not one of a language model.
        ToastError: the run is damaged, or its backbone has no tokenizer.
    """

    def __init__(
        self,
        run: str | Path,
        weights: str | None = None,
        alpha: float | None = None,
        device: str | None = None,
        max_length: int | None = None,
        **settings: Any,
    ) -> None:
        if device is not None and device.startswith("cuda") and not torch.cuda.is_available():
            device = None
        opened = open_run(RunRequest(Path(run), weights=weights, device=device, alpha=alpha))
        writer = make_text_generator(opened, print_notice)
        adapted, backbone = opened.model.adapted, opened.model.backbone
        generator: Any = backbone.generator(lambda inputs: adapted(inputs).last.pooled)
        generator.generation_config = deepcopy(generator.generation_config)
        generator.generation_config.eos_token_id = writer.stop_tokens or None
        super().__init__(
            pretrained=generator,
            backend="causal",
            tokenizer=set_chat_template(writer.tokenizer, writer.template),
            max_length=max_length or writer.limits.window,
            **settings,
        )
