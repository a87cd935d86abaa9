"""Labels in file names, cat.0.jpg or 0001_cat.png: only where every name of a folder is made alike, and never without saying so."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import PurePosixPath

from deepres.data.readers.classes import split_within

# a word that starts with a letter and a number, with or without a sign between
_ORDERS = (re.compile(r"([^\W\d_].*?)[ ._-]*\(?(\d+)\)?"), re.compile(r"()\d+[ ._-]+([^\W\d_].*?)"))
# names that cameras and programs give
_NO_CLASS = re.compile(
    r"(img|image|images|dsc|dscn|dscf|pict|photo|pic|picture|frame|scan|screenshot|file|page|p|whatsapp.*|ilsvrc.*)",
    re.IGNORECASE,
)


def classes_of(images: Sequence[str]) -> tuple[list[str], str] | None:
    """(the class of each image, a sentence that says how they were found); None where the names do not tell.

    All names have to be of one form, a word and a number. There have to be at least two words, each in two names on average, and none
    of them a split or a name that cameras give. A label that is a number is never taken off a name: nothing says which number it is.
    """
    stems = [PurePosixPath(name).stem for name in images]
    for order in _ORDERS:
        found = [order.fullmatch(stem) for stem in stems]
        if not found or not all(found):
            continue
        words = [(match[1] or match[2]).strip(" ._-") for match in found if match]
        counts = Counter(words)
        if len(counts) < 2 or len(words) < 2 * len(counts) or any(_NO_CLASS.fullmatch(w) or split_within(w) for w in counts):
            continue
        example = f"{words[0]!r} in {PurePosixPath(images[0]).name}"
        most = ", ".join(f"{word} {count:,}" for word, count in counts.most_common(4))
        return words, f"classes are taken from file names, such as {example}: {most}{' ...' if len(counts) > 4 else ''}"
    return None
