"""The loader of a split, chosen by the kind of the split, and the number of its worker processes."""

from __future__ import annotations

import math
import multiprocessing
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate.utils import get_int_from_env

from toast_cli.data.base import BatchLoader, BatchOptions, LoaderOptions, get_split_kind

if TYPE_CHECKING:
    from toast_cli.backbones.base import Backbone

MAX_WORKERS = 8
"""Largest number of workers that is chosen for a process."""
MIN_SHARED_MEMORY = 2**30
"""Bytes of free shared memory, through which workers pass batches, below which none are started."""
SHARED_MEMORY, CPU_QUOTA = Path("/dev/shm"), Path("/sys/fs/cgroup/cpu.max")


@dataclass(frozen=True)
class LoaderMachine:
    """What the number of workers depends on.

    Attributes:
        cores: CPU cores that the processes of this machine may use.
        processes: processes of the run on this machine.
        gpu: the model runs on another device than the CPU.
        forks: new processes are forked. Others import the user's script again, which may not be written for it.
        shared_memory: free bytes of shared memory; None if it has no limit of its own.
    """

    cores: int
    processes: int
    gpu: bool
    forks: bool
    shared_memory: int | None


def choose_worker_count(machine: LoaderMachine) -> int:
    """Return the number of worker processes for the loaders of one process.

    Each process has its share of the cores. Without a GPU, two of them are left to the model.
    """
    if not machine.forks or (machine.shared_memory is not None and machine.shared_memory < MIN_SHARED_MEMORY):
        return 0
    share = machine.cores // machine.processes
    return min(MAX_WORKERS, max(share - (0 if machine.gpu else 2), 0))


def describe_loader_machine(gpu: bool) -> LoaderMachine:
    """Return the cores, processes and shared memory of this machine."""
    method = multiprocessing.get_start_method(allow_none=True) or multiprocessing.get_all_start_methods()[0]
    return LoaderMachine(
        cores=count_cores(),
        processes=max(get_int_from_env(["LOCAL_WORLD_SIZE", "WORLD_SIZE"], 1), 1),
        gpu=gpu,
        forks=method == "fork",
        shared_memory=shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else None,
    )


def count_cores() -> int:
    """Return the CPU cores that this process may use, by its affinity and the quota of its container."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = CPU_QUOTA.read_text(encoding="ascii").split()
        return max(1, min(cores, math.floor(int(quota) / int(period))))
    except (OSError, ValueError):  # there is no such file, or it holds "max"
        return cores


def build_loader(split: Any, backbone: Backbone, batches: BatchOptions, options: LoaderOptions) -> BatchLoader:
    """Return a loader of a split's batches, preprocessed for the backbone.

    Raises:
        UsageError: the backbone does not accept this kind of input, or the options do not fit it.
        ToastError: the split cannot be read, or has nothing to learn from.
    """
    kind = get_split_kind(split)
    if kind == "conversations":
        from toast_cli.data.text.loader import build_conversation_loader

        return build_conversation_loader(split, backbone.require_tokenizer(), batches, options, backbone.text_limits)
    if kind == "documents":
        from toast_cli.data.text.loader import build_document_loader

        return build_document_loader(split, backbone.require_tokenizer(), batches, options, backbone.text_limits)
    preprocessing = backbone.require_preprocessing()
    if kind == "pixels":
        from toast_cli.data.segmentation.loader import build_pixel_loader

        return build_pixel_loader(split, preprocessing, batches, options)
    if kind == "stream":
        from toast_cli.data.streams.loader import build_stream_loader

        return build_stream_loader(split, preprocessing, batches, options)
    from toast_cli.data.images.loader import build_image_loader

    return build_image_loader(split, preprocessing, batches, options)
