"""The main job: its findings follow from its figures, and its page works in a browser without a network."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import deepres
from deepres import DeepresError
from deepres.data import open_data
from deepres.lens import LayerGradient, gradient_norms
from deepres.paper.degradation import Curve, Findings, degrade
from deepres.paper.degrade_page import degradation_page, degradation_table
from deepres.training import Record


@pytest.fixture(scope="module")
def findings(tmp_path_factory: pytest.TempPathFactory) -> tuple[Findings, Path]:
    out = tmp_path_factory.mktemp("degrade")
    return degrade("digits", depths=(8, 14), epochs=2, out=out), out


def curve(net: str, error: float, gradients: tuple[float, ...] = (1.0, 0.5, 0.1, 1.0)) -> Curve:
    config = deepres.nn.config(net)
    record = Record(1, 1, 0.1, 1.0, error, error, 1.0, 1.0, 0.0, 0, 1.0, error)
    layers = tuple(LayerGradient(f"layer{i}", norm, norm) for i, norm in enumerate(gradients))
    return Curve(net, config.depth, not config.is_plain, 0, (record,), ((1, layers),))


def told(plain20: float, plain56: float, res20: float, res56: float, **more: tuple[float, ...]) -> Findings:
    errors = {"plain20-cifar": plain20, "resnet20-cifar": res20, "plain56-cifar": plain56, "resnet56-cifar": res56}
    return Findings("digits", 1, tuple(curve(net, error, **more) for net, error in errors.items()), 1.0)


def test_the_words_follow_the_figures() -> None:
    seen = told(1, 60, 0, 0.5)
    assert seen.degraded
    assert seen.summary()[0].startswith("plain-56 trains worse than plain-20: 60.0 % training error against 1.0 %")
    assert "residual-56 trains as well as residual-20" in seen.summary()[1]
    assert "plain-56 have not vanished" in seen.summary()[2] and "is 0.1 of the largest" in seen.summary()[2]
    assert "have vanished" in told(1, 60, 0, 0, gradients=(1e-6, 1.0, 1.0, 1.0)).summary()[2]
    assert "have vanished" in told(1, 60, 0, 0, gradients=(0.0, 0.0, 0.0, 1.0)).summary()[2]  # a network that is dead
    for unseen in (told(1, 1.5, 0, 0), told(1, 60, 0, 30), told(60, 1, 0, 0)):
        assert not unseen.degraded and "did not show at this scale" in unseen.summary()[3]
    assert "residual-56 trains worse" in told(1, 60, 0, 30).summary()[1]
    assert "the shortcuts removed this rise" in seen.summary()[3]
    assert told(1, 61, 0, 3).degraded and "the shortcuts removed 95 % of this rise" in told(1, 61, 0, 3).summary()[3]
    assert "plain-56 trains better" in told(60, 1, 0, 0).summary()[0]
    assert "one seed" in seen.summary()[-1]


def test_everything_is_measured_and_kept(findings: tuple[Findings, Path]) -> None:
    found, out = findings
    assert found.nets == ["plain8-cifar", "resnet8-cifar", "plain14-cifar", "resnet14-cifar"]
    for one in found.curves:
        assert len(one.history) == len(one.gradients) == 2
        assert len(one.gradients[-1][1]) == one.depth  # every convolution and the classifier
        assert 0 < one.weakest <= 1
    assert len(degradation_table(found).rows) == 4
    assert json.loads(found.to_json())["summary"] == found.summary()
    assert deepres.load(out / "runs" / "resnet8-cifar-seed0").config.blocks == (1, 1, 1)


def test_what_is_finished_is_not_trained_again(findings: tuple[Findings, Path], tmp_path: Path) -> None:
    found, out = findings
    again = tmp_path / "again"
    shutil.copytree(out, again)
    shutil.rmtree(again / "runs" / "plain14-cifar-seed0")  # as if interrupted before it began
    seen: list[tuple[str, int]] = []
    second = degrade(
        "digits", depths=(8, 14), epochs=2, out=again, progress=lambda net, seed, record: seen.append((net, record.epoch))
    )
    assert len(seen) == 8
    kept = [(c.net, dataclasses.replace(c).history) for c in second.curves if c.net != "plain14-cifar"]
    assert kept == [(c.net, c.history) for c in found.curves if c.net != "plain14-cifar"]
    with pytest.raises(DeepresError, match="other settings"):
        degrade("digits", depths=(8, 14), epochs=3, out=again)
    digits = open_data("digits")
    for other in (open_data("digits", size=12), dataclasses.replace(digits, name="letters")):
        with pytest.raises(DeepresError, match="plain8-cifar-seed0: trained with other settings or on other data"):
            degrade(other, depths=(8, 14), epochs=2, out=again)


def test_bad_options_get_a_sentence() -> None:
    for options, says in (
        ({"depths": (20,)}, "two different depths"),
        ({"depths": (20, 21)}, "nearest: 20 and 26"),
        ({"seeds": 0}, "at least 1"),
        ({"data": "nothing"}, "unknown data"),
    ):
        with pytest.raises(DeepresError, match=says):
            degrade(**options)  # type: ignore[arg-type]


def test_gradient_norms_are_autograds_and_leave_no_trace() -> None:
    data = open_data("digits")
    model = deepres.create("resnet8-cifar", in_channels=1).eval()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    images, labels = data.prepare.normalise(data.train.pixels[:32]), data.train.labels[:32]
    found = gradient_norms(model, images, labels)
    assert not model.training and all(p.grad is None for p in model.parameters())
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    torch.nn.functional.cross_entropy(model.train()(images), labels).backward()
    for layer in found:
        assert layer.norm == pytest.approx(float(model.get_submodule(layer.name).weight.grad.norm()), rel=1e-4)


def test_frozen_layers_and_modes_stay_as_they_are() -> None:
    model = deepres.create("resnet8-cifar").train()
    images, labels = torch.randn(8, 3, 16, 16), torch.arange(8)
    expected = gradient_norms(model, images, labels)
    model.stem.requires_grad_(False)
    model.stages[0].eval()
    assert gradient_norms(model, images, labels) == expected
    assert not any(p.requires_grad for p in model.stem.parameters()) and all(p.requires_grad for p in model.head.parameters())
    assert model.training and not model.stages[0].training and not model.stages[0].blocks[0].training


def test_the_page_works_in_a_browser_without_a_network(
    findings: tuple[Findings, Path], tmp_path: Path, browse: Callable[..., Any]
) -> None:
    path = degradation_page(findings[0], "made </script> by <b>tests</b>").write(tmp_path / "report.html")
    assert path.stat().st_size < 5 << 20
    for scheme in ("light", "dark"):
        tab = browse(path, color_scheme=scheme)
        tab.wait_for_selector(".plot .scatterlayer .trace")
        assert tab.locator(".plot").count() == 2
        assert tab.locator(".plot").first.locator(".trace").count() == 8
        assert tab.locator("tbody tr").count() == 4
        assert "made </script> by <b>tests</b>" in tab.locator("footer").inner_text()
        tab.locator(".plot").first.scroll_into_view_if_needed()
        box = tab.locator(".plot .points path").first.bounding_box()
        assert box is not None
        for nudge in (0, 2):  # Plotly answers a movement, not a place
            tab.mouse.move(box["x"] + nudge, box["y"] + nudge)
        tab.wait_for_selector(".hoverlayer .legend", state="attached")
        assert "%" in tab.locator(".hoverlayer").first.text_content()
