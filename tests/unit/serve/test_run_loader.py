"""The loader of the page: a run that cannot be opened is named, and does not keep the others from the page."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from toast_cli.evaluation import open_run as module
from toast_cli.serve.page.page_options import PageOptions
from toast_cli.serve.page.run_loader import RunLoader
from toast_cli.utils.errors import ToastError


class Network(nn.Module):
    backbone = SimpleNamespace(preprocessing=None)


def test_the_other_runs_are_loaded_and_an_error_is_final_only_without_any(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def open_run(request: Any) -> Any:
        if request.path.name == "bad":
            raise ToastError("bad is damaged.", code="run.damaged")
        return SimpleNamespace(model=Network())

    monkeypatch.setattr(module, "open_run", open_run)
    reported: list[str] = []
    loaded = RunLoader(PageOptions((Path("bad"), Path("good"))), reported.append).wait()
    assert list(loaded.runs) == ["good"] and not loaded.runs["good"].model.training
    assert [error.what for error in loaded.errors] == ["bad is damaged."] and len(reported) == 1
    alone = RunLoader(PageOptions((Path("bad"),)), reported.append)
    with pytest.raises(ToastError, match="damaged"):
        alone.wait()
    assert len(reported) == 2
