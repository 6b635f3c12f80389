"""TOAST-Lite: low-rank factors on a frozen feedback path (sections 3.2 and 4.5), with PEFT's LoRA."""

from __future__ import annotations

from torch import nn

from toast_cli.steering.feedback import FeedbackPath, get_base_weight


def add_low_rank_factors(feedback: FeedbackPath, rank: int, alpha: float) -> list[nn.Parameter]:
    """Add LoRA factors to every `A_l` and `B_l` in place, and return the factors.

    A layer then computes `(W + alpha / rank * F_B F_A) x`. `F_B` is zero at the start, so the output does not change
    before training. The caller freezes the layers' own weights.
    """
    from peft import LoraConfig, inject_adapter_in_model

    targets = [name for name, layer in feedback.named_modules() if isinstance(layer, (nn.Linear, nn.Conv2d))]
    inject_adapter_in_model(
        LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, bias="none", target_modules=targets), feedback
    )
    own = {id(get_base_weight(layer)) for layer in (*feedback.A, *feedback.B)}
    return [parameter for parameter in feedback.parameters() if id(parameter) not in own]
