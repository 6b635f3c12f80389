"""Names of models that are nowhere: refused after one short request, without the retries of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from tests.language import make_model
from toast_cli.utils.errors import ToastError
from toast_hf_vision.loading import build_hf_vision
from toast_hf_vision.options import HfVisionOptions
from toast_llama.loading import build_llama
from toast_llama.options import LlamaOptions


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names that the hub was asked for; it cannot be reached."""
    asked: list[str] = []

    def ask(_: Any, name: str, timeout: float) -> None:
        asked.append(name)
        assert timeout <= 5
        raise ConnectionError("no network")

    def retry(*_: Any, **__: Any) -> None:
        raise AssertionError("transformers would retry for half a minute")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.HfApi.repo_info", ask)
    monkeypatch.setattr("toast_timm.hub_availability._is_hub_reachable", lambda: True)
    monkeypatch.setattr(AutoConfig, "from_pretrained", retry)
    return asked


@pytest.mark.parametrize("kind", ["llama", "hf"])
@pytest.mark.parametrize(
    ("place", "code", "asked"),
    [
        ("models/nothere", "weights.cannot-download", ["models/nothere"]),
        ("./nothere", "weights.missing-model", []),
        ("some/models/nothere", "weights.missing-model", []),
    ],
)
def test_a_place_without_a_model_is_refused_at_once(
    requests: list[str], kind: str, place: str, code: str, asked: list[str]
) -> None:
    with pytest.raises(ToastError) as refused:
        if kind == "llama":
            build_llama(place, None, LlamaOptions(name=f"llama:{place}"))
        else:
            build_hf_vision(place, HfVisionOptions(name=f"hf:{place}"))
    assert refused.value.code == code and requests == asked
    assert place in refused.value.what


def test_nothing_is_requested_for_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(*_: Any, **__: Any) -> None:
        raise AssertionError

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.HfApi.repo_info", ask)
    place = str(make_model(tmp_path / "model"))
    assert build_llama(place, None, LlamaOptions(name=f"llama:{place}")).width == 32
