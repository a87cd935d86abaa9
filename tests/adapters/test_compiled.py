"""Sites of models that the inductor compiled: no hook is ignored, and the compiled code is used again afterwards."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn

import deepres
from deepres import DeepresError, lens
from deepres.adapters import GradientSplit, Observation, find_blocks
from deepres.ghosting.model import Ghost

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1, 2, 0])
Pair = tuple[nn.Module, nn.Module]


def in_place(model: nn.Module) -> nn.Module:
    model.compile()
    return model


def first_block(model: nn.Module) -> nn.Module:
    model[1] = torch.compile(model[1])  # type: ignore[index, operator]
    return model


@pytest.fixture(params=[torch.compile, in_place, first_block], ids=["wrapped", "in place", "a block"], scope="module")
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    """(a tiny network, the same compiled), in eval mode. Compiled code must be there, and right, before and after each use."""
    compile: Callable[[nn.Module], nn.Module] = request.param
    torch.manual_seed(0)
    blocks = [deepres.nn.Residual(nn.Conv2d(3, 3, 1), after=nn.ReLU()) for _ in range(2)]
    plain = nn.Sequential(nn.Conv2d(3, 3, 1), *blocks, nn.Flatten(), nn.Linear(192, 4)).eval()
    compiled = compile(copy.deepcopy(plain))
    with torch.no_grad():
        expected = compiled(X)
        torch.testing.assert_close(expected, plain(X))
        yield plain, compiled
        with torch.compiler.set_stance("fail_on_recompile"):
            assert torch.equal(compiled(X), expected)


def test_sites_are_seen_and_changed(pair: Pair) -> None:
    plain, compiled = pair
    skip = torch.tensor([True, False, True, False])
    for site, same in zip(deepres.sites(compiled), deepres.sites(plain), strict=True):
        seen: list[Observation] = []
        with site.observe(seen.append):
            torch.testing.assert_close(compiled(X), plain(X))
        assert len(seen) == 1
        for change in (lambda one: one.bypass(skip), lambda one: one.scale((~skip).float()), lambda one: one.bypass()):
            with change(site), change(same):
                assert torch.equal(compiled(X), plain(X))
        splits: list[GradientSplit] = []
        with site.gradients(splits.append), torch.enable_grad():
            compiled(X.clone().requires_grad_()).sum().backward()
        assert len(splits) == 1


def test_look_measures_what_it_measures_of_the_model_as_written(pair: Pair) -> None:
    wanted, found = (lens.look(model, [(X, Y)], pairs=2) for model in pair)
    assert len(found.sites) == 2 and len(found.layers) == 4
    for site, same in zip(found.sites, wanted.sites, strict=True):
        assert (site.signal, site.gradient) == (same.signal, same.gradient)
        assert site.ablation is not None and same.ablation is not None and site.ablation.error == same.ablation.error
    assert [layer.deviation for layer in found.layers] == [layer.deviation for layer in wanted.layers]


def test_a_ghost_is_made_of_the_model_as_written(pair: Pair) -> None:
    plain, compiled = pair
    ghost = Ghost(compiled)
    assert [unit.path for unit in ghost.blocks] == [block.path for block in find_blocks(plain)]
    _, trace, _ = ghost.record(X, ghost.settings)
    assert trace.ran.all()  # every block was called through the ghost


def test_what_stands_inside_a_compiled_part_is_not_removed() -> None:
    site = deepres.sites(nn.Sequential(torch.compile(deepres.nn.Residual(nn.Conv2d(3, 3, 1)))))[0]
    assert site.name == "0._orig_mod"
    with pytest.raises(DeepresError, match="remove it before compiling"):
        site.remove()
