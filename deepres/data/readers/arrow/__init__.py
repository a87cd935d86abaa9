"""Parquet and Arrow files, as Hugging Face's ``datasets`` writes them, read with pyarrow alone. Read: features -> rows -> reader."""

from deepres.data.readers.arrow.reader import is_arrow_folder, read, read_folder

__all__ = ["is_arrow_folder", "read", "read_folder"]
