"""Options of data, for Python and the command line."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Literal

from tyro.conf import arg
from tyro.constructors import PrimitiveConstructorSpec

from deepres.errors import DeepresError

Augment = Literal["none", "flip", "pad-crop", "pad-crop-flip", "pad-crop-alternating-flip", "scale-crop", "random-resized-crop"]
_SIZES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def parse_bytes(text: str) -> int:
    """``"3GiB"`` -> 3221225472. Raises ``DeepresError`` for what is no size."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if match is None:
        raise DeepresError(f"{text!r} is not a size such as '3GiB'")
    return int(float(match[1]) * _SIZES[match[2].upper()])


_BYTES = PrimitiveConstructorSpec(
    nargs=1,
    metavar="SIZE",
    instance_from_str=lambda given: parse_bytes(given[0]),
    is_instance=lambda value: isinstance(value, int),
    str_from_instance=lambda value: [f"{value / (1 << 20):g}MiB"],
)


@dataclass(frozen=True, kw_only=True)
class PackOptions:
    """Options of ``pack``."""

    shard_bytes: Annotated[int, _BYTES, arg(name="shard")] = 512 << 20  # size of a shard
    verify: bool = True  # decode each image first, and leave out those that cannot be read
