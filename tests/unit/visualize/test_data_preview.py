"""Contact sheets of augmented images."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from toast_cli.data.base import BatchOptions
from toast_cli.model.recipe_data import build_batches, open_data
from toast_cli.recipe.parse import build_recipe
from toast_cli.utils.errors import UsageError
from toast_cli.visualize.data_preview import draw_augmentation_sheet

SMALL = {"train_images": 5, "val_images": 2, "test_images": 2}


def draw(images: dict[str, Any], dataset: str = "demo") -> tuple[Figure, Any]:
    raw = {
        "backbone": {"name": "vit_demo_3", "weights": "none"},
        "dataset": {"name": dataset, **SMALL},
        "method": "linear",
        "images": {"normalize": "none", **images},
    }
    recipe = build_recipe(raw, {}, origin="a test")
    backbone, data = recipe.plugins.backbone.build(recipe.backbone), open_data(recipe)
    loader = build_batches(data.splits["train"], recipe, backbone, BatchOptions(5, shuffle=True, augment=True))
    return draw_augmentation_sheet(data, recipe, backbone, count=3, views=2), loader


@pytest.mark.parametrize("dataset", ["demo", "demo-segmentation"])
def test_a_row_shows_an_image_as_the_epochs_of_a_run_will_see_it(dataset: str) -> None:
    figure, loader = draw({"augment": "crop-flip", "rotation": 30}, dataset)
    assert len(figure.axes) == 3 * 3
    row = figure.axes[:3]
    assert [axes.get_title() for axes in row[1:]] == ["epoch 1", "epoch 2"]
    shown = [np.asarray(axes.images[0].get_array()) for axes in row]
    assert not any(np.array_equal(a, b) for a, b in ((shown[0], shown[1]), (shown[1], shown[2])))
    for epoch in (1, 2):
        loader.set_epoch(epoch)
        trained = next(iter(loader))["image"].movedim(1, -1).numpy()
        assert any(np.allclose(shown[epoch], image, atol=1e-6) for image in trained)


def test_masks_of_objects_do_not_stop_a_policy() -> None:
    assert len(draw({"auto_augment": "rand", "erasing": 0.5})[0].axes) == 9


def test_a_recipe_without_augmentation_has_nothing_to_show() -> None:
    with pytest.raises(UsageError) as refused:
        draw({})
    assert refused.value.code == "image.no-augmentation"
