"""Everything that a plugin may import: stable names, whatever module defines them.

A plugin imports from here alone, so that modules can move without breaking it. Each name is imported on first use, so
a card, a method's or a source's description that needs no torch brings none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from toast_cli.utils.lazy_imports import make_lazy_getattr

if TYPE_CHECKING:
    pass

_NAMES = {
    "toast_cli.backbones.base": (
        "AuthorsCheckpoint Backbone BackboneOptions Card Family Level Preprocessing Readout State Trace"
    ),
    "toast_cli.backbones.upcast_attention": "upcast_attention_inputs",
    "toast_cli.backbones.image_options": "ImageOptions PixelOptions",
    "toast_cli.backbones.lazy_signal": "LazySignal Signal ValueSignal resolve_signal",
    "toast_cli.data.base": "DataSet DataSource Sample Split",
    "toast_cli.data.images.labelled_files": "FileSplit",
    "toast_cli.data.procedural": "ProceduralSplit",
    "toast_cli.data.splits": "SplitOptions UnsplitDataOptions make_train_val_splits make_train_val_test_splits",
    "toast_cli.data.text.conversation_split": "Conversation ConversationSplit Turn",
    "toast_cli.export.base": "ExportFormat ExportRequest",
    "toast_cli.methods.adapted_model": "AdaptedModel",
    "toast_cli.methods.base": "Method",
    "toast_cli.storage.load_model": "LoadedModel",
    "toast_cli.tasks.base": "Meter Objective Task",
    "toast_cli.utils.config": "BaseOptions NamedOptions Switch",
    "toast_cli.utils.errors": "ToastError UsageError did_you_mean",
    "toast_cli.utils.pickle_scan": "find_refused_code",
    "toast_cli.utils.files": "require_regular_file",
}
"""The names that each module defines, separated by spaces."""

__all__ = sorted(name for names in _NAMES.values() for name in names.split())
__getattr__ = make_lazy_getattr(__name__, {name: module for module, names in _NAMES.items() for name in names.split()})


def __dir__() -> list[str]:
    return __all__
