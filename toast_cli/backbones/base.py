"""The contract between a frozen network and the method: what a backbone plugin implements.

Selection, feedback, losses, training and drawing are written once against `Backbone`. A plugin only defines what
differs between families: where a signal enters, what `z` is, and how features are pooled. Importing this module does
not import torch, so that a plugin's cards can be listed and its options validated fast.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from toast_cli.backbones.lazy_signal import LazySignal, Signal, resolve_signal
from toast_cli.utils.config import NamedOptions
from toast_cli.utils.errors import ToastError, UsageError

if TYPE_CHECKING:
    from torch import Tensor, nn

CONTRACT_VERSION = 1
"""Version of the contract. It increases with every change that breaks existing plugins."""


class BackboneOptions(NamedOptions):
    """Options that all backbones share. A family adds its own fields in a subclass."""

    absent_fields: ClassVar[Mapping[str, str]] = {
        "quantize": "Only language models can be quantized, such as lm:MODEL."
    }

    name: str = Field(description="short name, or FAMILY:MODEL for any model of a family's library")
    weights: str | None = Field(
        None,
        examples=["weights.safetensors"],
        description="weights file; 'none': random weights; default: the hub or the plugin's own file",
    )


@dataclass(frozen=True)
class Card:
    """The description of a backbone, which is enough to list it and to validate its options without torch.

    `parameters` is the size of the frozen network without a classifier, or None if it is only known once built.
    `source` describes the origin of its weights. `artifact` is a folder with a feedback path pre-tuned for them, if the
    plugin has one (`init_from: shipped`). `superseded` maps a version of toast, up to which this name meant other
    weights, to the current name of those weights, so that older runs can be opened. `departures` are the options under
    which the backbone computes as the authors' code does where that departs from the paper, for checkpoints trained
    with it. `rebuild` builds the network from its options and a folder with its `Backbone.files`; None if those are
    always empty. `outline(options, levels)` builds the network on the meta device, which allocates nothing, in the data
    type of its stored weights and without reading them: all of it, or only its first `levels`. A family that has none
    is planned by building it.

    `image_size` (a side, or height and width, in pixels) and `licence` (an identifier such as "apache-2.0") describe
    the published weights; None if they take no images, or if it is not recorded. `published` is whether such weights
    can be downloaded, None if that is not known.
    """

    name: str
    family: str
    parameters: int | None
    source: str
    build: Callable[[Any], Backbone]
    options: type[BackboneOptions] = BackboneOptions
    departures: Mapping[str, Any] = field(default_factory=dict)
    artifact: Path | None = None
    superseded: Mapping[str, str] = field(default_factory=dict)
    rebuild: Callable[[Any, Path], Backbone] | None = None
    outline: Callable[[Any, int | None], Backbone] | None = None
    contract: int = CONTRACT_VERSION
    image_size: int | tuple[int, int] | None = None
    licence: str | None = None
    published: bool | None = None


@dataclass(frozen=True)
class Family:
    """A family of backbones.

    `card` returns the card of MODEL in `FAMILY:MODEL`, for any model of the family's library. It is None for a family
    without a prefix of its own, whose models are named with the prefix of their library (`timm:MODEL`). `wrap`, if any,
    returns the backbone of a model that a user has built, or None if the model is not of this family; it raises a
    ToastError for a model of this family that cannot be steered. A `generic` family is tried after all others.
    `catalogue` returns the cards of all models that the prefix can name, and may import the library; of the weights of
    one model (`MODEL.TAG`), the first are those of `MODEL` alone. `recognize(folder)` returns whether a folder holds a
    model of the family, without torch: `--backbone FOLDER` then needs no prefix.
    """

    name: str
    library: str
    card: Callable[[str], Card] | None = None
    wrap: Callable[[Any], Backbone | None] | None = None
    generic: bool = False
    catalogue: Callable[[], Iterable[Card]] | None = None
    recognize: Callable[[Path], bool] | None = None


@dataclass(frozen=True)
class Level:
    """One level of the backbone and the kind of layer that undoes it (section 3.1; 4.4 for ConvNets).

    `A_l` maps the level's output (`width_out` channels) back to its input (`width_in` channels), `B_l` keeps
    `width_in`. A deconvolution also multiplies the height and the width of the map by `stride`, its kernel size.
    """

    width_in: int
    width_out: int
    undo: Literal["linear", "deconvolution"] = "linear"
    stride: int = 1


CropMode = Literal["center", "squash", "border"]


@dataclass(frozen=True)
class Preprocessing:
    """The images that the backbone was trained on: `image_size` (height, width) in pixels, RGB mean and std in 0..1.

    `interpolation` and `crop_mode` are as in timm: an image is resized to `image_size / crop_pct`, so that it covers it
    (center), exactly (squash), or so that it fits into it (border); then its centre is cropped.
    """

    image_size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str = "bicubic"
    crop_pct: float = 1.0
    crop_mode: CropMode = "center"

    def format_summary(self) -> str:
        """Return the preprocessing in words."""
        mean, std = (", ".join(f"{value:.3g}" for value in values) for values in (self.mean, self.std))
        height, width = self.image_size
        return (
            f"mean ({mean}) and std ({std}), {height} × {width} pixels, {self.interpolation}, "
            f"crop {self.crop_pct:.3g} ({self.crop_mode})"
        )

    def format_assumption(self, why: str, origin: str = "") -> str:
        """Return the warning that this preprocessing is assumed, with the reason and where it comes from."""
        return (
            f"Warning: {why}. Assumed: {self.format_summary()}{origin}. images.normalize=imagenet, "
            "images.normalize=half, or images.mean and images.std change mean and std."
        )


@dataclass(frozen=True)
class TextLimits:
    """The texts that a language model accepts: `window` positions, token ids below `vocabulary`. None: no limit."""

    window: int | None = None
    vocabulary: int | None = None


NO_TEXT_LIMITS = TextLimits()


@dataclass
class State:
    """The state between levels: `hidden` ([B, N, d] or [B, C, H, W]) and further data of the family in `context`."""

    hidden: Tensor
    context: Any = None


@dataclass
class Readout:
    """The output of a pass.

    `z` is reweighted by selection and fed back. `compared` is compared with xi (the same tensor as `z` unless the
    family defines another). `pooled` [B, d] or [B, N, d] is the input of the head. `real` [B, N] is False on padding,
    or None if there is no padding.
    """

    z: Tensor
    compared: Tensor
    pooled: Tensor
    real: Tensor | None = None


@dataclass
class Trace:
    """A recorder of a pass: every level's input and output, and the attention maps of some levels.

    `attention` maps level index to [B, heads, N, N] for each index in `attention_of`. `mismatch` is a scalar: the
    largest difference between that map times the values and the output of the network's own (fused) attention, relative
    to the largest value of that output. A level without fused attention records the map that it uses and has no
    mismatch.
    """

    levels: bool = False
    attention_of: frozenset[int] = frozenset()
    inputs: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    attention: dict[int, Tensor] = field(default_factory=dict)
    mismatch: dict[int, Tensor] = field(default_factory=dict)

    def extend_from(self, other: Trace) -> None:
        """Add what another trace recorded for earlier levels, as far as this trace records it too."""
        if self.levels:
            self.inputs.extend(other.inputs)
            self.outputs.extend(other.outputs)
        for own, others in ((self.attention, other.attention), (self.mismatch, other.mismatch)):
            own.update({index: value for index, value in others.items() if index in self.attention_of})


AUTHORS_WEIGHT_PATTERN = re.compile(
    r"decoders\.(\d+)\.linear(2?)\.(?:base_layer\.)?(weight|lora_[AB])(?:\.default)?(?:\.weight)?"
)
"""Names of the weights of `A_l` (`linear`), of `B_l` (`linear2`) and of the factors on them in the authors' code."""


@dataclass
class AuthorsCheckpoint:
    """The sorted tensors of a checkpoint of the authors' code. Each tensor is in exactly one of the fields.

    `network` uses the names of the library. `feedback` has `xi`, `P` and, by level from 0, `A.l`, `B.l` in our layout,
    and `A.l.lora_A`, `A.l.lora_B` and so on. `head` has `weight` and `bias`. `left_out` maps a name to the reason.
    """

    network: dict[str, Tensor] = field(default_factory=dict)
    feedback: dict[str, Tensor] = field(default_factory=dict)
    head: dict[str, Tensor] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)


class Backbone(ABC):
    """A frozen network that can run twice.

    `module` holds all weights. `width` is d, the channels of `z`; `head_width` is the width of the pooled features;
    `channel_dim` is -1 for tokens and 1 for maps. The first `prefix_tokens` tokens (class token, registers) have no
    position in the image. Models with attention maps set `has_attention`. `preprocessing` is None for backbones that do
    not take images, `tokenizer` for those that do not take text or if it cannot be loaded for the reason in
    `tokenizer_error`. `text_limits` are the limits of texts. With `checkpointing`, levels keep only their input for
    the backward pass and are recomputed. `adapter_targets` are name suffixes of the layers that receive low-rank
    factors by default, or "all-linear"; `adapter_exclusions` are the linear layers that never receive them, by name.
    With `takes_prompts`, tokens may be appended; with `any_image_size`, images may have any size.
    `classifier` returns the pretrained layer from pooled features to classes, with one row per requested class
    (UsageError: it does not know them), or is None if models of this kind have none. `level_modules` are the parts of
    `module` that only `level` calls, each as a whole: the units of sharding. `notes` are sentences for the user.
    `steering_error` is why the network cannot be steered; it then has no levels, and takes methods with one pass.
    `signal_entry` says in a few words where a signal enters; None: as `steers_values` says of every level.
    `normalization_note` is a sentence on where `preprocessing` comes from, which begins with "Warning:" if it is
    assumed. None: the configuration of the published weights, or the weights' own.

    Two attributes are for models that a user has built. `origin` is the section of a recipe that builds the network
    again, except for its weights perhaps; None if there is none. `unused_parts` are modules that no pass runs, such as
    the classifier: neither the fingerprint nor an adapter includes them.
    """

    module: nn.Module
    width: int
    head_width: int
    levels: Sequence[Level]
    preprocessing: Preprocessing | None
    tokenizer: Any = None
    tokenizer_error: ToastError | None = None
    text_limits: TextLimits = NO_TEXT_LIMITS
    channel_dim: int = -1
    prefix_tokens: int = 0
    has_attention: bool = False
    checkpointing: bool = False
    adapter_targets: Sequence[str] | str = ()
    adapter_exclusions: Sequence[str] = ()
    takes_prompts: bool = False
    classifier: Callable[[tuple[str, ...]], nn.Module] | None = None
    level_modules: Sequence[nn.Module] = ()
    any_image_size: bool = False
    notes: Sequence[str] = ()
    steering_error: ToastError | None = None
    signal_entry: str | None = None
    normalization_note: str | None = None
    origin: Mapping[str, Any] | None = None
    unused_parts: Sequence[nn.Module] = ()

    @abstractmethod
    def enter(self, inputs: Any) -> State:
        """Return the input of level 0, the embedded inputs. Both passes share it."""

    @abstractmethod
    def level(self, index: int, state: State, signal: Signal | None = None, trace: Trace | None = None) -> State:
        """Run one level, steered by `signal` (with the shape of the level's input) unless it is None.

        A backbone whose levels have a `value_weight` also accepts a `ValueSignal`.

        With `signal=None` this is the stock model's own computation. Hooks that steer the stock model are added and
        removed inside this call, so that a recomputed call (gradient checkpointing) is steered like the first one.
        """

    @abstractmethod
    def leave(self, state: State) -> Readout:
        """Return `z` and the pooled features, given the last hidden state."""

    def tap(self, state: State) -> Readout:
        """Return the readout for selection if the first pass ends before the last level (early feedback, section 5).

        Its pooled features are not used. By default, the end of the whole network is applied to the last level run.
        """
        return self.leave(state)

    @abstractmethod
    def grid(self, inputs: Any) -> tuple[int, int]:
        """Return the rows and columns of the non-prefix tokens (or of the map) for these inputs."""

    @abstractmethod
    def stock(self, inputs: Any) -> Tensor:
        """Return the pooled features of the library's forward pass. A run without signals must equal it bit for bit."""

    def example(self, batch: int) -> Any:
        """Return inputs of valid shape and type, drawn from torch's seed, for counting, checking and exporting.

        By default these are random images `[batch, 3, H, W]` of the preprocessed size.
        """
        import torch

        return torch.randn(batch, 3, *self.require_preprocessing().image_size)

    def files(self) -> Mapping[str, str]:
        """Return text files by name that define the network except for its tensors. A whole export includes them.

        They are empty if the library can build the network from its name alone.
        """
        return {}

    def require_preprocessing(self) -> Preprocessing:
        """Return `preprocessing`, which must not be None.

        Raises:
            UsageError: This backbone does not take images.
        """
        if self.preprocessing is None:
            raise UsageError(
                f"{type(self.module).__name__} does not take images.",
                what_to_do="Choose a vision backbone, or a data set of texts.",
                code="backbone.not-for-images",
            )
        return self.preprocessing

    def require_tokenizer(self) -> Any:
        """Return `tokenizer`, which must not be None.

        Raises:
            ToastError: The model has no tokenizer, or it cannot be loaded.
        """
        if self.tokenizer is None and self.tokenizer_error is not None:
            raise self.tokenizer_error
        if self.tokenizer is None:
            raise ToastError(
                f"There is no tokenizer for {type(self.module).__name__}.",
                what_to_do="Give a folder with both model and tokenizer.",
                code="backbone.no-tokenizer",
            )
        return self.tokenizer

    def again(self, state: State, inputs: Any) -> State:
        """Return the initial state of the second pass, given that of the first. They differ if a pass has a cache."""
        return state

    def keep(self, state: State, index: int) -> State:
        """Return the state at level `index` from which both passes start; called before the first pass.

        A family can store results in it that both passes compute in the same way.
        """
        return state

    def restore(self, hidden: Tensor) -> State:
        """Return the state of cached hidden tensors `[B, ...]`, whose images are not read again.

        The images had the preprocessed size. A family whose levels need more than the hidden state computes it here.
        """
        return State(hidden)

    def conclude(self, state: State, signal: Signal | LazySignal | None = None) -> Tensor:
        """Return the pooled features, given the state before the last level.

        A family that pools only some tokens need not compute the others. With `checkpointing`, signals may be lazy.
        """
        last = len(self.levels) - 1
        return self.leave(self.run(state, [None] * last + [signal], first=last)).pooled

    def value_weight(self, index: int) -> Tensor | None:
        """Return `W_V` of a level, `[values, width_in]`, if signals enter at the values, else None.

        Folding includes it in the feedback path and then passes the level a `ValueSignal`.
        """
        return None

    def value_width(self, index: int) -> int | None:
        """Return the number of rows of `value_weight`, or None. A family whose weights are expensive overrides it."""
        weight = self.value_weight(index)
        return None if weight is None else len(weight)

    def steers_values(self, index: int) -> bool:
        """Return whether a signal enters a level at its values alone, so that queries and keys do not change.

        Otherwise it is added to the input of the level. By default, levels with a `value_weight` are steered at the
        values. A family overrides it if signals reach some values in another way than through one matrix.
        """
        return self.value_width(index) is not None

    def authors(self, tensors: Mapping[str, Tensor]) -> AuthorsCheckpoint:
        """Sort the tensors of a checkpoint of the authors' code.

        The default is the layout that all their code shares: `prompt` is xi, `top_down_transform` is P transposed (they
        multiply from the right), `decoders.l.linear` is `A_l`, `decoders.l.linear2` is `B_l`, `head` is the head, and
        all other tensors are the network's. A family overrides it if its layout differs.
        """
        checkpoint = AuthorsCheckpoint()
        for name, tensor in tensors.items():
            if name == "prompt":
                checkpoint.feedback["xi"] = tensor.flatten()
            elif name == "top_down_transform":
                checkpoint.feedback["P"] = tensor.T if tensor.ndim == 2 else tensor
            elif layer := AUTHORS_WEIGHT_PATTERN.fullmatch(name):
                level, second, kind = layer.groups()
                place = f"{'B' if second else 'A'}.{level}"
                checkpoint.feedback[place if kind == "weight" else f"{place}.{kind}"] = tensor
            elif name.startswith("head."):
                checkpoint.head[name.removeprefix("head.")] = tensor
            else:
                checkpoint.network[name] = tensor
        return checkpoint

    @property
    def licence(self) -> str | None:
        """The licence of the weights as recorded by the library, or None."""
        return None

    def output(self) -> nn.Module | None:
        """Return the model's own layer from pooled features to vocabulary scores, or None if it has none."""
        return None

    def generator(self, pooled: Callable[[Any], Tensor]) -> Any:
        """Return an object with transformers' `generate`, given a function from inputs to pooled features, or None."""
        return None

    def query_tokens(self) -> slice:
        """Return the tokens whose attention is shown: the class token, or all tokens if there is none."""
        return slice(None)

    def run(
        self,
        state: State,
        signals: Sequence[Signal | LazySignal | None] | None = None,
        *,
        first: int = 0,
        last: int | None = None,
        trace: Trace | None = None,
    ) -> State:
        """Run levels `first` up to, but not including, `last` (default: all).

        `signals` has one entry per level of the backbone; None leaves a level unsteered. With `checkpointing`, signals
        may be lazy.
        """
        for index in range(first, len(self.levels) if last is None else last):
            if trace is not None and trace.levels:
                trace.inputs.append(state.hidden)
            signal = None if signals is None else signals[index]
            if self.checkpointing:
                state = self._run_checkpointed(index, state, signal, trace)
            else:
                state = self.level(index, state, resolve_signal(signal), trace)
            if trace is not None and trace.levels:
                trace.outputs.append(state.hidden)
        return state

    def _run_checkpointed(
        self, index: int, state: State, signal: Signal | LazySignal | None, trace: Trace | None
    ) -> State:
        """Run one level with gradient checkpointing. The signal is an argument of the recomputed call."""
        from torch.utils.checkpoint import checkpoint

        def run_level(hidden: Tensor, signal: Signal | LazySignal | None) -> Tensor:
            return self.level(index, State(hidden, state.context), resolve_signal(signal), trace).hidden

        return State(checkpoint(run_level, state.hidden, signal, use_reentrant=False), state.context)
