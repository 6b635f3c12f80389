"""`toast doctor`: report package versions, devices, folders and plugins."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import typer

from toast_cli.cli import options

CORE_PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "peft",
    "accelerate",
    "safetensors",
    "pydantic",
    "pyyaml",
    "pillow",
    "numpy",
)
OPTIONAL_PACKAGES = ("transformers", "tensorboard")


def run_doctor(as_json: options.JsonOption = False) -> None:
    """Check the installation.

    Exits with code 1 if a required package is missing or a plugin fails to load.
    """
    from toast_cli.cli.output.console import print_json, print_line

    report: dict[str, Any] = {
        "versions": _collect_versions(),
        "devices": _list_devices(),
        "folders": _describe_folders(),
        "plugins": _check_plugins(),
    }
    missing = [name for name in CORE_PACKAGES if report["versions"][name] is None]
    failed = [plugin["name"] for plugin in report["plugins"] if plugin["error"]]
    if as_json:
        print_json({**report, "missing": missing, "failed": failed})
    else:
        for line in _format_report(report):
            print_line(line)
    if missing or failed:
        raise typer.Exit(1)


def _collect_versions() -> dict[str, Any]:
    """Return the installed versions without importing the packages; None for a missing package."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    from toast_cli.utils.version import __version__

    versions: dict[str, Any] = {"toast": __version__, "python": platform.python_version()}
    for name in (*CORE_PACKAGES, *OPTIONAL_PACKAGES):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    return versions


def _list_devices() -> list[dict[str, Any]]:
    """Return the CPU, every CUDA device with its memory, and the Apple GPU."""
    try:
        import torch
    except Exception as error:  # a broken torch can raise anything; report it
        return [{"device": "none", "note": f"torch could not be imported: {type(error).__name__}: {error}"}]
    devices: list[dict[str, Any]] = [{"device": "cpu", "note": f"{torch.get_num_threads()} threads"}]
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            bf16 = "bf16" if properties.major >= 8 else "no bf16"
            note = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, {bf16}"
            devices.append({"device": f"cuda:{index}", "note": note})
    if torch.backends.mps.is_available():
        devices.append({"device": "mps", "note": "Apple GPU"})
    return devices


def _describe_folders() -> dict[str, str]:
    """Return the folders of weights, caches and data, and the variables that set them."""
    from toast_cli.utils.files import get_cache_folder

    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    hub = Path(os.environ.get("HF_HOME") or cache / "huggingface")
    places = {
        "HF_HOME": hub,
        "HF_HUB_CACHE": Path(os.environ.get("HF_HUB_CACHE") or hub / "hub"),
        "TORCH_HOME": Path(os.environ.get("TORCH_HOME") or cache / "torch"),
        "TOAST_CACHE_DIR": get_cache_folder(),
        "TOAST_DATA_DIR": Path(os.environ.get("TOAST_DATA_DIR") or "data"),
    }
    found = {}
    for name, path in places.items():
        how = "set" if os.environ.get(name) else "default"
        # The data folder can hold millions of files on a network disk, so its size is not computed.
        size = "" if name == "TOAST_DATA_DIR" else f", {_compute_folder_size(path) / 1e6:,.1f} MB"
        found[name] = f"{path} ({how}{size if path.is_dir() else ', does not exist yet'})"
    return {**found, "HF_HUB_OFFLINE": os.environ.get("HF_HUB_OFFLINE") or "not set"}


def _compute_folder_size(folder: Path) -> int:
    """Return the bytes of all files below a folder. Links are not followed: the hub cache links every file."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            # Another process may have removed the file.
            with contextlib.suppress(OSError):
                total += (Path(parent) / name).lstat().st_size
    return total


def _check_plugins() -> list[dict[str, Any]]:
    """Return every registered name of every group, with the error if it does not load."""
    from toast_cli import registry
    from toast_cli.utils.errors import ToastError

    found: list[dict[str, Any]] = []
    for group in registry.GROUP_TYPES:
        for name, claims in sorted(registry.list_entries(group).items()):
            error = None
            try:
                # Loading a backbone's card also checks the plugin API version it was written for.
                registry.load_backbone_card(name) if group == registry.BACKBONES else registry.load_entry(group, name)
            except ToastError as failure:
                error = " ".join(part for part in (failure.what, failure.why) if part)
            found.append({"group": group, "name": name, "package": claims[0].package, "error": error})
    return found


def _format_report(report: dict[str, Any]) -> list[str]:
    lines = ["Versions"]
    for name, version in report["versions"].items():
        lines.append(f"  {name}: {version or ('missing' if name in CORE_PACKAGES else 'not installed (optional)')}")
    lines += ["Devices", *(f"  {each['device']}: {each['note']}" for each in report["devices"])]
    lines += ["Folders", *(f"  {name}: {value}" for name, value in report["folders"].items())]
    lines.append("Plugins")
    for plugin in report["plugins"]:
        lines.append(f"  {plugin['group']} {plugin['name']} ({plugin['package']}): {plugin['error'] or 'ok'}")
    return lines
