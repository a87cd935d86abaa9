"""The networks against golden counts, the paper's numbers, torchvision and timm."""

from pathlib import Path

import pytest
import timm
import torch
import torchvision

import deepres
from deepres import DeepresError, models, nn
from deepres.nn.transformer_zoo import TRANSFORMERS

MACS = {"18": 1.8, "34": 3.6, "50": 3.8, "101": 7.6, "152": 11.3}  # He et al. 2015, table 1, in 1e9


def scramble(model: torch.nn.Module) -> torch.nn.Module:
    """Give norms statistics and scales that differ, so that a misplaced tensor shows in the output."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for tensor, low in (
                (module.weight, 0.5),
                (module.bias, -0.2),
                (module.running_mean, -0.2),
                (module.running_var, 0.6),
            ):
                tensor.data.copy_(torch.rand(tensor.shape, generator=generator) * 0.6 + low)
    return model.eval()


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("resnet20-cifar", 269_722),
        ("resnet32-cifar", 464_154),
        ("resnet44-cifar", 658_586),
        ("resnet56-cifar", 853_018),
        ("resnet110-cifar", 1_727_962),
        ("resnet1202-cifar", 19_421_274),
        ("resnet164-cifar-preact", 1_703_258),
        ("resnet18", 11_689_512),
        ("resnet34", 21_797_672),
        ("resnet50", 25_557_032),
        ("resnet101", 44_549_160),
        ("resnet152", 60_192_808),
    ],
)
def test_parameter_counts(name: str, count: int) -> None:
    assert nn.parameters(deepres.create(name)) == count


@pytest.mark.parametrize("depth", list(MACS))
def test_multiply_adds_are_the_papers(depth: str) -> None:
    model = deepres.create(f"resnet{depth}", stride_in="1x1")
    assert nn.cost(model, (3, 224, 224)).macs / 1e9 == pytest.approx(MACS[depth], rel=0.03)
    assert model.training


def test_stride_in_the_3x3_costs_more() -> None:
    ours, papers = (nn.cost(deepres.create(name), (3, 224, 224)).macs for name in ("resnet50", "resnet50-v1"))
    assert ours > papers


def test_every_listed_network_builds_and_runs() -> None:
    for name in nn.names():
        if "1202" in name or "1001" in name:
            continue
        if name in TRANSFORMERS:
            small = {"depth": 1, "width": 8 * TRANSFORMERS[name].heads}
            text = TRANSFORMERS[name].vocabulary > 0
            side = TRANSFORMERS[name].image
            net = deepres.create(name, **small, **({"vocabulary": 9, "context": 4} if text else {"num_classes": 7})).eval()
            shape = net(torch.zeros(1, 4).long() if text else torch.zeros(1, 3, side, side)).shape
            assert shape == ((1, 4, 9) if text else (1, 7)), name
            with pytest.raises(DeepresError, match="is a Transformer"):
                nn.config(name)
            continue
        config = nn.config(name, num_classes=7, in_channels=1, width=0.25)
        model = nn.ResNet(config).eval()
        assert model(torch.zeros(1, 1, 32, 32)).shape == (1, 7), name
        assert config.depth == int("".join(c for c in name.split("-")[0] if c.isdigit()))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("resnt50", "did you mean 'resnet50'"),
        ("resnet51", "the nearest is 'resnet50'"),
        ("resnet21-cifar", "the nearest: 20 and 26"),
        ("resnet22-cifar-bottleneck", "the nearest: 20 and 29"),
        ("resnet3-cifar", "the nearest: 8"),
        ("resnet18-bottleneck", "basic blocks"),
        ("plain34-a", "no shortcut"),
    ],
)
def test_wrong_names_say_what_is_near(name: str, says: str) -> None:
    with pytest.raises(DeepresError, match=says):
        deepres.create(name)


def test_wrong_options_say_what_is_near() -> None:
    with pytest.raises(DeepresError, match="num_classes"):
        deepres.create("resnet18", num_clases=10)
    with pytest.raises(DeepresError, match="at least 1"):
        deepres.create("resnet18", num_classes=0)
    with pytest.raises(DeepresError, match="above 0"):
        deepres.create("resnet18", width=0)
    with pytest.raises(DeepresError, match="unknown stem 'cifr'"):
        deepres.create("resnet18", stem="cifr")
    with pytest.raises(DeepresError, match="expansion must be at least 1"):
        deepres.create("resnet50", expansion=0)
    with pytest.raises(DeepresError, match=r"the width of a Transformer is its number of channels, not 0\.5"):
        deepres.create("gpt-tiny", width=0.5)


@pytest.mark.parametrize(("name", "shape"), [("resnet8-cifar", (3, 8, 8)), ("gpt-tiny", (6,)), ("vit-tiny-cifar", (3, 32, 32))])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_counting_leaves_every_module_in_its_mode(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    model = deepres.create(name).to(dtype)
    frozen = next(module for module in model.modules() if isinstance(module, (torch.nn.BatchNorm2d, torch.nn.LayerNorm))).eval()
    modes = [module.training for module in model.modules()]
    cost = nn.cost(model, shape)
    assert [module.training for module in model.modules()] == modes and not frozen.training and model.training
    assert cost.macs > 0 and cost.param_bytes == cost.params * dtype.itemsize


def test_option_a_pads_where_it_says() -> None:
    x = torch.arange(32.0).reshape(1, 2, 4, 4) + 1
    both = nn.shortcut("A", 2, 6, 2)(x)
    end = nn.shortcut("A", 2, 6, 2, padding="end")(x)
    assert torch.equal(both[:, 2:4], x[:, :, ::2, ::2]) and both[:, [0, 1, 4, 5]].abs().sum() == 0
    assert torch.equal(end[:, :2], x[:, :, ::2, ::2]) and end[:, 2:].abs().sum() == 0
    assert nn.shortcut("A", 2, 5, 1)(x).shape[1] == 5
    assert isinstance(nn.shortcut("A", 4, 4, 2), nn.PadShortcut)
    assert isinstance(nn.shortcut("B", 4, 4, 1), torch.nn.Identity)
    assert isinstance(nn.shortcut("C", 4, 4, 1), torch.nn.Sequential)
    with pytest.raises(DeepresError, match="option B"):
        nn.shortcut("A", 6, 2)


def test_a_block_is_its_equation() -> None:
    block = deepres.create("resnet20-cifar").stages[1].blocks[0].eval()
    x = torch.randn(2, 16, 8, 8)
    conv1, norm1, _, conv2, norm2 = block.branch
    slow = torch.relu(norm2(conv2(torch.relu(norm1(conv1(x))))) + block.shortcut(x))
    assert torch.equal(block(x), slow)


def test_zero_initialised_blocks_are_identities() -> None:
    for name in ("resnet20-cifar", "resnet56-cifar-preact", "resnet29-cifar-bottleneck"):
        model = deepres.create(name, zero_init=True).eval()
        x = torch.randn(2, 3, 16, 16)
        for site in deepres.sites(model):
            if not site.reshapes:
                y = torch.relu(torch.randn(2, model.config.channels[int(site.name.split(".")[1])], 4, 4))
                assert torch.equal(site.block(y), y)
        assert torch.isfinite(model(x)).all()


def test_he_initialisation_keeps_the_variance() -> None:
    torch.manual_seed(0)
    conv = deepres.create("resnet50").stages[2].blocks[1].branch.conv2
    assert conv.weight.std().item() == pytest.approx((2 / (9 * conv.out_channels)) ** 0.5, rel=0.02)


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"])
def test_torchvision_and_timm_weights_both_ways(name: str) -> None:
    x = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        for theirs in (getattr(torchvision.models, name)(), timm.create_model(name, pretrained=False)):
            scramble(theirs)
            ours = deepres.create(name).eval()
            assert models.load_weights(ours, theirs.state_dict()).complete
            expected = theirs(x)
            assert (ours(x) - expected).abs().max() <= 1e-4 * expected.abs().max().clamp(min=1)
            fresh = scramble(deepres.create(name))
            theirs.load_state_dict(models.to_others(fresh, "torchvision"))
            expected = fresh(x)
            assert (theirs(x) - expected).abs().max() <= 1e-4 * expected.abs().max().clamp(min=1)


@pytest.mark.parametrize("padding", ["both", "end"])
def test_cifar_weights_with_prefixes(padding: str, tmp_path: Path) -> None:
    original = scramble(deepres.create("resnet20-cifar", padding=padding))
    theirs = {f"module.{name}": tensor for name, tensor in models.to_others(original, "cifar").items()}
    assert "module.linear.weight" in theirs and "module.layer1.0.bn1.running_mean" in theirs
    torch.save({"state_dict": theirs, "best_prec1": 91.0}, tmp_path / "theirs.th")
    loaded = deepres.load(tmp_path / "theirs.th", padding=padding)
    x = torch.randn(4, 3, 32, 32)
    assert torch.equal(loaded(x), original(x))
    assert loaded.config == original.config


@pytest.mark.parametrize("name", ["resnet18", "resnet34-a", "resnet34-c", "resnet50", "resnet110-cifar", "resnet56-cifar-b"])
def test_config_is_read_off_the_weights(name: str) -> None:
    model = deepres.create(name, num_classes=5, width=0.5)
    assert models.infer_config(models.to_others(model)) == model.config


def test_unmatched_weights_are_reported_and_leave_the_model_alone() -> None:
    model = deepres.create("resnet20-cifar")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    other = deepres.create("resnet32-cifar", num_classes=7)
    with pytest.raises(DeepresError, match=r"unexpected .*of other shape .*\(7, 64\) for \(10, 64\)"):
        models.load_weights(model, other.state_dict())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    report = models.load_weights(model, other.state_dict(), strict=False)
    assert len(report.shapes) == 2 and not report.missing and report.unexpected


def test_saved_networks_come_back_alone(tmp_path: Path) -> None:
    for name in ("resnet20-cifar", "plain20-cifar", "resnet29-cifar-preact-bottleneck", "resnet18"):
        model = scramble(deepres.create(name, in_channels=1, num_classes=3, width=0.5))
        path = deepres.save(model, tmp_path / "net.safetensors", classes=["a", "b", "c"])
        again = deepres.load(path)
        x = torch.randn(2, 1, 32, 32)
        assert again.config == model.config and torch.equal(again(x), model(x))
        assert models.notes(path) == {"classes": ["a", "b", "c"]}


def test_bad_checkpoints_get_a_sentence(tmp_path: Path) -> None:
    good = deepres.save(deepres.create("resnet20-cifar"), tmp_path / "good.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(good.read_bytes()[:5000])
    (tmp_path / "cut.pth").write_bytes(b"PK\x03\x04 nothing more")
    torch.save(deepres.create("resnet20-cifar"), tmp_path / "code.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"words": torch.zeros(3)}, tmp_path / "other.pth")
    (tmp_path / "empty").mkdir()
    for name, says in {
        "none.pth": "no such file",
        "cut.safetensors": "truncated",
        "cut.pth": "truncated",
        "code.pth": "refused",
        "list.pth": "not a state_dict",
        "other.pth": "name the network",
        "empty": "no finished run",
    }.items():
        with pytest.raises(DeepresError, match=says):
            deepres.load(tmp_path / name)
    with pytest.raises(DeepresError, match="another network"):
        deepres.load(good, net="resnet32-cifar")


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = deepres.create("resnet20-cifar")
    path = deepres.save(model, tmp_path / "net.safetensors")
    before = path.read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("deepres.models.store.save_file", full)
    with pytest.raises(DeepresError, match="No space left on device"):
        deepres.save(deepres.create("resnet20-cifar"), path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["resnet8-cifar", "resnet8-cifar-preact", "resnet11-cifar-bottleneck"])
def test_stochastic_depth_drops_as_often_as_it_says(name: str) -> None:
    model = deepres.create(name, survival=0.5)
    branches = [m for m in model.modules() if isinstance(m, nn.Branch)]
    assert [round(b.survival, 3) for b in branches] == [0.833, 0.667, 0.5]
    x = torch.randn(2, 3, 15, 15)
    counts = [0] * 3
    for i, branch in enumerate(branches):
        branch.last.register_forward_hook(lambda *_, i=i: counts.__setitem__(i, counts[i] + 1))
    for _ in range(200):
        model(x)
    for count, branch in zip(counts, branches, strict=True):
        assert abs(count / 200 - branch.survival) < 0.12
    # in eval mode each branch is scaled, and folding the scale changes nothing
    model.eval()
    model(torch.randn(4, 3, 15, 15))
    expected = model(x)
    folded = models.to_others(model) if "preact" not in name else None
    if folded is not None:
        again = deepres.create(name)
        models.load_weights(again, folded)
        torch.testing.assert_close(again.eval()(x), expected)
    model.fold_survival()
    assert model.config.survival == 1
    torch.testing.assert_close(model(x), expected)


def test_stochastic_depth_survives_removal_growth_and_the_file(tmp_path: Path) -> None:
    model = deepres.create("resnet14-cifar", survival=0.6, dropout=0.3).eval()
    x = torch.randn(2, 3, 16, 16)
    expected = model(x)
    torch.testing.assert_close(deepres.load(deepres.save(model, tmp_path / "a.safetensors"))(x), expected)
    torch.testing.assert_close(deepres.deepen(model, (3, 2, 2)).eval()(x), expected)
    site = deepres.sites(model)[-1]
    with site.bypass():
        expected = model(x)
    site.remove()
    torch.testing.assert_close(model(x), expected)
    torch.testing.assert_close(deepres.load(deepres.save(model, tmp_path / "b.safetensors"))(x), expected)


def test_dropout_leaves_out_features_only_in_training() -> None:
    model = deepres.create("resnet8-cifar", dropout=0.5)
    model.eval()
    x = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(model(x), model(x), rtol=0, atol=0)
    seen: list[torch.Tensor] = []
    model.head.drop.register_forward_hook(lambda _, __, out: seen.append(out))
    model.train()(x)
    assert 0.2 < float((seen[0] == 0).float().mean()) < 0.8
    for wrong in ({"dropout": 1.0}, {"survival": 0.0}):
        with pytest.raises(DeepresError):
            deepres.create("resnet8-cifar", **wrong)
    with pytest.raises(DeepresError, match="plain network has no shortcut"):
        deepres.create("plain8-cifar", survival=0.5)


@torch.no_grad()
@pytest.mark.parametrize("name", ["resnet14-cifar-preact", "resnet20-cifar-preact-bottleneck"])
def test_a_preactivation_block_without_norm_leaves_its_input_alone(name: str) -> None:
    block = deepres.create(name, norm=False).stages[0].blocks[1]
    x = torch.randn(2, block.branch.conv1.in_channels, 8, 8)
    before = x.clone()
    out = block(x)
    assert torch.equal(x, before)
    torch.testing.assert_close(out, before + block.branch(before.clone()))


@torch.no_grad()
@pytest.mark.parametrize("name", ["resnet8-cifar", "plain8-cifar"])
def test_a_deeper_copy_is_of_the_networks_precision(name: str) -> None:
    model = deepres.create(name).double().eval()
    x = torch.rand(2, 3, 16, 16, dtype=torch.float64)
    torch.testing.assert_close(deepres.deepen(model, (2, 1, 2))(x), model(x))
