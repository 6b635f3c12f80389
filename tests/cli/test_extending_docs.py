"""The examples of docs/how-to/extend/index.md: what they say is what works."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from tests.cli.conftest import ROOT, toast
from toast_cli import registry

EXAMPLES = re.findall(
    r"```python\n(.*?)```", (ROOT / "docs/how-to/extend/index.md").read_text(encoding="utf-8"), re.DOTALL
)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Register the two examples beside what is installed."""
    points = {}
    for code, (group, name, attribute) in zip(
        EXAMPLES, [("toast.methods", "norms", "METHOD"), ("toast.data", "array", "SOURCE")], strict=True
    ):
        module = ModuleType(f"docs_example_{name}")
        monkeypatch.setitem(sys.modules, module.__name__, module)
        exec(compile(code, module.__name__, "exec"), module.__dict__)
        points[group] = EntryPoint(name, f"{module.__name__}:{attribute}", group)
    select = registry._select_entry_points

    def select_more(group: str) -> list[object]:
        if group not in points:
            return list(select(group))
        point = points[group]
        package = SimpleNamespace(name="an example", version="1")
        return [*select(group), SimpleNamespace(name=point.name, value=point.value, load=point.load, dist=package)]

    monkeypatch.setattr(registry, "_select_entry_points", select_more)
    registry.list_entries.cache_clear()
    yield
    registry.list_entries.cache_clear()


@pytest.mark.usefixtures("installed")
def test_the_example_method_tunes_on_the_example_data_set(here: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (20, 64, 64, 3), np.uint8)
    np.savez(here / "scenes.npz", images=images, labels=np.arange(20) % 2)
    said = toast(
        *("tune", "--backbone", "vit_demo_3", "--method", "norms", "--dataset", "array:scenes.npz", "--data-dir", here),
        *("--output-dir", here / "run", "--device", "cpu", "method.biases=false"),
        *("training.epochs=1", "training.warmup_epochs=0", "training.batch_size=8"),
    )
    assert said.code == 0, said.err
    results = json.loads((here / "run/results.json").read_text())
    assert results["samples"] == {"train": 16, "val": 4}
    assert "name: norms\n  biases: false" in (here / "run/recipe.yaml").read_text()


@pytest.mark.parametrize("code", EXAMPLES)
def test_the_examples_import_no_torch(code: str) -> None:
    program = f"{code}\nimport sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
