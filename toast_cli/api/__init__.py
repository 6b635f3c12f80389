"""The Python API. Its names are imported from their modules on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from toast_cli.utils.lazy_imports import make_lazy_getattr

if TYPE_CHECKING:
    from toast_cli.api.models import load, steer
    from toast_cli.api.runs import TuneResult, evaluate, tune
    from toast_cli.api.steered import Steered

__all__ = ["Steered", "TuneResult", "evaluate", "load", "steer", "tune"]

_HOMES = {
    "Steered": "toast_cli.api.steered",
    "TuneResult": "toast_cli.api.runs",
    "tune": "toast_cli.api.runs",
    "evaluate": "toast_cli.api.runs",
    "load": "toast_cli.api.models",
    "steer": "toast_cli.api.models",
}

__getattr__ = make_lazy_getattr(__name__, _HOMES)
