"""Description of the machine and software of a run, to explain why results differ between runs."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from toast_cli.data.paths import get_data_dir
from toast_cli.recipe.schema import Recipe
from toast_cli.utils.version import __version__

RECORDED_PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "transformers",
    "peft",
    "accelerate",
    "torchao",
    "bitsandbytes",
    "safetensors",
    "numpy",
    "pillow",
)
"""Packages whose versions can change results."""


def get_package_versions() -> dict[str, str]:
    """Return the versions of toast, Python and `RECORDED_PACKAGES`."""
    versions = {"toast": __version__, "python": platform.python_version()}
    for package in RECORDED_PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def describe_environment(accelerator: Accelerator, recipe: Recipe) -> dict[str, Any]:
    """Return the versions, device, precision, thread and process counts, command line and folders of the run."""
    device = accelerator.device
    return {
        "versions": get_package_versions(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device} ({platform.machine()})",
        "precision": "fp32" if accelerator.mixed_precision == "no" else accelerator.mixed_precision,
        "threads": torch.get_num_threads(),
        "processes": accelerator.num_processes,
        "command": sys.argv,
        "folder": str(Path.cwd()),
        "data_dir": str(get_data_dir(Path(recipe.data_dir).expanduser() if recipe.data_dir else None).absolute()),
    }
