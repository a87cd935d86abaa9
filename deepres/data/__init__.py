"""Where examples come from. Read: decode -> crop -> files -> dataset -> sources; augment -> decoders -> loader."""

from deepres.data.augment import Augment, draws, mix, pad_crop_flip
from deepres.data.crop import fit, pixels, window
from deepres.data.dataset import Data, Resident, Split, Streamed, split_off
from deepres.data.decode import UnreadableImage, image_formats, image_suffixes, is_image_name, open_image
from deepres.data.loader import Batch, Loader, Shard, seeded
from deepres.data.pack import Packed, pack
from deepres.data.prepare import Prepare, Tokens
from deepres.data.sources import open_data
from deepres.paths import cache_folder, user_path

__all__ = [
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
    "draws",
    "fit",
    "image_formats",
    "image_suffixes",
    "is_image_name",
    "mix",
    "open_data",
    "open_image",
    "pack",
    "pad_crop_flip",
    "pixels",
    "seeded",
    "split_off",
    "user_path",
    "window",
]
