"""The device and the precision of a run, through Accelerate."""

from __future__ import annotations

import os

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DynamoBackend

from toast_cli.model.model import Model
from toast_cli.utils.errors import UsageError


def make_accelerator(device: str, precision: str) -> Accelerator:
    """Build the Accelerator for a recipe's device and precision.

    Raises:
        UsageError: the device is unknown or not available, does not support the precision, or cannot be shared by
            several processes.
    """
    kind, _, index = device.partition(":")
    if kind not in {"auto", "cpu", "cuda", "mps"} or (index and not (kind == "cuda" and index.isdigit())):
        raise UsageError(
            f"Unknown device '{device}'.",
            what_to_do="Use auto, cpu, cuda, cuda:N or mps.",
            code="device.unknown-device",
        )
    if kind == "cuda" and not (torch.cuda.is_available() and int(index or 0) < torch.cuda.device_count()):
        raise UsageError(
            f"The device '{device}' is not available.",
            f"PyTorch sees {torch.cuda.device_count()} CUDA devices.",
            "Use auto or cpu.",
            code="device.unavailable",
        )
    if kind == "mps" and not torch.backends.mps.is_available():
        raise UsageError("The device 'mps' is not available.", what_to_do="Use auto or cpu.", code="device.unavailable")
    on_cpu = kind == "cpu" or not (torch.cuda.is_available() or torch.backends.mps.is_available())
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes > 1 and (index or not (on_cpu or torch.cuda.is_available())):
        raise UsageError(
            f"Several processes cannot share the device '{device}'.",
            what_to_do="Use auto, which gives each process its own CUDA device, or cpu.",
            code="device.not-shareable",
        )
    if index:
        torch.cuda.set_device(int(index))
    on_gpu = kind != "cpu" and torch.cuda.is_available()
    if precision == "auto":
        # CPUs without matrix units are slower in bf16 than in fp32, so auto never selects it on a CPU.
        precision = "bf16" if on_gpu and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if precision == "fp16" and not on_gpu:
        raise UsageError(
            "fp16 needs a CUDA device.", what_to_do="Use fp32 or bf16.", code="device.unsupported-precision"
        )
    mixed = "no" if precision == "fp32" else precision
    if processes == 1 and AcceleratorState._shared_state:
        state = AcceleratorState()
        if (state.device.type == "cpu") != on_cpu or state.mixed_precision != mixed or index:
            AcceleratorState._reset_state(reset_partial_state=True)  # else a program's first device is used ever after
    return Accelerator(cpu=on_cpu, mixed_precision=mixed)


def check_compiling(model: Model, accelerator: Accelerator) -> None:
    """Check that Accelerate's `--dynamo_backend` is not used with a steered model.

    Raises:
        UsageError: a dynamo backend is set and the model is steered.
    """
    backend = accelerator.state.dynamo_plugin.backend
    if backend != DynamoBackend.NO and model.adapted.steering is not None:
        raise UsageError(
            f"A steered model cannot be compiled (Accelerate's dynamo backend is {backend.value.lower()}).",
            "torch.compile cannot trace the signals that steering adds inside the frozen attention.",
            "Do not set --dynamo_backend or ACCELERATE_DYNAMO_BACKEND.",
            code="device.cannot-compile",
        )


def measure_device_memory(device: torch.device) -> dict[str, float]:
    """Return the most memory that tensors of this process have taken on a CUDA device, in GB; nothing elsewhere."""
    return {"device_gigabytes": torch.cuda.max_memory_allocated(device) / 1e9} if device.type == "cuda" else {}
