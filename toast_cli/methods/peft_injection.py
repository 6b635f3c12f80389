"""Injection of PEFT layers into a frozen backbone."""

from __future__ import annotations

import dataclasses
import sys
import warnings
from collections import Counter
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
"""PEFT methods that need a language model or inputs of their own."""
_UNSUPPORTED_OPTIONS = {"use_asa", "kasa_config", "monteclora_config"}
"""Options of PEFT methods that need a call at every training step, or add a term to the loss."""

_STARTS_BESIDE_WEIGHTS = {"gaussian", "orthogonal"}
"""Initial factors of PEFT, by their names, that leave the weights of the backbone as they are."""


def inject_peft_layers(backbone: Backbone, config: PeftConfig) -> AdaptedModel:
    """Inject the layers of `config` and declare the parameters that PEFT trains.

    If the configuration has no targets, use the backbone's `adapter_targets`.

    Raises:
        UsageError: PEFT cannot inject these layers into this network.
    """
    from peft import inject_adapter_in_model
    from peft.tuners.tuners_utils import BaseTunerLayer

    from toast_cli.methods.adapted_model import AdaptedModel

    network = backbone.module
    if not getattr(config, "target_modules", None):
        if not backbone.adapter_targets:
            raise UsageError(
                f"No layer of this {type(network).__name__} takes PEFT's factors by default.",
                "None is a plain linear layer or convolution, whose weight is used as it is.",
                "Choose one of toast, toast-lite and full, or name the layers.",
                code="method.peft-not-injected",
            )
        default = backbone.adapter_targets
        config.target_modules = default if isinstance(default, str) else list(default)
    if config.target_modules == "all-linear" and backbone.adapter_exclusions:
        config.exclude_modules = list(backbone.adapter_exclusions)
    if getattr(config, "feedforward_modules", ()) is None:  # (IA)3 needs to know which targets belong to an MLP
        config.feedforward_modules = []
    kind = str(getattr(config.peft_type, "value", config.peft_type)).lower()
    _check_start_on_quantized(network, config)
    try:
        with warnings.catch_warnings():  # PEFT sets this option for transposed weights, and says so for each layer
            warnings.filterwarnings("ignore", message="fan_in_fan_out is set to False")
            inject_adapter_in_model(config, network)
    except (ValueError, TypeError, NotImplementedError, RuntimeError, AttributeError, KeyError) as error:
        raise UsageError(
            f"PEFT cannot inject {kind} into {type(network).__name__}.",
            f"{type(error).__name__}: {error}",
            "Change method.options, or choose one of toast, toast-lite, lora and full.",
            code="method.peft-not-injected",
        ) from error
    parts = [part for part in network.modules() if isinstance(part, BaseTunerLayer)]
    if not parts:
        raise UsageError(
            f"PEFT's {kind} adds no layers to {type(network).__name__}.",
            what_to_do="Choose one of toast, toast-lite, lora and full.",
            code="method.peft-no-layers",
        )
    if kind == "ln_tuning":  # it trains a copy of a layer; all other kinds return the data type of their input
        for part in parts:
            part.register_forward_pre_hook(_cast_inputs_to_float32)
            part.register_forward_hook(_cast_output_to_base_dtype)
    adapted = AdaptedModel(backbone, [weight for weight in network.parameters() if weight.requires_grad], active=parts)
    adapted.notes = (_describe_targets(kind, network),)
    return adapted


def _describe_targets(kind: str, network: nn.Module) -> str:
    """Return a sentence on the layers that receive PEFT's layers."""
    names = [name.rpartition(".")[2] for name, _ in _find_peft_layers(network)]
    return f"{kind} adapts {len(names)} layers: {', '.join(dict.fromkeys(names))}."


def _check_start_on_quantized(network: nn.Module, config: PeftConfig) -> None:
    """Check that the initial factors do not change the weights of a quantized network, which cannot be written.

    Raises:
        UsageError: They do.
    """
    from toast_cli.backbones.quantized_linear import get_quantization

    names = [name for name in ("init_lora_weights", "init_weights") if isinstance(getattr(config, name, None), str)]
    written = [name for name in names if getattr(config, name) not in _STARTS_BESIDE_WEIGHTS]
    if written and (kind := get_quantization(network)) is not None:
        raise UsageError(
            f"method.options.{written[0]}={getattr(config, written[0])} cannot be used on a backbone in {kind}.",
            "It subtracts the initial factors from the weights of the backbone, which are packed.",
            f"Leave it out, or use one of {', '.join(sorted(_STARTS_BESIDE_WEIGHTS))}.",
            code="method.quantized-backbone",
        )


def check_forward_runs(adapted: AdaptedModel, kind: str) -> None:
    """Run the network once: some PEFT methods can be injected into networks that they cannot run.

    Raises:
        UsageError: The forward pass fails.
    """
    import torch
    from accelerate.utils import send_to_device

    backbone = adapted.backbone
    device = next(backbone.module.parameters()).device
    inputs = send_to_device(backbone.example(1), device)
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            adapted.features(inputs)
    except Exception as error:  # a layer of a library may raise anything; the message must name the method
        raise UsageError(
            f"PEFT's {kind} was injected into {type(backbone.module).__name__} but cannot run in it.",
            f"{type(error).__name__}: {error}",
            "Choose other targets, or one of toast, toast-lite, lora and full.",
            code="method.peft-not-runnable",
        ) from error


def _cast_inputs_to_float32(part: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Cast the input to float32, the data type of trained parameters."""
    return inputs[0].float(), *inputs[1:]


def _cast_output_to_base_dtype(part: BaseTunerLayer, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """Cast the output to the data type of the layers that follow."""
    return output.to(part.get_base_layer().weight.dtype)


def build_peft_config(kind: str, options: dict[str, Any]) -> PeftConfig:
    """Return the configuration of a PEFT method by its name; `dora` is LoRA with separate magnitudes.

    Raises:
        UsageError: PEFT has no such method or option, or the method does more than add layers.
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
            f"'peft:{kind}' is not supported: it consists of more than layers.",
            "It also needs a call at every training step or a term in the loss, which PEFT leaves to the loop. "
            "Without them it would be another method.",
            f"Supported kinds: {', '.join(names)}.",
            code="method.unsupported-peft-kind",
        )
    if kind not in names:
        raise UsageError(
            f"'peft:{kind}' is not supported: it does not add independent layers to a network.",
            "It adds tokens or inputs, or its layers share weights.",
            f"For learned tokens in a ViT, use vpt. Supported kinds: {', '.join(names)}.",
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
                f"method.options.{option} is not supported.",
                "It needs a call at every training step or a term in the loss, which PEFT leaves to the training loop.",
                "Leave it out.",
                code="method.unsupported-peft-option",
            )
    try:
        return config(**options)
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"PEFT's {config.__name__} rejects method.options.", str(error), code="method.invalid-peft-options"
        ) from error


def list_injectable_kinds() -> set[str]:
    """Return the PEFT methods that only add layers. Methods that add tokens, mix adapters, share weights between layers
    or add a term to the loss are excluded.
    """
    from peft import PEFT_TYPE_TO_TUNER_MAPPING
    from peft.tuners.tuners_utils import BaseTuner

    return {
        name
        for each, tuner in PEFT_TYPE_TO_TUNER_MAPPING.items()
        # A tuner that overrides `forward` adds a term to the loss.
        if _has_independent_layers(name := str(each.value).lower(), tuner) and tuner.forward is BaseTuner.forward
    }


def _has_independent_layers(kind: str, tuner: Any) -> bool:
    """Return whether a method adds layers that work independently of each other in any network."""
    from peft.tuners.tuners_utils import BaseTuner

    if tuner is None or kind in _UNSUPPORTED_KINDS or not issubclass(tuner, BaseTuner):
        return False
    return not tuner.uses_shared_state


@contextmanager
def disable_peft_layers(network: nn.Module) -> Iterator[None]:
    """Disable the PEFT layers of the network inside the block."""
    parts = [part for _, part in _find_peft_layers(network) if not part.disable_adapters]
    trained = {weight: weight.requires_grad for part in parts for weight in part.parameters()}
    for part in parts:
        part.enable_adapters(False)
    try:
        yield
    finally:
        for part in parts:
            part.enable_adapters(True)
        for weight, requires_grad in trained.items():  # PEFT changes it when it switches adapters
            weight.requires_grad_(requires_grad)


def merge_peft_layers(network: nn.Module) -> nn.Module:
    """Return a copy of the network with the PEFT layers merged into its weights, and quantized layers dequantized.

    Raises:
        UsageError: This kind of layer cannot be merged.
    """
    copy = deepcopy(network)
    merge_peft_layers_in_place(copy)
    return copy


def merge_peft_layers_in_place(network: nn.Module) -> None:
    """Merge the PEFT layers of the network into its weights, and dequantize its quantized layers.

    A merged weight that another layer shares, such as an output layer that is tied to the embedding, is copied first:
    the other layer keeps its weight.

    Raises:
        UsageError: This kind of layer cannot be merged.
    """
    from toast_cli.backbones.quantized_linear import dequantize_layers

    dequantize_layers(network, next(network.parameters()).dtype)
    uses = Counter(id(weight) for _, weight in network.named_parameters(remove_duplicate=False))
    for _, part in _find_peft_layers(network):
        base = part.get_base_layer()
        for name, weight in list(base.named_parameters(recurse=False)):
            if uses[id(weight)] > 1:
                setattr(base, name, type(weight)(weight.detach().clone(), requires_grad=weight.requires_grad))
        try:
            part.merge()
        except (AttributeError, NotImplementedError, ValueError) as error:
            raise UsageError(
                f"PEFT's {type(part).__name__} cannot be merged into the backbone's weights.",
                str(error),
                "Export the layers themselves: --format peft, or --format safetensors.",
                code="method.cannot-merge",
            ) from error
    remove_peft_layers(network)


def remove_peft_layers(network: nn.Module) -> None:
    """Put the layers of the network back where PEFT has wrapped them."""
    for name, part in _find_peft_layers(network):
        parent, _, last = name.rpartition(".")
        setattr(network.get_submodule(parent), last, part.get_base_layer())
    if hasattr(network, "peft_config"):
        del network.peft_config


def _find_peft_layers(network: nn.Module) -> list[tuple[str, BaseTunerLayer]]:
    """Return the PEFT layers by name. If PEFT was never imported there are none; importing it takes seconds."""
    if "peft" not in sys.modules:
        return []
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [(name, part) for name, part in network.named_modules() if isinstance(part, BaseTunerLayer)]
