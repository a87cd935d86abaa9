"""Pascal VOC, COCO and YOLO hold the same boxes, and each mistake is named with its file and line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from deepres import DeepresError
from deepres.data.detection import BoxData, open_boxes

# image -> boxes as (class, left, top, right, bottom) in pixels from 0
TRUTH = {
    "train": {"a": [("cat", 0, 0, 10, 20), ("dog", 5, 6, 30, 40)], "b": [("dog", 1, 2, 3, 4)]},
    "val": {"c": []},
    "test": {"d": [("cat", 20, 10, 40, 30)]},
}
CLASSES = ("cat", "dog")
WIDTH, HEIGHT = 40, 50


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (WIDTH, HEIGHT), "grey").save(path)


def voc_object(name: str, left: float, top: float, right: float, bottom: float, difficult: int = 0) -> str:
    return (
        f"<object><name>{name}</name><difficult>{difficult}</difficult>\n"
        f"<bndbox><xmin>{left + 1}</xmin><ymin>{top + 1}</ymin><xmax>{right}</xmax><ymax>{bottom}</ymax></bndbox></object>\n"
    )


def voc(folder: Path) -> Path:
    for split, images in TRUTH.items():
        for name, boxes in images.items():
            picture(folder / "JPEGImages" / f"{name}.jpg")
            body = "".join(voc_object(*box) for box in boxes)
            size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height></size>"
            (folder / "Annotations").mkdir(exist_ok=True)
            (folder / "Annotations" / f"{name}.xml").write_text(f"<annotation>{size}\n{body}</annotation>")
        (folder / "ImageSets/Main").mkdir(parents=True, exist_ok=True)
        (folder / "ImageSets/Main" / f"{split}.txt").write_text("\n".join(images) + "\n")
    return folder


def coco_content(images: dict[str, list]) -> dict:
    listed = [{"id": i, "file_name": f"{name}.png", "width": WIDTH, "height": HEIGHT} for i, name in enumerate(images)]
    boxes = [(i, box) for i, given in enumerate(images.values()) for box in given]
    annotations = [
        {"id": n, "image_id": i, "category_id": 3 + CLASSES.index(k), "bbox": [a, b, c - a, d - b], "iscrowd": 0}
        for n, (i, (k, a, b, c, d)) in enumerate(boxes)
    ]
    categories = [{"id": 3 + i, "name": name} for i, name in enumerate(CLASSES)]
    return {"images": listed, "annotations": annotations, "categories": categories}


def coco(folder: Path) -> Path:
    for split, images in TRUTH.items():
        for name in images:
            picture(folder / f"{split}2017" / f"{name}.png")
        (folder / "annotations").mkdir(exist_ok=True)
        (folder / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(coco_content(images), indent=1))
    return folder


def roboflow(folder: Path) -> Path:
    for split, images in TRUTH.items():
        place = folder / {"val": "valid"}.get(split, split)
        for name in images:
            picture(place / f"{name}.png")
        (place / "_annotations.coco.json").write_text(json.dumps(coco_content(images)))
    return folder


def yolo(folder: Path) -> Path:
    for split, images in TRUTH.items():
        for name, boxes in images.items():
            picture(folder / "images" / split / f"{name}.png")
            rows = [
                f"{CLASSES.index(k)} {(a + c) / 2 / WIDTH} {(b + d) / 2 / HEIGHT} {(c - a) / WIDTH} {(d - b) / HEIGHT}"
                for k, a, b, c, d in boxes
            ]
            (folder / "labels" / split).mkdir(parents=True, exist_ok=True)
            if rows:  # an image without any object has no file
                (folder / "labels" / split / f"{name}.txt").write_text("\n".join(rows))
    lines = [f"{split}: images/{split}" for split in TRUTH]
    (folder / "data.yaml").write_text("\n".join([*lines, "names:", *(f"  {i}: {name}" for i, name in enumerate(CLASSES))]))
    return folder


LAYOUTS = {"Pascal VOC": voc, "COCO": coco, "YOLO": yolo}


def boxes_of(data: BoxData) -> dict[str, dict[str, list]]:
    return {
        split: {
            one.path.stem: [
                (data.classes[label], *(round(v, 3) for v in box))
                for label, box in zip(one.labels, one.boxes.tolist(), strict=True)
            ]
            for one in getattr(data, split)
        }
        for split in TRUTH
    }


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_layouts_hold_the_same_boxes(layout: str, tmp_path: Path) -> None:
    data = open_boxes(LAYOUTS[layout](tmp_path))
    assert (data.layout, data.classes, data.problems) == (layout, CLASSES, ())
    assert boxes_of(data) == TRUTH
    assert all(one.size == (WIDTH, HEIGHT) for one in data.train)


def test_roboflow_s_coco_folders(tmp_path: Path) -> None:
    assert boxes_of(open_boxes(roboflow(tmp_path))) == TRUTH


BAD = [
    ("cat", -10, 0, 12, 20, "outside"),  # cut
    ("cat", 50, 60, 70, 80, "outside"),  # left out
    ("cat", 9, 9, 9, 30, "empty"),
    ("dog", 5, 6, 30, 40, "duplicated"),
    ("dog", 40.5, 2, 41, 4, "outside"),
]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_mistakes_are_named_counted_and_strict_stops(layout: str, tmp_path: Path) -> None:
    folder = LAYOUTS[layout](tmp_path)
    if layout == "Pascal VOC":
        path = folder / "Annotations" / "a.xml"
        rows = "".join(voc_object(*row[:5]) for row in BAD) + voc_object("cow", 1, 2, 3, 4)
        path.write_text(path.read_text().replace("</annotation>", rows + "</annotation>"))
        first, step = 7, 2  # the lines of the boxes
    elif layout == "YOLO":
        path = folder / "labels/train/a.txt"
        added = [f"{CLASSES.index(k)} {(a + c) / 80} {(b + d) / 100} {(c - a) / 40} {(d - b) / 50}" for k, a, b, c, d, _ in BAD]
        path.write_text("\n".join([path.read_text(), *added, "7 0.5 0.5 0.1 0.1"]))
        first, step = 3, 1
    else:
        path = folder / "annotations/instances_train2017.json"
        content = json.loads(path.read_text())
        extra = [(3 + CLASSES.index(k), [a, b, c - a, d - b]) for k, a, b, c, d, _ in BAD] + [(99, [1, 2, 2, 2])]
        entries = [{"image_id": 0, "category_id": k, "bbox": box} for k, box in extra]
        images, old = (json.dumps(content[key]) for key in ("images", "annotations"))
        lines = [f'{{"annotations": {old[:-1]},', *(json.dumps(one) + "," for one in entries)]
        text = "\n".join(lines)[:-1] + f'],\n"images": {images},\n"categories": {json.dumps(content["categories"])}}}'
        path.write_text(text)
        first, step = 2, 1
    data = open_boxes(folder, classes=CLASSES)
    kinds = [row[5] for row in BAD] + ["unknown class"]
    assert [(p.kind, p.line) for p in data.problems] == [(kind, first + step * i) for i, kind in enumerate(kinds)]
    assert all(p.file == str(path) for p in data.problems)
    assert data.problem_counts() == {"outside": 3, "empty": 1, "duplicated": 1, "unknown class": 1}
    assert boxes_of(data)["train"]["a"] == [*TRUTH["train"]["a"], ("cat", 0, 0, 12, 20)]  # the one that could be cut
    with pytest.raises(DeepresError, match=rf"6 problems .*\n.*{path.name}:{first}: box"):
        open_boxes(folder, classes=CLASSES, strict=True)


def test_a_box_that_reaches_out_is_cut_and_difficult_ones_are_marked(tmp_path: Path) -> None:
    folder = voc(tmp_path)
    rows = voc_object("cat", -8, 4, 12, 60) + voc_object("dog", 2, 2, 9, 9, difficult=1)
    (folder / "Annotations/b.xml").write_text(f"<annotation>{rows}</annotation>")
    data = open_boxes(folder)
    one = data.train[1]
    assert one.boxes.tolist() == [[0, 4, 12, HEIGHT], [2, 2, 9, 9]] and one.ignored.tolist() == [False, True]
    assert str(data.problems[0]).endswith(
        "b.xml:2: box (-8, 4, 12, 60) reaches out of the image of 40 x 50 pixels; it is cut to (0, 4, 12, 50)"
    )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_missing_image_is_named_and_left_out(layout: str, tmp_path: Path) -> None:
    folder = LAYOUTS[layout](tmp_path)
    next(folder.rglob("b.[jp][pn]g")).unlink()
    if layout == "YOLO":  # a folder lists what it holds; a text file may list more
        (folder / "train.txt").write_text("./images/train/a.png\n./images/train/b.png\n")
        (folder / "data.yaml").write_text((folder / "data.yaml").read_text().replace("images/train", "train.txt"))
    data = open_boxes(folder)
    assert [problem.kind for problem in data.problems] == ["missing image"] and "b." in data.problems[0].text
    assert [one.path.stem for one in data.train] == ["a"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_images_of_any_damage_are_named_and_left_out(layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An image too large to be decoded is left out. One of which the EXIF data alone are damaged is used."""
    folder = LAYOUTS[layout](tmp_path)
    path = next(folder.rglob("b.[jp][pn]g"))
    Image.new("RGB", (WIDTH, HEIGHT)).save(path, exif=b"Exif\0\0garbage")
    assert open_boxes(folder).problems == ()
    Image.new("RGB", (400, 400)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", WIDTH * HEIGHT)
    data = open_boxes(folder)
    assert [problem.kind for problem in data.problems] == ["missing image"] and "cannot be read" in data.problems[0].text


def test_names_too_long_for_a_file_and_text_that_is_no_utf8_get_a_sentence(tmp_path: Path) -> None:
    folder = coco(tmp_path)
    path = folder / "annotations/instances_train2017.json"
    path.write_text(path.read_text().replace("b.png", "b" * 300))
    assert [problem.kind for problem in open_boxes(folder).problems] == ["missing image"]
    path.write_bytes(path.read_bytes().replace(b'"cat"', b'"c\xe4t"'))
    with pytest.raises(DeepresError, match=r"train2017\.json: not a COCO annotation that can be read"):
        open_boxes(folder)


def test_damaged_annotations_are_named_and_left_out(tmp_path: Path) -> None:
    folder = voc(tmp_path)
    (folder / "Annotations/b.xml").write_text("<annotation>\n<object>\n")
    (folder / "ImageSets/Main/train.txt").write_text("a\nb\nmissing\na\n")
    found = open_boxes(folder).problems
    assert [(Path(p.file).name, p.line, p.kind) for p in found] == [
        ("b.xml", 3, "malformed"),
        ("train.txt", 3, "malformed"),
        ("a.xml", 1, "duplicated"),
    ]
    (folder / "Annotations/b.xml").write_text('<!DOCTYPE a [<!ENTITY b "c">]><annotation>&b;</annotation>')
    assert "declares entities" in open_boxes(folder).problems[0].text


def test_splits_that_are_missing_come_off_the_training_images_alike_each_time(tmp_path: Path) -> None:
    for index in range(20):
        picture(tmp_path / "images" / f"{index:02}.png")
        (tmp_path / "labels").mkdir(exist_ok=True)
        (tmp_path / "labels" / f"{index:02}.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    (tmp_path / "data.yaml").write_text("train: images\nnames: [thing]\n")
    one, two = open_boxes(tmp_path), open_boxes(tmp_path)
    splits = [{example.path for example in getattr(one, split)} for split in ("train", "val", "test")]
    assert [len(split) for split in splits] == [14, 3, 3] and len(set.union(*splits)) == 20
    assert [example.path for example in one.test] == [example.path for example in two.test]
    assert len(one.notes) == 2


def test_what_is_no_data_set_is_refused_with_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(DeepresError, match="there is no such folder"):
        open_boxes(tmp_path / "nowhere")
    with pytest.raises(DeepresError, match="expected are Annotations"):
        open_boxes(tmp_path)
    (tmp_path / "data.yaml").write_text("names: [a]\ntrain: elsewhere\n")
    with pytest.raises(DeepresError, match="'elsewhere' are not there"):
        open_boxes(tmp_path)
    (tmp_path / "data.yaml").write_text("names: [a\n")
    with pytest.raises(DeepresError, match="not YAML that can be read"):
        open_boxes(tmp_path)


def test_boxes_are_float_tensors_even_where_there_are_none(tmp_path: Path) -> None:
    one = open_boxes(voc(tmp_path)).val[0]
    assert one.boxes.shape == (0, 4) and one.boxes.dtype == torch.float32 and one.labels.dtype == torch.int64
