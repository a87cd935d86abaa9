"""Shrinking a trained network: blocks chosen together, deleted at once, and signals inside that follow the whole network's."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import timm
import torch
from run_helpers import Stop
from torch import Tensor, nn

import deepres
from deepres import DeepresError
from deepres.adapters import delete_blocks, find_blocks, logits_of
from deepres.data import Batch, open_data
from deepres.shrinking import InverseCurriculum, ResidualConstraint, ShrinkSchedule, Target
from deepres.shrinking.features import FeatureDistillation, compared_places
from deepres.shrinking.importance import GREEDY_EXAMPLES, block_importance
from deepres.training import Interrupted, Run, Trainer, recipe
from deepres.training.distribute import DistributedContext

EXACT = {"speed": "exact", "memory": "all", "show": False}


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    return deepres.train(Run("resnet20-cifar", "digits", "digits", epochs=3, width=0.5, speed="exact"), show=False).model


HOW = Run("given", "digits", recipe("digits", epochs=1), speed="exact", memory="all")


def trainer_of(model: nn.Module) -> Trainer:
    return Trainer(HOW, open_data("digits"), DistributedContext(torch.device("cpu")), model)


class Enough(deepres.Callback):
    """Ends the run before its first step."""

    def before_step(self, trainer: Trainer, batch: Batch) -> None:
        raise Interrupted("enough")


def chosen(model: nn.Module, schedule: ShrinkSchedule) -> list[str]:
    """The blocks that are deleted from a copy of ``model`` before the first step."""
    curriculum = InverseCurriculum(schedule, exact=True)
    with pytest.raises(Interrupted):
        deepres.train(HOW, show=False, model=copy.deepcopy(model), data=open_data("digits"), callbacks=[curriculum, Enough()])
    return curriculum.removed


def test_greedy_measures_again_without_what_was_chosen(trained: nn.Module) -> None:
    """Each choice is the block with the least rise per cost beyond the blocks chosen before, counted here by hand."""
    model = copy.deepcopy(trained)
    trainer = trainer_of(model)
    blocks = find_blocks(model)
    constraint = ResidualConstraint(blocks)
    detach = constraint.attach()
    removable = [i for i, block in enumerate(blocks) if block.removable]
    expected: list[int] = []
    for _ in range(4):
        candidates = [
            i
            for i in removable
            if i not in expected
            and sum(blocks[j].container == blocks[i].container and j not in expected for j in range(len(blocks))) > 1
        ]
        for i in expected:
            constraint.scales[i] = 0.0
        rises, _ = block_importance(trainer, constraint, candidates, GREEDY_EXAMPLES)
        expected.append(min(rises, key=lambda i: rises[i]))
    detach()
    found = chosen(trained, ShrinkSchedule(Target("blocks", 5), 0, 0.1, removal="at-once", select="greedy"))
    assert found == [blocks[i].path for i in sorted(expected)]


def test_a_set_chosen_together_costs_no_more_than_one_chosen_block_by_block(trained: nn.Module) -> None:
    """On the examples that it was chosen by."""

    def loss(select: str) -> float:
        model = copy.deepcopy(trained)
        schedule = ShrinkSchedule(Target("blocks", 5), 0, 0.1, removal="at-once", select=select)  # type: ignore[arg-type]
        delete_blocks(model, chosen(trained, schedule))
        batches = [*trainer_of(model).loader.some(GREEDY_EXAMPLES)]
        model.train()  # as the blocks are measured: normalised by the batch
        with torch.no_grad():
            return sum(float(nn.functional.cross_entropy(logits_of(model, b.images), b.labels)) for b in batches) / len(batches)

    assert loss("greedy") <= loss("ablation") + 1e-6


def test_the_only_residual_block_of_a_stage_may_go_where_one_without_a_shortcut_stays() -> None:
    stages = [["ds_r1_k3_s2_e1_c8"], ["ir_r2_k3_s1_e2_c16"], ["ir_r3_k3_s1_e2_c24"]]
    model = timm.models.EfficientNet(timm.models.efficientnet.decode_arch_def(stages), 10, 16, in_chans=1, stem_size=8)
    assert [block.path for block in find_blocks(model)] == ["blocks.1.1", "blocks.2.1", "blocks.2.2"]
    found = chosen(model, ShrinkSchedule(Target("blocks", 1), 0, 0.1, removal="at-once", select="greedy"))
    assert len(found) == 2
    model = deepres.create("resnet14-cifar", in_channels=1)  # here all blocks of a stage have one, and a stage keeps a block
    found = chosen(model, ShrinkSchedule(Target("blocks", 3), 0, 0.1, removal="at-once", select="greedy"))
    assert sorted(path.rpartition(".")[0] for path in found) == [f"stages.{i}.blocks" for i in range(3)]


def test_signals_are_compared_behind_what_is_left() -> None:
    model = deepres.create("resnet20-cifar")
    blocks = find_blocks(model)
    names = [block.path for block in blocks]
    assert compared_places(model, blocks, []) == {name: name for name in names}
    gone = ["stages.0.blocks.0", "stages.1.blocks.1", "stages.1.blocks.2", "stages.2.blocks.1"]
    assert compared_places(model, blocks, gone) == {
        "stages.0.blocks.1": "stages.0.blocks.1",
        "stages.0.blocks.2": "stages.0.blocks.2",
        "stages.1.blocks.2": "stages.1.blocks.0",
        "stages.2.blocks.1": "stages.2.blocks.0",
        "stages.2.blocks.2": "stages.2.blocks.2",
    }
    lite = timm.create_model("tf_efficientnet_lite0")  # a stage's first block has no shortcut, so is no block of ours
    assert compared_places(lite, find_blocks(lite), ["blocks.2.1"])["blocks.2.1"] == "blocks.2.0"


def test_the_loss_of_signals_is_their_relative_square(trained: nn.Module) -> None:
    student, teacher = copy.deepcopy(trained), copy.deepcopy(trained)
    blocks = find_blocks(student)
    features = FeatureDistillation(student, teacher, blocks)
    gone = ["stages.1.blocks.1"]
    x = torch.randn(4, 1, 8, 8)
    student(x), teacher(x)
    assert float(features.loss([]).detach()) == 0
    delete_blocks(student, gone)
    student(x), teacher(x)
    found = features.loss(gone)
    features.detach()
    assert not any(module._forward_hooks for model in (student, teacher) for module in model.modules())
    own, theirs = [], []

    def outputs(model: nn.Module, paths: list[str], into: list[Tensor]) -> None:
        for path in paths:
            model.get_submodule(path).register_forward_hook(lambda _, __, out: into.append(out))
        model(x)

    kept = ["stages.0.blocks.0", "stages.0.blocks.1", "stages.0.blocks.2", "stages.1.blocks.0", "stages.1.blocks.1",
            "stages.2.blocks.0", "stages.2.blocks.1", "stages.2.blocks.2"]  # fmt: skip
    outputs(student, kept, own)  # by the names they have now
    outputs(teacher, [*kept[:3], "stages.1.blocks.1", "stages.1.blocks.2", *kept[5:]], theirs)
    pairs = [(a.detach(), b.detach()) for a, b in zip(own, theirs, strict=True)]
    expected = sum(float((a - b).square().sum() / b.square().sum()) for a, b in pairs) / len(kept)
    assert float(found.detach()) == pytest.approx(expected, rel=1e-5)
    found.backward()
    assert all(p.grad is None for p in teacher.parameters())


@pytest.mark.parametrize(("removal", "stop"), [("at-once", 30), ("gradual", 30)])
def test_signals_follow_the_whole_network_s(trained: nn.Module, removal: str, stop: int) -> None:
    """With the difference of the signals in the loss it falls further than without."""
    differences = {}

    class Probe(deepres.Callback):
        def after_step(self, trainer: Trainer, batch: Batch) -> None:
            if trainer.progress.done == stop:
                model = trainer.model.eval()
                with torch.no_grad():
                    own, theirs = (net.stages[1](net.stages[0](net.stem(batch.images))) for net in (model, trained))  # type: ignore[operator]
                differences[weight] = float((own - theirs).norm() / theirs.norm())
                raise Interrupted("enough")

    epochs = 20 if removal == "at-once" else 6  # the comparison lasts for 36 steps in both
    for weight in (0.0, 10.0):
        with pytest.raises(Interrupted):
            deepres.shrink(trained, "digits", "blocks=6", epochs=epochs, recipe="digits", lr=0.1, batch=64, removal=removal,  # type: ignore[arg-type]
                           features=weight, callbacks=[Probe()], **EXACT)  # fmt: skip
    assert differences[10.0] < 0.9 * differences[0.0]


ALL = {"epochs": 2, "recipe": "digits", "lr": 0.02, "batch": 128, "removal": "at-once", "select": "greedy", "mend": "map",
       "features": 1.0, **EXACT}  # fmt: skip


@pytest.fixture(scope="module")
def uninterrupted(trained: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> deepres.shrinking.ShrinkResult:  # type: ignore[name-defined]
    return deepres.shrink(trained, "digits", "blocks=6", out=tmp_path_factory.mktemp("shrink") / "run", **ALL)


@pytest.mark.parametrize("step", [1, 15])
def test_a_run_from_trained_resumes_to_the_same_bits(trained: nn.Module, uninterrupted, step: int, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """While signals are compared, and after."""
    with pytest.raises(Interrupted):
        deepres.shrink(trained, "digits", "blocks=6", out=tmp_path / "run", callbacks=[Stop(step)], **ALL)
    again = deepres.shrink(trained, "digits", "blocks=6", out=tmp_path / "run", resume=True, **ALL)
    assert again.removed == uninterrupted.removed and again.mended == uninterrupted.mended and again.mended
    expected = uninterrupted.model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in again.model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in again.model.modules())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"mend": "map"}, "mend=map needs removal=at-once"),
        ({"removal": "at-once", "constrain": 0.3}, "--constrain set the phases of --removal gradual"),
        ({"removal": "at-once", "target": "error=+0.3", "trained": False}, "needs removal=gradual"),
        ({"features": -1.0}, "features is a weight of 0 or more"),
        ({"removal": "at-once", "trained": False}, "--removal at-once needs a trained network"),
        ({"features": 1.0, "trained": False}, "--features needs a trained network"),
    ],
)
def test_options_that_do_not_go_together(trained: nn.Module, options: dict, says: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(DeepresError, match=says):
        deepres.shrink(trained, "digits", **{"target": "blocks=6", "epochs": 1, **EXACT, **options})
