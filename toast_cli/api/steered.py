"""`Steered`: a backbone adapted by TOAST or by another method, as an `nn.Module`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from toast_cli.api.adapters import Adapter, load_adapter, save_adapter
from toast_cli.api.chat import Message, to_texts, to_turns
from toast_cli.api.image_input import Picture, open_images
from toast_cli.api.predictions import Attention, LabelsPrediction, NumberPrediction, Prediction
from toast_cli.attention.maps import AttentionRecorder, HeadSelection
from toast_cli.attention.predicted_classes import predict_pixel_classes
from toast_cli.backbones.image_options import ImageOptions
from toast_cli.data.images.transforms import build_transform
from toast_cli.model.generation import TextGenerator
from toast_cli.model.model import Model
from toast_cli.utils.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from PIL.Image import Image

DEFAULT_ADAPTER = "default"
"""Name of the adapter that a model begins with."""

BATCH_SIZE = 32
"""Number of images that are decoded and computed at a time by default."""


class Steered(nn.Module):
    """A backbone adapted by TOAST or by another method, as an `nn.Module`.

    Call it with the inputs of its backbone, `model(images)` or `model(input_ids=..., attention_mask=...)`, to get
    logits. Only the parameters that the method trains require a gradient, so any training loop can train it.

    A call adds signals to the modules of the backbone, so the model is not thread-safe. Use one model per thread, or a
    lock.

    It can hold several adapters of one backbone, of which one is active. The first is called `"default"`. `model` and
    `classes` are those of the active adapter.

    Args:
        model: Backbone, method and head.
        classes: Class names in the order of the logits; empty for a language model.
        images: Image options of the run, in addition to the preprocessing of the backbone.
        template: Prompt template of a language model; None uses prompts as they are.
        values: The recipe as plain values, which `save` needs.
        whole: Whether the backbone's weights come from an export, and not from its name.
    """

    model: Model
    classes: tuple[str, ...]

    def __init__(
        self,
        model: Model,
        classes: Sequence[str],
        images: ImageOptions | None = None,
        template: str | None = None,
        values: Mapping[str, Any] | None = None,
        whole: bool = False,
    ) -> None:
        super().__init__()
        first = Adapter(model, tuple(classes), images or ImageOptions(), template, values, whole)
        self._adapters = {DEFAULT_ADAPTER: first}
        self._activate(DEFAULT_ADAPTER)

    @property
    def device(self) -> torch.device:
        """Device of the model's parameters."""
        return next(self.model.parameters()).device

    @property
    def active_adapter(self) -> str:
        """Name of the adapter that the model uses."""
        return self._active

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of all adapters in memory."""
        return tuple(self._adapters)

    def add_adapter(self, name: str, run: str | Path) -> None:
        """Load another adapter of the same backbone, whose weights stay in memory once. `set_adapter` activates it.

        Args:
            name: A new name for it.
            run: A run folder, an adapter folder or an exported adapter of any method but `full`.

        Raises:
            UsageError: The name is taken, or one of the adapters has backbone weights of its own.
            ToastError: The adapter was trained on another backbone, or cannot be read.
        """
        if name in self._adapters:
            raise UsageError(
                f"There is an adapter '{name}' already.",
                what_to_do="Choose another name, or delete it with delete_adapter().",
                code="adapter.duplicate-name",
            )
        self._adapters[name] = load_adapter(self._adapters[self._active], run)

    def set_adapter(self, name: str) -> None:
        """Make an adapter active, with its head and its class names. Only its trained parameters are `parameters()`.

        Raises:
            UsageError: There is no such adapter.
        """
        self._require_adapter(name)
        device = self.device
        self._activate(name)
        self.model.to(device).train(self.training)

    def delete_adapter(self, name: str) -> None:
        """Remove an adapter that is not active from memory.

        Raises:
            UsageError: There is no such adapter, or it is active.
        """
        self._require_adapter(name)
        if name == self._active:
            raise UsageError(
                f"The adapter '{name}' is active.",
                what_to_do="Activate another one first, with set_adapter().",
                code="adapter.active",
            )
        del self._adapters[name]

    def save(self, folder: str | Path, *, overwrite: bool = False) -> None:
        """Save the active adapter as a folder that `load`, `toast eval --run` and `toast export --run` take.

        The backbone's own weights are not included, unless they were trained. `load` builds the backbone from its name
        in timm or transformers, and checks that it has the same weights. A model with other weights, or without a name,
        is passed again: `load(folder, backbone=model)`.

        Args:
            folder: A new folder.
            overwrite: Replace an adapter that is there.

        Raises:
            UsageError: The folder exists, or the model is folded and so for inference only.
            ToastError: The folder cannot be written.
        """
        save_adapter(self._adapters[self._active], Path(folder), overwrite)

    def _activate(self, name: str) -> None:
        adapter = self._adapters[name]
        self._active = name
        self.model, self.classes = adapter.model, adapter.classes
        self._images, self._template = adapter.images, adapter.template

    def _require_adapter(self, name: str) -> None:
        if name not in self._adapters:
            raise UsageError(
                f"There is no adapter '{name}'.",
                what_to_do=did_you_mean(name, self._adapters),
                code="adapter.unknown-name",
            )

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
        return torch.stack(list(self._transform(images))).to(self.device)

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
        answers: list[Any] = []
        with self._use_evaluation_mode():
            for batch in self._prepare_batches(images, batch_size):
                answers += map(self._make_prediction, objective.compute_scores(self.model(batch)).cpu())
        return answers

    def _make_prediction(self, scores: Tensor) -> Prediction | LabelsPrediction | NumberPrediction:
        """Return the answer for an image with these scores `[classes]`."""
        if self.model.objective.target == "number":
            return NumberPrediction(dict(zip(self.classes, scores.tolist(), strict=True)))
        label, probability = self.classes[int(scores.argmax())], float(scores.max())
        if self.model.objective.target == "labels":
            return LabelsPrediction(label, probability, scores, self._select_labels(scores))
        return Prediction(label, probability, scores)

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
    def features(
        self,
        images: Picture | Iterable[Picture],
        passes: Literal["last", "first"] = "last",
        batch_size: int = BATCH_SIZE,
    ) -> Tensor:
        """Return the pooled features that the head reads, `[B, d]` on the CPU, computed `batch_size` images at a time.

        Args:
            images: Paths or PIL images.
            passes: "last": as adapted to the task; "first": of the pass before any feedback, which is that of the
                plain backbone. They are equal for a method with a single pass.
            batch_size: Number of images that are decoded and computed at a time.

        Raises:
            UsageError: There is no such pass, there are no images, or one is neither a path nor a PIL image.
            ToastError: An image file cannot be read, or the backbone has no image input.
        """
        if passes not in ("last", "first"):
            raise UsageError(
                f"There is no pass {passes!r}.", what_to_do='Use "last" or "first".', code="task.unknown-pass"
            )
        with self._use_evaluation_mode():
            return torch.cat(
                [
                    self.model.compute_features(batch, first_pass=passes == "first").float().cpu()
                    for batch in self._prepare_batches(images, batch_size)
                ]
            )

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
        self,
        prompt: str | Sequence[Message],
        on_text: Callable[[str], Any] | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        emphasize: str | Sequence[str] = (),
        **settings: Any,
    ) -> str:
        """Return a language model's answer to a prompt.

        Args:
            prompt: A text, or the messages of a conversation: `[{"role": "user", "content": "Hi"}, ...]`.
            on_text: Called with each piece of text as it is generated.
            tools: Descriptions of functions that the model may call, for its chat template.
            emphasize: A text of the prompt, or several, whose tokens set xi for this answer. An experiment, not in the
                paper.
            settings: Generation options of transformers, e.g. `max_new_tokens` (default 256), `do_sample`,
                `temperature`, `num_beams`, `stop_strings`.

        Raises:
            UsageError: The backbone is not a language model or has no tokenizer, the prompt or a message is invalid,
                a setting requests more than one text, or a text to emphasize does not occur in the prompt or the
                model has no feedback path.
        """
        texts = to_texts(emphasize)
        with self._use_evaluation_mode():
            generator = TextGenerator(self.model, self._template)
            return generator.answer(to_turns(prompt, tools), on_text, texts, **settings)

    def generate_all(
        self,
        prompts: Sequence[str | Sequence[Message]],
        batch_size: int = 8,
        tools: Sequence[Mapping[str, Any]] | None = None,
        emphasize: str | Sequence[str] = (),
        **settings: Any,
    ) -> list[str]:
        """Return a language model's answers to several prompts, `batch_size` at a time.

        Prompts, tools, texts to emphasize and settings are as for `generate`; a text to emphasize is one of every
        prompt. Without sampling, the answers equal those of `generate`, except for rounding.

        Raises:
            UsageError: As for `generate`, or `prompts` is a single text, or a streamer is given.
        """
        if isinstance(prompts, str):
            raise UsageError(
                "Expected a list of prompts, got a single text.",
                what_to_do="Call generate() for one prompt.",
                code="text.not-a-list",
            )
        conversations = [to_turns(one, tools) for one in prompts]
        texts = [to_texts(emphasize)] * len(conversations) if emphasize else None
        with self._use_evaluation_mode():
            return TextGenerator(self.model, self._template).answer_all(conversations, batch_size, texts, **settings)

    def _open(self, images: Any) -> Iterator[Image]:
        return open_images(images, self._images.white)

    def _transform(self, images: Any) -> Iterator[Tensor]:
        """Yield every image preprocessed `[3, H, W]`; only one of them is open at a time."""
        transform = build_transform(self._images, self.model.backbone.require_preprocessing(), train=False)
        return (transform(image)[0] for image in self._open(images))

    def _prepare_batches(self, images: Any, batch_size: int) -> Iterator[Tensor]:
        """Yield prepared batches.

        Raises:
            UsageError: `batch_size` is not a positive number, or as for `prepare`.
        """
        if not isinstance(batch_size, int) or batch_size < 1:
            raise UsageError(
                f"Expected a positive number, got batch_size={batch_size!r}.", code="task.invalid-batch-size"
            )
        prepared = self._transform(images)
        while batch := list(islice(prepared, batch_size)):
            yield torch.stack(batch).to(self.device)

    def _use_evaluation_mode(self) -> Any:
        return _EvaluationMode(self.model)


def _join(parts: Sequence[Tensor | None]) -> Tensor | None:
    """Return the maps of all batches, or None if the model has no such maps."""
    present = [part for part in parts if part is not None]
    return torch.cat(present) if present else None


class _EvaluationMode:
    """A context manager that puts a module in evaluation mode and restores its mode on exit."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __enter__(self) -> None:
        self.was_training = self.module.training
        self.module.eval()

    def __exit__(self, *_: object) -> None:
        self.module.train(self.was_training)
