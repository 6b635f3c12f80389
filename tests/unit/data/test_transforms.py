from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.transforms_factory import create_transform
from torch import Tensor
from torchvision.transforms import v2

from toast_cli.backbones.base import Preprocessing
from toast_cli.backbones.image_options import ImageOptions
from toast_cli.data.images.transforms import build_transform
from toast_cli.utils.errors import UsageError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
AUGMENTS = ["none", "flip", "crop-flip", "random-resized-crop"]


def preprocessing(size: tuple[int, int] = (64, 64), **fields: Any) -> Preprocessing:
    return Preprocessing(size, MEAN, STD, **fields)


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def white_square(width: int, height: int) -> tuple[Image.Image, np.ndarray]:
    """Black but for a white block, a third of each side long and off the centre; and its mask."""
    mask = np.zeros((height, width), dtype=bool)
    mask[height // 4 : height // 4 + height // 3, width // 3 : width // 3 + width // 3] = True
    return Image.fromarray(mask.astype(np.uint8) * 255).convert("RGB"), mask


def brightness(image: Tensor) -> Tensor:
    return (image * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]).mean(0)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("photo", [(301, 227), (61, 80)])
def test_evaluation_sees_the_pixels_that_timm_would_show(interpolation: str, photo: tuple[int, int]) -> None:
    image = noise(*photo)
    for image_size, crop_pct in itertools.product([(224, 224), (96, 64), (64, 96)], [1.0, 0.875, 0.9]):
        given = preprocessing(image_size, crop_pct=crop_pct, interpolation=interpolation)
        ours, _ = build_transform(ImageOptions(), given, train=False)(image)
        timm = create_transform((3, *image_size), mean=MEAN, std=STD, crop_pct=crop_pct, interpolation=interpolation)
        torch.testing.assert_close(ours, timm(image), rtol=0, atol=1e-6)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("augment", AUGMENTS)
def test_any_image_becomes_normalised_float32_of_the_input_size(augment: str, train: bool) -> None:
    transform = build_transform(ImageOptions(augment=augment), preprocessing((48, 64)), train)  # type: ignore[arg-type]
    for size in [(200, 50), (50, 200), (10, 10), (1, 300)]:
        image, mask = transform(Image.new("RGB", size, "white"))
        assert (type(image), image.dtype, image.shape) == (Tensor, torch.float32, (3, 48, 64))
        assert mask is None
        white = (1 - torch.tensor(MEAN)) / torch.tensor(STD)
        torch.testing.assert_close(image, white[:, None, None].expand_as(image))


@pytest.mark.parametrize(
    ("augment", "squash"),
    [*((augment, False) for augment in AUGMENTS), ("none", True), ("flip", True), ("random-resized-crop", True)],
)
def test_the_mask_follows_the_image_through_every_geometry(augment: str, squash: bool) -> None:
    options = ImageOptions(augment=augment, squash=squash)  # type: ignore[arg-type]
    torch.manual_seed(0)
    photos, sizes = [(200, 140), (140, 200), (40, 50)], [(64, 64), (48, 80)]
    for photo, image_size, _ in itertools.product(photos, sizes, range(8)):
        transform = build_transform(options, preprocessing(image_size, crop_pct=0.8), train=True)
        image, mask = transform(*white_square(*photo))
        assert mask is not None
        assert (type(mask), mask.dtype, mask.shape) == (Tensor, torch.bool, image_size)
        differs = (brightness(image) > 0.5) != mask
        # Bicubic and nearest may place an edge a pixel or two apart: thin lines along the block's border.
        assert differs.float().mean() < 0.12
        assert not _erode(differs, 5).any()


def _erode(mask: Tensor, size: int) -> Tensor:
    """True where a whole window of `size` is: lines thinner than that disappear."""
    return torch.nn.functional.avg_pool2d(mask[None, None].float(), size, stride=1)[0, 0] == 1


def test_a_mask_may_be_a_tensor_too() -> None:
    image, mask = white_square(90, 70)
    transform = build_transform(ImageOptions(), preprocessing(), train=False)
    first, second = transform(image, mask)[1], transform(image, torch.from_numpy(mask))[1]
    assert first is not None
    assert second is not None
    assert torch.equal(first, second)


def test_masks_do_not_change_the_image() -> None:
    image, mask = white_square(90, 70)
    transform = build_transform(ImageOptions(augment="crop-flip", resize=80), preprocessing(), train=True)
    torch.manual_seed(5)
    with_mask, _ = transform(image, mask)
    torch.manual_seed(5)
    without, _ = transform(image)
    assert torch.equal(with_mask, without)


@pytest.mark.parametrize("augment", AUGMENTS[1:])
def test_augmentation_is_random_and_repeats_under_a_seed(augment: str) -> None:
    transform = build_transform(ImageOptions(augment=augment), preprocessing(crop_pct=0.5), train=True)  # type: ignore[arg-type]
    image = noise(90, 70)

    def drawn(seed: int) -> list[Tensor]:
        torch.manual_seed(seed)
        return [transform(image)[0] for _ in range(8)]

    first, again = drawn(0), drawn(0)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert len({tuple(image.flatten().tolist()) for image in first}) > 1


def test_flip_only_mirrors() -> None:
    image = noise(90, 70)
    plain, _ = build_transform(ImageOptions(), preprocessing(), train=False)(image)
    transform = build_transform(ImageOptions(augment="flip"), preprocessing(), train=True)
    torch.manual_seed(0)
    seen = [transform(image)[0] for _ in range(16)]
    assert {torch.equal(shown, plain) for shown in seen} == {True, False}
    assert all(torch.equal(shown, plain) or torch.equal(shown, plain.flip(-1)) for shown in seen)


@pytest.mark.parametrize("augment", AUGMENTS)
def test_evaluation_ignores_the_augmentation(augment: str) -> None:
    image = noise(90, 70)
    options = ImageOptions(augment=augment)  # type: ignore[arg-type]
    plain, _ = build_transform(ImageOptions(), preprocessing(), train=False)(image)
    assert torch.equal(build_transform(options, preprocessing(), train=False)(image)[0], plain)


def test_resize_sets_the_shorter_side_before_the_crop() -> None:
    image = noise(90, 70)
    ours, _ = build_transform(ImageOptions(resize=80), preprocessing(), train=False)(image)
    timm = create_transform((3, 64, 64), mean=MEAN, std=STD, crop_pct=0.8, interpolation="bicubic")(image)
    torch.testing.assert_close(ours, timm, rtol=0, atol=1e-6)


def test_a_random_crop_reaches_the_corners_of_the_resized_image() -> None:
    corners, mask = Image.new("RGB", (80, 80)), np.zeros((80, 80), dtype=bool)
    mask[0, 0] = mask[79, 79] = True
    transform = build_transform(ImageOptions(augment="crop-flip", resize=80), preprocessing((76, 76)), train=True)
    torch.manual_seed(0)
    seen = {int(transform(corners, mask)[1].sum()) for _ in range(200)}  # type: ignore[union-attr]
    assert seen == {0, 1}


def test_squash_shows_the_whole_image() -> None:
    image, mask = white_square(300, 100)
    _, squashed = build_transform(ImageOptions(squash=True), preprocessing(), train=False)(image, mask)
    assert squashed is not None
    assert float(squashed.float().mean()) == pytest.approx(mask.mean(), abs=0.01)


def test_the_recipes_mean_and_std_win_over_the_backbones() -> None:
    options = ImageOptions(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    image, _ = build_transform(options, preprocessing(), train=False)(Image.new("RGB", (64, 64), "white"))
    torch.testing.assert_close(image, torch.full((3, 64, 64), 2.0))


@pytest.mark.parametrize(
    ("options", "code", "named"),
    [
        ({"squash": True, "resize": 256}, "image.conflicting-options", ("images.squash", "images.resize")),
        ({"squash": True, "augment": "crop-flip"}, "image.conflicting-options", ("images.squash", "crop-flip")),
        ({"resize": 50}, "image.resize-too-small", ("images.resize=50",)),
    ],
)
def test_options_that_contradict_each_other_are_named(
    options: dict[str, Any], code: str, named: tuple[str, ...]
) -> None:
    with pytest.raises(UsageError) as refused:
        build_transform(ImageOptions(**options), preprocessing(), train=True)
    assert refused.value.code == code
    assert all(fact in refused.value.what for fact in named)


def test_pixels_are_normalised_to_the_bit_as_torchvisions_own_steps_do_it() -> None:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    shown, _ = build_transform(ImageOptions(resize=16), Preprocessing((16, 16), mean, std), train=False)(image)
    steps = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(mean), list(std))]
    assert torch.equal(shown, v2.Compose(steps)(image))
    assert shown.is_contiguous()


CHANGES: list[dict[str, Any]] = [
    {"auto_augment": "trivial"},
    {"auto_augment": "rand", "rand_operations": 3, "rand_magnitude": 20},
    {"color_jitter": 0.5},
    {"hue": 0.3},
    {"rotation": 40},
    {"erasing": 1},
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_random_repeats_under_a_seed_and_is_for_training_alone(change: dict[str, Any]) -> None:
    options = ImageOptions(**change)
    training, image = build_transform(options, preprocessing(), train=True), noise(80, 70)
    plain = build_transform(ImageOptions(), preprocessing(), train=True)(image)[0]

    def views(seed: int) -> list[Tensor]:
        torch.manual_seed(seed)
        return [training(image)[0] for _ in range(8)]

    first, again, other = views(1), views(1), views(2)
    assert options.is_random and all(map(torch.equal, first, again))
    assert not all(map(torch.equal, first, other)) and not all(torch.equal(view, plain) for view in first)
    torch.testing.assert_close(build_transform(options, preprocessing(), train=False)(image)[0], plain)


def test_a_mask_turns_with_its_image_and_corners_get_the_mean_color() -> None:
    image, mask = white_square(96, 96)
    transform = build_transform(ImageOptions(rotation=180), preprocessing((96, 96), crop_pct=1.0), train=True)
    for seed in range(5):
        torch.manual_seed(seed)
        turned, turned_mask = transform(image, mask)
        assert turned_mask is not None
        white = brightness(turned) > 0.9
        assert (white & turned_mask).sum() > 0.9 * turned_mask.sum() and (white & ~turned_mask).sum() < 60
    assert turned.abs().amax(0)[0, 0] < 0.02  # a corner that the rotation left empty


def test_erasing_fills_a_rectangle_with_the_mean_color() -> None:
    torch.manual_seed(3)
    image = Image.new("RGB", (64, 64), "white")
    erased = build_transform(ImageOptions(erasing=1), preprocessing(), train=True)(image)[0].abs().amax(0) < 0.02
    rows, columns = torch.where(erased)
    assert 0 < erased.sum() == (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1) < erased.numel()
