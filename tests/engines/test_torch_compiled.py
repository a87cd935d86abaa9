"""Optimized inference answers as the original does."""

import pytest
import timm
import torch
import torchvision
from torch import nn

import deepres
from deepres.engines import fold_norms, throughput

X = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
MODELS = {
    "ours": lambda: deepres.create("resnet26-cifar"),
    "ours-bottleneck": lambda: deepres.create("resnet50", width=0.25),
    "ours-preact": lambda: deepres.create("resnet20-cifar-preact"),
    "torchvision": lambda: torchvision.models.resnet18(),
    "timm": lambda: timm.create_model("resnet18"),
}


@pytest.fixture(params=list(MODELS))
def model(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    net = MODELS[request.param]()
    with torch.no_grad():
        net.train()(torch.randn(8, 3, 64, 64))
    return net.eval()


@torch.no_grad()
def test_folding_changes_nothing_but_the_rounding(model: nn.Module) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    expected = model(X)
    folded = fold_norms(model)
    torch.testing.assert_close(folded(X), expected, rtol=1e-3, atol=1e-4)
    norms = [sum(isinstance(m, nn.BatchNorm2d) for m in net.modules()) for net in (model, folded)]
    assert norms[1] < norms[0] * (0.6 if "preact" in str(type(model)) else 1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@torch.no_grad()
def test_optimized_agrees_and_leaves_the_original_alone(model: nn.Module) -> None:
    expected = model(X)
    exact = deepres.optimize(model, X, precision="float32", engine="torch-eager")
    torch.testing.assert_close(exact(X), expected, rtol=1e-3, atol=1e-4)
    low = deepres.optimize(model, X, precision="bf16", engine="torch-eager")
    assert low(X).dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(low(X), expected).min() > 0.999
    assert not low.training
    with pytest.raises(RuntimeError, match="inference only"):
        low.train()
    assert torch.equal(model(X), expected)
    assert throughput(low, X, repeats=1) > 0


@torch.no_grad()
def test_close_calls_are_recomputed_in_float32() -> None:
    """Two classes whose weights differ by little: what low precision adds often decides between them."""
    torch.manual_seed(0)
    model = deepres.create("resnet8-cifar")
    images = torch.randn(300, 3, 16, 16)
    model.train()(images)
    model.eval()
    head = next(m for m in model.modules() if isinstance(m, nn.Linear))
    features: list[torch.Tensor] = []
    head.register_forward_pre_hook(lambda _, args: features.append(args[0]))
    model(images)
    # the first two classes are far above all others and tell apart by less than the features' rounding
    direction = torch.randn(64)
    direction -= direction @ (mean := features[0].mean(0)) / mean.square().sum() * mean
    head.weight[0] = head.weight[1] = mean
    head.weight[0] += 0.02 * direction
    head.bias.zero_()
    wanted = model(images).argmax(1)
    assert 0.1 < wanted.float().mean() < 0.9
    rough = deepres.optimize(model, images, precision="bf16", engine="torch-eager", answers="close")
    assert rough.exact is None and (rough(images).argmax(1) != wanted).any()
    exact = deepres.optimize(model, images, precision="bf16", engine="torch-eager")
    again: list[int] = []
    assert exact.exact is not None
    exact.exact.register_forward_pre_hook(lambda _, args: again.append(len(args[0])))
    logits = exact(images)
    assert torch.equal(logits.argmax(1), wanted)
    assert 0 < sum(again) < 300
    # the answer for an image does not depend on what comes with it
    torch.testing.assert_close(torch.cat([exact(part) for part in images.split(7)]), logits, rtol=1e-2, atol=1e-2)


@torch.no_grad()
def test_compiled_too() -> None:
    model = deepres.create("resnet8-cifar").eval()
    fast = deepres.optimize(model, X, precision="float32", engine="torch")
    torch.testing.assert_close(fast(X), model(X), rtol=1e-3, atol=1e-4)


def test_what_cannot_be_traced_still_runs() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm(self.conv(x)) if x.sum() > 0 else self.conv(x)

    model = Branching().eval()
    torch.testing.assert_close(deepres.optimize(model, X, precision="float32", engine="torch-eager")(X), model(X))


@torch.no_grad()
def test_a_layer_called_twice_is_not_folded() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norms = nn.Conv2d(3, 3, 1), nn.ModuleList([nn.BatchNorm2d(3), nn.BatchNorm2d(3)])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norms[1](self.conv(self.norms[0](self.conv(x))))

    model = Shared()
    for _ in range(3):
        model.train()(5 * X + 1)
    torch.testing.assert_close(fold_norms(model)(X), model.eval()(X))


@torch.no_grad()
def test_folding_keeps_dtype_and_takes_linear_layers() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 62 * 62, 5), nn.BatchNorm1d(5)
    ).double()
    model.train()(torch.randn(8, 3, 64, 64, dtype=torch.float64))
    folded = fold_norms(model)
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in folded.modules()) and not folded.training
    assert next(folded.parameters()).dtype == torch.float64
    torch.testing.assert_close(folded(X.double()), model.eval()(X.double()))


def test_the_old_names_still_work() -> None:
    model = deepres.create("resnet8-cifar").eval()
    with pytest.warns(DeprecationWarning, match="recompute"):
        fast = deepres.optimize(model, dtype=torch.bfloat16, compile=False, settle=True)
    assert fast.exact is not None and (fast.choice.engine, fast.choice.precision) == ("torch-eager", "bf16")
    with pytest.warns(DeprecationWarning, match="precision="):
        exact = deepres.optimize(model, X, dtype=torch.float32, compile=False)
    with torch.no_grad():
        torch.testing.assert_close(exact(X), model(X), rtol=1e-3, atol=1e-4)
