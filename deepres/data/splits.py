"""Training, validation and test examples of a set that may not name all three."""

from __future__ import annotations

from typing import TypeVar

from deepres.data.dataset import Resident, Streamed, split_off

SPLIT_SEED = 20151210  # the day of arXiv:1512.03385
TEST_SHARE = 0.15

S = TypeVar("S", Resident, Streamed)


def complete(
    name: str, classes: tuple[str, ...], found: dict[str, S], val_share: float
) -> tuple[dict[str, S], tuple[str, ...]]:
    """({"train", "val", "test"}, notes), splitting off what is missing.

    A class of one image stays in training. Where nothing can be split off, the split shares the training images and a note says so.
    A set without training images can be looked at and tested, not trained on.
    """
    splits, notes = dict(found), []
    unnamed = splits.pop("", None)
    if unnamed is not None and "train" not in splits:
        splits["train"] = unnamed
    elif unnamed is not None:
        notes.append(f"{len(unnamed)} images are in no split and are left out")
    if "test" not in splits and "val" in splits:
        splits["test"] = splits.pop("val")  # ImageNet's layout: what is called val there is the held-out set
        notes += ["there is no test split: the images of the validation split are the test images"] if "train" in splits else []
    if "train" not in splits:
        splits["train"] = splits["test"].take(splits["test"].labels[:0])
        splits.setdefault("val", splits["test"])
        notes.append("no training images: the set can be tested and looked at, not trained on")
    shared = []
    for part, share, word in (("test", TEST_SHARE, "test"), ("val", val_share, "validation")):
        if part in splits:
            continue
        train = splits["train"]
        rest, off = split_off(train.labels, share, SPLIT_SEED)
        if len(off):
            splits["train"], splits[part] = train.take(rest), train.take(off)
        else:
            splits[part] = train
            shared.append(word)
        if len(off) and part == "test":
            notes.append(f"there is no test split: {len(off):,} of the {len(train):,} images are held out for it")
    if shared:
        notes.append(f"too few images to split: the {' and '.join(shared)} images are the training images, not new ones")
    counts = splits["train"].labels.bincount(minlength=len(classes))
    for what, which in (("one training image, which stays in training", counts == 1), ("no training images", counts == 0)):
        few = [classes[i] for i in which.nonzero().flatten().tolist()]
        if few and len(splits["train"]):
            verb = "1 class has" if len(few) == 1 else f"{len(few)} classes have"
            notes.append(f"{verb} {what}: {', '.join(few[:3])}{' ...' if len(few) > 3 else ''}")
    return splits, tuple(notes)
