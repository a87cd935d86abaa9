"""Where examples come from. Read: decode -> files -> dataset -> sources; augment -> loader."""

from deepres.data.augment import Augment, mix, pad_crop_flip
from deepres.data.dataset import Data, Resident, Split, Streamed, split_off
from deepres.data.decode import SUFFIXES, UnreadableImage, open_image
from deepres.data.loader import Batch, Loader, Shard, seeded
from deepres.data.pack import Packed, pack
from deepres.data.prepare import Prepare, Tokens
from deepres.data.sources import cache_folder, open_data

__all__ = [
    "SUFFIXES",
    "Augment",
    "Batch",
    "Data",
    "Loader",
    "Packed",
    "Prepare",
    "Resident",
    "Shard",
    "Split",
    "Streamed",
    "Tokens",
    "UnreadableImage",
    "cache_folder",
    "mix",
    "open_data",
    "open_image",
    "pack",
    "pad_crop_flip",
    "seeded",
    "split_off",
]
