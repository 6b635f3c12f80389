"""What a run ran on, for whoever wants to know why another one came out differently."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from accelerate import Accelerator

from toast_cli.utils.version import __version__

RECORDED_PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "transformers",
    "peft",
    "accelerate",
    "safetensors",
    "numpy",
    "pillow",
)
"""What has a part in the numbers."""


def get_package_versions() -> dict[str, str]:
    """Of toast, Python and all that has a part in the numbers."""
    found = {"toast": __version__, "python": platform.python_version()}
    for package in RECORDED_PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def describe_environment(accelerator: Accelerator) -> dict[str, Any]:
    """What the run ran on: versions, device, precision, threads, and the command that started it."""
    device = accelerator.device
    return {
        "versions": get_package_versions(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device} ({platform.machine()})",
        "precision": "fp32" if accelerator.mixed_precision == "no" else accelerator.mixed_precision,
        "threads": torch.get_num_threads(),
        "processes": accelerator.num_processes,
        "command": sys.argv,
    }
