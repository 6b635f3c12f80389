"""torch.compile, which Accelerate's launcher can ask for: refused where a model is steered."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from accelerate.utils import TorchDynamoPlugin

from toast_cli.model.model import build_model
from toast_cli.recipe.parse import build_recipe
from toast_cli.training.distributed.devices import check_compiling
from toast_cli.utils.errors import UsageError


def launched(backend: str) -> Any:
    """What is looked at of an Accelerator that was launched with this backend."""
    return SimpleNamespace(state=SimpleNamespace(dynamo_plugin=TorchDynamoPlugin(backend=backend)))


@pytest.mark.parametrize("method", ["toast", "toast-lite"])
def test_a_steered_model_is_compiled_by_no_backend(method: str) -> None:
    recipe = build_recipe({"backbone": "vit_demo_3", "dataset": "demo", "method": method}, {}, origin="a test")
    model = build_model(recipe, ("one", "other"))
    with pytest.raises(UsageError) as refused:
        check_compiling(model, launched("inductor"))
    assert refused.value.code == "device.cannot-compile"
    assert "inductor" in refused.value.what
    check_compiling(model, launched("no"))


def test_a_model_that_is_not_steered_may_be_compiled() -> None:
    recipe = build_recipe({"backbone": "vit_demo_3", "dataset": "demo", "method": "linear"}, {}, origin="a test")
    check_compiling(build_model(recipe, ("one", "other")), launched("inductor"))
