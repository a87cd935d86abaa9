"""``deepres pack``."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from deepres.cli.common import counted, default_out, keywords, say
from deepres.data.options import PackOptions
from deepres.errors import DeepresError


@dataclass(frozen=True, kw_only=True)
class Pack(PackOptions):
    """Pack a folder of images into tar shards. Exit code 1 if some images could not be read; they are named and left out."""

    folder: Positional[Path]  # folder of images, as CLASS/x.jpg or SPLIT/CLASS/x.jpg
    out: Path | None = None  # folder for the shards [runs/pack-DATE]

    def run(self) -> int:
        from deepres.data import pack

        if not self.folder.is_dir():
            raise DeepresError(f"{self.folder}: no such folder")
        with counted("packing") as watch:
            packed = pack(self.folder, self.out or default_out("pack"), watch=watch, **keywords(self, PackOptions))
        for name in packed.unreadable:
            print(f"left out, cannot be read: {name}", file=sys.stderr)
        say(
            f"{packed.images} images in {len(packed.shards)} shards in {packed.shards[0].parent}"
            + (f", {len(packed.unreadable)} left out" if packed.unreadable else "")
        )
        return 1 if packed.unreadable else 0
