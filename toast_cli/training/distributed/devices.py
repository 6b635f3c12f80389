"""Devices and precision, by way of Accelerate."""

from __future__ import annotations

import os

import torch
from accelerate import Accelerator
from accelerate.utils import DynamoBackend

from toast_cli.model.model import Model
from toast_cli.utils.errors import UsageError


def make_accelerator(device: str, precision: str) -> Accelerator:
    """An Accelerator for a device and a precision, both as recipes name them.

    Raises:
        UsageError: the device is not there, or cannot compute in that precision, or cannot be all processes'.
    """
    kind, _, index = device.partition(":")
    if kind not in {"auto", "cpu", "cuda", "mps"} or (index and not (kind == "cuda" and index.isdigit())):
        raise UsageError(
            f"There is no device '{device}'.",
            what_to_do="Use auto, cpu, cuda, cuda:N or mps.",
            code="device.unknown-device",
        )
    if kind == "cuda" and not (torch.cuda.is_available() and int(index or 0) < torch.cuda.device_count()):
        raise UsageError(
            f"The device '{device}' is not available.",
            f"PyTorch sees {torch.cuda.device_count()} CUDA devices.",
            "Use auto or cpu.",
            code="device.not-available",
        )
    if kind == "mps" and not torch.backends.mps.is_available():
        raise UsageError(
            "The device 'mps' is not available.", what_to_do="Use auto or cpu.", code="device.not-available"
        )
    on_cpu = kind == "cpu" or not (torch.cuda.is_available() or torch.backends.mps.is_available())
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes > 1 and (index or not (on_cpu or torch.cuda.is_available())):
        raise UsageError(
            f"Several processes cannot all use '{device}'.",
            what_to_do="Use auto, where each takes a CUDA device of its own, or cpu.",
            code="device.not-shareable",
        )
    if index:
        torch.cuda.set_device(int(index))
    on_gpu = kind != "cpu" and torch.cuda.is_available()
    if precision == "auto":
        # CPUs without matrix units are slower in bf16 than in fp32, so it is never chosen there.
        precision = "bf16" if on_gpu and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if precision == "fp16" and not on_gpu:
        raise UsageError(
            "fp16 needs a CUDA device.", what_to_do="Use fp32 or bf16.", code="device.unsupported-precision"
        )
    return Accelerator(cpu=on_cpu, mixed_precision="no" if precision == "fp32" else precision)


def check_compiling(model: Model, accelerator: Accelerator) -> None:
    """Refuse Accelerate's `--dynamo_backend` where signals go into the frozen network's own attention.

    Raises:
        UsageError: the model is to be compiled and is steered.
    """
    backend = accelerator.state.dynamo_plugin.backend
    if backend != DynamoBackend.NO and model.adapted.steering is not None:
        raise UsageError(
            f"A steered model cannot be compiled (Accelerate's dynamo backend is {backend.value.lower()}).",
            "torch.compile cannot follow how signals are put into the frozen network's attention.",
            "Leave --dynamo_backend and ACCELERATE_DYNAMO_BACKEND out.",
            code="device.cannot-compile",
        )
