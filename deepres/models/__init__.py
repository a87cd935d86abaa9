"""One way in and out for networks. Read: checkpoint -> names -> weights -> build -> store -> exported -> opening; labels -> pairing."""

from deepres.models.build import Origin, allow_builder, build, origin, to_json
from deepres.models.checkpoint import Unwrapped, read, unwrap
from deepres.models.exported import ExportedModel, is_exported, open_exported
from deepres.models.head import replace_head
from deepres.models.labels import LabelMatch, match_labels, relabel
from deepres.models.names import from_others, infer_config, to_others
from deepres.models.opening import OpenedModel, annotate, library_prepare, load, open_model, open_trained, short_name
from deepres.models.pairing import Paired, data_for, open_with_data
from deepres.models.store import locate, notes, save
from deepres.models.weights import Matched, load_weights

__all__ = [
    "ExportedModel",
    "LabelMatch",
    "Matched",
    "OpenedModel",
    "Origin",
    "Paired",
    "Unwrapped",
    "allow_builder",
    "annotate",
    "build",
    "data_for",
    "from_others",
    "infer_config",
    "is_exported",
    "library_prepare",
    "load",
    "load_weights",
    "locate",
    "match_labels",
    "notes",
    "open_exported",
    "open_model",
    "open_trained",
    "open_with_data",
    "origin",
    "read",
    "relabel",
    "replace_head",
    "save",
    "short_name",
    "to_json",
    "to_others",
    "unwrap",
]
