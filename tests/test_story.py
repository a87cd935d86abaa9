"""The README's first story, from a folder of photographs to a served network: its commands, as they stand there."""

from __future__ import annotations

import functools
import glob
import hashlib
import json
import random
import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import onnxruntime
import pytest
import torch
import torchvision
from PIL import Image
from sklearn.datasets import load_sample_images
from torchvision.models import ResNet18_Weights
from torchvision.transforms._presets import ImageClassification

import deepres
from deepres.cli.main import main

README = Path(__file__).parents[1] / "README.md"
CLASSES = ("temple", "flower")  # of scikit-learn's two photographs


def story() -> list[str]:
    """The commands of the story, without their comments."""
    section = README.read_text().split("## From a folder of photographs to a served network")[1].split("\n## ")[0]
    (block,) = re.findall(r"^```sh\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    return [line.partition("  #")[0].strip() for line in block.splitlines()]


@pytest.fixture
def photographs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with ``photos`` and ``new``, which is the current one: windows of two photographs."""
    draw = random.Random(0)
    (tmp_path / "new").mkdir()
    for number, (name, pixels) in enumerate(zip(CLASSES, load_sample_images().images, strict=True)):
        photograph = Image.fromarray(pixels)
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(11):
            side = draw.randint(150, 300)
            left, top = draw.randint(0, photograph.width - side), draw.randint(0, photograph.height - side)
            window = photograph.crop((left, top, left + side, top + side))
            window.save(tmp_path / "photos" / name / f"{i}.jpg" if i else tmp_path / "new" / f"{number + 1}.jpg")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def cached_weights(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Weights of resnet18 in torch's cache: random ones, of small images, under the name that torchvision has for its own."""
    folder = tmp_path_factory.mktemp("torch")
    (folder / "checkpoints").mkdir()
    torch.save(torchvision.models.resnet18().state_dict(), folder / "weights")
    checksum = hashlib.sha256((folder / "weights").read_bytes()).hexdigest()[:8]
    (folder / "weights").rename(folder / "checkpoints" / f"resnet18-{checksum}.pth")
    monkeypatch.setattr(torch.hub, "_hub_dir", str(folder))
    entry = ResNet18_Weights.IMAGENET1K_V1.value
    small = functools.partial(ImageClassification, crop_size=48, resize_size=48)
    before = entry.url, entry.transforms
    object.__setattr__(entry, "url", f"http://127.0.0.1:9/resnet18-{checksum}.pth")
    object.__setattr__(entry, "transforms", small)
    yield
    object.__setattr__(entry, "url", before[0])
    object.__setattr__(entry, "transforms", before[1])


@pytest.mark.timeout(900)  # half a minute on a machine that does nothing else
def test_the_story_of_the_readme(photographs: Path, cached_weights: None, capfd: pytest.CaptureFixture[str]) -> None:
    """The port alone is another one, as that of the README may be taken."""
    if shutil.which("curl") is None:
        pytest.skip("needs curl: apt-get install curl")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    served, said = None, {}
    try:
        for line in story():
            words = shlex.split(line.replace("8000", port))
            words = [name for word in words for name in (sorted(glob.glob(word)) if "*" in word else [word])]
            if words[-1] == "&":
                served = subprocess.Popen([sys.executable, "-m", *words[:-1]], stdout=subprocess.PIPE, text=True)
                continue
            code = main(words[1:]) if words[0] == "deepres" else subprocess.run(words, check=False).returncode
            out, error = capfd.readouterr()
            assert code == 0, (line, out, error)
            said[words[1] if words[0] == "deepres" else words[0]] = out + error
    finally:
        if served is not None:
            served.terminate()
            ended = served.communicate()[0]
    assert served is not None and served.returncode == 0 and "every accepted request was answered" in ended
    assert "resnet18 from the pretrained weights torchvision:ResNet18_Weights.IMAGENET1K_V1" in said["train"]
    assert "top-1 error" in said["evaluate"] and "report.html" in said["look"] and "0 of" in said["export"]
    answer = json.loads(said["curl"][: said["curl"].index("}]") + 2] + "}")
    best = answer["classes"][0]
    assert f"new/1.jpg,1,{best['name']}," in said["predict"] and {one["name"] for one in answer["classes"]} == set(CLASSES)
    session = onnxruntime.InferenceSession("photos.onnx")
    assert json.loads(session.get_modelmeta().custom_metadata_map["labels"]) == sorted(CLASSES)
    (again,) = deepres.predict("hub/photos", ["new/1.jpg"])
    assert again.names[0] == best["name"] and again.probabilities[0] == pytest.approx(best["probability"], abs=0.02)
    card = huggingface_hub.ModelCard.load("hub/photos/README.md")
    told = json.loads(Path("runs/photos/result.json").read_text())
    assert card.data.eval_results[0].metric_value == pytest.approx(1 - told["test"]["top1"] / 100, abs=1e-6)
    assert told["machine"]["cpu"] in card.text and "the pretrained weights of resnet18" in card.text
