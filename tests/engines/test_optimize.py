"""The choice of an engine: what is measured, what is kept, what is refused."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import deepres
from deepres import DeepresError
from deepres.engines import ENGINES, Candidate, Choice, Optimized, build_choice
from deepres.engines.answers import changed_answers, close_calls, margin_of, measure_close_calls
from deepres.engines.choosing import advice
from deepres.engines.compare import fastest_engine
from deepres.engines.engine import FixedBatch
from deepres.engines.registry import engines_for

FAST = ("torch-eager", "openvino", "onnxruntime")  # those that take no compiler


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    net = deepres.create("resnet8-cifar", width=0.5)
    with torch.no_grad():
        net.train()(torch.randn(32, 3, 16, 16))
    return net.eval()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(24, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def fast(model: nn.Module, images: Tensor) -> Optimized:
    return deepres.optimize(model, images[:8], images=images, engine=FAST, precision="float32", seconds=0.5)


@torch.no_grad()
def test_the_chosen_engine_answers_as_the_network(model: nn.Module, images: Tensor, fast: Optimized) -> None:
    measured = {one.engine: one for one in fast.candidates}
    assert set(measured) == {*FAST, "as it is"} and not any(one.problem or one.changed for one in fast.candidates)
    assert all(one.images == 24 and one.lowest <= one.rate <= one.highest for one in fast.candidates)
    assert measured[fast.choice.engine].ratio == max(measured[name].ratio for name in FAST)
    for part in (images[:8], images[:1], images):  # the batch that was measured, and others
        torch.testing.assert_close(fast(part), model(part), rtol=1e-3, atol=1e-4)


def test_the_choice_is_remembered_for_the_same_network_and_images(model: nn.Module, images: Tensor, fast: Optimized) -> None:
    said: list[str] = []
    known = deepres.optimize(model, images[:8], images=images, engine=FAST, precision="float32", log=said.append)
    assert known.candidates == fast.candidates and known.choice == fast.choice and not said
    for other, asked in ((deepres.create("resnet8-cifar").eval(), images), (model, images + 1)):
        for expected in (True, False):
            said.clear()
            deepres.optimize(other, asked[:8], engine="torch-eager", precision="float32", measure=True, log=said.append)
            assert bool(said) == expected


@pytest.mark.parametrize("name", FAST)
@torch.no_grad()
def test_a_choice_is_saved_and_built_again(name: str, model: nn.Module, images: Tensor, tmp_path: Path) -> None:
    made = deepres.optimize(model, images[:8], engine=name, precision="float32")
    built = build_choice(model, images[:8], made.save(tmp_path / "fast"))
    assert built.choice == made.choice and built.choice.engine == name
    assert torch.equal(built(images), made(images))
    with pytest.raises(DeepresError, match="is for inputs of"):
        deepres.optimize(model, torch.zeros(8, 3, 24, 24), choice=made.choice)


def test_an_engine_that_fails_is_named_and_the_others_go_on(images: Tensor) -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = x.mean((1, 2))
            return self.layer(x if x.sum() > 0 else -x)

    found = deepres.optimize(Branching(), images[:4], engine=("torch-eager", "openvino"), precision="float32", seconds=0.1)
    problems = {one.engine: one.problem for one in found.candidates}
    assert found.choice.engine == "torch-eager" and "Branching" in problems["openvino"] and not problems["torch-eager"]
    with pytest.raises(DeepresError, match=r"Branching.*captured"):
        deepres.optimize(Branching(), images[:4], engine="openvino", precision="float32")


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"engine": "openvin"}, "did you mean 'openvino'"),
        ({"engine": "cuda-graphs"}, "runs networks on cuda, and this one is on cpu"),
        ({"engine": "onnxruntime", "precision": "bf16"}, "not computed by onnxruntime"),
        ({"choice": "nowhere.json"}, "nowhere.json: cannot be read"),
    ],
)
def test_what_cannot_be_had_is_a_sentence(asked: dict[str, str], says: str, model: nn.Module, images: Tensor) -> None:
    with pytest.raises(DeepresError, match=says):
        deepres.optimize(model, images, **asked)


def test_an_engine_that_is_not_installed_names_the_line(
    model: nn.Module, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(ENGINES["openvino"]), "package", "no_such_package")
    with pytest.raises(DeepresError, match=r"no_such_package is not installed; pip install 'deepres\[export\]'"):
        deepres.optimize(model, images, engine="openvino")
    assert "openvino" not in {engine.name for engine in engines_for("auto", torch.device("cpu"))}


def test_a_file_that_is_no_choice(tmp_path: Path) -> None:
    path = tmp_path / "choice.json"
    for text in ("{", "[]", '{"engine": "torch"}'):
        path.write_text(text)
        with pytest.raises(DeepresError, match="not a choice of an engine"):
            Choice.load(path)


def test_exact_answers_go_before_speed() -> None:
    slow = Candidate("torch-eager", "float32", "exact", ratio=1.2)
    wrong = Candidate("openvino", "float32", "exact", ratio=3.0, changed=1)
    rough = Candidate("torch-eager", "bf16", "close", ratio=2.0, changed=4)
    as_is = Candidate("as it is", "float32", "exact", ratio=1.0)
    failed = dataclasses.replace(slow, problem="no memory")
    assert fastest_engine((slow, wrong, rough, as_is), "exact") is slow
    assert fastest_engine((slow, rough, as_is), "close") is rough
    assert fastest_engine((failed, as_is), "close") is None
    assert "40% of the speed: torch-eager bf16 gives" in advice((slow, rough), slow)
    assert advice((slow, dataclasses.replace(rough, ratio=1.3)), slow) == ""


@torch.no_grad()
def test_close_calls_are_those_that_noise_can_turn() -> None:
    torch.manual_seed(0)
    exact = torch.randn(4000, 10)
    low = exact + 0.05 * torch.randn(4000, 10) + torch.randn(4000, 1)  # a common shift changes no order
    margin = margin_of(low, exact)
    assert margin == pytest.approx(4 * 2**0.5 * 0.05, rel=0.1)
    close = set(close_calls(low, margin))
    turned = set((low.argmax(1) != exact.argmax(1)).nonzero()[:, 0].tolist())
    assert turned and turned <= close and len(close) < 2000
    assert changed_answers(exact, low) == len(turned)
    assert changed_answers(exact, exact + 1e-6 * torch.randn(4000, 10)) == 0
    found = measure_close_calls(low, nn.Identity(), exact, 500)
    assert found.share == pytest.approx(len(close) / 4000) and changed_answers(exact, found.logits) == 0


def test_a_fixed_batch_is_split_and_padded() -> None:
    sizes: list[int] = []

    class Doubles(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            sizes.append(len(x))
            return 2 * x

    x = torch.arange(10.0)[:, None]
    assert torch.equal(FixedBatch(Doubles(), 4)(x), 2 * x) and sizes == [4, 4, 4]


@pytest.mark.parametrize("name", FAST)
def test_logits_stay_as_they_are_while_the_network_is_called_again(name: str, model: nn.Module, images: Tensor) -> None:
    """Engines keep memory for their outputs, and inputs are not copied: neither may be seen from outside."""
    fast = deepres.optimize(model, images[:8], engine=name, precision="float32")
    for size in (8, 1, 3):  # the batch that it was built for, single images, and any other number
        parts = [images[i : i + size].clone() for i in (0, 8, 16)]
        kept = [fast(part) for part in parts]
        with torch.no_grad():
            expected = [model(part) for part in parts]
        for part in parts:
            part.zero_()
        fast(torch.full_like(parts[0], 7.0))
        for found, wanted in zip(kept, expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)
            assert not found.requires_grad
        strided = images[::2][:size].to(memory_format=torch.channels_last).requires_grad_()
        with torch.no_grad():
            wanted = model(strided)
        torch.testing.assert_close(fast(strided), wanted, rtol=1e-3, atol=1e-4)
        assert not fast(strided).requires_grad
