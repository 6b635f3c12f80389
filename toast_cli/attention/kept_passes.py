"""A first pass that is kept, and the second passes that follow it: for pages where a user moves the steering."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from toast_cli.attention.feature_energy import FEATURE_ENERGY, compute_feature_energy
from toast_cli.attention.map_validation import check_attention_maps, check_fused_mismatch
from toast_cli.attention.maps import (
    HeadSelection,
    compute_attention_rollout,
    compute_map_of_rows,
    reduce_heads,
    resolve_level,
)
from toast_cli.backbones.base import Backbone, Readout, State, Trace
from toast_cli.model.model import Model
from toast_cli.steering.emphasis import replace_xi
from toast_cli.steering.steering import BaseSteering, PassOutputs, run_first_pass, run_one_pass, run_second_pass


@dataclass(frozen=True)
class RecordedPass:
    """What one pass over one image left: its logits, and what maps of any layer and head need.

    Attributes:
        logits: `[1, classes]`, on the CPU.
        rows: per level, the attention of the query tokens, `[1, heads, queries, N]`; empty without attention.
        means: per level, the mean over heads, `[1, N, N]`.
        energies: per level, the feature energy `[1, rows, columns]` of a backbone without attention.
        grid: rows and columns of an attention map.
        query: the query tokens.
        prefix_tokens: number of tokens without a position in the image.
    """

    logits: Tensor
    rows: tuple[Tensor, ...]
    means: tuple[Tensor, ...]
    energies: tuple[Tensor, ...]
    grid: tuple[int, int]
    query: slice
    prefix_tokens: int

    def count_bytes(self) -> int:
        """Return the size of the tensors."""
        return sum(tensor.nbytes for tensor in (*self.rows, *self.means, *self.energies))

    def compute_map(self, level: int, head: HeadSelection) -> Tensor:
        """Return the map of a level and a head, `[rows, columns]`; feature energy has no heads.

        Raises:
            UsageError: The head does not exist.
        """
        if not self.rows:
            return self.energies[level][0]
        if head == "rollout":
            rolled = compute_attention_rollout([mean[:, None] for mean in self.means[: level + 1]])
            rows = rolled[:, None, self.query]
        elif head == "mean":
            rows = self.means[level][:, None, self.query]
        else:
            rows = reduce_heads(self.rows[level], head)[:, None]
        return compute_map_of_rows(rows, self.prefix_tokens, self.grid)[0]


@dataclass(frozen=True)
class SteeredPass:
    """A second pass with the similarity map that steered it, `[rows, columns]`."""

    recorded: RecordedPass
    similarity: Tensor


@dataclass(frozen=True)
class KeptFirstPass:
    """The first pass over one image, from which second passes start.

    `recorded` is the plain backbone with the run's head. The other fields are None for a model with one pass: `shared`,
    `first` and `plain` are those of `run_first_pass`, `trace` has the levels that both passes share, and `steered` the
    attention of the first steered level, which is the same in every pass.
    """

    inputs: Tensor
    recorded: RecordedPass
    shared: State | None = None
    first: Readout | None = None
    plain: Readout | None = None
    trace: Trace | None = None
    steered: Trace | None = None


class PassRecorder:
    """A recorder of all levels and heads of a model, for one image at a time. Its maps are those of `build_recorder`.

    Args:
        model: The model, in evaluation mode.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self.kind = "attention" if model.backbone.has_attention else FEATURE_ENERGY
        model.backbone.require_preprocessing()

    @property
    def backbone(self) -> Backbone:
        """Return the backbone."""
        return self.model.backbone

    @torch.no_grad()
    def run_first(self, inputs: Tensor) -> KeptFirstPass:
        """Run the first pass on one image `[1, 3, H, W]`, or the only one.

        Raises:
            ToastError: A map differs from the attention that the model uses.
        """
        backbone, steering = self.backbone, self.model.adapted.steering
        trace = self._make_trace()
        if steering is None:
            passes = run_one_pass(backbone, inputs, trace)
            check_fused_mismatch(trace)
            return KeptFirstPass(inputs, self._reduce(self.model.apply_head(passes, trace, inputs), trace, inputs))
        shared_levels = self._make_trace()
        shared, first, plain = run_first_pass(backbone, steering.levels, inputs, (trace, shared_levels))
        assert plain is not None  # a pass with a trace runs to its end
        logits = self.model.apply_head(PassOutputs(plain, plain, plain), trace, inputs)
        check_fused_mismatch(trace)
        recorded = self._reduce(logits, trace, inputs)
        start = steering.levels.start
        steered = Trace(attention_of=frozenset({start}))
        steered.extend_from(trace)
        return KeptFirstPass(inputs, recorded, shared, first, plain, shared_levels, steered)

    @torch.no_grad()
    def run_second(self, kept: KeptFirstPass, strength: float, xi: Tensor | None = None) -> SteeredPass:
        """Run a second pass after a kept first one, with a steering strength and, for an experiment, another xi.

        Only the levels from the first steered one are computed. The model is left as it was.

        Raises:
            UsageError: xi is given, and the model has no token selection.
            ToastError: A map differs from the attention that the model uses.
        """
        steering = self.model.adapted.steering
        assert steering is not None and kept.shared is not None and kept.first is not None
        assert kept.trace is not None and kept.steered is not None
        trace = self._make_trace()
        trace.extend_from(kept.trace)
        with set_strength(steering, strength), nullcontext() if xi is None else replace_xi(steering, xi):
            passes = run_second_pass(self.backbone, steering, kept.inputs, kept.shared, kept.first, kept.plain, trace)
            logits = self.model.apply_head(passes, trace, kept.inputs)
        if self.backbone.has_attention:
            check_attention_maps(kept.steered, trace, steering.levels.start)
        assert passes.similarity is not None
        similarity = passes.similarity
        if similarity.ndim == 2:
            similarity = similarity[:, self.backbone.prefix_tokens :].unflatten(1, self.backbone.grid(kept.inputs))
        return SteeredPass(self._reduce(logits, trace, kept.inputs), similarity[0].float().cpu())

    def resolve_level(self, level: int) -> int:
        """Return the index of a level from 0.

        Raises:
            UsageError: The level does not exist.
        """
        return resolve_level(self.backbone, level)

    def _make_trace(self) -> Trace:
        levels = frozenset(range(len(self.backbone.levels))) if self.backbone.has_attention else frozenset()
        return Trace(self.model.objective.reads_levels or not self.backbone.has_attention, levels)

    def _reduce(self, logits: Tensor, trace: Trace, inputs: Tensor) -> RecordedPass:
        backbone = self.backbone
        grid, query = backbone.grid(inputs), backbone.query_tokens()
        levels = [trace.attention[level].float() for level in sorted(trace.attention)]
        energies = [] if backbone.has_attention else [self._compute_energy(each, inputs) for each in trace.outputs]
        return RecordedPass(
            logits.float().cpu(),
            tuple(attention[:, :, query].clone().cpu() for attention in levels),
            tuple(attention.mean(1).cpu() for attention in levels),
            tuple(energies),
            grid,
            query,
            backbone.prefix_tokens,
        )

    def _compute_energy(self, features: Tensor, inputs: Tensor) -> Tensor:
        backbone = self.backbone
        if backbone.channel_dim != 1:
            patches = features[:, backbone.prefix_tokens :]
            features = patches.movedim(-1, 1).unflatten(-1, backbone.grid(inputs))
        return compute_feature_energy(features).cpu()


@contextmanager
def set_strength(steering: BaseSteering, strength: float) -> Iterator[None]:
    """Multiply the signals of a steering by a strength within the context."""
    before, steering.strength = steering.strength, strength
    try:
        yield
    finally:
        steering.strength = before
