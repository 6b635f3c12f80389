"""toast: transfer learning via attention steering.

`load` opens what toast wrote, `steer` puts TOAST on a model that is there already, `register` teaches transformers what
'toast export --format hf' writes. Importing this package imports no torch; the first use of one of them does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from toast_cli.utils.version import __version__

if TYPE_CHECKING:
    from toast_cli.api import Steered, load, steer
    from toast_cli.export.hf_model import register

__all__ = ["Steered", "__version__", "load", "register", "steer"]

_PLACES = {
    "Steered": "toast_cli.api",
    "load": "toast_cli.api",
    "steer": "toast_cli.api",
    "register": "toast_cli.export.hf_model",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
