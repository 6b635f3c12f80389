"""Token labels: image-level labels for the pooled features, and a label for every patch token of the last level.

The labels are computed from a class for every pixel, so any segmentation data set can be used. The loss follows token
labeling (Jiang et al., All Tokens Matter, NeurIPS 2021): an image-level loss on the pooled features plus a
cross-entropy on every patch token. `vit_demo` is pre-trained with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from toast_cli.backbones.image_options import PixelOptions
from toast_cli.tasks.base import Meter, Objective, Task
from toast_cli.utils.constants import IGNORE_INDEX, NOTHING_TO_MEASURE
from toast_cli.utils.errors import ToastError, UsageError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from toast_cli.backbones.base import Backbone, Readout
    from toast_cli.tasks.token_head import TokenFeatures

ATTRIBUTE_SEPARATOR = ", "


class TokenLabelsOptions(PixelOptions):
    """Options of token labels."""

    name: Literal["token-labels"] = Field("token-labels", description="the task")
    image: Literal["presence", "dominant"] = Field(
        "presence",
        description="target of the pooled features: which classes are present (binary cross-entropy), or the class "
        "with the most pixels (cross-entropy)",
    )
    image_weight: float = Field(1.0, ge=0, description="weight of the image-level loss")
    patch_weight: float = Field(1.0, ge=0, description="weight of the patch loss; 0: no patch loss")
    background: str | None = Field(
        None,
        examples=["background"],
        description="class that is never an image-level label; default: every class can be one",
    )
    attributes: bool = Field(
        False,
        description="split class names at commas: 'beetle, ringed' gives two labels, each with its own loss",
    )
    scale: tuple[float, float] | None = Field(
        None,
        examples=[[0.8, 1.25]],
        description="images.augment=crop-flip: range of the random scale factor of training images",
    )
    evaluation: Literal["whole"] = Field("whole", description="every image is resized to the backbone's input size")


@dataclass(frozen=True)
class Attribute:
    """One attribute of the classes: its values, and the value of every class.

    With a background class, value 0 is the background.
    """

    values: tuple[str, ...]
    class_values: tuple[int, ...]


def split_attributes(classes: Sequence[str], background: str | None, split: bool) -> tuple[Attribute, ...]:
    """Return the attributes of the classes: one, or with `split` one for every part of their names.

    Raises:
        UsageError: There is no such background class, or the names have different numbers of parts.
    """
    if background is not None and background not in classes:
        raise UsageError(
            f"The data set has no class '{background}' (task.background).",
            what_to_do=f"Its classes begin with {', '.join(classes[:3])}.",
            code="task.unknown-background",
        )
    parts = [name.split(ATTRIBUTE_SEPARATOR) if split and name != background else [name] for name in classes]
    counts = {len(part) for part, name in zip(parts, classes, strict=True) if name != background}
    if len(counts) != 1:
        raise UsageError(
            "task.attributes=true needs class names with the same number of parts.",
            f"The names have {', '.join(map(str, sorted(counts)))} parts, "
            f"separated by '{ATTRIBUTE_SEPARATOR.strip()}'.",
            "Set task.attributes=false.",
            code="task.inconsistent-class-names",
        )
    attributes = []
    for place in range(counts.pop()):
        names = [name if name == background else part[place] for part, name in zip(parts, classes, strict=True)]
        first = [] if background is None else [background]
        values = tuple(dict.fromkeys([*first, *names]))
        attributes.append(Attribute(values, tuple(values.index(name) for name in names)))
    return tuple(attributes)


class TokenLabels(Objective):
    """Head, loss and metrics of token labels.

    Outputs are `[B, 1 + N, K]`: the scores of the image, then those of every patch token. K is the number of values of
    all attributes together, one attribute after the other.

    Args:
        head: Module from `TokenFeatures` to the outputs.
        attributes: The attributes of the classes.
        options: The options of the task.
        grid: Rows and columns of the patch tokens.
    """

    reads_levels = True
    dense = True
    target = "pixels"
    class_scores = False
    output_layers = ("image", "patch")

    def __init__(
        self, head: nn.Module, attributes: tuple[Attribute, ...], options: TokenLabelsOptions, grid: tuple[int, int]
    ) -> None:
        self.head = head
        self.attributes = attributes
        self.options = options
        self.grid = grid
        self.sizes = [len(attribute.values) for attribute in attributes]
        self.skip_background = options.background is not None

    def inputs(self, batch: Mapping[str, Any]) -> Tensor:
        """Return the images `[B, 3, H, W]`."""
        return batch["image"]

    def features(self, backbone: Backbone, readout: Readout, levels: Sequence[Tensor], inputs: Any) -> TokenFeatures:
        """Return the pooled features and the patch tokens after the last level."""
        from toast_cli.tasks.token_head import extract_token_features

        return extract_token_features(backbone, readout)

    def count(self, batch: Mapping[str, Any]) -> int:
        """Return the number of images with at least one labelled pixel."""
        return int((batch["labels"] != IGNORE_INDEX).flatten(1).any(1).sum())

    def loss(self, outputs: Tensor, batch: Mapping[str, Any]) -> Tensor:
        """Return the sum over images of the image-level loss and the mean patch loss, both averaged over attributes."""
        import torch
        from torch.nn import functional as F

        outputs, total = outputs.float(), outputs.new_zeros((), dtype=torch.float32)
        pixels = self._get_patch_pixels(batch)
        for scores, attribute in zip(outputs.split(self.sizes, -1), self.attributes, strict=True):
            image, patches = scores[:, 0], scores[:, 1:]
            targets, labelled = self._image_targets(pixels, attribute)
            if self.options.image == "presence":
                first = int(self.skip_background)
                by_value = F.binary_cross_entropy_with_logits(image[:, first:], targets[:, first:], reduction="none")
                total = total + self.options.image_weight * by_value.mean(-1)[labelled].sum()
            else:
                known_targets = targets.masked_fill(~labelled, IGNORE_INDEX)
                total = total + self.options.image_weight * F.cross_entropy(
                    image, known_targets, ignore_index=IGNORE_INDEX, reduction="sum"
                )
            if self.options.patch_weight > 0:
                places = self._patch_targets(pixels, attribute)
                by_patch = F.cross_entropy(patches.transpose(1, 2), places, ignore_index=IGNORE_INDEX, reduction="none")
                known = (places != IGNORE_INDEX).sum(1)
                total = total + self.options.patch_weight * (by_patch.sum(1) / known.clamp_min(1)).sum()
        return total / len(self.attributes)

    def count_correct(self, outputs: Tensor, batch: Mapping[str, Any]) -> tuple[int, int, int, int]:
        """Return four counts: correct images, images, correct patches, patches; each attribute counts once.

        With `image=presence`, an image counts once per value.
        """
        pixels, counts = self._get_patch_pixels(batch), [0, 0, 0, 0]
        for scores, attribute in zip(outputs.split(self.sizes, -1), self.attributes, strict=True):
            targets, labelled = self._image_targets(pixels, attribute)
            if self.options.image == "presence":
                first = int(self.skip_background)
                right = (scores[:, 0, first:] > 0) == (targets[:, first:] > 0)
                counts[0] += int(right[labelled].sum())
                counts[1] += int(labelled.sum()) * right.shape[1]
            else:
                counts[0] += int((scores[:, 0].argmax(-1) == targets)[labelled].sum())
                counts[1] += int(labelled.sum())
            places = self._patch_targets(pixels, attribute)
            counts[2] += int((scores[:, 1:].argmax(-1) == places).sum())
            counts[3] += int((places != IGNORE_INDEX).sum())
        return counts[0], counts[1], counts[2], counts[3]

    def _get_patch_pixels(self, batch: Mapping[str, Any]) -> Tensor:
        """Return the classes of the pixels of every patch `[B, N, n]`. Labels are first resized to whole patches."""
        import torch
        from torch.nn import functional as F

        labels, (rows, columns) = batch["labels"], self.grid
        sizes = batch["size"].tolist() if "size" in batch else [labels.shape[-2:]] * len(labels)
        cut = []
        for one, (height, width) in zip(labels, sizes, strict=True):
            shape = (-(-height // rows) * rows, -(-width // columns) * columns)
            if shape != (height, width) or len({tuple(size) for size in sizes}) > 1:
                shape = (rows * 16, columns * 16)
            labelled = one[None, None, :height, :width]
            if shape != labelled.shape[-2:]:
                labelled = F.interpolate(labelled.float(), shape, mode="nearest").long()
            cut.append(labelled)
        stacked = torch.cat(cut).squeeze(1)
        blocks = stacked.unflatten(2, (columns, -1)).unflatten(1, (rows, -1))  # [B, rows, h, columns, w]
        return blocks.movedim(3, 2).flatten(3).flatten(1, 2)

    def _image_targets(self, pixels: Tensor, attribute: Attribute) -> tuple[Tensor, Tensor]:
        """Return an image-level target for every image, and which images have one `[B]`.

        The target is `[B, values]` in 0 and 1 for presence, and the value `[B]` with the most pixels for dominant.
        """
        import torch

        classes = pixels.flatten(1)
        known = classes != IGNORE_INDEX
        counts = torch.zeros(len(classes), len(attribute.class_values), device=pixels.device)
        counts.scatter_add_(1, classes.clamp_min(0), known.to(counts.dtype))
        if self.skip_background:
            counts[:, attribute.class_values.index(0)] = 0
        by_value = torch.zeros(len(classes), len(attribute.values), device=pixels.device)
        if self.options.image == "dominant":
            # Use the class with the most pixels, not the value: two objects with one value are not one large object.
            value = torch.tensor(attribute.class_values, device=pixels.device)[counts.argmax(1)]
            return value, counts.sum(1) > 0
        by_value.index_add_(1, torch.tensor(attribute.class_values, device=pixels.device), counts)
        return (by_value > 0).float(), known.any(1)

    def _patch_targets(self, pixels: Tensor, attribute: Attribute) -> Tensor:
        """Return the value of every patch `[B, N]`: that of the class of most of its pixels, or `IGNORE_INDEX`."""
        import torch

        most = pixels.mode(-1).values
        values = torch.tensor(attribute.class_values, device=pixels.device)
        return torch.where(most == IGNORE_INDEX, most, values[most.clamp_min(0)])

    def meter(self) -> TokenLabelsMeter:
        """Return a new meter of accuracy and loss."""
        return TokenLabelsMeter(self)

    def score(self, metrics: Mapping[str, Any]) -> float:
        """Return the mean accuracy of the trained outputs: image-level labels, patches, or both."""
        weights = {"accuracy": self.options.image_weight, "patch_accuracy": self.options.patch_weight}
        learned = [metrics[name] for name, weight in weights.items() if weight > 0] or [metrics["accuracy"]]
        return sum(learned) / len(learned)


class TokenLabelsMeter(Meter):
    """Image-level accuracy, patch accuracy, and loss per image."""

    def __init__(self, objective: TokenLabels) -> None:
        import torch

        self._objective = objective
        super().__init__(counts=torch.zeros(4, dtype=torch.int64), loss=0.0, images=0)

    def add(self, outputs: Tensor, batch: Mapping[str, Any]) -> None:
        """Add one batch."""
        counts = self.sums["counts"]
        counts += counts.new_tensor(self._objective.count_correct(outputs, batch))
        self.sums["loss"] += self._objective.loss(outputs, batch).item()
        self.sums["images"] += self._objective.count(batch)

    def result(self) -> dict[str, Any]:
        """Return `accuracy` of the image-level labels, `patch_accuracy`, `loss` per image, and `images`.

        Raises:
            ToastError: No pixel has a class.
        """
        if not self.sums["images"]:
            raise ToastError(
                "There is nothing to measure: no pixel of this split has a class.",
                what_to_do="Check the class maps. 'toast data check' counts images without a labelled pixel.",
                code=NOTHING_TO_MEASURE,
            )
        right, answers, patches_right, patches = self.sums["counts"].tolist()
        return {
            "accuracy": right / max(answers, 1),
            "patch_accuracy": patches_right / max(patches, 1),
            "loss": self.sums["loss"] / self.sums["images"],
            "images": self.sums["images"],
        }


def build_token_labels(options: TokenLabelsOptions, backbone: Backbone, classes: tuple[str, ...]) -> TokenLabels:
    """Build the objective with a linear head on the pooled features and one on the patch tokens.

    Raises:
        UsageError: The backbone does not take images, or the class names do not fit the options.
    """
    height, width = backbone.require_preprocessing().image_size

    import torch

    from toast_cli.tasks.token_head import TokenHead

    attributes = split_attributes(classes, options.background, options.attributes)
    head = TokenHead(backbone, sum(len(attribute.values) for attribute in attributes))
    grid = backbone.grid(torch.empty(1, 3, height, width, device="meta"))
    return TokenLabels(head, attributes, options, grid)


def name_attribute_values(options: TokenLabelsOptions, classes: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of the outputs: the values of each attribute, with the number of the attribute."""
    attributes = split_attributes(classes, options.background, options.attributes)
    return tuple(f"{number}: {value}" for number, each in enumerate(attributes, start=1) for value in each.values)


TASK = Task(TokenLabelsOptions, build_token_labels, name_attribute_values)
