"""Data: layouts, image modes, splits, and an order and augmentation that do not depend on history or processes."""

import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from deepres import DeepresError
from deepres.data import (
    Loader,
    Prepare,
    Resident,
    Shard,
    Streamed,
    draws,
    mix,
    open_data,
    open_image,
    pack,
    pad_crop_flip,
    seeded,
)
from deepres.data.augment import random_view
from deepres.data.crop import fit, pixels


def test_digits_are_split_without_overlap() -> None:
    data = open_data("digits")
    assert (len(data.train), len(data.val), len(data.test)) == (1295, 143, 359)
    assert data.shape == (1, 8, 8) and data.classes == tuple("0123456789")
    again = open_data("digits")
    assert torch.equal(data.val.pixels, again.val.pixels)
    assert min(data.val.labels.bincount()) >= 13  # stratified
    assert open_data("digits", size=16, channels=3).shape == (3, 16, 16)


def test_a_folder_without_splits(small_folder: Path) -> None:
    data = open_data(small_folder)
    assert isinstance(data.train, Resident) and data.shape == (1, 16, 16)  # grey images need one channel
    assert len(data.train) + len(data.val) + len(data.test) == 72
    assert data.test.labels.bincount().tolist() == [4, 4, 4]
    again = open_data(small_folder)  # from the cache
    assert torch.equal(again.train.pixels, data.train.pixels)


def test_a_set_in_the_present_folder_has_its_name(small_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(small_folder)
    assert open_data(".").name == small_folder.name
    monkeypatch.chdir(small_folder / "digit-0")
    assert open_data("..").name == small_folder.name


def test_packing_on_a_full_disk_leaves_no_part(large_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the images nor the end of the tar file have room."""

    def full(tar: tarfile.TarFile, *_: object) -> None:
        tar.fileobj.close()  # type: ignore[union-attr]
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tarfile.TarFile, "addfile", full)
    monkeypatch.setattr(tarfile.TarFile, "close", full)
    with pytest.raises(OSError, match="No space left"):
        pack(large_folder, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_a_class_that_no_folder_can_be_called_by_is_not_packed(tmp_path: Path) -> None:
    """Two classes cat/old and dog/old would be one class, old, in the shards."""
    for i in range(12):
        Image.new("L", (8, 8), i).save(tmp_path / f"{i}.png")
    (tmp_path / "list.csv").write_text("path,label\n" + "".join(f"{i}.png,{('cat', 'dog')[i % 2]}/old\n" for i in range(12)))
    with pytest.raises(DeepresError, match="the class 'cat/old' cannot be the name of a folder"):
        pack(tmp_path / "list.csv", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_images_have_one_channel_or_three(small_folder: Path) -> None:
    with pytest.raises(DeepresError, match="with 1 or 3 channels, not 4"):
        open_data(small_folder, channels=4)


def test_shards_hold_what_the_folder_holds(large_folder: Path, tmp_path: Path) -> None:
    for split in ("train", "val"):
        with tarfile.open(tmp_path / f"{split}-00.tar", "w") as tar:
            tar.add(large_folder / split, arcname=split)
    loose, packed = (open_data(root, size=24) for root in (large_folder, tmp_path))
    assert packed.classes == loose.classes
    for split in ("train", "val", "test"):
        a, b = getattr(loose, split), getattr(packed, split)
        assert torch.equal(a.pixels, b.pixels) and torch.equal(a.labels, b.labels)


def test_large_images_stream_the_same_with_and_without_workers(large_folder: Path) -> None:
    data = open_data(large_folder)
    assert isinstance(data.train, Streamed) and data.shape[1:] == (224, 224)
    for augment in ("none", "random-resized-crop", "scale-crop"):
        runs = [
            [batch.images for batch in Loader(data.train, data.prepare, 8, augment=augment, workers=workers).epoch(3, size=64)]
            for workers in (0, 2)
        ]
        for a, b in zip(*runs, strict=True):
            assert a.shape[1:] == (data.prepare.channels, 64, 64) and torch.equal(a, b)


def test_an_epoch_sees_each_example_once_and_resumes_in_the_middle() -> None:
    data = open_data("digits")
    loader = Loader(data.train, data.prepare, 128, seed=3, augment="pad-crop-flip")
    batches = list(loader.epoch(2))
    assert sum(len(batch.labels) for batch in batches) == 1295 and len(batches) == loader.steps == 11
    assert [batch.full for batch in batches] == [True] * 10 + [False]
    assert sorted(loader.order(2).tolist()) == list(range(1295))
    assert not torch.equal(loader.order(2), loader.order(3))
    for a, b in zip(
        batches[6:], Loader(data.train, data.prepare, 128, seed=3, augment="pad-crop-flip").epoch(2, 6), strict=True
    ):
        assert torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels)


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_the_very_batches_of_one(world: int) -> None:
    data = open_data("digits")
    alone = list(Loader(data.train, data.prepare, 128, augment="pad-crop-flip").epoch(1))
    parts = [
        list(Loader(data.train, data.prepare, 128, augment="pad-crop-flip", share=Shard(rank, world)).epoch(1))
        for rank in range(world)
    ]
    for whole, *shares in zip(alone, *parts, strict=True):
        assert torch.equal(torch.cat([share.images for share in shares]), whole.images)
        assert torch.equal(torch.cat([share.labels for share in shares]), whole.labels)


@pytest.mark.parametrize("batch", [1, 2, 3, 64, 65, 100])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_each_example_is_seen_once_at_any_batch_size(batch: int, world: int) -> None:
    pixels = torch.arange(65, dtype=torch.uint8).view(65, 1, 1, 1)
    split, prepare = Resident(pixels, torch.arange(65)), Prepare(1, 1, (0.0,), (1.0,))
    runs = [list(Loader(split, prepare, batch, share=Shard(rank, world)).epoch(0)) for rank in range(world)]
    assert sorted(int(label) for run in runs for step in run for label in step.labels) == list(range(65))
    for parts in zip(*runs, strict=True):
        assert sum(len(part.labels) for part in parts) == parts[0].total <= batch
        assert all(part.images.shape == (len(part.labels), 1, 1, 1) for part in parts)


def test_a_tail_too_short_for_batch_norm_borrows_from_the_batch_before() -> None:
    data = open_data("digits")
    split = data.train.take(torch.arange(65))
    steps = [list(Loader(split, data.prepare, 64, share=Shard(rank, 2)).epoch(0)) for rank in (0, 1)]
    assert [[len(b.labels) for b in run] for run in steps] == [[32, 2], [29, 2]]
    assert [b.full for b in steps[0]] == [False, False]
    assert [len(b.labels) for b in Loader(split, data.prepare, 64, shuffle=False).epoch(0)] == [64, 1]


def test_pad_crop_flip_against_a_slow_one() -> None:
    images = torch.randint(0, 255, (32, 3, 9, 9), dtype=torch.uint8)
    random = draws(3, torch.arange(32), 5, 0)
    fast = pad_crop_flip(images, random, pad=2)
    top, left = ([int(5 * value) for value in random[:, column].tolist()] for column in (0, 1))
    mirror = random[:, 2] < 0.5
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2))
    for i in range(32):
        view = padded[i, :, top[i] : top[i] + 9, left[i] : left[i] + 9]
        assert torch.equal(fast[i], view.flip(2) if mirror[i] else view)
    assert 0 < mirror.sum() < 32


def test_alternating_flips_show_each_image_both_ways_in_two_epochs() -> None:
    pixels = torch.zeros(200, 1, 16, 16, dtype=torch.uint8)
    pixels[..., :8] = 255  # the bright side tells which way an image is shown
    split, prepare = Resident(pixels, torch.arange(200)), Prepare(16, 1, (0.0,), (1.0,))
    loader = Loader(split, prepare, 64, augment="pad-crop-alternating-flip")

    def mirrored(epoch: int) -> torch.Tensor:
        batches = list(loader.epoch(epoch))
        images, labels = (torch.cat([getattr(batch, name) for batch in batches]) for name in ("images", "labels"))
        return (images[..., 8:].sum((1, 2, 3)) > images[..., :8].sum((1, 2, 3)))[labels.argsort()]

    first, second, third = map(mirrored, (4, 5, 6))
    assert torch.equal(second, ~first) and torch.equal(third, first) and 60 < first.sum() < 140


def test_flips_without_crops_move_no_pixel_but_by_mirroring() -> None:
    data = open_data("digits")
    plain, flipped = (Loader(data.train, data.prepare, 128, augment=augment) for augment in ("none", "flip"))
    seen = set()
    for one, other in zip(plain.epoch(1), flipped.epoch(1), strict=True):
        for image, view in zip(one.images, other.images, strict=True):
            seen.add((torch.equal(view, image), torch.equal(view, image.flip(2))))
    assert seen >= {(True, False), (False, True)} and (False, False) not in seen


def test_mixing_keeps_the_labels_in_proportion() -> None:
    images = torch.arange(8.0).view(8, 1, 1, 1).expand(8, 1, 16, 16).contiguous()
    targets = torch.eye(8)
    for kind in ({"mixup": 0.5, "cutmix": 0.0}, {"mixup": 0.0, "cutmix": 1.0}):
        mixed, soft = mix(images, targets, seeded(1), **kind)
        torch.testing.assert_close(soft.sum(1), torch.ones(8))
        # a pixel's mean value is the labels' expectation
        torch.testing.assert_close(mixed.mean((1, 2, 3)), soft @ torch.arange(8.0), rtol=1e-4, atol=1e-4)


def test_random_views_stay_inside_the_image() -> None:
    image = Image.fromarray(np.full((40, 90, 3), 200, np.uint8))
    for augment in ("random-resized-crop", "scale-crop"):
        for i in range(50):
            assert pixels(
                random_view(image, augment, 32, iter(draws(24, torch.tensor([i]), 1)[0].tolist()))
            ).unique().tolist() == [200]


def test_neighbouring_seeds_are_unrelated() -> None:
    draws = {float(torch.rand((), generator=seeded(*key))) for key in [(0,), (1,), (0, 0), (0, 1), (1, 0), (2**40, 7)]}
    assert len(draws) == 6


def test_all_image_modes_are_read(tmp_path: Path) -> None:
    ramp = np.linspace(0, 255, 64).reshape(8, 8)
    grey = Image.fromarray(ramp.astype(np.uint8))
    files = {
        "grey.png": grey,
        "deep.png": Image.fromarray((ramp * 257).astype(np.uint16)),
        "rgba.png": Image.merge("RGBA", (grey, grey, grey, Image.new("L", grey.size, 255))),
        "palette.gif": grey.convert("P"),
        "cmyk.tiff": grey.convert("RGB").convert("CMYK"),
        "one-bit.png": grey.convert("1"),
        "la.png": Image.merge("LA", (grey, Image.new("L", grey.size, 255))),
    }
    for name, image in files.items():
        image.save(tmp_path / name)
        read = open_image(tmp_path / name)
        assert read.mode == "RGB" and read.size == (8, 8), name
        if name != "one-bit.png":
            assert np.abs(np.asarray(read)[..., 0] - ramp).max() <= 2, name
        assert open_image(tmp_path / name, 1).mode == "L"
    clear = Image.new("RGBA", (4, 4), (9, 9, 9, 0))
    clear.save(tmp_path / "clear.png")
    assert np.asarray(open_image(tmp_path / "clear.png")).min() == 255  # to_layout on white


def test_exif_rotation_is_undone(tmp_path: Path) -> None:
    image = Image.new("RGB", (8, 4), "white")
    exif = image.getexif()
    exif[274] = 6
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert open_image(tmp_path / "turned.jpg").size == (4, 8)


def test_fit_takes_the_centre() -> None:
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 255
    assert pixels(fit(Image.fromarray(wide), 10)).min() == 255
    assert pixels(fit(Image.fromarray(wide), 8, 10)).shape == (3, 8, 8)


def test_decompression_bombs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (64, 64)).save(tmp_path / "big.png")
    for limit in (3000, 100):  # Pillow warns above the limit and raises above twice it
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(DeepresError, match=r"big\.png"):
            open_image(tmp_path / "big.png")


def test_unreadable_images_are_left_out_and_named(small_folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "damaged"
    shutil.copytree(small_folder, root)
    (root / "digit-0" / "000.png").write_bytes(b"\x89PNG nothing")
    (root / "digit-1" / "001.png").write_bytes(b"")
    data = open_data(root)
    assert len(data.unreadable) == 2 and "2 unreadable left out" in str(data)
    assert len(open_data(root).unreadable) == 2  # also when it comes from the cache


def test_unreadable_images_in_a_stream_are_replaced_and_counted(large_folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "damaged"
    shutil.copytree(large_folder, root)
    (root / "train" / "digit-0" / "003.png").write_bytes(b"\x89PNG nothing")
    data = open_data(root, val_share=0.05)
    loader = Loader(data.train, data.prepare, 8, workers=0)
    assert sum(len(batch.labels) for batch in loader.epoch(0, size=32)) == len(data.train)
    assert loader.unreadable == 1 or "003" not in str(data.train.items)


def test_bad_folders_get_a_sentence(tmp_path: Path, small_folder: Path) -> None:
    empty, one, broken = tmp_path / "empty", tmp_path / "one", tmp_path / "broken"
    empty.mkdir()
    shutil.copytree(small_folder / "digit-0", one / "only")
    for label in ("a", "b"):
        (broken / label).mkdir(parents=True)
        for i in range(5):
            (broken / label / f"{i}.jpg").write_bytes(b"not an image")
    (tmp_path / "tar").mkdir()
    (tmp_path / "tar" / "train-00.tar").write_bytes(b"not a tar file" * 100)
    (tmp_path / "few" / "a").mkdir(parents=True)
    (tmp_path / "few" / "b").mkdir(parents=True)
    for label in ("a", "b"):
        shutil.copy(small_folder / "digit-0" / "000.png", tmp_path / "few" / label)
    for root, says in {
        empty: "no images found",
        one: "only one class, 'only'",
        broken: "none of the images that were tried can be read",
        tmp_path / "tar": "train-00.tar: not a whole",
    }.items():
        with pytest.raises(DeepresError, match=says):
            open_data(root)


def test_unknown_data_says_what_there_is() -> None:
    with pytest.raises(DeepresError, match="did you mean 'digits'"):
        open_data("digit")
    with pytest.raises(DeepresError, match="there are digits, cifar10"):
        open_data("/no/such/folder")
    with pytest.raises(DeepresError, match="between 0 and 1"):
        open_data("digits", val_share=2)


def test_cifar_without_a_network_says_where_it_looked(monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision

    def offline(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", offline)
    with pytest.raises(DeepresError, match=r"cifar10: not on disk under .* no route to host.* path of a folder"):
        open_data("cifar10")


def test_cifar_files_on_disk_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision

    class Fake:
        classes = ["a", "b"]

        def __init__(self, root: str, train: bool, download: bool) -> None:
            count = 40 if train else 10
            self.data = np.random.default_rng(0).integers(0, 255, (count, 32, 32, 3), dtype=np.uint8)
            self.targets = [i % 2 for i in range(count)]

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", Fake)
    data = open_data("cifar10")
    assert (len(data.train), len(data.val), len(data.test)) == (36, 4, 10) and data.shape == (3, 32, 32)
