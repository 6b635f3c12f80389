"""The Python API: open what toast wrote, or steer a model that is there already."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast, get_args

import torch
from PIL.Image import Image as PilImage
from torch import Tensor, nn

from toast_cli import registry
from toast_cli.attention.maps import AttentionRecorder, HeadSelection
from toast_cli.attention.segmentation import predict_pixel_classes
from toast_cli.backbones.base import Backbone
from toast_cli.backbones.image_options import ImageOptions
from toast_cli.data.images.decode import open_image, to_rgb
from toast_cli.data.images.transforms import build_transform
from toast_cli.data.text.conversations import Role, Turn
from toast_cli.model.generation import TextGenerator
from toast_cli.model.model import BackboneSnapshot, Model
from toast_cli.storage.load_model import LoadedModel
from toast_cli.storage.load_model import load_model as load_stored
from toast_cli.utils.errors import UsageError

if TYPE_CHECKING:
    from PIL.Image import Image

Picture: TypeAlias = "str | Path | Image"
"""An image file, or an image that is open."""

Message: TypeAlias = "Mapping[str, str]"
"""What one side said, as transformers has it: `role` (system, user or assistant) and `content`."""


@dataclass(frozen=True)
class Prediction:
    """The likeliest class of an image, its probability, and every class's in the model's order, `[classes]`."""

    label: str
    probability: float
    probabilities: Tensor = field(compare=False)  # tensors compare one by one


@dataclass(frozen=True)
class Attention:
    """Where the model looked, each `[B, rows, columns]` over the image.

    `first` and `last` are a level's attention in either pass and sum to one; `similarity` is that of each patch to xi,
    0 to 1. The last two are None for a model that looks once.
    """

    first: Tensor
    last: Tensor | None
    similarity: Tensor | None


class Steered(nn.Module):
    """A model that looks twice (or once, if its method has no feedback path), for use in Python.

    As an `nn.Module` it takes what its backbone takes, `model(images)` or `model(input_ids=..., attention_mask=...)`,
    and gives logits; `parameters()` that want a gradient are those that its method trains, so any loop can train it.
    One call at a time: during a call signals are put into the backbone's own modules, so threads that share it must
    take turns (give each its own, or hold a lock).

    Args:
        model: backbone, method and head.
        classes: their names in the order of the logits; empty for texts.
        images: how images are prepared, besides the backbone's own wishes.
        template: how a language model's turns are marked; None gives prompts as they are.
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
        """Where it computes."""
        return next(self.model.parameters()).device

    def forward(self, inputs: Any = None, **named: Any) -> Tensor:
        """Prepared images `[B, 3, H, W]` to logits `[B, classes]`, or token ids `[B, N]` to `[B, N, vocabulary]`."""
        if inputs is None:
            inputs = named
        elif self.model.backbone.preprocessing is None and isinstance(inputs, Tensor):
            inputs = {"input_ids": inputs, **named}
        return self.model(inputs)

    def prepare(self, images: Picture | Sequence[Picture]) -> Tensor:
        """Images (paths, or images of Pillow's) as the backbone wants them, `[B, 3, H, W]`.

        Raises:
            UsageError: there is none, or something else is given.
            ToastError: a file cannot be read as an image, or the backbone does not look at images.
        """
        transform = build_transform(self._images, self.model.backbone.require_preprocessing(), train=False)
        return torch.stack([transform(image)[0] for image in _open_images(images)]).to(self.device)

    @torch.no_grad()
    def predict(self, images: Picture | Sequence[Picture]) -> list[Prediction]:
        """The likeliest class of each image.

        Raises:
            UsageError: the model labels pixels, not images; there is no image, or something else is given.
            ToastError: a file cannot be read as an image, or the backbone does not look at images.
        """
        if self.model.objective.dense:
            raise UsageError(
                "This model labels pixels, not images.", what_to_do="Call segment().", code="task.labels-pixels"
            )
        with self._evaluation_mode():
            probabilities = self.model(self.prepare(images)).float().softmax(-1).cpu()
        best = probabilities.max(-1)
        return [
            Prediction(self.classes[int(index)], float(probability), row)
            for probability, index, row in zip(best.values, best.indices, probabilities, strict=True)
        ]

    @torch.no_grad()
    def segment(self, images: Picture | Sequence[Picture]) -> list[Tensor]:
        """The likeliest class of every pixel, by its place in `classes`: `[H, W]` at each image's own size.

        Raises:
            UsageError: the model labels images, not pixels; there is no image, or something else is given.
            ToastError: a file cannot be read as an image.
        """
        if not self.model.objective.dense:
            raise UsageError(
                "This model labels images, not pixels.", what_to_do="Call predict().", code="task.labels-images"
            )
        if not self.model.objective.class_scores:
            raise UsageError(
                "This model was trained with token labels and predicts no classes.", code="task.predicts-no-classes"
            )
        with self._evaluation_mode():
            return [predict_pixel_classes(self.model, self._images, opened) for opened in _open_images(images)]

    def attention(
        self, images: Picture | Sequence[Picture], level: int = -1, head: HeadSelection = "mean"
    ) -> Attention:
        """Where the model looks, at one level (the last unless told otherwise).

        Args:
            images: what is looked at.
            level: counted from 0, or from the end as -1, -2, …
            head: one by its number, `"mean"` or `"max"` over all, or `"rollout"` over the levels so far.

        Raises:
            UsageError: the backbone has no attention to show, no such level or no such head; there is no image.
            ToastError: a file cannot be read as an image, or a map is not what the model attends with.
        """
        prepared = self.prepare(images)
        with self._evaluation_mode():
            output = AttentionRecorder(self.model, level, head).record(prepared)
        return Attention(output.first, output.last, output.similarity)

    def generate(
        self, prompt: str | Sequence[Message], on_text: Callable[[str], Any] | None = None, **settings: Any
    ) -> str:
        """What a language model answers.

        Args:
            prompt: a question, or a conversation so far: `[{"role": "user", "content": "Hi"}, ...]`.
            on_text: called with every piece of text as it is written.
            settings: transformers' own, such as `max_new_tokens=50` (256 unless they limit it otherwise), `do_sample`,
                `temperature`, `num_beams`, `stop_strings`.

        Raises:
            UsageError: the backbone writes no text, there is no tokenizer beside it, the prompt or a message is none,
                or a setting asks for something else than one text.
        """
        with self._evaluation_mode():
            return TextGenerator(self.model, self._template).answer(_to_turns(prompt), on_text, **settings)

    def generate_all(
        self, prompts: Sequence[str | Sequence[Message]], batch_size: int = 8, **settings: Any
    ) -> list[str]:
        """What a language model answers to each of several prompts, `batch_size` of them at a time.

        Without sampling each is answered as `generate` would, but for rounding. Prompts and settings are as it takes
        them.

        Raises:
            UsageError: as of `generate`; a streamer is given.
        """
        if isinstance(prompts, str):
            raise UsageError(
                "One text is no list of prompts.", what_to_do="'generate' answers one.", code="text.not-a-list"
            )
        with self._evaluation_mode():
            return TextGenerator(self.model, self._template).answer_all(
                [_to_turns(one) for one in prompts], batch_size, **settings
            )

    def _evaluation_mode(self) -> Any:
        return _EvaluationMode(self.model)


def _open_images(images: Any) -> Iterator[Image]:
    """Every image in RGB.

    Raises:
        UsageError: there is none, or something is neither an image file nor an image of Pillow's.
        ToastError: a file cannot be read as an image.
    """
    many = images if isinstance(images, Sequence) and not isinstance(images, str | bytes) else [images]
    if not many:
        raise UsageError(
            "There is no image to look at.", what_to_do="Give one, or a list of some.", code="image.none-given"
        )
    return map(_to_rgb_image, many)


def _to_rgb_image(image: Any) -> Image:
    if isinstance(image, str | Path):
        return open_image(Path(image))
    if not isinstance(image, PilImage):
        raise UsageError(
            f"A {type(image).__name__} is no image.",
            "Images are files, by their path, or images of Pillow's.",
            "Make one of an array by PIL.Image.fromarray; prepared tensors [B, 3, H, W] go to model(tensor).",
            code="image.not-an-image",
        )
    try:
        return to_rgb(image)
    except (ValueError, OSError) as error:  # numbers without a white; a file that ends too soon
        raise UsageError("The image cannot be looked at.", str(error), code="image.unreadable") from error


def _to_turns(prompt: str | Sequence[Message]) -> list[Turn]:
    """A question, or a conversation so far, as turns.

    Raises:
        UsageError: it is neither.
    """
    if not isinstance(prompt, str | Sequence):
        raise UsageError(
            f"A {type(prompt).__name__} is no prompt.",
            what_to_do="Give a text, or a list of messages.",
            code="text.not-a-prompt",
        )
    return [Turn("user", prompt)] if isinstance(prompt, str) else [_to_turn(message) for message in prompt]


def _to_turn(message: Message) -> Turn:
    try:
        role, text = message["role"], message["content"]
    except (KeyError, TypeError) as error:
        raise UsageError(
            f"{message!r} is no message.",
            what_to_do='Write it as {"role": "user", "content": "..."}.',
            code="text.not-a-message",
        ) from error
    if role not in get_args(Role):
        raise UsageError(
            f"'{role}' is no role.", what_to_do=f"There are {', '.join(get_args(Role))}.", code="text.unknown-role"
        )
    return Turn(cast("Role", role), text)


class _EvaluationMode:
    """Within the block, a module is in evaluation mode."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __enter__(self) -> None:
        self.was_training = self.module.training
        self.module.eval()

    def __exit__(self, *_: object) -> None:
        self.module.train(self.was_training)


def load(run: str | Path, weights: str | None = None, device: str | torch.device = "cpu") -> Steered:
    """A run folder, an adapter folder, or an exported safetensors file or hf folder, ready to be used.

    Args:
        run: what to open.
        weights: the file, or a language model's folder, in place of the one that the recipe names.
        device: where to compute.

    Raises:
        UsageError: there is no such device.
        ToastError: nothing of that kind is there, it is damaged, or the backbone's weights are others.
    """
    loaded: LoadedModel = load_stored(Path(run), weights)
    template = getattr(loaded.recipe.dataset, "template", None)
    try:
        loaded.model.to(torch.device(device))
    except (RuntimeError, AssertionError) as error:  # torch has both for a device that is not there
        raise UsageError(
            f"The device '{device}' cannot be used.", str(error).partition("\n")[0], code="device.unavailable"
        ) from error
    return Steered(loaded.model, loaded.classes, loaded.recipe.images, template).eval()


def steer(model: Any, classes: int | Sequence[str] | None = None, method: str = "toast", **options: Any) -> Steered:
    """Put TOAST on a model that you have already: a timm ViT or ConvNeXt, or a causal language model of transformers.

    The model stays what it is and is frozen; its weights are shared, not copied, but for methods that change weights or
    put layers into the network (`full`, `lora`, `peft`), which work on a copy. What is trained starts at random; an
    image model gets a new head. Nothing changes in a plain call of your own model.

    Args:
        model: any model that a registered family knows.
        classes: how many, or their names in order; not for language models, which keep their own head.
        method: a registered method: `toast`, `toast-lite`, `linear`, ...
        options: the method's own, such as `rank=8` or `feedback="late"`.

    Raises:
        UsageError: no family knows the model, the method has no such option, or classes are missing.
    """
    from pydantic import ValidationError

    chosen = registry.load_entry(registry.METHODS, method)
    backbone = _wrap_backbone(deepcopy(model) if chosen.alters else model)
    text = backbone.output() is not None
    if text != (classes is None):
        raise UsageError(
            "A language model has its own head and takes no classes." if text else "Of how many classes?",
            what_to_do="" if text else "Give classes=10, or their names in order.",
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
            f"The method '{method}' does not take {where}: {first['msg']}.", code="method.invalid-option"
        ) from error
    task = registry.load_entry(registry.TASKS, "language" if text else "classification")
    stock = BackboneSnapshot.from_backbone(backbone)
    adapted = chosen.build(settings, backbone)
    objective = task.build(task.options(name="language" if text else "classification"), backbone, names)
    own = next(backbone.module.parameters())
    return Steered(Model(adapted, objective, stock).to(device=own.device), names)


def _to_class_names(classes: Any) -> tuple[str, ...]:
    """Names of classes, given those or how many.

    Raises:
        UsageError: they are none, no names, or one is there twice.
    """
    wrong = UsageError(
        f"classes={classes!r} is no number or list of classes.",
        what_to_do="Give classes=10, or names.",
        code="task.invalid-classes",
    )
    if isinstance(classes, int) and not isinstance(classes, bool):
        names = tuple(map(str, range(classes)))
    elif isinstance(classes, Sequence) and not isinstance(classes, str):
        names = tuple(classes)
    else:
        raise wrong
    if not names or not all(isinstance(name, str) for name in names):
        raise wrong
    if len(set(names)) < len(names):
        raise UsageError(
            "A class is named twice.", what_to_do="Give every class a name of its own.", code="data.duplicate-class"
        )
    return names


def _wrap_backbone(model: Any) -> Backbone:
    """The model as a backbone, by the first family that knows it."""
    for name in registry.list_names(registry.FAMILIES):
        family = registry.load_entry(registry.FAMILIES, name)
        backbone = family.wrap(model) if family.wrap is not None else None
        if backbone is not None:
            return backbone
    families = ", ".join(registry.list_names(registry.FAMILIES))
    raise UsageError(
        f"No family of backbones knows a {type(model).__name__}.",
        what_to_do=f"There are {families}.",
        code="backbone.unsupported-model",
    )
