"""Everything that a plugin may import: stable names, whatever module defines them.

A plugin imports from here alone, so that modules can move without breaking it. Each name is imported on first use, so
a card, a method's or a source's description that needs no torch brings none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from toast_cli.utils.lazy_imports import make_lazy_getattr

if TYPE_CHECKING:
    from toast_cli.backbones.base import AuthorsCheckpoint as AuthorsCheckpoint
    from toast_cli.backbones.base import Backbone as Backbone
    from toast_cli.backbones.base import BackboneOptions as BackboneOptions
    from toast_cli.backbones.base import Card as Card
    from toast_cli.backbones.base import Family as Family
    from toast_cli.backbones.base import Level as Level
    from toast_cli.backbones.base import Preprocessing as Preprocessing
    from toast_cli.backbones.base import Readout as Readout
    from toast_cli.backbones.base import State as State
    from toast_cli.backbones.base import TextLimits as TextLimits
    from toast_cli.backbones.base import Trace as Trace
    from toast_cli.backbones.image_options import ImageOptions as ImageOptions
    from toast_cli.backbones.image_options import PixelOptions as PixelOptions
    from toast_cli.backbones.lazy_signal import LazySignal as LazySignal
    from toast_cli.backbones.lazy_signal import Signal as Signal
    from toast_cli.backbones.lazy_signal import ValueSignal as ValueSignal
    from toast_cli.backbones.lazy_signal import resolve_signal as resolve_signal
    from toast_cli.backbones.licences import announce_licence as announce_licence
    from toast_cli.backbones.quantized_linear import QuantizedLinear as QuantizedLinear
    from toast_cli.backbones.quantized_linear import describe_quantization as describe_quantization
    from toast_cli.backbones.quantized_linear import replace_layers as replace_layers
    from toast_cli.backbones.upcast_attention import upcast_attention_inputs as upcast_attention_inputs
    from toast_cli.backbones.weight_formats import WEIGHT_FORMATS as WEIGHT_FORMATS
    from toast_cli.backbones.weight_formats import FormatName as FormatName
    from toast_cli.backbones.weight_formats import require_format as require_format
    from toast_cli.data.base import DataSet as DataSet
    from toast_cli.data.base import DataSource as DataSource
    from toast_cli.data.base import Sample as Sample
    from toast_cli.data.base import Split as Split
    from toast_cli.data.images.labelled_files import FileSplit as FileSplit
    from toast_cli.data.procedural import ProceduralSplit as ProceduralSplit
    from toast_cli.data.splits import SplitOptions as SplitOptions
    from toast_cli.data.splits import UnsplitDataOptions as UnsplitDataOptions
    from toast_cli.data.splits import make_train_val_splits as make_train_val_splits
    from toast_cli.data.splits import make_train_val_test_splits as make_train_val_test_splits
    from toast_cli.data.text.conversation_format import ConversationFormat as ConversationFormat
    from toast_cli.data.text.conversation_split import ConversationSplit as ConversationSplit
    from toast_cli.data.text.turns import Conversation as Conversation
    from toast_cli.data.text.turns import Turn as Turn
    from toast_cli.export.base import ExportFormat as ExportFormat
    from toast_cli.export.base import ExportRequest as ExportRequest
    from toast_cli.export.base import ExportRunner as ExportRunner
    from toast_cli.export.base import Outputs as Outputs
    from toast_cli.export.graph import build_graph_metadata as build_graph_metadata
    from toast_cli.export.graph import suppress_exporter_logs as suppress_exporter_logs
    from toast_cli.export.graph import trace_model as trace_model
    from toast_cli.methods.adapted_model import AdaptedModel as AdaptedModel
    from toast_cli.methods.base import Method as Method
    from toast_cli.methods.feedback import FeedbackOptions as FeedbackOptions
    from toast_cli.methods.feedback import build_steering as build_steering
    from toast_cli.methods.feedback import count_start_images as count_start_images
    from toast_cli.methods.feedback import initialize_steering as initialize_steering
    from toast_cli.registry import wrap_model as wrap_model
    from toast_cli.steering.steering import BaseSteering as BaseSteering
    from toast_cli.steering.steering import PassOutputs as PassOutputs
    from toast_cli.steering.steering import Steering as Steering
    from toast_cli.storage.load_model import LoadedModel as LoadedModel
    from toast_cli.tasks.base import EpochSelection as EpochSelection
    from toast_cli.tasks.base import Meter as Meter
    from toast_cli.tasks.base import Metric as Metric
    from toast_cli.tasks.base import Objective as Objective
    from toast_cli.tasks.base import Task as Task
    from toast_cli.utils.config import LOCAL_PATH as LOCAL_PATH
    from toast_cli.utils.config import BaseOptions as BaseOptions
    from toast_cli.utils.config import NamedOptions as NamedOptions
    from toast_cli.utils.config import Switch as Switch
    from toast_cli.utils.constants import IGNORE_INDEX as IGNORE_INDEX
    from toast_cli.utils.errors import ToastError as ToastError
    from toast_cli.utils.errors import UsageError as UsageError
    from toast_cli.utils.errors import did_you_mean as did_you_mean
    from toast_cli.utils.files import refuse_lfs_pointers as refuse_lfs_pointers
    from toast_cli.utils.files import require_regular_file as require_regular_file
    from toast_cli.utils.pickle_scan import find_refused_code as find_refused_code

_NAMES = {
    "toast_cli.backbones.base": (
        "AuthorsCheckpoint Backbone BackboneOptions Card Family Level Preprocessing Readout State TextLimits Trace"
    ),
    "toast_cli.backbones.upcast_attention": "upcast_attention_inputs",
    "toast_cli.backbones.image_options": "ImageOptions PixelOptions",
    "toast_cli.backbones.lazy_signal": "LazySignal Signal ValueSignal resolve_signal",
    "toast_cli.backbones.licences": "announce_licence",
    "toast_cli.backbones.quantized_linear": "QuantizedLinear describe_quantization replace_layers",
    "toast_cli.backbones.weight_formats": "WEIGHT_FORMATS FormatName require_format",
    "toast_cli.data.base": "DataSet DataSource Sample Split",
    "toast_cli.data.images.labelled_files": "FileSplit",
    "toast_cli.data.procedural": "ProceduralSplit",
    "toast_cli.data.splits": "SplitOptions UnsplitDataOptions make_train_val_splits make_train_val_test_splits",
    "toast_cli.data.text.conversation_format": "ConversationFormat",
    "toast_cli.data.text.conversation_split": "ConversationSplit",
    "toast_cli.data.text.turns": "Conversation Turn",
    "toast_cli.export.base": "ExportFormat ExportRequest ExportRunner Outputs",
    "toast_cli.export.graph": "build_graph_metadata suppress_exporter_logs trace_model",
    "toast_cli.methods.adapted_model": "AdaptedModel",
    "toast_cli.methods.base": "Method",
    "toast_cli.methods.feedback": "FeedbackOptions build_steering count_start_images initialize_steering",
    "toast_cli.registry": "wrap_model",
    "toast_cli.steering.steering": "BaseSteering PassOutputs Steering",
    "toast_cli.storage.load_model": "LoadedModel",
    "toast_cli.tasks.base": "EpochSelection Meter Metric Objective Task",
    "toast_cli.utils.config": "LOCAL_PATH BaseOptions NamedOptions Switch",
    "toast_cli.utils.constants": "IGNORE_INDEX",
    "toast_cli.utils.errors": "ToastError UsageError did_you_mean",
    "toast_cli.utils.pickle_scan": "find_refused_code",
    "toast_cli.utils.files": "refuse_lfs_pointers require_regular_file",
}
"""The names that each module defines, separated by spaces."""

__all__ = sorted(name for names in _NAMES.values() for name in names.split())
__getattr__ = make_lazy_getattr(__name__, {name: module for module, names in _NAMES.items() for name in names.split()})


def __dir__() -> list[str]:
    return __all__
