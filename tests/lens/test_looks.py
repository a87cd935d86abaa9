"""Looks as users take them: the command, its sentences and its page."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

import deepres
from deepres import DeepresError, lens
from deepres.cli.main import main
from deepres.data import open_data
from deepres.lens.examples import Examples
from deepres.lens.page import look_page
from deepres.lens.sample import Sample


def test_a_look_at_what_is_no_residual_network() -> None:
    plain = deepres.create("plain14-cifar")
    found = lens.look(plain, [torch.randn(4, 3, 16, 16)])
    assert found.sites == () and len(found.layers) == 14 and found.against == "itself" and found.error == 0
    assert any("No residual sites" in line for line in lens.summary(found))
    assert found.frame().empty
    with pytest.raises(DeepresError, match="no examples"):
        lens.look(plain, [])
    with pytest.raises(DeepresError, match="a label is 12, and the network has 10 classes"):
        lens.look(plain, [(torch.randn(2, 3, 16, 16), torch.tensor([1, 12]))])
    with pytest.raises(DeepresError, match="backward is the number of examples for the gradients and at least 1, not 0"):
        lens.look(plain, [torch.randn(4, 3, 16, 16)], backward=0)
    with pytest.raises(DeepresError, match="not logits"):
        lens.look(nn.Conv2d(3, 3, 1), [torch.randn(2, 3, 4, 4)])


def test_a_look_at_a_language_model() -> None:
    config = transformers.GPT2Config(vocab_size=40, n_positions=16, n_embd=32, n_layer=2, n_head=2, use_cache=False)
    model = transformers.GPT2LMHeadModel(config)
    tokens = torch.randint(0, 40, (6, 12))
    found = lens.look(model.eval(), [(tokens[:, :-1], tokens[:, 1:])], pairs=2)
    assert [site.kind for site in found.sites] == ["attention", "mlp"] * 2
    assert found.answers == 6 * 11 and found.probes is None
    assert all(site.gradient and site.gradient.branch > 0 for site in found.sites)
    for site, one in zip(deepres.sites(model), found.sites, strict=True):  # an error of next tokens, each of which is an answer
        with site.bypass(), torch.no_grad():
            wrong = model(tokens[:, :-1]).logits.argmax(-1) != tokens[:, 1:]
        assert one.ablation is not None and one.ablation.error == pytest.approx(100 * float(wrong.float().mean()))
    assert found.paths is not None and found.paths.sites == 4


@pytest.mark.parametrize("frozen", ["all", "the embeddings"])
def test_frozen_weights_change_no_measurement(frozen: str) -> None:
    """Tokens carry no gradient, so it is taken at the weights that embed them."""
    model = deepres.create("gpt-tiny", depth=2, width=16, heads=2, vocabulary=40, context=12).eval()
    tokens = torch.randint(0, 40, (4, 12))
    before = lens.look(model, [(tokens[:, :-1], tokens[:, 1:])], pairs=0)
    for parameter in model.parameters() if frozen == "all" else (model.embed.weight, model.positions):
        parameter.requires_grad_(False)
    state = [p.requires_grad for p in model.parameters()]
    now = lens.look(model, [(tokens[:, :-1], tokens[:, 1:])], pairs=0)
    assert now.paths == before.paths and [site.gradient for site in now.sites] == [site.gradient for site in before.sites]
    assert [p.requires_grad for p in model.parameters()] == state and not all(state)


def test_networks_are_told_apart_though_they_have_one_name(trained: tuple[nn.Module, Sample]) -> None:
    """Each with its own errors of the probes and its own order of the classes."""
    model, sample = trained
    torch.manual_seed(1)
    fresh = deepres.create("resnet14-cifar", in_channels=1, width=0.25)
    looks = [lens.look(net, sample.pairs(), name="best.safetensors", ablations=False) for net in (model, fresh)]
    names = [[f"{which} {label}" for label in range(10)] for which in ("one", "two")]
    parts = look_page(looks, data="digits", classes=names).parts
    tables = [part for part in parts if part["kind"] == "table"]
    assert [{row[0][:3] for row in table["rows"]} for table in tables] == [{"one"}, {"two"}]
    figures = [
        json.loads(part["json"])["data"] for part in parts if part["kind"] == "figure" and "linear probe" in part["caption"]
    ]
    assert [trace["y"] for trace in figures[0]] == [list(found.probes.error) for found in looks if found.probes]


def test_a_stage_begins_where_the_signal_is_reshaped() -> None:
    """Also among blocks that all stand in one list."""
    net = deepres.create("resnet14-cifar")
    blocks = [block for stage in net.stages for block in stage.blocks]
    flat = nn.Sequential(net.stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
    for model in (net, flat):
        found = lens.look(model, [torch.randn(2, 3, 16, 16)], ablations=False)
        assert [site.stage for site in found.sites] == [1, 1, 2, 2, 3, 3]


def test_an_image_that_cannot_be_read_is_shown_as_the_loader_replaces_it(large_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    shutil.copytree(large_folder, folder)
    for path in sorted((folder / "val").rglob("*.png"))[::5]:
        path.write_bytes(b"no image")
    data = open_data(folder)
    examples = Examples(data, data.test, 20, torch.device("cpu"))
    images = torch.cat([images for images, _ in examples.batches(6)])
    shown = torch.stack([examples.pixels(i) for i in range(len(images))])
    torch.testing.assert_close(data.prepare.normalise(shown), images)


def test_words_claim_no_more_than_was_measured(trained: tuple[nn.Module, Sample]) -> None:
    model, sample = trained
    found = lens.look(model, sample.pairs(), ablations=False)
    said = " ".join(lens.summary(found))
    assert (
        "when left out" not in said
        and "delet" not in said
        and f"96 examples, compared with the labels: error {found.error:.2f}" in said
    )
    assert found.pairs == () and all(site.ablation is None for site in found.sites)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    train = ["train", "--net", "resnet8-cifar", "--recipe", "digits", "--epochs", "2", "--speed", "float32", "--out", str(run)]
    assert main([*train, "--lens", "every=1epoch"]) == 0
    out = tmp_path / "look"
    assert main(["look", str(run), "timm:resnet18", "--out", str(out), "--examples", "40", "--pairs", "2"]) == 0
    said = capsys.readouterr().out
    assert "Measured on 40 examples" in said and "report.html" in said
    assert "Sites during training" in (out / "report.html").read_text()
    found = json.loads((out / "findings.json").read_text())
    assert [(one["examples"], len(one["pairs"])) for one in found] == [(40, 0), (40, 2)]  # three blocks are too few for pairs
    assert all(f"compared with the labels: error {one['error']:.2f} %" in said for one in found)
    assert main(["look", str(run), "--out", str(out / "report.html" / "look")]) == 2
    told = capsys.readouterr()
    assert "cannot be written" in told.err and not told.out  # before anything is measured


def test_the_page_answers_mouse_and_keyboard(
    trained: tuple[nn.Module, Sample], tmp_path: Path, browse: Callable[..., Any]
) -> None:
    model, sample = trained
    found = lens.look(model, sample.pairs(), name="</script><b>net</b>", pairs=4)
    data = open_data("digits")
    built = look_page([found], data="digits", classes=[data.classes], pixels=lambda i: data.val.pixels[i])
    path = built.write(tmp_path / "report.html")
    assert path.stat().st_size < 5 << 20
    tab = browse(path)
    blocks = tab.locator(".chain .block")
    assert blocks.count() == 9
    blocks.nth(2).hover()
    assert "lit" in (blocks.nth(2).get_attribute("class") or "")
    assert "Site 3, stages.0.blocks.2" in tab.locator(".chain .now").inner_text()
    assert tab.locator(".chain .detail").is_hidden()
    blocks.nth(4).click()
    detail = tab.locator(".chain .detail")
    assert "Site 5" in detail.inner_text() and "change" in detail.inner_text()
    assert detail.locator("svg").count() == 2
    tab.keyboard.press("ArrowRight")
    tab.keyboard.press("Enter")
    assert "Site 6" in detail.inner_text()
    assert blocks.nth(5).get_attribute("aria-pressed") == "true"
    tab.keyboard.press("Home")
    tab.keyboard.press("Enter")
    assert "Site 1:" in detail.inner_text()
    before = blocks.nth(3).locator("rect").first.get_attribute("fill")
    tab.locator(".chain select").select_option("time")
    assert blocks.nth(3).locator("rect").first.get_attribute("fill") != before
    tab.set_viewport_size({"width": 300, "height": 800})
    tab.wait_for_function("document.querySelector('.chain svg').getAttribute('height') > 62")
    assert blocks.count() == 9
    tab.wait_for_selector(".plot .scatterlayer .trace")
    assert tab.locator(".gallery img").count() == 20


def test_a_network_that_guesses_is_called_so() -> None:
    model = deepres.create("resnet8-cifar")
    found = lens.look(model, [(torch.randn(20, 3, 16, 16), torch.arange(20) % 10)], pairs=0)
    assert any("hardly better than guessing among 10" in line for line in lens.summary(found))


def test_old_names_of_options_work_and_warn() -> None:
    model, x = deepres.create("resnet8-cifar"), torch.randn(4, 3, 16, 16)
    with pytest.warns(DeprecationWarning, match="now called ablations"):
        found = lens.look(model, [x], lesions=False)
    assert all(site.ablation is None for site in found.sites) and found.deletions == ()
    with pytest.raises(TypeError, match="unexpected keyword argument 'ablation'"):
        lens.look(model, [x], ablation=False)
    saved = lens.look(model, [x], pairs=0).to_dict()
    assert saved["sites"][0]["ablation"] == saved["sites"][0]["lesion"] and saved["sites"][0]["lesion"]["low"] <= 0
