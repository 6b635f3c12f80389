"""TOAST-Lite: low-rank factors on a frozen feedback path (sections 3.2 and 4.5), with PEFT's LoRA."""

from __future__ import annotations

from torch import nn

from toast_cli.steering.feedback import FeedbackPath, get_base_weight


def add_low_rank_factors(feedback: FeedbackPath, rank: int, alpha: float) -> list[nn.Parameter]:
    """Put LoRA factors on every `A_l` and `B_l` in place, and return the factors.

    A layer then computes `(W + alpha / rank * F_B F_A) x` with `F_B` zero at the start, so nothing changes
    until training does. The layers' own weights are left to the caller to freeze.
    """
    from peft import LoraConfig, inject_adapter_in_model

    targets = [name for name, layer in feedback.named_modules() if isinstance(layer, (nn.Linear, nn.Conv2d))]
    inject_adapter_in_model(
        LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, bias="none", target_modules=targets), feedback
    )
    own = {id(get_base_weight(layer)) for layer in (*feedback.A, *feedback.B)}
    return [parameter for parameter in feedback.parameters() if id(parameter) not in own]
