"""The command: train, evaluate, predict, and the pages that they write."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from deepres import DeepresError
from deepres.cli.main import main
from deepres.data.detection import open_boxes
from deepres.detection import detector, load_detector, measure_detector, save_detector
from deepres.detection.coco_protocol import ImageDetections
from deepres.detection.combining import CombinedDetector, fuse, mirror, refined
from deepres.detection.measure import scored
from deepres.detection.page import detection_page, survey_page
from deepres.detection.predicting import detect_files


@pytest.fixture(scope="module")
def run(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cli") / "run"
    options = ["--net", "resnet18", "--width", "0.125", "--size", "64", "--epochs", "1", "--speed", "float32"]
    assert main(["detect", "train", "--data", str(shapes), *options, "--out", str(out)]) == 0
    return out


@pytest.mark.parametrize("command", ["train", "evaluate", "predict", "look", "shrink"])
def test_every_option_is_explained(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["detect", command, "--help"])
    said = capsys.readouterr().out
    assert stopped.value.code == 0 and "--device" in said and "HelpText" not in said


def test_train_evaluate_and_predict(run: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert {"run.json", "best.safetensors", "log.jsonl", "result.json", "report.html", "data.html"} <= {
        p.name for p in run.iterdir()
    }
    capsys.readouterr()
    assert main(["detect", "evaluate", str(run), "--data", str(shapes), "--out", str(tmp_path / "scores")]) == 0
    said = capsys.readouterr().out
    assert "AP@.5" in said and "VOC 2007" in said and "blue" in said
    saved = json.loads((tmp_path / "scores/scores.json").read_text())
    data = open_boxes(shapes)
    assert saved == measure_detector(load_detector(run), data.test, data.classes).to_dict()

    pictures = tmp_path / "pictures"
    pictures.mkdir()
    shutil.copy(data.test[0].path, pictures / "a.png")
    shutil.copy(data.test[1].path, pictures / "b.png")
    (pictures / "broken.png").write_bytes(b"no image")
    assert main(["detect", "predict", str(run), str(pictures), "--out", str(tmp_path / "found"), "--threshold", "0.2"]) == 1
    captured = capsys.readouterr()
    assert "skipped" in captured.err and "broken.png" in captured.err and "a.png: " in captured.out
    listed = json.loads((tmp_path / "found/detections.json").read_text())
    results = json.loads((tmp_path / "found/coco-results.json").read_text())
    assert [Path(one["file"]).name for one in listed] == ["a.png", "b.png"]
    assert len(results) == sum(len(one["objects"]) for one in listed) and (tmp_path / "found/a.jpg").exists()
    for one, entry in zip(results, [o for image in listed for o in image["objects"]], strict=True):
        left, top, wide, tall = one["bbox"]
        assert [left, top, left + wide, top + tall] == pytest.approx(entry["box"], abs=0.011)


def test_look_and_shrink(run: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["detect", "look", str(run), "--data", str(shapes), "--out", str(tmp_path / "look.json")]) == 0
    assert "branch left out" in capsys.readouterr().out and len(json.loads((tmp_path / "look.json").read_text())["sites"]) == 8
    small = tmp_path / "small.safetensors"
    assert main(["detect", "shrink", str(run), "--data", str(shapes), "--out", str(small), "--drop", "-200"]) == 0
    assert "0 blocks taken out" in capsys.readouterr().out and small.exists()
    assert main(["ghost", str(run), "--data", "digits", "--budget", "0.5"]) == 2
    assert "holds a detector" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("train",), "Give --data FOLDER"),
        (("train", "--data", "nowhere"), "there is no such folder"),
        (("train", "--data", "nowhere", "--recipe", "smal"), "did you mean 'small'"),
        (("train", "--resume", "nowhere"), "no run to read here"),
        (("evaluate", "nothing", "--data", "nowhere"), "no such file"),
        (("predict", "nothing", "a.png"), "no such file"),
        (("predict", "nothing", "a.png", "--join", "proposals"), "--join proposals is for several detectors"),
        (("evaluate", "nothing", "--data", "nowhere", "--join", "proposals"), "--join proposals is for several detectors"),
        (("train", "--data", "DATA", "--recipe", "paper-voc"), "use --form c4, as the recipes paper-voc and paper-coco"),
        (("train", "--data", "DATA", "--net", "timm:resnet18", "--width", "0.5"), "timm:resnet18: takes no option width"),
        (("predict", "RUN"), "which images?"),
        (("look", "RUN", "--data", "DATA", "--out", "file/look.json"), "--out file: is a file; name a folder"),
        (("evaluate", "RUN", "--data", "DATA", "--out", "file"), "--out file: is a file; name a folder"),
        (("shrink", "RUN", "--data", "DATA", "--out", "file/d.safetensors"), "--out file: is a file; name a folder"),
    ],
)
def test_mistakes_get_one_sentence(
    args: tuple[str, ...],
    says: str,
    run: Path,
    shapes: Path,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("mine")
    capsys.readouterr()
    assert main(["detect", *({"RUN": str(run), "DATA": str(shapes)}.get(word, word) for word in args)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("deepres: ") and err.count("\n") == 1 and says in err, err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_pictures_with_boxes_do_not_replace_the_images(
    run: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = Image.open(open_boxes(shapes).test[0].path)
    for name in ("a.jpg", "b.png", "c/b.png", "d/b.png", "e/b-3.png"):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(tmp_path / "photos" / name)
    before = (tmp_path / "photos/a.jpg").read_bytes()
    assert main(["detect", "predict", str(run), str(tmp_path / "photos"), "--out", str(tmp_path / "photos")]) == 2
    assert "a.jpg: is one of the images, and the picture with its boxes would replace it" in capsys.readouterr().err
    assert (tmp_path / "photos/a.jpg").read_bytes() == before and not (tmp_path / "photos/detections.json").exists()
    assert main(["detect", "predict", str(run), str(tmp_path / "photos"), "--out", str(tmp_path / "found")]) == 0
    assert len(list((tmp_path / "found").glob("*.jpg"))) == 5  # each image has a picture of its own


def test_what_is_wrong_with_the_data_is_said_when_they_are_measured_on(
    run: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(shapes, tmp_path / "bad")
    data = open_boxes(folder)
    path = folder / "Annotations" / data.test[0].path.with_suffix(".xml").name
    path.write_text(path.read_text().replace("red", "green").replace("blue", "green"))
    assert main(["detect", "evaluate", str(run), "--data", str(folder)]) == 0
    assert "unknown class" in capsys.readouterr().err
    (folder / "ImageSets/Main/test.txt").write_text("")
    assert main(["detect", "evaluate", str(run), "--data", str(folder)]) == 2
    assert "its test split has no images" in capsys.readouterr().err


def test_strict_stops_before_training(shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = shutil.copytree(shapes, tmp_path / "bad")
    path = folder / "Annotations/000.xml"
    path.write_text(path.read_text().replace("<xmin>", "<xmin>9", 1))
    assert main(["detect", "train", "--data", str(folder), "--strict", "--out", str(tmp_path / "out")]) == 2
    assert "000.xml:2: box" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_pages_show_every_box_once(shapes: Path, tmp_path: Path) -> None:
    data = open_boxes(shapes)
    found = [ImageDetections(one.boxes, one.labels, torch.linspace(0.6, 0.9, len(one.labels))) for one in data.test]
    page = detection_page(data, scored(data.test, found, data.classes)).write(tmp_path / "report.html").read_text()
    assert page.count("<rect data-score") == sum(len(one.boxes) for one in data.test) == page.count('rect class="truth"')
    assert "mAP at IoU 0.5 is 100.0 %" in page and 'type="range"' in page
    survey = survey_page(data).write(tmp_path / "data.html").read_text()
    assert "No problems were found" in survey and "red" in survey


# ---- several passes


def small(seed: int = 0, size: int = 64):
    torch.manual_seed(seed)
    return detector(
        "resnet18", 2, net_options={"width": 0.125}, channels=16, width=32, size=size, longest=size, proposals=(50, 30)
    ).eval()


def test_mirrored_boxes_lie_on_the_mirrored_image() -> None:
    image = torch.zeros(8, 10)
    image[2:5, 1:4] = 1
    left, top, right, bottom = mirror(torch.tensor([[1.0, 2, 4, 5]]), 10)[0].int().tolist()
    assert image.flip(1)[top:bottom, left:right].all() and image.sum() == (bottom - top) * (right - left)


def test_fusing() -> None:
    one = {
        "boxes": torch.tensor([[0.0, 0, 10, 10], [50, 50, 60, 60]]),
        "labels": torch.tensor([1, 2]),
        "scores": torch.tensor([0.8, 0.6]),
    }
    two = {
        "boxes": torch.tensor([[2.0, 0, 12, 10], [0, 0, 10, 10]]),
        "labels": torch.tensor([1, 2]),
        "scores": torch.tensor([0.4, 0.2]),
    }
    both = fuse([one, two])
    # the two of class 1 overlap by 2/3: (0.8 * 0 + 0.4 * 2) / 1.2
    torch.testing.assert_close(both["boxes"][0], torch.tensor([2 / 3, 0, 10 + 2 / 3, 10]))
    assert both["scores"].tolist() == pytest.approx([0.6, 0.3, 0.1]) and both["labels"].tolist() == [1, 2, 2]
    alone = fuse([one])
    torch.testing.assert_close(alone["boxes"], one["boxes"])
    assert torch.equal(alone["scores"], one["scores"])
    none = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "scores": torch.zeros(0)}
    assert len(fuse([none, none])["boxes"]) == 0


@torch.no_grad()
def test_passes_of_one_detector_and_of_several() -> None:
    images = [torch.rand(3, 48, 64), torch.rand(3, 64, 64)]
    one, two = small(), small(1)
    plain = one(images)
    same = CombinedDetector([one])(images)
    assert all(torch.equal(a[key], b[key]) for a, b in zip(plain, same, strict=True) for key in a)
    twice = CombinedDetector([one, one])(images)  # two that agree are one
    assert torch.allclose(twice[0]["scores"], plain[0]["scores"]) and len(twice[0]["boxes"]) == len(plain[0]["boxes"])
    mirrored = CombinedDetector([one], flip=True)
    turned = mirrored([image.flip(-1) for image in images])
    for a, b in zip(mirrored(images), turned, strict=True):  # it makes no difference which of the two images is given
        assert sorted(a["scores"].tolist()) == pytest.approx(sorted(b["scores"].tolist()), abs=1e-4)
    many = CombinedDetector([one, two], scales=(0.75, 1.0), flip=True, refine=True)
    assert many.passes == 8 and len(many(images)) == 2 and one.transform.min_size == (64,)
    assert len(refined(one, images)[0]["boxes"]) >= 1


@torch.no_grad()
def test_detectors_joined_at_their_proposals() -> None:
    images = [torch.rand(3, 48, 64), torch.rand(3, 64, 40)]
    one, two = small(), small(1)
    plain, twice = one(images), CombinedDetector([one, one], join="proposals")(images)
    for a, b in zip(plain, twice, strict=True):  # a detector agrees with itself: proposals that come twice are suppressed
        assert len(a["boxes"]) == len(b["boxes"]) > 0 and torch.equal(a["labels"], b["labels"])
        torch.testing.assert_close(a["scores"], b["scores"])
        torch.testing.assert_close(a["boxes"], b["boxes"], rtol=1e-4, atol=1e-3)
    both = CombinedDetector([one, two], join="proposals", flip=True)
    assert both.passes == 2 and all(len(found["boxes"]) for found in both(images))
    larger = CombinedDetector([one, small(size=96)], join="proposals")(images)  # of another size
    for found, image in zip(larger, images, strict=True):
        assert float(found["boxes"][:, 2].max()) <= image.shape[-1] and float(found["boxes"][:, 3].max()) <= image.shape[-2]
    with pytest.raises(DeepresError, match="refined for each detector alone"):
        CombinedDetector([one, two], join="proposals", refine=True)


def test_pictures_in_their_own_size_get_boxes_in_it(tmp_path: Path) -> None:
    Image.new("RGB", (200, 100), "grey").save(tmp_path / "a.png")
    (answer,) = detect_files(small(), [tmp_path / "a.png"])
    assert answer.size == (200, 100) and answer.found is not None
    assert answer.found.boxes[:, 2].max() <= 200 and answer.found.boxes[:, 2].max() > 64
    path = save_detector(small(), tmp_path / "d.safetensors")
    assert load_detector(path).config.classes == ("class 1", "class 2")
