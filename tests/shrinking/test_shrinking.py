"""Inverse Curriculum Training: the penalty is what it says, identities are exact, targets are met, runs resume to the bit."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from run_helpers import Stop
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, ViTConfig, ViTForImageClassification

import deepres
from deepres import DeepresError
from deepres.adapters import delete_blocks, find_blocks, logits_of
from deepres.cli.main import main
from deepres.data import Batch
from deepres.evaluation import measure
from deepres.models import open_model
from deepres.shrinking import InverseCurriculum, ResidualConstraint, ShrinkSchedule, Target
from deepres.shrinking.api import shrink_recipe
from deepres.shrinking.constraint import residual_ratio
from deepres.shrinking.cost import measured_blocks
from deepres.shrinking.teacher import Teacher, distillation
from deepres.training import Interrupted, Run, Trainer, recipe
from deepres.training.distribute import DistributedContext
from tests.nn.test_nn import scramble

FAST = {"speed": "exact", "memory": "all", "show": False}


def vit() -> nn.Module:
    config = ViTConfig(hidden_size=32, num_hidden_layers=4, num_attention_heads=2, intermediate_size=64, image_size=8, patch_size=4,
                       num_channels=1, num_labels=10)  # fmt: skip
    return ViTForImageClassification(config).eval()


def gpt2() -> nn.Module:
    config = GPT2Config(n_layer=4, n_embd=32, n_head=2, vocab_size=30, n_positions=16, bos_token_id=0, eos_token_id=0)
    return GPT2LMHeadModel(config).eval()


def torchvision_vit() -> nn.Module:
    model = torchvision.models.VisionTransformer(16, 4, 3, 2, 32, 64, num_classes=10)
    nn.init.normal_(model.heads.head.weight)  # which starts at zero
    return model


MODELS = {
    "ours": (lambda: deepres.create("resnet20-cifar"), (3, 16, 16), 7),
    "ours, bottleneck": (lambda: deepres.create("resnet50", width=0.1, num_classes=10), (3, 32, 32), 12),
    "ours, preact": (lambda: deepres.create("resnet20-cifar-preact"), (3, 16, 16), 6),
    "torchvision": (lambda: torchvision.models.resnet18(num_classes=10), (3, 32, 32), 5),
    "torchvision ViT": (torchvision_vit, (3, 16, 16), 3),
    "torchvision ConvNeXt": (lambda: torchvision.models.convnext_tiny(num_classes=10), (3, 32, 32), 18),
    "timm": (lambda: timm.create_model("resnet26", num_classes=10), (3, 32, 32), 4),
    "ViT": (vit, (1, 8, 8), 4),
    "GPT-2": (gpt2, None, 4),
}


def batch(shape: tuple[int, ...] | None, n: int = 2) -> Tensor:
    return torch.randint(0, 30, (n, 12)) if shape is None else torch.randn(n, *shape)


@pytest.mark.parametrize("name", list(MODELS))
def test_an_identity_is_exact_and_so_is_its_deletion(name: str) -> None:
    build, shape, removable = MODELS[name]
    model = scramble(build())
    x = batch(shape)
    units = measured_blocks(model, x)
    assert sum(unit.removable for unit in units) == removable
    assert all(unit.macs > 0 and unit.params > 0 for unit in units)
    constraint = ResidualConstraint(units)
    off = constraint.attach()
    plain = logits_of(model, x)
    gone = [i for i, unit in enumerate(units) if unit.removable][1::2]
    for i in gone:
        constraint.scales[i] = 0.0
    pressed = logits_of(model, x)
    assert not torch.allclose(plain, pressed)
    off()
    delete_blocks(model, [units[i].path for i in gone])
    torch.testing.assert_close(logits_of(model, x), pressed, rtol=1e-5, atol=1e-5)
    assert len(find_blocks(model)) == len(units) - len(gone)


def test_a_post_activation_block_without_its_branch_is_the_identity_on_what_a_relu_gives() -> None:
    block = deepres.create("resnet8-cifar").stages[0].blocks[0]
    site = deepres.sites(nn.Sequential(block))[0]
    x = torch.randn(2, 16, 8, 8).relu()
    with site.bypass():
        torch.testing.assert_close(block(x), x, rtol=0, atol=0)
        assert not torch.equal(
            block(x - 1), x - 1
        )  # but not on negative values, which is why the block before has to end in one


@pytest.mark.parametrize("name", ["ours", "ours, preact", "torchvision", "ViT", "GPT-2"])
def test_the_penalty_and_its_gradient_agree_with_finite_differences(name: str) -> None:
    """In float64, with the shortcuts held constant, as the penalty says it takes them."""
    build, shape, _ = MODELS[name]
    model = scramble(build()).double()
    x = batch(shape).double() if shape else batch(shape)
    units = find_blocks(model)
    constraint = ResidualConstraint(units)
    i = [j for j, unit in enumerate(units) if unit.removable][1]
    constraint.measured, constraint.scales[i] = {i}, 0.7
    constraint.attach()
    # the last weights of the branch move nothing but this unit's residual
    site = units[i].sites[-1]
    weight = [p for module in site.branch_modules for p in module.parameters()][-1]
    logits_of(model, x)
    size = constraint.ratio(i)
    assert size is not None and float(size.detach()) > 0
    (grad,) = torch.autograd.grad(size, weight)
    direction = torch.randn_like(weight)
    values = []
    for sign in (1, -1):
        constraint.clear()
        with torch.no_grad():
            weight += sign * 1e-6 * direction
            logits_of(model, x)
            weight -= sign * 1e-6 * direction
        values.append(float(constraint.ratio(i)))  # type: ignore[arg-type]
    slope = (values[0] - values[1]) / 2e-6
    assert slope == pytest.approx(float((grad * direction).sum()), rel=1e-4, abs=1e-9)


def test_the_size_is_against_the_shortcut() -> None:
    branch, shortcut = torch.randn(4, 3, 5, 5, requires_grad=True), torch.randn(4, 3, 5, 5, requires_grad=True)
    expected = sum(float((branch[n].norm() / shortcut[n].norm()).detach()) for n in range(4)) / 4
    size = residual_ratio(branch, shortcut)
    assert float(size.detach()) == pytest.approx(expected, rel=1e-6)
    size.backward()
    assert branch.grad is not None and shortcut.grad is None
    torch.testing.assert_close(residual_ratio(3 * branch, 3 * shortcut), size)  # a scale of the whole signal is no cost


def test_distillation_is_nothing_between_equals() -> None:
    logits = torch.randn(5, 7)
    assert float(distillation(logits, logits)) == pytest.approx(0, abs=1e-6)
    assert float(distillation(logits, torch.randn(5, 7))) > 0.1


def test_a_teacher_that_is_outdone_teaches_no_more() -> None:
    run = deepres.Run("resnet20-cifar", "digits", recipe="digits", width=0.25, speed="exact", memory="all")
    trainer = Trainer(run, deepres.data.open_data("digits"), DistributedContext(torch.device("cpu")))
    batch = next(trainer.loader.epoch(0))
    teacher = Teacher(trainer, 0.5)
    taught = teacher.net(batch.images)
    right, wrong = (10.0 * sign * F.one_hot(batch.labels, 10) for sign in (1, -1))

    def loss(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        task = F.cross_entropy(logits, batch.labels)
        return task, teacher.loss(task, logits, batch.images, batch.labels)

    task, total = loss(wrong)  # behind
    assert teacher.lead == pytest.approx(float(task - F.cross_entropy(taught, batch.labels)), rel=1e-5)
    torch.testing.assert_close(total, (task + distillation(wrong, taught)) / 2)
    for _ in range(50):
        task, total = loss(right)
    assert teacher.lead < 0 and torch.equal(task, total)
    for _ in range(50):  # what falls behind again is taught again
        task, total = loss(wrong)
    assert total < task


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("time", "is not a target"),
        ("speed=0.5", "is not a target"),
        ("time=1.5", "between 0 and 1"),
        ("blocks=2.5", "a whole number of blocks"),
        ("macs=0", "between 0 and 1"),
    ],
)
def test_targets_that_are_none(text: str, says: str) -> None:
    with pytest.raises(DeepresError, match=says):
        Target.parse(text)


def test_multiply_adds_of_blocks_are_those_of_their_convolutions() -> None:
    side = {
        "stages.0": (16, 16, 16),
        "stages.1": (32, 16, 8),
        "stages.2": (64, 32, 4),
    }  # channels out, channels in, side of the output
    for block in measured_blocks(deepres.create("resnet20-cifar"), torch.randn(2, 3, 16, 16)):
        out, into, places = side[block.container.removesuffix(".blocks")]
        first = into if block.reshapes else out
        assert block.macs == 9 * (first + out) * out * places**2  # an option A shortcut multiplies nothing


def test_what_cannot_be_met_is_said_with_figures() -> None:
    units = measured_blocks(deepres.create("resnet20-cifar"), torch.randn(2, 3, 8, 8))
    with pytest.raises(
        DeepresError, match=r"89 % of the blocks would have to be removed.* 7 removable blocks of 9 hold only 78 %"
    ):
        Target.parse("blocks=1").to_remove(units)
    with pytest.raises(DeepresError, match="none would be removed"):
        Target.parse("blocks=9").to_remove(units)
    assert Target.parse("blocks=5").to_remove(units) == pytest.approx(4 / 9)
    assert Target.parse("params=0.8").to_remove(units) == pytest.approx(0.2)
    assert str(Target.parse("error=+0.3")) == "error=+0.3"
    assert Target.parse(str(Target.parse("loss=+0.00001"))) == Target("loss", 1e-5) and Target.parse("time=6e-1").value == 0.6
    with pytest.raises(DeepresError, match="no residual block that could be the identity"):
        deepres.shrink("plain20-cifar", "digits", "blocks=0.5", epochs=1, **FAST)
    with pytest.raises(DeepresError, match="0 <= learn < constrain < 1"):
        ShrinkSchedule(Target.parse("time=0.5"), learn=0.6, constrain=0.5)
    with pytest.raises(DeepresError, match="did you mean"):
        deepres.shrink("resnet20-cifer", "digits", **FAST)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[deepres.shrink.ShrinkResult, Path]:  # type: ignore[name-defined]
    out = tmp_path_factory.mktemp("shrink") / "run"
    return deepres.shrink("resnet20-cifar", "digits", "blocks=5", epochs=6, recipe="digits", out=out, **FAST), out


def test_it_shrinks_and_still_reads_digits(small) -> None:
    found, out = small
    assert found.blocks == (9, 5) and len(found.removed) == 4 and set(found.identity_at) == set(found.removed)
    assert found.difference < 1e-5 and found.result.test.top1 < 12
    assert sum(found.model.config.blocks) == 5
    assert set(found.not_removable) == {"stages.1.blocks.0", "stages.2.blocks.0"}
    # before pressing every block speaks; at the end the removed ones are silent and the others are not
    first, last = found.history[0], found.history[-1]
    assert min(first.ratios) > 0.05 and first.identities == 0 and last.identities == 4
    assert [path for path, size in zip(found.block_paths, last.ratios, strict=True) if size == 0] == sorted(found.removed)
    assert any("4 of 9 blocks were removed" in line for line in found.summary())
    # an ordinary network: everything else works on it
    model = deepres.load(out)
    x = torch.randn(3, 1, 8, 8)
    torch.testing.assert_close(model(x), found.model(x))
    assert len(deepres.sites(model)) == 5
    assert json.loads((out / "shrink.json").read_text())["blocks"] == [9, 5]
    assert model.state_dict().keys() == deepres.nn.ResNet(model.config).state_dict().keys()


@pytest.mark.parametrize("step", [5, 30, 50])
def test_a_shrinking_stopped_in_any_phase_resumes_to_the_same_bits(small, step: int, tmp_path: Path) -> None:
    """While the network learns, while blocks are constrained, and while it recovers."""
    options = {"epochs": 6, "recipe": "digits", "out": tmp_path / "run", **FAST}
    with pytest.raises(Interrupted):
        deepres.shrink("resnet20-cifar", "digits", "blocks=5", callbacks=[Stop(step)], **options)
    again = deepres.shrink("resnet20-cifar", "digits", "blocks=5", resume=True, **options)
    assert again.removed == small[0].removed and again.identity_at == small[0].identity_at
    expected = small[0].result.model.state_dict()
    for name, tensor in again.result.model.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_the_allowed_error_is_measured_on_the_network_that_is_constrained() -> None:
    """Averaged weights are a copy that carries no constraint."""
    errors: dict[int, tuple[float, float]] = {}  # step -> errors of the network and of the average

    class Probe(deepres.Callback):
        def after_step(self, trainer: Trainer, batch: Batch) -> None:
            plain = measure(trainer.model, trainer.data.val, trainer.data.prepare, trainer.data.classes).top1
            errors[trainer.progress.done] = plain, trainer.measure("val").top1

    how = dataclasses.replace(recipe("digits", epochs=2), ema=0.9, batch=256)
    curriculum = InverseCurriculum(ShrinkSchedule(Target("error", 0.0), 0.5, 0.9), exact=True)
    run = deepres.Run("resnet14-cifar", "digits", how, speed="exact", width=0.25)
    deepres.train(run, show=False, callbacks=[Probe(), curriculum])
    first = round(0.5 * len(errors))  # the step after which the first blocks are selected
    assert errors[first][0] != errors[first][1]
    assert curriculum.error_before == errors[first][0]


def test_from_a_trained_network_with_its_own_answers(small, tmp_path: Path) -> None:
    given = copy.deepcopy(small[0].model)
    again = deepres.shrink(given, "digits", "blocks=4", epochs=3, recipe="digits", lr=0.02, **FAST)
    assert again.blocks == (5, 4) and again.error_before is not None
    for name, tensor in given.state_dict().items():
        assert torch.equal(tensor, small[0].model.state_dict()[name])  # what was given is left as it was


def test_a_run_is_shrunk_at_half_of_the_rate_it_was_trained_at(small, tmp_path: Path) -> None:
    first = recipe("fast-cifar")  # 0.4, SGD
    assert shrink_recipe(small[0].model).lr == shrink_recipe(small[0].model, dataclasses.replace(first, lr=0.01)).lr == 0.05
    once = shrink_recipe(small[0].model, dataclasses.replace(first, batch=32))
    assert (once.lr, once.batch, once.name) == (0.2, 32, "shrink")
    assert shrink_recipe(small[0].model, once).lr == 0.2  # a second time it is not halved again
    assert shrink_recipe(gpt2(), first).lr == 5e-4  # SGD's rate says nothing of AdamW's
    # and of a run's folder that is what is taken
    shutil.copytree(small[1], tmp_path / "run")
    saved = json.loads((tmp_path / "run" / "run.json").read_text())
    saved["recipe"] |= {"lr": 0.4, "batch": 64}
    (tmp_path / "run" / "run.json").write_text(json.dumps(saved))
    deepres.shrink(tmp_path / "run", "digits", "blocks=4", epochs=1, out=tmp_path / "less", **FAST)
    taken = Run.read(tmp_path / "less").recipe
    assert (taken.lr, taken.batch) == (0.2, 64)


def test_an_error_that_may_not_rise_keeps_the_blocks(small) -> None:
    """At a rate that changes nothing, so that each block that is left still matters."""
    said: list[str] = []
    options = {"epochs": 1, "recipe": "digits", "lr": 1e-6, "distil": 0.0, **FAST}
    kept = deepres.shrink(small[0].model, "digits", "error=+0", log=said.append, **options)
    assert kept.removed == () and kept.blocks == (5, 5)
    assert any("no further block is removed: the validation error would rise" in line for line in said)


@pytest.mark.parametrize("name", ["torchvision", "ViT", "timm"])
def test_other_libraries_networks_keep_their_class(name: str, tmp_path: Path) -> None:
    build = {
        "torchvision": lambda: open_model("torchvision.models:resnet18", classes=10).model,
        "timm": lambda: open_model("timm:resnet26", classes=10, channels=1).model,
        "ViT": vit,
    }[name]
    given = build()
    data = deepres.data.open_data("digits", channels=3 if name == "torchvision" else 1)
    data = deepres.data.Data(data.name, data.classes, data.train.take(torch.arange(64)), data.val, data.test, data.prepare)
    found = deepres.shrink(given, data, "blocks=0.7", epochs=4, recipe="digits", out=tmp_path / "run", batch=32, **FAST)
    assert type(found.model) is type(given) and found.blocks[1] < found.blocks[0]
    again = deepres.load(tmp_path / "run")
    x = torch.randn(2, *data.shape)
    torch.testing.assert_close(logits_of(again, x), logits_of(found.model, x))
    if name == "torchvision":  # its users load it as usual
        counts = [len(getattr(found.model, f"layer{i}")) for i in range(1, 5)]
        usual = torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, counts, num_classes=10)
        usual.load_state_dict(found.model.state_dict())
    if name == "ViT":
        assert found.model.config.num_hidden_layers == found.blocks[1]
        found.model.save_pretrained(tmp_path / "hf")
        usual = ViTForImageClassification.from_pretrained(tmp_path / "hf")
        torch.testing.assert_close(logits_of(usual, x), logits_of(found.model, x))


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "small"
    command = [
        "shrink",
        "resnet14-cifar",
        "--target",
        "blocks=5",
        "blocks=4",
        "--recipe",
        "digits",
        "--epochs",
        "2",
        "--out",
        str(out),
    ]
    assert main([*command, "--speed", "float32"]) == 0
    told = capsys.readouterr().out
    assert "5 of 6" in told and "4 of 6" in told and (out / "report.html").exists()
    assert main(command) == 2
    assert "continue it with --resume" in capsys.readouterr().err
    assert main(["shrink", "--resume", str(out)]) == 0  # a finished one is only told again
    capsys.readouterr()
    for wrong, says in (
        (["shrink", "--resume", str(tmp_path)], "nothing to go on with"),
        (
            ["shrink", "torchvision.models:resnet18", "--data", "digits", "--target", "blocks=1", "--out", str(tmp_path / "x")],
            "would have to be removed",
        ),
    ):
        assert main(wrong) == 2, wrong
        assert says in capsys.readouterr().err
    assert main(["evaluate", str(out / "blocks-4"), "--data", "digits"]) == 0
    assert main(["info", str(out / "blocks-4")]) == 0


def test_a_language_model_from_its_folder_and_a_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "to be, or not to be: that is the question.\n" * 100
    (tmp_path / "play.txt").write_text(text)
    torch.manual_seed(0)
    few = {"n_layer": 4, "n_embd": 16, "n_head": 2, "vocab_size": len(set(text)), "n_positions": 16}
    GPT2LMHeadModel(GPT2Config(**few, bos_token_id=0, eos_token_id=0, use_cache=False)).save_pretrained(tmp_path / "gpt2")
    common = ["--data", str(tmp_path / "play.txt"), "--batch", "16", "--lr", "0.01", "--speed", "float32"]
    net = f"hf:{tmp_path / 'gpt2'}"
    assert main(["train", "--net", net, "--recipe", "finetune", "--epochs", "1", *common, "--out", str(tmp_path / "run")]) == 2
    assert "give --size 16 or less" in capsys.readouterr().err and not (tmp_path / "run").exists()
    assert main(["shrink", net, "--target", "blocks=2", "--epochs", "2", *common, "--out", str(tmp_path / "small")]) == 0
    assert "2 of 4 blocks were removed" in capsys.readouterr().out
    small = deepres.load(tmp_path / "small" / "blocks-2")
    assert isinstance(small, GPT2LMHeadModel) and small.config.n_layer == 2 and len(small.transformer.h) == 2
    assert deepres.evaluate(tmp_path / "small" / "blocks-2", tmp_path / "play.txt").top1 < 95
    assert main(["look", str(tmp_path / "small" / "blocks-2"), *common[:2], "--out", str(tmp_path / "look")]) == 0
    assert main(["train", "--net", "resnet20-cifar", *common, "--out", str(tmp_path / "no")]) == 2
    assert "takes images and play.txt is a text" in capsys.readouterr().err
