"""The lens against slow, obvious versions; it changes nothing."""

import itertools
import json
import math
import weakref
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

import deepres
from deepres import lens
from deepres.lens.ablations import bypassed, interval, pairs_to_try, places, swapped
from deepres.lens.gradient_split import gradients
from deepres.lens.layers import responses
from deepres.lens.paths import path_lengths
from deepres.lens.probes import FEATURES, RIDGE, _pooled, probes
from deepres.lens.sample import Sample
from deepres.lens.signals import SignalSums, channel_axis, signals


def everything(model: nn.Module, sample: Sample) -> list[dict[str, torch.Tensor]]:
    """All that passes through all sites, kept."""
    kept = []
    for site in deepres.sites(model):
        seen: list[deepres.adapters.Observation] = []  # type: ignore[name-defined]
        with site.observe(seen.append), torch.no_grad():
            for x in sample.inputs:
                model(x)
        kept.append({key: torch.cat([getattr(one, key) for one in seen]) for key in ("x", "shortcut", "branch", "out")})
    return kept


def test_signals_are_those_of_the_kept_activations(trained: tuple[nn.Module, Sample]) -> None:
    model, sample = trained
    found = signals(model, deepres.sites(model), sample)
    for signal, kept in zip(found, everything(model, sample), strict=True):
        out = kept["out"].double()
        assert signal.mean == pytest.approx(float(out.mean()), rel=1e-5)
        assert signal.variance == pytest.approx(float(out.var(unbiased=False)), rel=1e-4)
        assert signal.inactive == pytest.approx(float((out == 0).double().mean()))
        assert signal.dead == pytest.approx(float((out == 0).all(0).flatten(1).all(1).double().mean()))
        ratios = kept["branch"].flatten(1).norm(dim=1) / kept["shortcut"].flatten(1).norm(dim=1)
        assert signal.ratio == pytest.approx(float(ratios.mean()), rel=1e-5)
        assert signal.spread[1] == pytest.approx(float(ratios.double().quantile(0.9)), rel=1e-5)
        assert sum(signal.histogram) == 96
        if kept["x"].shape == kept["out"].shape:
            cosine = nn.functional.cosine_similarity(kept["x"].flatten(1), kept["out"].flatten(1)).mean()
            assert signal.cosine == pytest.approx(float(cosine), rel=1e-4)
        else:
            assert signal.cosine is None


def test_nothing_of_the_signal_is_kept(trained: tuple[nn.Module, Sample], monkeypatch: pytest.MonkeyPatch) -> None:
    """However deep the network, the activations of at most one site more than the running one are alive."""
    model, sample = trained
    alive: list[weakref.ref[torch.Tensor]] = []
    most = 0
    add = SignalSums.add

    def watched(self: SignalSums, seen: deepres.adapters.Observation) -> None:  # type: ignore[name-defined]
        nonlocal most
        add(self, seen)
        alive.append(weakref.ref(seen.branch))
        most = max(most, sum(ref() is not None for ref in alive))

    monkeypatch.setattr(SignalSums, "add", watched)
    signals(model, deepres.sites(model), sample)
    assert len(alive) == 27 and most <= 2


def test_gradients_are_autograds(trained: tuple[nn.Module, Sample]) -> None:
    model, sample = trained
    found = gradients(model, deepres.sites(model), sample)
    inputs: dict[str, torch.Tensor] = {}
    handles = []
    for site in deepres.sites(model):

        def keep(module: nn.Module, args: tuple[torch.Tensor, ...], name: str = site.name) -> None:
            args[0].retain_grad()
            inputs[name] = args[0]

        handles.append(site.block.register_forward_pre_hook(keep))
    sizes: dict[str, list[torch.Tensor]] = {}
    for x, y in sample.pairs():
        nn.functional.cross_entropy(model(x.clone().requires_grad_()), y, reduction="sum").backward()
        for name, tensor in inputs.items():
            sizes.setdefault(name, []).append(tensor.grad.flatten(1).norm(dim=1))
    for handle in handles:
        handle.remove()
    model.zero_grad()
    for site, gradient in zip(deepres.sites(model), found, strict=True):
        assert gradient is not None
        assert gradient.total == pytest.approx(float(torch.cat(sizes[site.name]).mean()), rel=1e-4)
        assert gradient.shortcut > 0 and gradient.branch > 0


def test_path_lengths_are_those_of_all_paths() -> None:
    """Three sites have eight paths: all of them, one by one, against the samples."""
    torch.manual_seed(0)
    model = deepres.create("resnet8-cifar", width=0.5).eval()
    sites = deepres.sites(model)
    x, y = torch.randn(4, 3, 16, 16), torch.tensor([0, 1, 2, 3])
    sample = Sample.take(model, [(x, y)])
    every: dict[int, list[float]] = {k: [] for k in range(4)}
    for k in range(4):
        for chosen in itertools.combinations(range(3), k):
            with torch.enable_grad():
                contexts = [s.gradients(through="branch" if i in chosen else "shortcut") for i, s in enumerate(sites)]
                for context in contexts:
                    context.__enter__()
                inputs = x.clone().requires_grad_()
                loss = nn.functional.cross_entropy(model(inputs), y, reduction="sum")
                grad = torch.autograd.grad(loss, inputs)[0]
                for context in contexts:
                    context.__exit__(None, None, None)
            every[k].append(float(grad.flatten(1).norm(dim=1).mean()))
    found = path_lengths(model, sites, sample, repeats=300)
    assert found is not None and found.lengths == (0, 1, 2, 3)
    for k in range(4):
        assert found.magnitude[k] == pytest.approx(sum(every[k]) / len(every[k]), rel=1e-4 if k in (0, 3) else 0.15)
    weights = [math.comb(3, k) * found.magnitude[k] * (0.5 if k in (0, 3) else 1) for k in range(4)]
    assert found.share == pytest.approx([w / sum(weights) for w in weights], rel=1e-6)
    assert sum(found.share) == pytest.approx(1)


def test_a_ablation_is_the_network_with_the_branch_at_zero(trained: tuple[nn.Module, Sample]) -> None:
    model, sample = trained
    whole = sample.right(model)
    for site in deepres.sites(model)[1:3]:
        ablation = bypassed(model, sample, whole, [site])
        norm = site.block.branch.norm2
        weight, bias = norm.weight.detach().clone(), norm.bias.detach().clone()
        with torch.no_grad():
            norm.weight.zero_()
            norm.bias.zero_()
            now = sample.right(model)
            norm.weight.copy_(weight)
            norm.bias.copy_(bias)
        assert ablation.error == pytest.approx(100 * (1 - float(now.float().mean())))
        assert ablation.low <= ablation.change <= ablation.high
    assert torch.equal(sample.right(model), whole)


def test_the_interval_covers_what_it_should() -> None:
    """Of many samples with a true change of 2 points, about 95 % have it inside their interval."""
    generator = torch.Generator().manual_seed(0)
    covered = 0
    for _ in range(2000):
        draw = torch.rand(500, generator=generator)
        before, after = draw > 0.05, (draw > 0.05) & (torch.rand(500, generator=generator) > 0.02 / 0.95)
        _, low, high = interval(before, after)
        covered += low <= 2.0 <= high
    assert 0.92 < covered / 2000 < 0.99
    same = torch.ones(1000, dtype=torch.bool)
    change, low, high = interval(same, same)
    assert change == 0 and -0.25 < low < 0 < high < 0.25


def test_exchanged_blocks_are_exchanged_modules(trained: tuple[nn.Module, Sample]) -> None:
    model, sample = trained
    group = places(deepres.sites(model))[0]
    assert [site.name for site in group] == [f"stages.0.blocks.{i}" for i in range(3)]
    x = sample.inputs[0]
    with torch.no_grad():
        before = model(x)
        with swapped(group[0], group[2]):
            got = model(x)
        blocks = model.stages[0].blocks
        blocks[0], blocks[2] = blocks[2], blocks[0]
        expected = model(x)
        blocks[0], blocks[2] = blocks[2], blocks[0]
        assert torch.equal(got, expected) and not torch.equal(got, before) and torch.equal(model(x), before)


def test_pairs_to_try() -> None:
    assert pairs_to_try(4, 60) == list(itertools.combinations(range(4), 2))
    some = pairs_to_try(50, 60)
    assert len(some) == 60 == len(set(some)) and {(i, i + 1) for i in range(49)} <= set(some)


def test_probes_are_ridge_regressions_on_kept_features(trained: tuple[nn.Module, Sample]) -> None:
    model, sample = trained
    found = probes(model, deepres.sites(model), sample, 10)
    assert found is not None and found.fitted + len(found.labels) == 96
    labels = torch.cat(sample.labels)
    parts = torch.cat([torch.arange(len(y)) % 2 for y in sample.labels]).bool()
    for i, kept in enumerate(everything(model, sample)):
        x = kept["out"].mean((2, 3)).double()
        assert x.shape[1] <= FEATURES
        design = torch.cat([x, torch.ones(len(x), 1, dtype=torch.float64)], 1)
        fit, target = design[~parts], nn.functional.one_hot(labels[~parts], 10).double()
        gram = fit.T @ fit
        extra = RIDGE * gram.diagonal()[:-1].mean() + 1e-9 * len(fit)
        gram += torch.diag(torch.cat([extra.repeat(x.shape[1]), torch.zeros(1)]))
        answers = (design[parts] @ torch.linalg.solve(gram, fit.T @ target)).argmax(1)
        assert found.error[i] == pytest.approx(100 * float((answers != labels[parts]).double().mean()), abs=2.2)
    early, late = found.extremes(3)
    final = dict(zip(found.examples, found.final, strict=True))
    assert all(final[i] for i in early)
    assert min(final[i] or 99 for i in late) >= max(final[i] for i in early)
    assert all(f <= s for f, s in zip(found.first, found.final, strict=True) if s)


def test_probes_do_not_depend_on_the_batches(trained: tuple[nn.Module, Sample]) -> None:
    """Also of one example each, of which every second one is left to be asked about."""
    model, sample = trained
    x, y = torch.cat(sample.inputs), torch.cat(sample.labels)
    expected = probes(model, deepres.sites(model), sample, 10)
    assert expected is not None
    for size in (1, 7):
        found = probes(model, deepres.sites(model), Sample(x.split(size), y.split(size), "labels"), 10)
        assert found is not None and (found.labels, found.examples, found.fitted) == (expected.labels, expected.examples, 48)
        assert found.error == pytest.approx(expected.error, abs=2.2)


def test_responses_are_behind_the_norm() -> None:
    model = deepres.create("plain20-cifar").eval()
    x = torch.randn(8, 3, 16, 16)
    found = responses(model, Sample.take(model, [x]))
    assert len(found) == 20
    with torch.no_grad():
        first, last = model.stem.norm(model.stem.conv(x)), model(x)
    assert found[0].deviation == pytest.approx(float(first.std(correction=0)), rel=1e-4)
    assert found[0].inactive == pytest.approx(float((first <= 0).float().mean()))
    assert found[-1].name == "head.fc" and found[-1].deviation == pytest.approx(float(last.std(correction=0)), rel=1e-4)


@pytest.mark.parametrize(
    "build",
    [lambda: deepres.create("resnet14-cifar"), lambda: torchvision.models.resnet18(num_classes=10)],
    ids=["ours", "torchvision"],
)
def test_a_look_leaves_no_trace(build) -> None:
    torch.manual_seed(0)
    model = build().train()
    first = next(model.parameters())
    first.requires_grad_(False)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    random = torch.get_rng_state()
    x, y = torch.randn(40, 3, 32, 32), torch.arange(40) % 10
    random = torch.get_rng_state()
    told: list[float] = []
    found = lens.look(model, [(x[:20], y[:20]), (x[20:], y[20:])], pairs=3, progress=lambda _, share: told.append(share))
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert model.training and not first.requires_grad and all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m) for m in model.modules())
    assert told == sorted(told) and told[-1] <= 1
    assert found.examples == 40 and len(found.pairs) == 3 and found.probes is not None
    frame = found.frame()
    assert list(frame["name"]) == [site.name for site in deepres.sites(model)]
    assert {"ratio", "ablation_change", "gradient_shortcut", "time", "probe_error"} <= set(frame.columns)
    json.dumps(found.to_dict())
    assert lens.summary(found)[0].startswith("Measured on 40 examples, compared with the labels")


@pytest.mark.parametrize(
    ("shape", "layout", "axis"),
    [((2, 5, 3, 4), "NCHW", 1), ((2, 3, 4, 5), "NHWC", 3), ((2, 7, 5), "NLC", 2), ((2, 5), "NCHW", 1)],
)
def test_channels_are_found_by_the_layout(shape: tuple[int, ...], layout: Any, axis: int) -> None:
    out = torch.randn(shape)
    assert channel_axis(out, layout) == axis
    places = [i for i in range(1, len(shape)) if i != axis]
    torch.testing.assert_close(_pooled(out, layout, None), out.mean(places) if places else out)


def test_a_compiled_model_is_measured_as_the_model_itself() -> None:
    model = deepres.create("resnet8-cifar").eval()
    x, y = torch.randn(12, 3, 16, 16), torch.arange(12) % 10
    plain, compiled = (lens.look(net, [(x, y)], pairs=2) for net in (model, torch.compile(model, backend="eager")))
    assert [site.signal for site in compiled.sites] == [site.signal for site in plain.sites]
    assert [site.ablation for site in compiled.sites] == [site.ablation for site in plain.sites]
    assert len(compiled.sites) == 3
