"""TOAST: transfer learning via attention steering.

`tune` trains a model, `evaluate` measures a run, `load` opens a run or an export, `steer` adds TOAST to an existing
model, and `register` registers the exports of 'toast export --format hf' with transformers. Importing this package does
not import torch; the first use of one of these names does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from toast_cli.utils.lazy_imports import make_lazy_getattr
from toast_cli.utils.version import __version__

if TYPE_CHECKING:
    from toast_cli.api.models import load, steer
    from toast_cli.api.runs import TuneResult, evaluate, tune
    from toast_cli.api.steered import Steered
    from toast_cli.export.hf_model import register
    from toast_cli.training.callbacks import EpochInfo, StepInfo

__all__ = [
    "EpochInfo",
    "Steered",
    "StepInfo",
    "TuneResult",
    "__version__",
    "evaluate",
    "load",
    "register",
    "steer",
    "tune",
]

_HOMES = {
    "Steered": "toast_cli.api.steered",
    "TuneResult": "toast_cli.api.runs",
    "tune": "toast_cli.api.runs",
    "evaluate": "toast_cli.api.runs",
    "StepInfo": "toast_cli.training.callbacks",
    "EpochInfo": "toast_cli.training.callbacks",
    "load": "toast_cli.api.models",
    "steer": "toast_cli.api.models",
    "register": "toast_cli.export.hf_model",
}


__getattr__ = make_lazy_getattr(__name__, _HOMES)


def __dir__() -> list[str]:
    return sorted(__all__)
