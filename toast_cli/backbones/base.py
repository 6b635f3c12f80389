"""The contract between a frozen network and the method: what a backbone owes the rest of the house.

Selection, feedback, losses, training and drawing are written once against `Backbone`; a plugin says only
what differs between families: where a signal enters, what `z` is, how features are pooled. Importing this
module imports no torch, so that a plugin's cards can be listed and its options checked at once.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from toast_cli.backbones.lazy_signal import LazySignal, Signal, resolve_signal
from toast_cli.utils.config import NamedOptions
from toast_cli.utils.errors import ToastError, UsageError

if TYPE_CHECKING:
    from torch import Tensor, nn

CONTRACT_VERSION = 1
"""Raised when a change here would break a plugin written against the previous number."""


class BackboneOptions(NamedOptions):
    """What every backbone can be told; a family adds its own fields in a subclass."""

    name: str = Field(description="short name, or FAMILY:MODEL for any model of a family's library")
    weights: str | None = Field(
        None, description="file with the weights; 'none' for random ones; left out: the hub or the plugin's own file"
    )


@dataclass(frozen=True)
class Card:
    """A backbone before it is built: enough for a listing and for checking its options, without torch.

    `parameters` counts the frozen network without a classifier (None where it is known only once built);
    `source` says where its weights come from; `artifact` is a folder with a feedback path pre-tuned for them, where one
    comes with the plugin (`init_from: shipped`); `superseded` maps a version of toast up to which this name meant
    other weights to their present name, so that older runs still open; `departures` are the options under which the
    backbone computes as the authors' code does where that departs from the paper, for checkpoints that were trained
    with it. `rebuild` builds the network from its options and a folder with its `Backbone.files`; None where those
    are always empty.
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
    contract: int = CONTRACT_VERSION


@dataclass(frozen=True)
class Family:
    """A family takes any model of its library: `card` turns the MODEL of `FAMILY:MODEL` into a card.

    `wrap`, where there is one, makes a backbone of a model that a user has built already, or returns None if the model
    is not of this family.
    """

    name: str
    library: str
    card: Callable[[str], Card]
    wrap: Callable[[Any], Backbone | None] | None = None


@dataclass(frozen=True)
class Level:
    """One level of the backbone and the kind of layer that undoes it (section 3.1; 4.4 for ConvNets).

    `A_l` maps the level's output (`width_out` channels) back to its input (`width_in` channels), `B_l` keeps
    `width_in`. A deconvolution also multiplies both sides of the map by `stride`, its kernel being as large.
    """

    width_in: int
    width_out: int
    undo: Literal["linear", "deconvolution"] = "linear"
    stride: int = 1


@dataclass(frozen=True)
class Preprocessing:
    """What the backbone was trained to see: `image_size` (height, width) in pixels, mean and std of RGB in 0..1."""

    image_size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str = "bicubic"
    crop_pct: float = 1.0


@dataclass
class State:
    """What travels between levels: `hidden` ([B, N, d] or [B, C, H, W]) and whatever the family needs besides."""

    hidden: Tensor
    context: Any = None


@dataclass
class Readout:
    """What a pass puts out.

    `z` is what selection reweights and sends back, `compared` what its similarity to xi is taken from (the same
    tensor unless the family says otherwise), `pooled` [B, d] or [B, N, d] goes to the head, `real` [B, N] is False
    on padding (None: everything is real).
    """

    z: Tensor
    compared: Tensor
    pooled: Tensor
    real: Tensor | None = None


@dataclass
class Trace:
    """What a pass should remember: every level's input and output, and the attention maps of some levels.

    `attention` fills with level index -> [B, heads, N, N] for each index in `attention_of`, and `mismatch` with how far
    that map times the values is from what the network's own (fused) attention put out there, as a share of the largest
    number of it: a scalar. A level whose attention is not fused hands out the very map it uses, and has no mismatch.
    """

    levels: bool = False
    attention_of: frozenset[int] = frozenset()
    inputs: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    attention: dict[int, Tensor] = field(default_factory=dict)
    mismatch: dict[int, Tensor] = field(default_factory=dict)

    def extend_from(self, other: Trace) -> None:
        """Add what another trace recorded of earlier levels, as far as this trace records it too."""
        if self.levels:
            self.inputs.extend(other.inputs)
            self.outputs.extend(other.outputs)
        for own, others in ((self.attention, other.attention), (self.mismatch, other.mismatch)):
            own.update({index: found for index, found in others.items() if index in self.attention_of})


AUTHORS_WEIGHT_PATTERN = re.compile(
    r"decoders\.(\d+)\.linear(2?)\.(?:base_layer\.)?(weight|lora_[AB])(?:\.default)?(?:\.weight)?"
)
"""What the authors' code calls the weights of `A_l` (`linear`), of `B_l` (`linear2`) and of the factors on them."""


@dataclass
class AuthorsCheckpoint:
    """The tensors of a checkpoint of the authors' code, sorted; every one of them is in exactly one place.

    `network` has the library's own names; `feedback` has `xi`, `P` and, by level from 0, `A.l`, `B.l` as our layers
    hold them, and `A.l.lora_A`, `A.l.lora_B` and so on; `head` has `weight` and `bias`; `left_out` says why, by name.
    """

    network: dict[str, Tensor] = field(default_factory=dict)
    feedback: dict[str, Tensor] = field(default_factory=dict)
    head: dict[str, Tensor] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)


class Backbone(ABC):
    """A frozen network that can run twice.

    `module` holds every weight; `width` is d, the channels of `z`; `head_width` those of the pooled features;
    `channel_dim` is -1 for tokens and 1 for maps; the first `prefix_tokens` tokens (class token, registers) have no
    place in the image. A model that has attention to show sets `has_attention`. `preprocessing` is None for a backbone
    that does not look at images, `tokenizer` for one that does not read. With `checkpointing`, levels keep only their
    input for the backward pass and are run again in it. `adapter_targets` are the ends of the names of the layers that
    low-rank factors go on unless told otherwise; where `takes_prompts`, tokens may be added behind the others; with
    `any_image_size`, images of every size can be shown to it as it was built.
    `classifier` gives the layer from pooled features to classes that the model came with, a row per class asked for
    (UsageError: it does not know them); None where models of this kind come with none. `level_modules` are the parts of
    `module` that `level` calls as a whole, and nothing else calls: what is divided when a model is shared out.
    `notes` are sentences that whoever uses it should read first.
    """

    module: nn.Module
    width: int
    head_width: int
    levels: Sequence[Level]
    preprocessing: Preprocessing | None
    tokenizer: Any = None
    channel_dim: int = -1
    prefix_tokens: int = 0
    has_attention: bool = False
    checkpointing: bool = False
    adapter_targets: Sequence[str] = ()
    takes_prompts: bool = False
    classifier: Callable[[tuple[str, ...]], nn.Module] | None = None
    level_modules: Sequence[nn.Module] = ()
    any_image_size: bool = False
    notes: Sequence[str] = ()

    @abstractmethod
    def enter(self, inputs: Any) -> State:
        """What level 0 receives: the embedded input. Both passes share it."""

    @abstractmethod
    def level(self, index: int, state: State, signal: Signal | None = None, trace: Trace | None = None) -> State:
        """Run one level, steered by `signal` (the level's own shape) unless it is None.

        A backbone whose levels have a `value_weight` takes `Values` in a signal's place.

        With `signal=None` this is the stock model's own computation. Whatever is attached to the stock model to
        steer it is attached and removed inside this call, so that a recomputed call (gradient checkpointing) is
        steered as the first one was.
        """

    @abstractmethod
    def leave(self, state: State) -> Readout:
        """Turn the last hidden state into `z` and the pooled features."""

    def tap(self, state: State) -> Readout:
        """What selection looks at where the first pass ends before the last level (early feedback, section 5).

        The pooled features are not asked for. As it is here, whatever ends the whole network ends the stretch too.
        """
        return self.leave(state)

    @abstractmethod
    def grid(self, inputs: Any) -> tuple[int, int]:
        """Rows and columns of the non-prefix tokens (or of the map) for these inputs."""

    @abstractmethod
    def stock(self, inputs: Any) -> Tensor:
        """The pooled features by the library's own forward pass: what a run without signals must equal bit for bit."""

    @abstractmethod
    def example(self, batch: int) -> Any:
        """Inputs of the right shape and type, drawn from torch's seed: for counting, checking and exporting."""

    def files(self) -> Mapping[str, str]:
        """Texts by file name that tell, besides the tensors, all that the network is: a whole export holds them.

        Empty where the library knows it by its name alone.
        """
        return {}

    def require_preprocessing(self) -> Preprocessing:
        """`preprocessing`, where images are about to be shown to the backbone.

        Raises:
            UsageError: this backbone does not look at images.
        """
        if self.preprocessing is None:
            raise UsageError(
                f"A {type(self.module).__name__} does not look at images.",
                what_to_do="Choose a vision backbone, or a data set of text.",
                code="backbone.not-for-images",
            )
        return self.preprocessing

    def require_tokenizer(self) -> Any:
        """`tokenizer`, where texts are about to be shown to the backbone.

        Raises:
            ToastError: there is none beside the model.
        """
        if self.tokenizer is None:
            raise ToastError(
                f"There is no tokenizer beside this {type(self.module).__name__}.",
                what_to_do="Give a folder that holds model and tokenizer.",
                code="backbone.no-tokenizer",
            )
        return self.tokenizer

    def again(self, state: State, inputs: Any) -> State:
        """What the second pass begins from, given what the first began from; other than it where a pass has memory."""
        return state

    def keep(self, state: State, index: int) -> State:
        """What both passes begin level `index` from; asked for before the first one.

        A family that computes something alike there in both passes may have it kept in the state.
        """
        return state

    def conclude(self, state: State, signal: Signal | LazySignal | None = None) -> Tensor:
        """The pooled features, given the state before the last level.

        A family that pools fewer tokens than there are need not compute the others. With `checkpointing`, signals may
        be pending.
        """
        last = len(self.levels) - 1
        return self.leave(self.run(state, [None] * last + [signal], first=last)).pooled

    def value_weight(self, index: int) -> Tensor | None:
        """`W_V` of a level, `[values, width_in]`, where signals enter at the values; None: they are added as they are.

        Folding works it into the feedback path and then sends the level `Values`.
        """
        return None

    def authors(self, tensors: Mapping[str, Tensor]) -> AuthorsCheckpoint:
        """Sort a checkpoint of the authors' code for this family.

        As it is here, this is what all their code shares: `prompt` is xi, `top_down_transform` is P transposed (they
        multiply from the right), `decoders.l.linear` is `A_l`, `decoders.l.linear2` is `B_l`, `head` is the head, and
        everything else the network's. A family overrides it where its own layout differs.
        """
        found = AuthorsCheckpoint()
        for name, tensor in tensors.items():
            if name == "prompt":
                found.feedback["xi"] = tensor.flatten()
            elif name == "top_down_transform":
                found.feedback["P"] = tensor.T if tensor.ndim == 2 else tensor
            elif layer := AUTHORS_WEIGHT_PATTERN.fullmatch(name):
                level, second, kind = layer.groups()
                place = f"{'B' if second else 'A'}.{level}"
                found.feedback[place if kind == "weight" else f"{place}.{kind}"] = tensor
            elif name.startswith("head."):
                found.head[name.removeprefix("head.")] = tensor
            else:
                found.network[name] = tensor
        return found

    @property
    def licence(self) -> str | None:
        """The licence of the weights as the library records it; None where it records none."""
        return None

    def output(self) -> nn.Module | None:
        """The model's own layer from pooled features to scores over its vocabulary; None where it has none."""
        return None

    def generator(self, pooled: Callable[[Any], Tensor]) -> Any:
        """An object with transformers' `generate`, given a function from inputs to pooled features; None: no text."""
        return None

    def query_tokens(self) -> slice:
        """The tokens whose attention is shown: the class token, or all of them where there is none."""
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
        """Run levels `first` up to, not including, `last` (default: all of them).

        `signals` has one entry per level of the backbone; None in its place leaves that level alone. With
        `checkpointing`, they may be pending.
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
        """Run one level under gradient checkpointing; the signal is bound into the call that is run again."""
        from torch.utils.checkpoint import checkpoint

        def run_level(hidden: Tensor, signal: Signal | LazySignal | None) -> Tensor:
            return self.level(index, State(hidden, state.context), resolve_signal(signal), trace).hidden

        return State(checkpoint(run_level, state.hidden, signal, use_reentrant=False), state.context)
