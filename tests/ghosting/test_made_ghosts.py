"""Ghosts as users make them: of a run and of other libraries' networks, saved, refused with a reason, and their page."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import deepres
from deepres import DeepresError
from deepres.adapters import logits_of
from deepres.cli.main import main
from deepres.data import Data
from deepres.exits import ExitHead
from deepres.ghosting import Gate, Ghost, GhostResult, Settings, ghost, load_ghost, save_ghost
from deepres.ghosting.recording import batches

CPU = torch.device("cpu")


def test_llama_s_classifier_which_indexes_the_whole_batch() -> None:
    """Masks, rotary positions and a head that looks up each row's last token, while rows skip blocks and exit early."""
    from transformers import LlamaConfig, LlamaForSequenceClassification

    small = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2}
    net = LlamaForSequenceClassification(LlamaConfig(**small, vocab_size=50, num_hidden_layers=9, num_labels=3, pad_token_id=0))
    made, tokens = Ghost(net), torch.randint(1, 50, (8, 6))
    tokens[::2, 4:] = 0  # padding
    for c, segment in enumerate(made.segments):
        made.gates[c] = Gate(16, len(segment.skippable))
        made.gates[c].weight.normal_()
    made.exits[0] = ExitHead(32, 3)
    made.exits[0].weight.normal_(std=9.0)
    with torch.no_grad():
        expected = net.eval()(tokens).logits
        torch.testing.assert_close(made(tokens).logits, expected, rtol=0, atol=0)
        threshold = float(made.record(tokens, Settings())[2][0][1].sort().values[3:5].mean())  # between two inputs
        for settings in (Settings(0.0), Settings(None, threshold), Settings(0.0, threshold, 0.9, average=True)):
            made.settings = settings
            found = logits_of(made, tokens)
            made(tokens, trace=True)
            assert not made.trace.ran.all() and (
                settings.skip_threshold is not None or 0 < (made.trace.exited_at == 0).sum() < 8
            )
            torch.testing.assert_close(
                torch.cat([logits_of(made, row) for row in tokens.split(1)]), found, rtol=1e-4, atol=1e-5
            )
        made.settings = Settings(None, threshold)
        found, stayed = made(tokens, trace=True), made.trace.exited_at < 0
        torch.testing.assert_close(logits_of(made, tokens)[stayed], expected[stayed], rtol=1e-4, atol=1e-5)


def test_settings_saved_by_earlier_versions() -> None:
    old = {"skip": 0.5, "leave": 0.9, "sure": 0.4, "fixed": False, "gates": [0], "exits": [1, 2], "mean": True}
    expected = Settings(0.5, 0.9, 0.4, False, (0,), (1, 2), True)
    assert Settings.from_dict(old) == expected == Settings.from_dict(json.loads(json.dumps(dataclasses.asdict(expected))))
    assert expected.describe() == (
        "blocks skipped by input, early exit at a confidence of 0.9 of the exits' average, fallback to full depth below 0.4"
    )


@pytest.fixture(scope="module")
def made(run: Path) -> GhostResult:
    return ghost(run, "digits", error=1.0, batch=16, examples=300)


def test_within_an_error_and_kept_on_disk(
    made: GhostResult, run: Path, data: Data, images: torch.Tensor, tmp_path: Path
) -> None:
    assert isinstance(made, GhostResult) and made.verified.n == 359 and set(made.times) == {1, 16}
    assert made.verified.rise < 5 and 0 < made.verified.bound < 10 and len(made.verified.by_class) == 10
    assert made.verified.ghost == pytest.approx(
        100 * (1 - sum((made.model(x).argmax(1) == y).sum().item() for x, y in batches(data, "test", 359, CPU)) / 359),
        rel=1e-5,
    )
    assert made.unconfirmed == 1.0  # of 143 validation examples all chose
    assert ("was not confirmed" in " ".join(made.summary())) == (not made.model.settings.whole)
    assert "was not confirmed" not in " ".join(dataclasses.replace(made, unconfirmed=None).summary())
    if made.model.settings.exit_threshold is not None:
        for whole, says in ((made.verified.ghost, False), (made.verified.ghost + 10, True)):
            worse = dataclasses.replace(made, verified=dataclasses.replace(made.verified, whole=whole))
            assert ("longer training would improve it" in " ".join(worse.summary())) == says
    save_ghost(made, tmp_path / "ghost")
    again, noted = load_ghost(tmp_path / "ghost")
    assert noted["classes"] == list(data.classes) and again.settings == made.model.settings
    assert torch.equal(again(images), made.model(images))
    assert json.loads((tmp_path / "ghost" / "ghost.json").read_text())["verified"]["n"] == 359
    assert deepres.load(tmp_path / "ghost" / "net.safetensors").config == deepres.load(run).config
    with pytest.raises(DeepresError, match="holds no readable ghost"):
        load_ghost(tmp_path)


def test_calls_are_timed_at_the_batch_that_there_is(run: Path, data: Data) -> None:
    few = dataclasses.replace(data, val=data.val.take(torch.arange(12)), test=data.test.take(torch.arange(20)))
    said: list[str] = []
    made = ghost(run, few, budget=1.0, batch=40, examples=20, gates="none", log=said.append)
    assert set(made.times) == {1, 12} and any("there is no batch of 40" in line for line in said)


def timm_net() -> nn.Module:
    import timm

    return timm.create_model("resnet26", num_classes=10, in_chans=1)


def torchvision_vit() -> nn.Module:
    from torchvision.models import VisionTransformer

    return VisionTransformer(image_size=32, patch_size=8, num_layers=3, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=10)


def hf_vit() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    small = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
    return ViTForImageClassification(ViTConfig(**small, image_size=32, patch_size=8, num_labels=10))


@pytest.mark.parametrize("name", ["ours", "torchvision", "ViT"])
def test_a_fixed_choice_is_an_ordinary_network(name: str) -> None:
    """Blocks of every kind passed through, among them all of a stage."""
    from torchvision.models import resnet18

    torch.manual_seed(0)
    build = {"ours": lambda: deepres.create("resnet20-cifar"), "torchvision": lambda: resnet18(num_classes=10), "ViT": hf_vit}
    made = Ghost(build[name]())
    x = torch.randn(2, 3, 32, 32)
    for c, segment in enumerate(made.segments):
        if segment.skippable:
            made.gates[c] = Gate(1, len(segment.skippable))
            made.gates[c].bias.copy_(
                -torch.ones(len(segment.skippable)) if c == 0 else torch.arange(len(segment.skippable)) % 2.0
            )
    made.settings = Settings(0.5, fixed=True)
    expected = made(x)
    net = made.static()
    assert type(net) is type(made.net) and sum(p.numel() for p in net.parameters()) < sum(
        p.numel() for p in made.net.parameters()
    )
    torch.testing.assert_close(logits_of(net, x), getattr(expected, "logits", expected), atol=1e-5, rtol=1e-5)
    if name != "ViT":
        exported = torch.export.export(net, (x,)).module()
        torch.testing.assert_close(exported(x), expected, atol=1e-5, rtol=1e-5)
    made.settings = Settings(0.5)
    with pytest.raises(DeepresError, match="depend on the input"):
        made.static()


@pytest.mark.parametrize(("build", "channels"), [(timm_net, 1), (torchvision_vit, 3), (hf_vit, 3)])
def test_other_libraries_networks(build: Callable[[], nn.Module], channels: int, data: Data) -> None:
    torch.manual_seed(0)
    net = build().eval()
    x = torch.randn(6, channels, 32, 32)
    made = Ghost(net)
    for c, segment in enumerate(made.segments):
        seen: list[torch.Tensor] = []
        block = made.blocks[segment.blocks[0]].sites[0].block
        handle = block.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0]))
        made(x)
        handle.remove()
        if segment.skippable:
            gate = Gate(seen[0].shape[1] if seen[0].ndim == 4 else seen[0].shape[2], len(segment.skippable))
            gate.weight.normal_()
            made.gates[c] = gate
    with torch.no_grad():
        torch.testing.assert_close(logits_of(made, x), logits_of(net, x))
        made.settings = Settings(0.0)
        out = made(x, trace=True)
    whole = getattr(out, "logits", out)
    ran = made.trace.ran
    assert 0 < ran.float().mean() < 1
    for i in range(6):
        alone = made(x[i : i + 1])
        torch.testing.assert_close(getattr(alone, "logits", alone)[0], whole[i], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "give either budget"),
        ({"budget": 0.5, "error": 1.0}, "give either budget"),
        ({"budget": 1.5}, "above 0 and at most 1"),
        ({"error": -1.0}, "0 or more"),
        ({"budget": 0.5, "gates": "none", "exits": False}, "no time can be saved"),
        ({"budget": 0.5, "gates": "some"}, "gates is one of"),
        ({"budget": 0.5, "batch": 0}, "batch is at least 1"),
        ({"budget": 0.5, "deadline": 0.0}, "above 0"),
        ({"error": 0.5, "confidence": 0.4}, "at least 0.5 and below 1"),
        ({"error": float("nan")}, "0 or more"),
        ({"budget": 0.5, "deadline": 1.0, "exits": False}, "kept by early exits"),
        ({"budget": 0.5, "examples": 1, "exits": False}, "at least 2"),
        ({"budget": 0.01, "examples": 100}, "cannot be kept"),
    ],
)
def test_bad_options_get_a_sentence(options: dict[str, object], says: str, run: Path) -> None:
    with pytest.raises(DeepresError, match=says):
        ghost(run, "digits", **options)  # type: ignore[arg-type]


def test_what_cannot_be_a_ghost_says_why(data: Data, tmp_path: Path) -> None:
    with pytest.raises(DeepresError, match="no residual block"):
        Ghost(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))
    with pytest.raises(DeepresError, match="no such run or file"):
        ghost("nothing", "digits", budget=0.5)
    with pytest.raises(DeepresError, match="would be freshly initialised"):
        ghost("timm:resnet18", "digits", budget=0.5)
    untrainable = dataclasses.replace(data, train=data.train.take(torch.arange(0)))
    with pytest.raises(DeepresError, match="no training images"):
        ghost(deepres.create("resnet8-cifar", in_channels=1), untrainable, budget=0.5)
    with pytest.raises(DeepresError, match="cannot be copied"):
        __import__("copy").deepcopy(Ghost(deepres.create("resnet8-cifar")))


def test_the_command(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    command = ["ghost", str(run), "--data", "digits", "--error", "1", "--examples", "300", "--batch", "8"]
    assert main([*command, "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "On the test split of 359 examples" in said and "At batch 8 a call takes" in said
    assert {"ghost.json", "ghost.safetensors", "net.safetensors", "report.html"} <= {p.name for p in out.iterdir()}
    page = (out / "report.html").read_text()
    assert "Blocks that run for each class" in page and "Clopper-Pearson" in page
    assert main([*command, "--out", str(out / "ghost.json" / "again")]) == 2
    told = capsys.readouterr()
    assert "cannot be written" in told.err and not told.out  # before anything is fitted
    assert main(["ghost", str(run)]) == 2
    assert "give --budget" in capsys.readouterr().err


def test_the_page_in_a_browser(made: GhostResult, tmp_path: Path, browse: Callable[..., Any]) -> None:
    from deepres.ghosting.page import ghost_page

    path = ghost_page(made, name="net", data="digits", footer="").write(tmp_path / "report.html")
    view = browse(path)
    view.wait_for_selector(".js-plotly-plot .main-svg")
    assert len(view.query_selector_all(".js-plotly-plot")) == 3
