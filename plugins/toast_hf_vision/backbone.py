"""A stock vision encoder of transformers as a backbone with two passes: signals enter at the values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from toast_cli.plugin import Backbone, Level, Preprocessing, Readout, Signal, State, ToastError, Trace
from toast_hf_vision.structure import build_unsteerable_error, count_class_tokens, find_structure
from toast_transformers.attention_maps import record_layer_attention
from toast_transformers.layers import LayerInputRecorder, steer_value_projection

PACKING_ARGUMENTS = frozenset({"grid_thw", "target_sizes"})
"""Arguments of models that read the patches of several images as one sequence: the rows and columns of each image."""


@dataclass(frozen=True)
class LayerArguments:
    """The inputs of every layer except the hidden state, such as rotary tables: positional and by keyword."""

    positional: tuple[tuple[Any, ...], ...] = ()
    keywords: tuple[dict[str, Any], ...] = field(default=())


def to_sides(size: Any) -> tuple[int, int]:
    """Return the height and width of a size in a configuration, which is one number or two."""
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def split_patches(images: Tensor, patch: int) -> Tensor:
    """Return the pixels of each patch `[B, N, patch · patch · C]` of images `[B, C, H, W]`, as SigLIP 2 reads them."""
    rows, columns = images.shape[-2] // patch, images.shape[-1] // patch
    cut = images[..., : rows * patch, : columns * patch].unflatten(-1, (columns, patch)).unflatten(-3, (rows, patch))
    return cut.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


@contextmanager
def keep_all_patches(config: Any) -> Iterator[None]:
    """Hide no patch inside the block. MAE's encoder hides three quarters of them, also in evaluation."""
    ratio = getattr(config, "mask_ratio", None)
    if ratio is None:
        yield
        return
    config.mask_ratio = 0.0
    try:
        yield
    finally:
        config.mask_ratio = ratio


class _FirstLayerOutput(Exception):
    """The end of a pass after the first layer."""

    def __init__(self, out: Any) -> None:
        super().__init__()
        self.out = out


class HfVisionBackbone(Backbone):
    """Any vision encoder of transformers that is one sequence of layers with a value projection. A level is a layer.

    Embeddings, rotary tables and position biases are the model's own: its forward pass runs once with replacements of
    its layers, which record the inputs of each layer. `z` is every token after the final norm. The pooled features are
    the model's own pooled output. An exception is a pooler with a dense layer: transformers' classifiers leave it out,
    most checkpoints lack its weights, and the class token is taken instead.

    Raises:
        ToastError: The encoder has another structure, or its tokens do not form a grid of patches.
    """

    module: PreTrainedModel

    def __init__(self, module: PreTrainedModel, preprocessing: Preprocessing) -> None:
        self.module, self.preprocessing = module, preprocessing
        if hasattr(module.config, "num_frames"):
            raise build_unsteerable_error(module, "It reads videos, and TOAST supports encoders of single images.")
        self.structure = find_structure(module)
        self.adapter_targets = self.structure.adapter_targets
        self.width = self.head_width = module.config.hidden_size
        layers = self.layers
        self.levels = [Level(self.width, self.width)] * len(layers)
        self.level_modules = list(layers)
        # Older attention classes compute attention by themselves, where no map can be recorded.
        self.has_attention = bool(module._supports_attention_backend)
        self._arguments = frozenset(signature(module.forward).parameters)
        if packed := PACKING_ARGUMENTS & self._arguments:
            raise build_unsteerable_error(
                module,
                f"It reads the patches of images of different sizes as one sequence ({', '.join(sorted(packed))}), and "
                "toast gives every model a batch of images of one size.",
            )
        mask_token = getattr(module.get_submodule("embeddings"), "mask_token", None)
        self.unused_parts = (
            *([] if self._has_own_pooler else filter(None, [getattr(module, "pooler", None)])),
            *([] if mask_token is None else [nn.ParameterList([mask_token])]),
        )
        state = self._probe()
        rows, columns = self.grid(self._make_images(1))
        self.prefix_tokens = state.hidden.shape[1] - rows * columns
        detects = getattr(module.config, "num_detection_tokens", 0)
        if state.hidden.ndim != 3 or self.prefix_tokens < 0 or detects:
            raise build_unsteerable_error(module, "Its tokens are not the patches of one image after its class tokens.")
        self.class_tokens = count_class_tokens(module, self.prefix_tokens)
        self.takes_prompts = not self._depends_on_places(state.context)

    @property
    def layers(self) -> nn.ModuleList:
        """The stock layers."""
        layers = self.module.get_submodule(self.structure.layers)
        assert isinstance(layers, nn.ModuleList)
        return layers

    @property
    def patch(self) -> tuple[int, int]:
        """Height and width of a patch in pixels."""
        return to_sides(self.module.config.patch_size)

    def enter(self, inputs: Tensor) -> State:
        """Return the embedded tokens `[B, N, d]` of images `[B, 3, H, W]`."""
        layers = self.layers
        holder, _, name = self.structure.layers.rpartition(".")
        parent = self.module.get_submodule(holder)
        recorders: list[Any] = [LayerInputRecorder(layer, returns_tuple=self._returns_tuples) for layer in layers]
        setattr(parent, name, nn.ModuleList(recorders))
        try:
            self._run_model(inputs)
        finally:
            setattr(parent, name, layers)
        arguments = LayerArguments(
            tuple(recorder.arguments for recorder in recorders), tuple(recorder.keywords for recorder in recorders)
        )
        return State(recorders[0].hidden, arguments)

    def level(self, index: int, state: State, signal: Signal | None = None, trace: Trace | None = None) -> State:
        """Run one stock layer. The signal `[B, N, d]` is added to the input of the value projection."""
        layer = self.layers[index]
        with ExitStack() as attached:
            if signal is not None:
                attached.enter_context(steer_value_projection(layer.get_submodule(self.structure.value), signal))
            if trace is not None and index in trace.attention_of:
                attention = layer.get_submodule(self.structure.attention)
                attached.enter_context(record_layer_attention(attention, trace, index))
            context = state.context
            out = layer(state.hidden, *context.positional[index], **context.keywords[index])
        return State(out[0] if isinstance(out, tuple) else out, context)

    def restore(self, hidden: Tensor) -> State:
        """Return the state of cached tokens `[B, N, d]`.

        The other inputs of layers depend on the number and the size of the images, and are those of empty images.
        """
        return State(hidden, self.enter(self._make_images(len(hidden))).context)

    def value_weight(self, index: int) -> Tensor:
        """Return `W_V`, `[values, d]`."""
        weight = self.layers[index].get_submodule(self.structure.value).weight
        assert isinstance(weight, Tensor)
        return weight

    def leave(self, state: State) -> Readout:
        """Return the tokens after the final norm `[B, N, d]` and the model's pooled features `[B, d]`."""
        encoder: Any = self.module
        tokens = encoder.get_submodule(self.structure.norm)(state.hidden)
        z = tokens
        if self._has_head:
            pooled = encoder.head(tokens)
        elif self._has_own_pooler:
            pooled = encoder.pooler(tokens)
            norm = getattr(encoder.pooler, "layernorm", None)  # BEiT's final norm, which it applies to the mean
            z = tokens if norm is None else norm(tokens)
        else:
            pooled = self._pool(tokens)
        return Readout(z=z, compared=z, pooled=pooled)

    def stock(self, inputs: Tensor) -> Tensor:
        """Run transformers' own forward pass up to the pooled features `[B, d]`."""
        out = self._run_model(inputs)
        pooled = getattr(out, "pooler_output", None)
        if pooled is not None and (self._has_own_pooler or getattr(self.module, "pooler", None) is None):
            return pooled
        return self._pool(out.last_hidden_state)

    def grid(self, inputs: Tensor) -> tuple[int, int]:
        """Return the rows and columns of patches for these images."""
        (height, width), patch = inputs.shape[-2:], self.patch
        return height // patch[0], width // patch[1]

    def query_tokens(self) -> slice:
        """Return the class token, or all patch tokens of a model without one."""
        return slice(0, 1) if self.class_tokens else slice(self.prefix_tokens, None)

    def files(self) -> Mapping[str, str]:
        """Return the configuration and the preprocessing, as transformers writes them."""
        return self.definition

    definition: Mapping[str, str] = {}

    @property
    def _has_head(self) -> bool:
        """Whether the model pools its tokens by attention."""
        return isinstance(getattr(self.module, "head", None), nn.Module)

    @property
    def _has_own_pooler(self) -> bool:
        """Whether the model has a pooler that all its checkpoints have, too."""
        pooler: Any = getattr(self.module, "pooler", None)
        return pooler is not None and not hasattr(pooler, "dense")

    def _pool(self, tokens: Tensor) -> Tensor:
        if self.class_tokens == 1:
            return tokens[:, 0]
        return (tokens[:, : self.class_tokens] if self.class_tokens else tokens).mean(dim=1)

    def _run_model(self, images: Tensor) -> Any:
        """Run the model's own forward pass."""
        return_tuple = {"return_dict": True}
        images = images.to(self.module.dtype)
        inputs: dict[str, Any] = {"pixel_values": images}
        rows, columns = self.grid(images)
        if "spatial_shapes" in self._arguments:
            shapes = torch.tensor([[rows, columns]], device=images.device).expand(images.shape[0], -1)
            inputs = {
                "pixel_values": split_patches(images, self.patch[0]),
                "pixel_attention_mask": None,
                "spatial_shapes": shapes,
            }
        resized = tuple(images.shape[-2:]) != to_sides(getattr(self.module.config, "image_size", images.shape[-2:]))
        if "interpolate_pos_encoding" in self._arguments and resized:
            inputs["interpolate_pos_encoding"] = True
        if "noise" in self._arguments:  # the order of the patches, which MAE shuffles
            order = torch.arange(rows * columns, device=images.device, dtype=images.dtype)
            inputs["noise"] = order.expand(images.shape[0], -1)
        with keep_all_patches(self.module.config):
            return self.module(**inputs, **return_tuple)

    def _make_images(self, batch: int) -> Tensor:
        return torch.zeros(batch, 3, *self.require_preprocessing().image_size, device=self.module.device)

    @torch.no_grad()
    def _probe(self) -> State:
        """Return the state before the first layer for an empty image.

        Raises:
            ToastError: The model does not run on images of the preprocessed size.
        """
        images = self._make_images(1)
        try:
            self._returns_tuples = isinstance(self._run_first_layer(images), tuple)
            return self.enter(images)
        except ToastError:
            raise
        except Exception as error:  # any error of foreign code is no verdict on the network
            height, width = self.require_preprocessing().image_size
            raise ToastError(
                f"{type(self.module).__name__} does not run on an RGB image of {height} × {width} pixels.",
                f"{type(error).__name__}: {' '.join(str(error).split())[:300]}",
                "Check backbone.image_size, or choose a ViT, DINOv2, DINOv3, SigLIP or CLIP model.",
                code="backbone.cannot-run",
            ) from error

    def _run_first_layer(self, images: Tensor) -> Any:
        """Return what the first layer returns: its hidden state, or, in older models, a tuple that starts with it."""

        def stop(_: nn.Module, __: object, out: Any) -> None:
            raise _FirstLayerOutput(out)

        handle = self.layers[0].register_forward_hook(stop)
        try:
            self._run_model(images)
        except _FirstLayerOutput as stopped:
            return stopped.out
        finally:
            handle.remove()
        raise RuntimeError("The model does not run its layers.")

    def _depends_on_places(self, arguments: LayerArguments) -> bool:
        """Return whether layers use the places of tokens, so that none can be appended."""
        given = [*arguments.positional, *(tuple(each.values()) for each in arguments.keywords)]
        biased = any(path.endswith("relative_position_bias") for path, _ in self.module.named_modules())
        return biased or any(value is not None and not isinstance(value, bool) for each in given for value in each)
