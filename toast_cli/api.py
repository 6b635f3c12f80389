"""The Python API: load a run or an export, or add TOAST to an existing model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast, get_args

import torch
from PIL.Image import Image as PilImage
from torch import Tensor, nn

from toast_cli import registry
from toast_cli.attention.maps import AttentionRecorder, HeadSelection
from toast_cli.attention.predicted_classes import predict_pixel_classes
from toast_cli.backbones.base import Backbone
from toast_cli.backbones.image_options import ImageOptions
from toast_cli.data.images.decode import open_image, to_upright_rgb
from toast_cli.data.images.transforms import build_transform
from toast_cli.data.text.conversation_split import Role, Turn
from toast_cli.model.generation import TextGenerator, choose_template
from toast_cli.model.model import BackboneSnapshot, Model
from toast_cli.storage.load_model import LoadedModel
from toast_cli.storage.load_model import load_model as load_stored
from toast_cli.utils.errors import UsageError

if TYPE_CHECKING:
    from PIL.Image import Image

Picture: TypeAlias = "str | Path | Image"
"""A path to an image file, or a PIL image. Both are turned as their EXIF orientation says."""

BATCH_SIZE = 32
"""Number of images that are decoded and computed at a time by default."""

Message: TypeAlias = "Mapping[str, str]"
"""A chat message as in transformers: `role` ("system", "user" or "assistant") and `content`."""


@dataclass(frozen=True)
class Prediction:
    """The most likely class of an image.

    Args:
        label: Name of the class.
        probability: Probability of the class.
        probabilities: Probabilities of all classes in the order of `Steered.classes`, `[classes]`.
    """

    label: str
    probability: float
    probabilities: Tensor = field(compare=False)  # tensors compare elementwise


@dataclass(frozen=True)
class LabelsPrediction(Prediction):
    """The labels of an image. `label` and `probability` are those of the most likely label, given or not.

    Args:
        labels: Probability of every label from its threshold on, the most likely first; may be empty.
    """

    labels: dict[str, float]


@dataclass(frozen=True)
class NumberPrediction:
    """The numbers that a model predicts for an image, in the units of the data.

    Args:
        values: The numbers by name.
    """

    values: dict[str, float]

    @property
    def value(self) -> float:
        """The number, or the first one of several."""
        return next(iter(self.values.values()))


@dataclass(frozen=True)
class Attention:
    """Attention maps of a batch, each of shape `[B, rows, columns]` over the image.

    Args:
        first: Attention in pass one. Sums to one.
        last: Attention in pass two. Sums to one. None for a model with a single pass.
        similarity: Similarity of each patch to xi, in [0, 1]. None for a model with a single pass.
    """

    first: Tensor
    last: Tensor | None
    similarity: Tensor | None


class Steered(nn.Module):
    """A backbone adapted by TOAST or by another method, as an `nn.Module`.

    Call it with the inputs of its backbone, `model(images)` or `model(input_ids=..., attention_mask=...)`, to get
    logits. Only the parameters that the method trains require a gradient, so any training loop can train it.

    A call adds signals to the modules of the backbone, so the model is not thread-safe. Use one model per thread, or a
    lock.

    Args:
        model: Backbone, method and head.
        classes: Class names in the order of the logits; empty for a language model.
        images: Image options of the run, in addition to the preprocessing of the backbone.
        template: Prompt template of a language model; None uses prompts as they are.
    """

    def __init__(
        self, model: Model, classes: Sequence[str], images: ImageOptions | None = None, template: str | None = None
    ) -> None:
        super().__init__()
        self.model = model
        self.classes = tuple(classes)
        self._images = images or ImageOptions()
        self._template = template

    @property
    def device(self) -> torch.device:
        """Device of the model's parameters."""
        return next(self.model.parameters()).device

    def forward(self, inputs: Any = None, **named: Any) -> Tensor:
        """Return the logits of prepared images or token ids.

        Images `[B, 3, H, W]` give `[B, classes]`; token ids `[B, N]` give `[B, N, vocabulary]`.
        """
        if inputs is None:
            inputs = named
        elif self.model.backbone.preprocessing is None and isinstance(inputs, Tensor):
            inputs = {"input_ids": inputs, **named}
        return self.model(inputs)

    def prepare(self, images: Picture | Iterable[Picture]) -> Tensor:
        """Preprocess images (paths or PIL images) for the backbone, to a tensor `[B, 3, H, W]`.

        Raises:
            UsageError: There are no images, or one is neither a path nor a PIL image.
            ToastError: An image file cannot be read, or the backbone has no image input.
        """
        transform = build_transform(self._images, self.model.backbone.require_preprocessing(), train=False)
        return torch.stack([transform(image)[0] for image in self._open(images)]).to(self.device)

    @torch.no_grad()
    def predict(
        self, images: Picture | Iterable[Picture], batch_size: int = BATCH_SIZE
    ) -> list[Prediction] | list[LabelsPrediction] | list[NumberPrediction]:
        """Return the most likely class of each image, or its labels or numbers, `batch_size` images at a time.

        A model of several labels returns `LabelsPrediction`, a model of numbers `NumberPrediction`.

        Raises:
            UsageError: The model classifies pixels, there are no images, or one is neither a path nor a PIL image.
            ToastError: An image file cannot be read, or the backbone has no image input.
        """
        objective = self.model.objective
        if objective.dense:
            raise UsageError(
                "This is a segmentation model: it classifies pixels, not images.",
                what_to_do="Call segment().",
                code="task.labels-pixels",
            )
        with self._use_evaluation_mode():
            scores = torch.cat(
                [
                    objective.compute_scores(self.model(batch)).cpu()
                    for batch in self._prepare_batches(images, batch_size)
                ]
            )
        if objective.target == "number":
            return [NumberPrediction(dict(zip(self.classes, row.tolist(), strict=True))) for row in scores]
        best: Iterator[tuple[float, int, Tensor]]
        best = zip(*(each.tolist() for each in scores.max(-1)), scores, strict=True)
        if objective.target == "labels":
            return [
                LabelsPrediction(self.classes[index], score, row, self._select_labels(row))
                for score, index, row in best
            ]
        return [Prediction(self.classes[index], score, row) for score, index, row in best]

    def _select_labels(self, probabilities: Tensor) -> dict[str, float]:
        """Return the labels from their thresholds on with their probabilities `[labels]`, the most likely first."""
        thresholds = self.model.objective.describe_outputs().get("thresholds", [0.5] * len(self.classes))
        found = zip(self.classes, probabilities.tolist(), thresholds, strict=True)
        given = {name: probability for name, probability, threshold in found if probability >= threshold}
        return dict(sorted(given.items(), key=lambda item: -item[1]))

    @torch.no_grad()
    def segment(self, images: Picture | Iterable[Picture]) -> list[Tensor]:
        """Return the most likely class of every pixel, as indices into `classes`.

        Each result has the size of its image, `[H, W]`.

        Raises:
            UsageError: The model classifies images, there are no images, or one is neither a path nor a PIL image.
            ToastError: An image file cannot be read, or an image is too thin.
        """
        if not self.model.objective.dense:
            raise UsageError(
                "This model classifies images, not pixels.", what_to_do="Call predict().", code="task.labels-images"
            )
        if not self.model.objective.class_scores:
            raise UsageError(
                "This model was trained with token labels and does not predict classes.",
                code="task.predicts-no-classes",
            )
        with self._use_evaluation_mode():
            return [predict_pixel_classes(self.model, self._images, opened) for opened in self._open(images)]

    @torch.no_grad()
    def attention(
        self,
        images: Picture | Iterable[Picture],
        level: int = -1,
        head: HeadSelection = "mean",
        batch_size: int = BATCH_SIZE,
    ) -> Attention:
        """Return the attention maps of one level, in both passes, computed for `batch_size` images at a time.

        Args:
            images: Paths or PIL images.
            level: Index of the level; negative indices count from the end.
            head: Index of an attention head, `"mean"` or `"max"` over the heads, or `"rollout"` over the levels up to
                `level`.
            batch_size: Number of images that are decoded and computed at a time.

        Raises:
            UsageError: The backbone has no attention maps, there is no such level or head, or there are no images.
            ToastError: An image file cannot be read, or a map does not match the attention that the model computes.
        """
        recorder = AttentionRecorder(self.model, level, head)
        maps = []
        with self._use_evaluation_mode():
            for batch in self._prepare_batches(images, batch_size):
                output = recorder.record(batch)
                maps.append((output.first, output.last, output.similarity))  # and not the states of both passes
        first, last, similarity = zip(*maps, strict=True)
        return Attention(torch.cat(first), _join(last), _join(similarity))

    def generate(
        self, prompt: str | Sequence[Message], on_text: Callable[[str], Any] | None = None, **settings: Any
    ) -> str:
        """Return a language model's answer to a prompt.

        Args:
            prompt: A text, or the messages of a conversation: `[{"role": "user", "content": "Hi"}, ...]`.
            on_text: Called with each piece of text as it is generated.
            settings: Generation options of transformers, e.g. `max_new_tokens` (default 256), `do_sample`,
                `temperature`, `num_beams`, `stop_strings`.

        Raises:
            UsageError: The backbone is not a language model or has no tokenizer, the prompt or a message is invalid,
                or a setting requests more than one text.
        """
        with self._use_evaluation_mode():
            return TextGenerator(self.model, self._template).answer(_to_turns(prompt), on_text, **settings)

    def generate_all(
        self, prompts: Sequence[str | Sequence[Message]], batch_size: int = 8, **settings: Any
    ) -> list[str]:
        """Return a language model's answers to several prompts, `batch_size` at a time.

        Prompts and settings are as for `generate`. Without sampling, the answers equal those of `generate`, except for
        rounding.

        Raises:
            UsageError: As for `generate`, or `prompts` is a single text, or a streamer is given.
        """
        if isinstance(prompts, str):
            raise UsageError(
                "Expected a list of prompts, got a single text.",
                what_to_do="Call generate() for one prompt.",
                code="text.not-a-list",
            )
        with self._use_evaluation_mode():
            return TextGenerator(self.model, self._template).answer_all(
                [_to_turns(one) for one in prompts], batch_size, **settings
            )

    def _open(self, images: Any) -> Iterator[Image]:
        return _open_images(images, self._images.white)

    def _prepare_batches(self, images: Any, batch_size: int) -> Iterator[Tensor]:
        """Yield prepared batches.

        Raises:
            UsageError: `batch_size` is not a positive number, or as for `prepare`.
        """
        if not isinstance(batch_size, int) or batch_size < 1:
            raise UsageError(
                f"Expected a positive number, got batch_size={batch_size!r}.", code="task.invalid-batch-size"
            )
        opened = self._open(images)
        while batch := list(islice(opened, batch_size)):
            yield self.prepare(batch)

    def _use_evaluation_mode(self) -> Any:
        return _EvaluationMode(self.model)


def _join(parts: Sequence[Tensor | None]) -> Tensor | None:
    """Return the maps of all batches, or None if the model has no such maps."""
    present = [part for part in parts if part is not None]
    return torch.cat(present) if present else None


def _open_images(images: Any, white: int | None) -> Iterator[Image]:
    """Yield every image as upright RGB, opened when it is asked for.

    Raises:
        UsageError: There are no images, or one is neither a path nor a PIL image, or cannot be converted.
        ToastError: An image file cannot be read.
    """
    several = isinstance(images, Sequence | Iterator) and not isinstance(images, str | bytes)
    image = None
    for index, image in enumerate(images if several else [images]):
        yield _to_rgb_image(image, white, f"image {index} of the list (counted from 0)" if several else "the image")
    if image is None:
        raise UsageError(
            "Expected at least one image, got an empty list.",
            what_to_do="Pass an image or a list of images.",
            code="image.none-given",
        )


def _to_rgb_image(image: Any, white: int | None, which: str) -> Image:
    if isinstance(image, str) and not image:
        raise UsageError(
            f"Expected the path of an image, got an empty text as {which}.",
            what_to_do="Pass the path of an image file.",
            code="image.empty-path",
        )
    if isinstance(image, str | Path):
        return open_image(Path(image), white)
    if not isinstance(image, PilImage):
        raise UsageError(
            f"Expected a path or a PIL image, got {type(image).__name__} as {which}.",
            what_to_do="Convert an array with PIL.Image.fromarray; pass a prepared [B, 3, H, W] tensor to model().",
            code="image.not-an-image",
        )
    try:
        return to_upright_rgb(image, white)
    except (ValueError, OSError) as error:  # no pixels, no known white level, or a truncated file
        raise UsageError(f"Cannot convert {which} to RGB.", str(error), code="image.unreadable") from error


def _to_turns(prompt: str | Sequence[Message]) -> list[Turn]:
    """Convert a text or a list of messages to turns.

    Raises:
        UsageError: The prompt is neither, or a message is invalid.
    """
    if not isinstance(prompt, str | Sequence):
        raise UsageError(
            f"Expected a text or a list of messages, got {type(prompt).__name__}.",
            what_to_do='Pass "..." or [{"role": "user", "content": "..."}].',
            code="text.not-a-prompt",
        )
    return [Turn("user", prompt)] if isinstance(prompt, str) else [_to_turn(message) for message in prompt]


def _to_turn(message: Message) -> Turn:
    try:
        role, text = message["role"], message["content"]
    except (KeyError, TypeError) as error:
        raise UsageError(
            f"Invalid message: {message!r}.",
            what_to_do='Write it as {"role": "user", "content": "..."}.',
            code="text.not-a-message",
        ) from error
    if role not in get_args(Role):
        raise UsageError(
            f"Unknown role '{role}'.", what_to_do=f"Known roles: {', '.join(get_args(Role))}.", code="text.unknown-role"
        )
    return Turn(cast("Role", role), text)


class _EvaluationMode:
    """A context manager that puts a module in evaluation mode and restores its mode on exit."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __enter__(self) -> None:
        self.was_training = self.module.training
        self.module.eval()

    def __exit__(self, *_: object) -> None:
        self.module.train(self.was_training)


def load(run: str | Path, weights: str | None = None, device: str | torch.device = "cpu") -> Steered:
    """Load a run or an export, in evaluation mode.

    Args:
        run: A run folder, an adapter folder, an exported safetensors file or an exported hf folder.
        weights: Backbone weights (a file, or the folder of a language model) to use instead of those in the recipe.
        device: Device to load the model to.

    Raises:
        UsageError: The device is not available.
        ToastError: The path is not a run or an export, it is damaged, or the backbone weights do not match.
    """
    loaded: LoadedModel = load_stored(Path(run), weights)
    template = choose_template(loaded.recipe, loaded.model.backbone.tokenizer)
    try:
        loaded.model.to(torch.device(device))
    except (RuntimeError, AssertionError) as error:  # torch raises either for an unavailable device
        raise UsageError(
            f"Cannot use the device '{device}'.", str(error).partition("\n")[0], code="device.unavailable"
        ) from error
    return Steered(loaded.model, loaded.classes, loaded.recipe.images, template).eval()


def steer(model: Any, classes: int | Sequence[str] | None = None, method: str = "toast", **options: Any) -> Steered:
    """Add TOAST to an existing model: a timm ViT or ConvNeXt, or a causal language model of transformers.

    The model is frozen and its weights are shared, not copied. Only methods that change weights or insert layers
    (`full`, `lora`, `peft`) work on a copy. Calling the original model gives the same outputs as before.

    The trained parameters are initialized at random. An image model gets a new head.

    Args:
        model: A model of a registered family.
        classes: Number of classes, or their names in order. None for a language model, which keeps its own head.
        method: Name of a registered method: `toast`, `toast-lite`, `linear`, ...
        options: Options of the method, e.g. `rank=8` or `feedback="late"`.

    Raises:
        UsageError: The model is not of a registered family, the method has no such option, or `classes` is missing.
    """
    from pydantic import ValidationError

    chosen = registry.load_entry(registry.METHODS, method)
    backbone = _wrap_backbone(deepcopy(model) if chosen.alters else model)
    text = backbone.output() is not None
    if text != (classes is None):
        raise UsageError(
            "A language model keeps its own head and takes no classes."
            if text
            else "The argument 'classes' is missing.",
            what_to_do="Remove the argument 'classes'." if text else "Pass classes=10, or the class names in order.",
            code="task.has-own-head" if text else "task.missing-classes",
        )
    names = () if classes is None else _to_class_names(classes)
    if "start" in chosen.options.model_fields:
        options = {"start": "random", **options}
    try:
        settings = chosen.options(**{"name": method, **options})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UsageError(
            f"Invalid option '{where}' for the method '{method}': {first['msg']}.", code="method.invalid-option"
        ) from error
    task = registry.load_entry(registry.TASKS, "language" if text else "classification")
    stock = BackboneSnapshot.from_backbone(backbone)
    adapted = chosen.build(settings, backbone)
    objective = task.build(task.options(name="language" if text else "classification"), backbone, names)
    own = next(backbone.module.parameters())
    return Steered(Model(adapted, objective, stock).to(device=own.device), names)


def _to_class_names(classes: Any) -> tuple[str, ...]:
    """Return the class names, given the names or their number.

    Raises:
        UsageError: `classes` is neither a positive number nor a list of strings, or a name occurs twice.
    """
    invalid = UsageError(
        f"Expected a number of classes or a list of names, got classes={classes!r}.",
        what_to_do="Pass classes=10, or the class names in order.",
        code="task.invalid-classes",
    )
    if isinstance(classes, int) and not isinstance(classes, bool):
        names = tuple(map(str, range(classes)))
    elif isinstance(classes, Sequence) and not isinstance(classes, str):
        names = tuple(classes)
    else:
        raise invalid
    if not names or not all(isinstance(name, str) for name in names):
        raise invalid
    if len(set(names)) < len(names):
        duplicate = next(name for name in names if names.count(name) > 1)
        raise UsageError(
            f"The class name '{duplicate}' occurs twice.",
            what_to_do="Use unique class names.",
            code="data.duplicate-class",
        )
    return names


def _wrap_backbone(model: Any) -> Backbone:
    """Wrap a model as a backbone, with the first family that supports it.

    Raises:
        UsageError: No registered family supports the model.
    """
    for name in registry.list_names(registry.FAMILIES):
        family = registry.load_entry(registry.FAMILIES, name)
        backbone = family.wrap(model) if family.wrap is not None else None
        if backbone is not None:
            return backbone
    families = ", ".join(registry.list_names(registry.FAMILIES))
    raise UsageError(
        f"No registered backbone family supports a {type(model).__name__}.",
        what_to_do=f"Registered families: {families}.",
        code="backbone.unsupported-model",
    )
