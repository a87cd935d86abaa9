"""Every row of the table of architectures, held to its word on small networks of each family."""

from __future__ import annotations

import contextlib
import copy
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import deepres
from deepres import DeepresError
from deepres.adapters import NOTE, Observation, Site, adapters, delete_blocks, find_blocks, logits_of, spec_of
from deepres.adapters.adapter import Adapter, Example
from deepres.adapters.calls import patched
from deepres.adapters.table import architectures_page
from deepres.models import Origin, allow_builder
from deepres.nn.resnet import ResNet
from deepres.nn.transformer import Transformer

ROWS = [(adapter, example) for adapter in adapters() for example in adapter.examples]


@pytest.fixture(params=ROWS, ids=lambda row: f"{row[0].library}-{row[1].name}".replace(" ", "-"), scope="module")
def row(request: pytest.FixtureRequest) -> tuple[Adapter, Example, nn.Module]:
    adapter, example = request.param
    torch.manual_seed(0)
    model = _lively(example.build())
    if not example.vocabulary:
        with torch.no_grad():
            model.train()(example.inputs())  # running statistics that are not 0 and 1
    return adapter, example, model.eval()


@torch.no_grad()
def _lively(model: nn.Module) -> nn.Module:
    """Many branches start at zero or close to it, where no test could see whether they are there."""
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def some(model: nn.Module) -> list[Site]:
    found = deepres.sites(model)
    return [site for i, site in enumerate(found) if i in {0, 1, len(found) // 2, len(found) - 2, len(found) - 1}]


class Additions(TorchDispatchMode):
    """Counts sums of two tensors of one shape with three or more dimensions: residual sums, whoever wrote them."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func in (torch.ops.aten.add.Tensor, torch.ops.aten.add_.Tensor) and isinstance(args[1], Tensor):
            a, b = args[:2]
            self.count += a.ndim >= 3 and a.shape == b.shape and a.is_floating_point()
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def test_the_sites_are_all_there_are(row: tuple[Adapter, Example, nn.Module]) -> None:
    _, example, model = row
    counted = Additions()
    with counted:
        model(example.inputs())
    found = deepres.sites(model)
    assert len(found) == example.sites == counted.count - example.other_additions


@torch.no_grad()
def test_observing_changes_no_bit_and_sees_the_equation(row: tuple[Adapter, Example, nn.Module]) -> None:
    _, example, model = row
    x = example.inputs()
    expected = logits_of(model, x)
    for site in some(model):
        seen: list[Observation] = []
        with site.observe(seen.append):
            assert torch.equal(logits_of(model, x), expected)
        assert len(seen) == 1
        total = seen[0].shortcut + seen[0].branch
        out = site.activation(total) if site.activation is not None else total
        torch.testing.assert_close(seen[0].out, out, rtol=1e-5, atol=1e-4)
        assert seen[0].x.ndim == {"NCHW": 4, "NHWC": 4, "NLC": 3}[site.layout]
        assert site.reshapes == (not torch.equal(seen[0].x, seen[0].shortcut))
        assert site.folds_rows == (len(seen[0].x) != len(x))
    assert torch.equal(logits_of(model, x), expected)


@torch.no_grad()
def test_each_example_is_bypassed_by_itself(row: tuple[Adapter, Example, nn.Module]) -> None:
    _, example, model = row
    x = example.inputs()
    expected = logits_of(model, x)
    for site in some(model):
        with site.scale(0.0):
            nothing = logits_of(model, x)
        assert not torch.allclose(nothing, expected, rtol=1e-6, atol=1e-7), "the branch does nothing: the test could not fail"
        with site.bypass():
            torch.testing.assert_close(logits_of(model, x), nothing, rtol=1e-4, atol=1e-5)
        skip = torch.tensor([True, False, False, True])
        wanted = torch.where(skip.view(-1, *[1] * (expected.ndim - 1)), nothing, expected)
        for context in (site.bypass(skip), site.scale((~skip).float())):
            with context:
                torch.testing.assert_close(logits_of(model, x), wanted, rtol=1e-4, atol=1e-5)
        for all_of, result in ((~skip | skip, nothing), (skip & ~skip, expected)):
            with site.bypass(all_of):
                torch.testing.assert_close(logits_of(model, x), result, rtol=1e-4, atol=1e-5)


def test_a_skipped_branch_is_not_computed(row: tuple[Adapter, Example, nn.Module]) -> None:
    _, example, model = row
    site = deepres.sites(model)[-1]
    calls: list[int] = []
    work = [m for module in site.branch_modules for m in module.modules() if getattr(m, "weight", torch.zeros(1)).ndim > 1]

    def count(module: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return forward(*args, **kwargs)

    with torch.no_grad(), contextlib.ExitStack() as stack:
        for module in work:  # beneath what bypass puts there
            stack.enter_context(patched(module, partial(count, module, module.forward)))
        model(example.inputs())
        assert calls
        calls.clear()
        with site.bypass():
            model(example.inputs())
        assert not calls


@torch.no_grad()
def test_removing_a_site_is_bypassing_it_for_good(row: tuple[Adapter, Example, nn.Module]) -> None:
    _, example, model = row
    x = example.inputs()
    for position in (-1, 1):
        smaller = copy.deepcopy(model)
        site = deepres.sites(smaller)[position]
        if site.reshapes:
            with pytest.raises(DeepresError, match="changes the signal's shape"):
                site.remove()
            continue
        with site.bypass():
            expected = logits_of(smaller, x)
        before = sum(p.numel() for p in smaller.parameters())
        try:
            site.remove()
        except DeepresError as error:
            if "cannot be removed" in str(error):
                continue
            raise
        torch.testing.assert_close(logits_of(smaller, x), expected, rtol=1e-4, atol=1e-5)
        assert sum(p.numel() for p in smaller.parameters()) < before
        assert len(deepres.sites(smaller)) == example.sites - 1


def _without_last_block(model: nn.Module) -> tuple[nn.Module, str] | None:
    blocks = [block for block in find_blocks(model) if block.removable]
    if not blocks:
        return None
    delete_blocks(model, [blocks[-1].path])
    return model, blocks[-1].path


def _without_halves(model: nn.Module) -> None:
    """Remove the first MLP and the first attention, where the network's layers have such sites."""
    mixed = len(set(getattr(getattr(model, "config", None), "layer_types", None) or ())) > 1
    for kind in ("mlp",) if mixed else ("mlp", "attention"):
        for site in [site for site in deepres.sites(model) if site.kind == kind][:1]:
            site.remove()


@torch.no_grad()
def test_a_deleted_block_stays_away_in_our_files(
    row: tuple[Adapter, Example, nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter, example, model = row
    smaller = copy.deepcopy(model)
    if adapter.library not in ("deepres", "Hugging Face"):
        monkeypatch.setitem(sys.modules, "example", SimpleNamespace(build=example.build))
        allow_builder("example:build")
        setattr(smaller, NOTE, Origin("example:build"))
    before = len(deepres.sites(smaller))
    _without_last_block(smaller)
    _without_halves(smaller)
    if len(deepres.sites(smaller)) == before:  # none of this network's blocks can go
        for site in deepres.sites(smaller):
            with pytest.raises(DeepresError, match="cannot be"):
                site.remove()
        return
    expected = logits_of(smaller, example.inputs())
    again = deepres.load(deepres.save(smaller, tmp_path / "small.safetensors"))
    torch.testing.assert_close(logits_of(again, example.inputs()), expected)
    assert [site.name for site in deepres.sites(again)] == [site.name for site in deepres.sites(smaller)]


def _rebuilt(example: Example, smaller: nn.Module) -> nn.Module:
    """The network without its last block by the library's own constructor; ours are built from their configuration."""
    if isinstance(smaller, ResNet | Transformer):
        return type(smaller)(smaller.config).eval()  # type: ignore[arg-type]
    assert example.rebuild is not None, "say by which constructor the library builds the network without its last block"
    return example.rebuild().eval()


@torch.no_grad()
def test_a_deleted_block_stays_away_in_the_librarys_files(row: tuple[Adapter, Example, nn.Module], tmp_path: Path) -> None:
    adapter, example, model = row
    if _without_last_block(smaller := copy.deepcopy(model)) is None:
        assert not any(block.removable for block in find_blocks(model))
        return
    if adapter.library == "Hugging Face":
        _without_halves(smaller)
    expected = logits_of(smaller, example.inputs())
    if adapter.library == "Hugging Face":
        smaller.save_pretrained(tmp_path)  # type: ignore[operator]
        again = type(smaller).from_pretrained(tmp_path, output_loading_info=True)  # type: ignore[attr-defined]
        again, told = again[0].eval(), again[1]
        assert not told["missing_keys"] and not told["unexpected_keys"]
    else:
        torch.save(smaller.state_dict(), tmp_path / "weights.pth")
        again = _rebuilt(example, smaller)
        again.load_state_dict(torch.load(tmp_path / "weights.pth"))
    torch.testing.assert_close(logits_of(again, example.inputs()), expected)


@torch.no_grad()
@pytest.mark.parametrize("how", ["block", "attention"])
@pytest.mark.parametrize("example", [e for _, e in ROWS if e.generates], ids=lambda example: example.name)
def test_text_is_generated_with_a_cache_after_a_removal(example: Example, how: str) -> None:
    """The first layer loses its attention, or goes: a cache reads its length off the first of those that are left."""
    torch.manual_seed(0)
    model = _lively(example.build()).eval()
    if how == "block":
        delete_blocks(model, [find_blocks(model)[0].path])
    else:
        mixed = len(set(getattr(model.config, "layer_types", None) or ())) > 1
        expected = pytest.raises(DeepresError, match="caches of several kinds") if mixed else contextlib.nullcontext()
        with expected:
            deepres.sites(model)[0].remove()
        if mixed:
            return
    settings = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    with_cache, without = (
        model.generate(example.inputs(), use_cache=use, return_dict_in_generate=True, output_logits=True, **settings)  # type: ignore[operator]
        for use in (True, False)
    )
    assert torch.equal(with_cache.sequences, without.sequences)
    torch.testing.assert_close(torch.stack(with_cache.logits), torch.stack(without.logits), rtol=1e-4, atol=1e-4)


def test_the_spec_fits_the_network(row: tuple[Adapter, Example, nn.Module]) -> None:
    _, example, model = row
    spec = spec_of(model)
    with torch.no_grad():
        logits = logits_of(model, example.inputs())
    assert spec.classes == logits.shape[-1]
    assert spec.inputs == ("tokens" if example.vocabulary else "images")
    assert spec.channels == (None if example.vocabulary else 3)
    assert spec.folds_rows == any(site.folds_rows for site in deepres.sites(model))
    assert spec.classifier in dict(model.named_modules()) and spec.first in dict(model.named_modules())


def test_the_page_is_what_the_adapters_say() -> None:
    page = Path(__file__).parents[2] / "docs" / "architectures.md"
    assert page.read_text() == architectures_page(), "run: python -m deepres.adapters.table > docs/architectures.md"


@pytest.mark.parametrize("adapter", [adapter for adapter in adapters() if adapter.refused], ids=lambda adapter: adapter.name)
def test_a_family_that_is_not_supported_is_refused_with_the_reason(adapter: Adapter) -> None:
    block = type("Block", (nn.Module,), {"__module__": f"{adapter.modules[0]}.blocks"})
    with pytest.raises(DeepresError) as error:
        deepres.sites(nn.Sequential(block()))
    assert adapter.refused in str(error.value)
