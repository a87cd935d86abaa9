"""The papers' testing protocols against slow, obvious versions; packing; ensembles."""

import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import nn

import deepres
from deepres import DeepresError
from deepres.cli.main import main
from deepres.data import Prepare, open_data, pack
from deepres.evaluation.protocols import Member, measure_views, probabilities, ten_crops

PREPARE = Prepare(32, 3, (0.5, 0.4, 0.3), (0.2, 0.3, 0.25), resize=40)


def photograph(width: int, height: int, seed: int = 0) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 255, (height // 4, width // 4, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height))


@pytest.fixture(scope="module")
def nets() -> list[nn.Module]:
    made = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        net = deepres.create("resnet18", num_classes=5)
        with torch.no_grad():
            net.train()(torch.randn(8, 3, 32, 32))
        made.append(net.eval())
    return made


def tensor(image: Image.Image) -> torch.Tensor:
    pixels = torch.from_numpy(np.asarray(image).astype(np.float32) / 255).permute(2, 0, 1)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (PREPARE.mean, PREPARE.std))
    return ((pixels - mean) / std)[None]


@torch.no_grad()
@pytest.mark.parametrize("size", [(64, 48), (50, 90), (40, 40)])
def test_ten_crop_is_ten_crops(nets: list[nn.Module], size: tuple[int, int]) -> None:
    image = photograph(*size)
    scale = 40 / min(size)
    small = image.resize((max(40, round(size[0] * scale)), max(40, round(size[1] * scale))), Image.Resampling.BILINEAR)
    right, bottom = small.width - 32, small.height - 32
    corners = ((0, 0), (right, 0), (0, bottom), (right, bottom), (right // 2, bottom // 2))
    crops = [small.crop((x, y, x + 32, y + 32)) for x, y in corners]
    expected = torch.cat([tensor(view) for view in (*crops, *map(ImageOps.mirror, crops))])
    views = ten_crops(image, 32, 40)
    normal = (views.float() / 255 - torch.tensor(PREPARE.mean).view(3, 1, 1)) / torch.tensor(PREPARE.std).view(3, 1, 1)
    # A window is cut out of the image and resized at once, so its pixels differ by rounding: at most 2 of 255.
    torch.testing.assert_close(normal, expected, rtol=0, atol=2.01 / 255 / min(PREPARE.std))
    total = nets[0](normal).softmax(1).sum(0)
    got = probabilities([Member(nets[0], PREPARE)], image, "ten-crop")
    torch.testing.assert_close(got, total / 10, rtol=0, atol=1e-5)


@torch.no_grad()
def test_multiscale_is_the_classifier_at_every_place(nets: list[nn.Module]) -> None:
    image, scales = photograph(70, 50), (32, 48, 80)
    total = torch.zeros(5)
    for short in scales:
        scale = short / 50
        whole = image.resize((round(70 * scale), short), Image.Resampling.BILINEAR)
        for view in (whole, ImageOps.mirror(whole)):
            features = nets[0].features(tensor(view))
            fc = nets[0].head.fc
            places = F.conv2d(features, fc.weight[:, :, None, None], fc.bias)  # class scores, place by place
            total += places.mean((2, 3))[0].softmax(0)
    got = probabilities([Member(nets[0], PREPARE)], image, "multiscale", scales)
    torch.testing.assert_close(got, total / 6, rtol=0, atol=1e-5)


@torch.no_grad()
def test_an_ensemble_averages_its_members(nets: list[nn.Module]) -> None:
    image = photograph(60, 60)
    members = [Member(net, PREPARE) for net in nets]
    alone = [probabilities([member], image, "one-crop") for member in members]
    torch.testing.assert_close(probabilities(members, image, "one-crop"), (alone[0] + alone[1]) / 2)
    assert not torch.equal(alone[0], alone[1])


def test_one_crop_by_views_is_one_crop_by_batches(large_folder: Path) -> None:
    data = open_data(large_folder, size=112, channels=3)
    torch.manual_seed(0)
    net = deepres.create("resnet18", num_classes=2).eval()
    fast = deepres.evaluate(net, data)
    slow = measure_views([Member(net, data.prepare)], data.test, data.classes, "one-crop")
    assert slow.confusion == fast.confusion and slow.loss == pytest.approx(fast.loss, rel=1e-4)
    both, one = (deepres.evaluate(nets, data, protocol="ten-crop") for nets in ([net, net], net))
    assert both.confusion == one.confusion and both.loss == pytest.approx(one.loss, rel=1e-5)
    with pytest.raises(DeepresError, match="unknown protocol"):
        deepres.evaluate(net, data, protocol="two-crop")  # type: ignore[arg-type]
    with pytest.raises(DeepresError, match="scales are short sides"):
        deepres.evaluate(net, data, protocol="multiscale", scales=())
    with pytest.raises(DeepresError, match="opened with 1 channels and the network takes 3"):
        deepres.evaluate(net, open_data(large_folder, size=112))
    with pytest.raises(DeepresError, match="no network"):
        deepres.evaluate([], data)


def test_an_exported_network_is_tested_by_views(large_folder: Path, tmp_path: Path) -> None:
    """It has no parameters that would say on which device it is."""
    data = open_data(large_folder, size=96, channels=3)
    net = deepres.create("resnet18", num_classes=2, width=0.25).eval()
    deepres.export(net, "onnx", tmp_path / "net.onnx", data=data)
    for protocol in ("one-crop", "ten-crop"):
        file, original = (deepres.evaluate([one, one], data, protocol=protocol) for one in (tmp_path / "net.onnx", net))
        assert file.confusion == original.confusion and file.loss == pytest.approx(original.loss, rel=1e-4)
    with pytest.raises(
        DeepresError, match=r"net\.onnx: takes images of 96 pixels alone, so it is not tested at several scales"
    ):
        deepres.evaluate(tmp_path / "net.onnx", data, protocol="multiscale", scales=(96, 112))


def test_what_cannot_be_tested_by_views_is_one_sentence(large_folder: Path, tmp_path: Path) -> None:
    grey, colour = (deepres.create("resnet18", num_classes=2, width=0.25, in_channels=channels) for channels in (1, 3))
    with pytest.raises(DeepresError, match="see the same images, and these take 1 and 3 channels"):
        deepres.evaluate([grey, colour], large_folder, size=96)
    (tmp_path / "text.txt").write_text("to be or not to be\n" * 50)
    data = open_data(tmp_path / "text.txt", size=8)
    net = deepres.create("gpt-tiny", depth=1, width=16, heads=2, vocabulary=len(data.classes), context=8)
    for model, protocol in ((net, "ten-crop"), ([net, net], "one-crop")):
        with pytest.raises(DeepresError, match="is a text, which one network is tested on, by one-crop"):
            deepres.evaluate(model, data, protocol=protocol)


def test_packing_keeps_every_image_and_names_the_broken(large_folder: Path, tmp_path: Path) -> None:
    import shutil

    root = tmp_path / "images"
    shutil.copytree(large_folder, root)
    broken = next(root.glob("train/*/*.png"))
    broken.write_bytes(broken.read_bytes()[:100])
    (root / "val").rename(root / "test")
    told: list[int] = []
    packed = pack(root, tmp_path / "shards", shard_bytes=4000, watch=lambda done, total: told.append(done))
    count = len(list(root.rglob("*.png")))
    assert packed.images == count - 1 and packed.unreadable == (str(broken),)
    assert len(packed.shards) > 2 and told == list(range(1, count + 1))
    assert not list((tmp_path / "shards").glob("*.part"))
    loose, shards = open_data(root, size=112), open_data(tmp_path / "shards", size=112)
    assert shards.classes == loose.classes and len(shards.test) == len(loose.test)
    assert len(shards.train) + len(shards.val) == len(loose.train) + len(loose.val) - 1
    with tarfile.open(packed.shards[0]) as tar:
        assert all(name.count("/") == 2 for name in tar.getnames())
    with pytest.raises(DeepresError, match="holds tar files already"):
        pack(root, tmp_path / "shards")


def test_the_commands(small_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    train = ["train", "--net", "resnet8-cifar", "--data", str(small_folder), "--recipe", "digits", "--epochs", "1"]
    assert main([*train, "--speed", "float32", "--out", str(run)]) == 0
    capsys.readouterr()
    test = ["evaluate", str(run), str(run / "last.safetensors"), "--data", str(small_folder)]
    assert main([*test, "--protocol", "multiscale", "--scales", "16", "20"]) == 0
    assert "top-1 error" in capsys.readouterr().out
    assert main(["evaluate", "--data", str(small_folder)]) == 2
    assert "which network" in capsys.readouterr().err
    assert main(["pack", str(small_folder), "--out", str(tmp_path / "shards"), "--shard", "1KiB"]) == 0
    assert "72 images in" in capsys.readouterr().out
    assert main(["pack", str(tmp_path / "nothing")]) == 2
    assert "no such folder" in capsys.readouterr().err
