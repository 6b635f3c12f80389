"""Any of PEFT's methods that put layers of their own into a network, put into a frozen backbone."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import TYPE_CHECKING, Any

from toast_cli.utils.errors import UsageError

if TYPE_CHECKING:
    from peft import PeftConfig
    from peft.tuners.tuners_utils import BaseTunerLayer
    from torch import Tensor, nn

    from toast_cli.backbones.base import Backbone
    from toast_cli.methods.adapted_model import AdaptedModel


_UNSUPPORTED_KINDS = {"adaption_prompt", "poly", "shadow", "trainable_tokens", "xlora"}
"""PEFT's methods that want a language model or inputs of their own."""
_UNSUPPORTED_OPTIONS = {"use_asa", "kasa_config", "monteclora_config"}
"""Options of PEFT's methods that want a call at every step, or a term of the loss."""


def inject_peft_layers(backbone: Backbone, config: PeftConfig) -> AdaptedModel:
    """Put the layers in as `config` says, and declare for training what PEFT does.

    Without targets in the config, they go where the backbone wants them.

    Raises:
        UsageError: PEFT cannot put this into this network.
    """
    from peft import inject_adapter_in_model
    from peft.tuners.tuners_utils import BaseTunerLayer

    from toast_cli.methods.adapted_model import AdaptedModel

    network = backbone.module
    if not getattr(config, "target_modules", None):
        config.target_modules = list(backbone.adapter_targets)
    if getattr(config, "feedforward_modules", ()) is None:  # (IA)3 wants to know which of the targets are an MLP's
        config.feedforward_modules = []
    kind = str(getattr(config.peft_type, "value", config.peft_type)).lower()
    try:
        inject_adapter_in_model(config, network)
    except (ValueError, TypeError, NotImplementedError, RuntimeError, AttributeError, KeyError) as error:
        raise UsageError(
            f"PEFT cannot put {kind} into a {type(network).__name__}.",
            f"{type(error).__name__}: {error}",
            "Change method.options, or choose one of toast, toast-lite, lora and full.",
            code="method.peft-not-injected",
        ) from error
    parts = [part for part in network.modules() if isinstance(part, BaseTunerLayer)]
    if not parts:
        raise UsageError(
            f"PEFT's {kind} puts no layers into a {type(network).__name__}.",
            what_to_do="Choose one of toast, toast-lite, lora and full.",
            code="method.peft-no-layers",
        )
    if kind == "ln_tuning":  # which trains a copy of a layer in its place; all others take what comes and give it back
        for part in parts:
            part.register_forward_pre_hook(_cast_inputs_to_float32)
            part.register_forward_hook(_cast_output_to_base_dtype)
    return AdaptedModel(backbone, [weight for weight in network.parameters() if weight.requires_grad], active=parts)


def check_forward_runs(adapted: AdaptedModel, kind: str) -> None:
    """Show the network one input: some of PEFT's methods go into a network that they cannot run.

    Raises:
        UsageError: this is one of them.
    """
    import torch
    from accelerate.utils import send_to_device

    backbone = adapted.backbone
    device = next(backbone.module.parameters()).device
    inputs = send_to_device(backbone.example(1), device)
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            adapted.features(inputs)
    except Exception as error:  # a library's layer may fail in any way; the user must learn which one did
        raise UsageError(
            f"PEFT's {kind} went into a {type(backbone.module).__name__} and does not run in it.",
            f"{type(error).__name__}: {error}",
            "Choose other targets, or one of toast, toast-lite, lora and full.",
            code="method.peft-not-runnable",
        ) from error


def _cast_inputs_to_float32(part: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """What is trained is float32, whatever the layers before it compute in."""
    return inputs[0].float(), *inputs[1:]


def _cast_output_to_base_dtype(part: BaseTunerLayer, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """The layers behind it take no other type than their own."""
    return output.to(part.get_base_layer().weight.dtype)


def build_peft_config(kind: str, options: dict[str, Any]) -> PeftConfig:
    """The configuration of one of PEFT's methods by its name; `dora` is LoRA with its magnitudes apart.

    Raises:
        UsageError: PEFT has no such method, it puts no layers into a network, or the method has no such option.
    """
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING, PeftType

    from toast_cli.utils.errors import did_you_mean

    if kind == "dora":
        kind, options = "lora", {"use_dora": True, **options}
    known = {str(each.value).lower(): each for each in PeftType}
    names = sorted({*list_injectable_kinds(), "dora"})
    if kind not in known:
        raise UsageError(
            f"There is no method 'peft:{kind}'.", what_to_do=did_you_mean(kind, names), code="method.unknown-peft-kind"
        )
    tuner = PEFT_TYPE_TO_TUNER_MAPPING.get(known[kind])
    if kind not in names and _has_independent_layers(kind, tuner):
        raise UsageError(
            f"'peft:{kind}' cannot be used here: its layers are not all of it.",
            "It also wants a call at every step of training or a term of the loss, which PEFT leaves to the loop; "
            "without them it would be another method under this name.",
            f"Kinds that are nothing but layers: {', '.join(names)}.",
            code="method.unsupported-peft-kind",
        )
    if kind not in names:
        raise UsageError(
            f"'peft:{kind}' cannot be used here: it does not put layers of its own into a network, each for itself.",
            "It works by further tokens or inputs, or by weights that its layers share.",
            f"For learned tokens beside an image's there is vpt. Kinds that do: {', '.join(names)}.",
            code="method.unsupported-peft-kind",
        )
    config = PEFT_TYPE_TO_CONFIG_MAPPING[known[kind]]
    fields = {field.name: "" for field in dataclasses.fields(config)}
    for option in options:
        if option not in fields:
            raise UsageError(
                f"method.options.{option}: PEFT's {config.__name__} has no such option.",
                what_to_do=did_you_mean(option, fields),
                code="method.unknown-peft-option",
            )
        if option in _UNSUPPORTED_OPTIONS and options[option]:
            raise UsageError(
                f"method.options.{option} cannot be used here.",
                "It wants a call at every step of training or a term of the loss, which PEFT leaves to the loop.",
                "Leave it out.",
                code="method.unsupported-peft-option",
            )
    try:
        return config(**options)
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"PEFT's {config.__name__} refuses method.options.", str(error), code="method.invalid-peft-options"
        ) from error


def list_injectable_kinds() -> set[str]:
    """PEFT's methods that put layers into any network and are nothing else: not those that add tokens, mix adapters,
    share weights among their layers, or have a part in the loss.
    """
    from peft import PEFT_TYPE_TO_TUNER_MAPPING
    from peft.tuners.tuners_utils import BaseTuner

    return {
        name
        for each, tuner in PEFT_TYPE_TO_TUNER_MAPPING.items()
        # A `forward` of its own adds a term to the loss.
        if _has_independent_layers(name := str(each.value).lower(), tuner) and tuner.forward is BaseTuner.forward
    }


def _has_independent_layers(kind: str, tuner: Any) -> bool:
    """Whether what a method puts in are layers that work each for itself in any network."""
    from peft.tuners.tuners_utils import BaseTuner

    if tuner is None or kind in _UNSUPPORTED_KINDS or not issubclass(tuner, BaseTuner):
        return False
    return not tuner.uses_shared_state


@contextmanager
def disable_peft_layers(network: nn.Module) -> Iterator[None]:
    """Within the block, the network computes without what PEFT put there."""
    parts = [part for _, part in _find_peft_layers(network) if not part.disable_adapters]
    trained = {weight: weight.requires_grad for part in parts for weight in part.parameters()}
    for part in parts:
        part.enable_adapters(False)
    try:
        yield
    finally:
        for part in parts:
            part.enable_adapters(True)
        for weight, wanted in trained.items():  # which PEFT switches too
            weight.requires_grad_(wanted)


def merge_peft_layers(network: nn.Module) -> nn.Module:
    """A copy of the network in which what PEFT put there has been worked into the weights.

    Raises:
        UsageError: this kind of layer cannot be merged.
    """
    copy = deepcopy(network)
    for name, part in _find_peft_layers(copy):
        try:
            part.merge()
        except (AttributeError, NotImplementedError, ValueError) as error:
            raise UsageError(
                f"{type(part).__name__} of PEFT cannot be worked into the backbone's weights.",
                str(error),
                code="method.cannot-merge",
            ) from error
        parent, _, last = name.rpartition(".")
        setattr(copy.get_submodule(parent), last, part.get_base_layer())
    return copy


def _find_peft_layers(network: nn.Module) -> list[tuple[str, BaseTunerLayer]]:
    """By name; none where nobody has imported PEFT, which takes seconds that a run without it need not wait for."""
    if "peft" not in sys.modules:
        return []
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [(name, part) for name, part in network.named_modules() if isinstance(part, BaseTunerLayer)]
