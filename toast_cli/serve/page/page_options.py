"""Options of the page. Imports neither torch nor gradio."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from toast_cli.serve.options import is_loopback
from toast_cli.utils.names import make_names_unique

DEFAULT_PAGE_PORT = 7860
"""Port of the page, Gradio's own."""


@dataclass(frozen=True)
class PageOptions:
    """What the page loads, where it listens, and where it saves.

    Attributes:
        runs: run folders, adapter folders or exported files, shown side by side.
        weights: backbone weights that replace those of the recipes; None: as recorded.
        data_dir: root folder of the data sets; None: as recorded.
        device: device of the models; None: that of each recipe.
        host: address to listen on.
        port: TCP port; 0 selects a free one.
        out: folder of what the page saves; None: in the folder of the first run.
        open_browser: whether to open the page in the browser of this machine.
    """

    runs: tuple[Path, ...]
    weights: str | None = None
    data_dir: str | None = None
    device: str | None = None
    host: str = "127.0.0.1"
    port: int = DEFAULT_PAGE_PORT
    out: Path | None = None
    open_browser: bool = False
    first_is_folder: bool = field(init=False, repr=False)
    """Whether the first run is a folder when the page starts; it may vanish later."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "first_is_folder", self.runs[0].is_dir())

    @property
    def is_local(self) -> bool:
        """Return whether only programs on this machine can connect."""
        return is_loopback(self.host)

    @property
    def names(self) -> list[str]:
        """Return the names of the runs, all different."""
        return make_names_unique(path.resolve().name for path in self.runs)

    @property
    def save_folder(self) -> Path:
        """Return the folder of what the page saves."""
        if self.out is not None:
            return self.out
        return self.runs[0] / "attention" / "app" if self.first_is_folder else Path("attention") / "app"


@contextmanager
def prepare_gradio() -> Iterator[None]:
    """Set Gradio's environment before it is imported: it sends nothing about its use, and writes to a temporary folder.

    The folder is removed at the end.
    """
    with tempfile.TemporaryDirectory(prefix="toast-app-") as folder:
        settings = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1", "GRADIO_TEMP_DIR": folder}
        before = {name: os.environ.get(name) for name in settings}
        os.environ.update(settings)
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value
