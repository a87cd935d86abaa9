"""Folders as people unpack them: which folders are splits and which are classes, labels in lists and in file names, other tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pictures import picture, tree, write

from deepres import DeepresError
from deepres.data import Resident, open_data


def labels(data: Any, split: str) -> dict[int, str]:
    """The class of each image of a split, by its grey."""
    part = getattr(data, split)
    assert isinstance(part, Resident)
    return dict(zip(part.pixels[:, 0, 0, 0].tolist(), [data.classes[i] for i in part.labels.tolist()], strict=True))


def everything(data: Any) -> dict[int, str]:
    return labels(data, "train") | labels(data, "val") | labels(data, "test")


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("seg_train/seg_train", "seg_test/seg_test"),  # Kaggle's Intel images
        ("asl_train", "asl_test"),
        ("top/data/train", "top/data/test1"),
        ("x/train_images", "x/validation_images"),
    ],
)
def test_splits_by_a_word(train: str, test: str, tmp_path: Path) -> None:
    write(tmp_path, [*tree(train), *tree(test)])
    data = open_data(tmp_path)
    assert data.classes == ("cat", "dog") and len(data.test) == 12


@pytest.mark.parametrize("names", [("train", "plane"), ("bullet_train", "test_tube"), ("training shoe", "testing kit")])
def test_classes_that_sound_like_splits(names: tuple[str, str], tmp_path: Path) -> None:
    write(tmp_path, [f"{name}/{i}.png" for name in names for i in range(6)])
    assert open_data(tmp_path).classes == tuple(sorted(names))


def test_folders_beside_the_images(tmp_path: Path) -> None:
    """CUB-200, Stanford Dogs, Caltech: one folder of class folders, and others without images."""
    write(tmp_path, tree("CUB/images"))
    for name in ("CUB/attributes/a.txt", "CUB/parts/b.txt", "CUB/README"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    data = open_data(tmp_path)
    assert data.classes == ("cat", "dog") and "folders without images: attributes, parts" in str(data)


@pytest.mark.parametrize("form", ["{word}.{i}", "{word}_{i:04d}", "{word} ({i})", "{word}{i}", "{i:04d}_{word}"])
def test_labels_in_file_names(form: str, tmp_path: Path) -> None:
    """Kaggle's dogs-vs-cats: train/cat.0.jpg, and test1/1.jpg without labels."""
    write(tmp_path, [f"train/{form.format(word=word, i=i)}.png" for word in ("dog", "old_cat") for i in range(8)])
    (tmp_path / "test1").mkdir()
    for i in range(5):
        (tmp_path / f"test1/{i}.png").write_bytes(picture(i))
    data = open_data(tmp_path)
    assert data.classes == ("dog", "old_cat") and everything(data) == {i: "dog" if i < 8 else "old_cat" for i in range(16)}
    assert "classes are taken from file names, such as 'dog' in" in str(data)
    assert "5 images of test1 have no label" in str(data)


@pytest.mark.parametrize(
    "names",
    [
        [f"{i}_{i % 2}.png" for i in range(8)],  # which number is the label?
        [f"{word}_{i}.png" for word in ("IMG", "DSC") for i in range(8)],  # two cameras
        [f"{word}_{i}.png" for word in ("train", "test") for i in range(8)],
        [f"photo{i}of{word}.png" for i, word in enumerate("abcdefgh")],  # a name for each
        ["cat_1.png", "cat_2.png", "dog_1.png", "dog_2.png", "notes.png"],  # not all alike
    ],
)
def test_file_names_that_do_not_tell(names: list[str], tmp_path: Path) -> None:
    with pytest.raises(DeepresError, match="nothing says of which class its"):
        open_data(write(tmp_path, names))


WORDNET = ["n02119789", "n01440764"]  # the kit's classes 1 and 2; in WordNet's order 1 and 0


def test_imagenet_as_kaggle_packs_it(tmp_path: Path) -> None:
    top = "ILSVRC/Data/CLS-LOC"
    names = [f"{top}/train/{word}/{word}_{i}.JPEG" for word in sorted(WORDNET) for i in range(6)]
    write(tmp_path, [*names, *(f"{top}/val/ILSVRC2012_val_{i:08d}.JPEG" for i in range(1, 5)), f"{top}/test/x_1.JPEG"])
    (tmp_path / "ILSVRC/Annotations/CLS-LOC/val").mkdir(parents=True)
    (tmp_path / "ILSVRC/Annotations/CLS-LOC/val/a.xml").write_text("<x/>")
    rows = "".join(f"ILSVRC2012_val_{i:08d},{WORDNET[i % 2]} 1 2 3 4 {WORDNET[i % 2]} 5 6 7 8 \n" for i in range(1, 5))
    (tmp_path / "LOC_val_solution.csv").write_text("ImageId,PredictionString\n" + rows)
    (tmp_path / "LOC_sample_submission.csv").write_text("ImageId,PredictionString\nILSVRC2012_test_1,n1 0 0 1 1\n")
    data = open_data(tmp_path)
    assert data.classes == tuple(sorted(WORDNET))
    assert "LOC_val_solution.csv" in str(data) and "1 images of ILSVRC/Data/CLS-LOC/test have no label" in str(data)
    assert len(data.train) + len(data.val) == 12
    assert labels(data, "test") == {12: WORDNET[1], 13: WORDNET[0], 14: WORDNET[1], 15: WORDNET[0]}
    (tmp_path / "LOC_val_solution.csv").write_text("ImageId,PredictionString\nILSVRC2012_val_00000009,n1 1 2 3 4\n")
    with pytest.raises(DeepresError, match=r"LOC_val_solution\.csv:2: there is no image 'ILSVRC2012_val_00000009'"):
        open_data(tmp_path)


@pytest.mark.parametrize("mapping", ["meta.mat", "map_clsloc.txt", None])
def test_the_development_kits_numbers(mapping: str | None, tmp_path: Path) -> None:
    write(tmp_path, [f"val/ILSVRC2012_val_{i:08d}.JPEG" for i in range(6)])
    kit = tmp_path / "ILSVRC2012_devkit_t12/data"
    kit.mkdir(parents=True)
    (kit / "ILSVRC2012_validation_ground_truth.txt").write_text("1\n2\n1\n1\n2\n2\n")
    if mapping == "meta.mat":
        import numpy as np
        from scipy.io import savemat

        fields = ("ILSVRC2012_ID", "WNID", "words", "gloss", "num_children", "children", "wordnet_height", "num_train_images")
        none = np.zeros((1, 0), np.uint8)
        rows = [(i + 1.0, word, "kit fox, Vulpes", "a fox", 0.0, none, 0.0, 1300.0) for i, word in enumerate(WORDNET)]
        rows.append(
            (1001.0, "n02083346", "canine", "a mammal", 2.0, np.array([[1.0, 2.0]]), 1.0, 0.0)
        )  # not a class: a group of them
        table = np.empty((len(rows), 1), dtype=[(field, object) for field in fields])
        table[:, 0] = rows
        savemat(kit / "meta.mat", {"synsets": table})
    elif mapping:
        (kit / mapping).write_text("".join(f"{word} {i + 1} name\n" for i, word in enumerate(WORDNET)))
    else:
        with pytest.raises(DeepresError, match=r"put the kit's meta\.mat beside it"):
            open_data(tmp_path)
        return
    data = open_data(tmp_path)
    assert data.classes == tuple(sorted(WORDNET))
    assert labels(data, "test") == {i: WORDNET[int(n) - 1] for i, n in enumerate("121122")}


def test_tiny_imagenet(tmp_path: Path) -> None:
    names = [f"train/{word}/images/{word}_{i}.JPEG" for word in sorted(WORDNET) for i in range(6)]
    write(
        tmp_path, [*names, *(f"val/images/val_{i}.JPEG" for i in range(4)), *(f"test/images/test_{i}.JPEG" for i in range(3))]
    )
    (tmp_path / "val/val_annotations.txt").write_text(
        "".join(f"val_{i}.JPEG\t{WORDNET[i // 2]}\t0\t0\t9\t9\n" for i in range(4))
    )
    (tmp_path / "wnids.txt").write_text("\n".join(WORDNET))
    data = open_data(tmp_path)
    assert data.classes == tuple(sorted(WORDNET)) and len(data.train) + len(data.val) == 12
    assert labels(data, "test") == {12: WORDNET[0], 13: WORDNET[0], 14: WORDNET[1], 15: WORDNET[1]}
    assert "3 images of test/images have no label" in str(data)


def test_images_in_several_folders_and_one_table(tmp_path: Path) -> None:
    """HAM10000."""
    write(tmp_path, [f"HAM10000_images_part_{1 + i // 8}/ISIC_{i}.jpg" for i in range(16)])
    rows = [f"HAM_{i},ISIC_{i},{'nv' if i % 3 else 'mel'},histo,80.0,male,scalp" for i in range(16)]
    (tmp_path / "HAM10000_metadata.csv").write_text("\n".join(["lesion_id,image_id,dx,dx_type,age,sex,localization", *rows]))
    data = open_data(tmp_path)
    assert data.classes == ("mel", "nv") and everything(data) == {i: "nv" if i % 3 else "mel" for i in range(16)}


def test_class_folders_for_training_and_a_table_for_testing(tmp_path: Path) -> None:
    """The German traffic signs as Kaggle packs them."""
    write(
        tmp_path,
        [*(f"Train/{label}/{i}.png" for label in (0, 9, 10) for i in range(6)), *(f"Test/{i:05d}.png" for i in range(3))],
    )
    (tmp_path / "Meta").mkdir()
    (tmp_path / "Meta/0.png").write_bytes(picture(0))
    (tmp_path / "Test.csv").write_text(
        "Width,Height,Roi.X1,ClassId,Path\n" + "".join(f"9,9,1,{k},Test/{i:05d}.png\n" for i, k in enumerate((9, 0, 10)))
    )
    (tmp_path / "Meta.csv").write_text("Path,ClassId,ShapeId\nMeta/0.png,0,1\n")
    data = open_data(tmp_path)
    assert labels(data, "test") == {18: "9", 19: "0", 20: "10"} and data.classes == ("0", "10", "9")
    assert "beside the splits, ignored: Meta" in str(data) and "labels of Test are taken from Test.csv" in str(data)


def test_a_competition_with_labels_for_training_alone(tmp_path: Path) -> None:
    write(tmp_path, [*(f"images/Train_{i}.jpg" for i in range(12)), *(f"images/Test_{i}.jpg" for i in range(3))])
    (tmp_path / "train.csv").write_text(
        "image_id,healthy,rust\n" + "".join(f"Train_{i},{i % 2},{1 - i % 2}\n" for i in range(12))
    )
    (tmp_path / "test.csv").write_text("image_id\n" + "".join(f"Test_{i}\n" for i in range(3)))
    (tmp_path / "sample_submission.csv").write_text(
        "image_id,healthy,rust\n" + "".join(f"Test_{i},0.5,0.5\n" for i in range(3))
    )
    data = open_data(tmp_path)
    assert everything(data) == {i: "healthy" if i % 2 else "rust" for i in range(12)}
    assert "not read, for want of labels: test.csv" in str(data) and "3 images have no row in train.csv" in str(data)


def test_a_table_whose_images_lie_a_folder_below(tmp_path: Path) -> None:
    write(tmp_path, [*(f"train/{i}.jpg" for i in range(12)), *(f"test/{i}.jpg" for i in range(3))])
    (tmp_path / "train.csv").write_text("id,breed\n" + "".join(f"{i},{'ab'[i % 2]}\n" for i in range(12)))
    data = open_data(tmp_path / "train.csv")
    assert everything(data) == {i: "ab"[i % 2] for i in range(12)}


def test_results_are_no_labels(tmp_path: Path) -> None:
    write(tmp_path, tree("train", "test"))
    for name in ("predictions.csv", "notes.csv", "metadata.csv"):
        (tmp_path / name).write_text("file,class\ntrain/cat/0.png,dog\n" if name == "predictions.csv" else "a,b\n1,2\n")
    assert open_data(tmp_path).classes == ("cat", "dog")


YOLO, POLYGON = "0 0.5 0.5 0.2 0.2\n1 0.1 0.1 0.1 0.1\n", "0 0.1 0.1 0.2 0.2 0.3 0.1\n"


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"images/train/0.png": None, "images/val/1.png": None, "labels/train/0.txt": YOLO, "data.yaml": ""}, "YOLO"),
        ({"train/images/0.png": None, "train/labels/0.txt": POLYGON, "valid/images/1.png": None}, "YOLO"),
        ({"train2017/0.png": None, "val2017/1.png": None, "annotations/instances_train2017.json": "{}"}, "COCO"),
        ({"train/0.png": None, "train/_annotations.coco.json": "{}"}, "COCO"),
        ({"VOC/JPEGImages/0.png": None, "VOC/Annotations/0.xml": "<x/>"}, "Pascal VOC"),
        ({"train/0.png": None, "train/_annotations.csv": "filename,width,class,xmin,ymin\n0.png,9,cat,1,2\n"}, "boxes"),
        ({"images/0.png": None, "masks/0.png": None}, "segmentation"),
        ({"train/images/0.png": None, "train/masks/0.png": None, "test/images/1.png": None}, "segmentation"),
    ],
)
def test_other_tasks_are_named(files: dict[str, str | None], says: str, tmp_path: Path) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(picture(1) if content is None else content.encode())
    with pytest.raises(DeepresError, match=f"{says}.*not a class for each image"):
        open_data(tmp_path)


def test_archives_of_other_kinds_are_named(tmp_path: Path) -> None:
    (tmp_path / "train.7z").write_bytes(b"x")
    with pytest.raises(DeepresError, match=r"holds no images, but train\.7z; extract it"):
        open_data(tmp_path)


@pytest.mark.parametrize(
    ("splits", "says"),
    [
        ((), "there is no test split: 2 of the 12 images are held out for it"),
        (("train", "val"), "the images of the validation split are the test images"),
        (("train", "test"), ""),
        (("test",), "no training images: the set can be tested and looked at"),
    ],
)
def test_what_becomes_of_splits_that_are_missing_is_said(splits: tuple[str, ...], says: str, tmp_path: Path) -> None:
    data = open_data(write(tmp_path, tree(*splits) if splits else tree("")))
    assert any(says in note for note in data.notes) if says else not data.notes
