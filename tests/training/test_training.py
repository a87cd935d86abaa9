"""Training: it converges, repeats to the bit, survives being killed, and stops before it ruins anything."""

import dataclasses
import json
import math
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from run_helpers import Stop, same_weights
from torch import nn

import deepres
from deepres import Callback, DeepresError, Run, models
from deepres.data import Batch, open_data
from deepres.models import read_checkpoint
from deepres.training import Interrupted, NonFinite, Recipe, Trainer, checkpoint, read_log, recipe
from deepres.training.distribute import DistributedContext, pick_device
from deepres.training.optimizer import last_step, optimizer_for, set_rate
from deepres.training.speed import SPEEDS, Speed
from deepres.training.speed_trial import choose, trial

TINY = Recipe("tiny", epochs=2, batch=64, lr=0.05, schedule="one-cycle", warmup=0.3, augment="pad-crop")
NET = {"net": "resnet8-cifar", "data": "digits", "recipe": TINY, "speed": "exact", "width": 0.5}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    deepres.train(Run(**NET, out=str(out)), show=False)
    return out


def test_it_learns_the_digits(tmp_path: Path) -> None:
    result = deepres.train(Run("resnet20-cifar", "digits", "digits", epochs=6, speed="exact", watch_test=True), show=False)
    assert result.test.top1 < 5 and result.history[-1].train_error < 5
    assert result.history[0].loss > 4 * result.history[-1].loss
    assert result.history[-1].test_error is not None
    assert not list(tmp_path.iterdir())


def test_a_run_leaves_what_it_should(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    assert {"run.json", "log.jsonl", "best.safetensors", "last.safetensors", "result.json", "tensorboard"} <= names
    assert len(list((finished / "checkpoints").iterdir())) == 2
    log = read_log(finished)
    assert [line["epoch"] for line in log] == [1, 2]
    result = json.loads((finished / "result.json").read_text())
    assert result["data"]["test"] == result["test"]["n"] and result["data"]["notes"] == []
    assert result["val_error"] == min(line["val_error"] for line in log)
    assert deepres.evaluate(finished, "digits").top1 == pytest.approx(result["test"]["top1"])


def test_a_saved_run_runs_again_to_the_same_bits(finished: Path, tmp_path: Path) -> None:
    again = dataclasses.replace(Run.read(finished), out=str(tmp_path / "again"))
    assert dataclasses.replace(again, out=str(finished)) == Run.read(finished)
    deepres.train(again, show=False)
    assert same_weights(tmp_path / "again", finished)
    other = dataclasses.replace(again, out=str(tmp_path / "other"), seed=1)
    deepres.train(other, show=False)
    assert not same_weights(tmp_path / "other", finished)


@pytest.mark.parametrize("step", [1, 20, 21, 42])
def test_a_run_stopped_anywhere_resumes_to_the_same_bits(step: int, finished: Path, tmp_path: Path) -> None:
    out, stop = tmp_path / "stopped", Stop(step, signal.SIGTERM if step % 2 else signal.SIGINT)
    with pytest.raises(Interrupted, match=f"after step {step} of 42; resume with --resume"):
        deepres.train(Run(**NET, out=str(out)), show=False, callbacks=[stop])
    result = deepres.resume(out, show=False)
    assert same_weights(out, finished)
    numbers = [[line[key] for line in read_log(folder)] for folder in (out, finished) for key in ("loss", "val_error")]
    assert numbers[:2] == numbers[2:]
    assert [record.epoch for record in result.history] == [1, 2]


def test_killed_by_the_kernel_and_resumed(finished: Path, tmp_path: Path) -> None:
    """SIGKILL cannot be caught: what is on disk at that moment has to be enough."""
    out = tmp_path / "killed"
    run = dataclasses.replace(Run.read(finished), out=str(out), checkpoint_minutes=0.0)
    (tmp_path / "run.json").write_text(run.to_json())
    code = (
        f"import deepres, dataclasses; deepres.train(deepres.Run.read({str(tmp_path / 'run.json')!r}), resume=True, show=False)"
    )
    for least in (5, 17):
        process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None:
            newest = checkpoint.newest(out / "checkpoints")
            if newest is not None and int(newest.stem) >= least:
                break
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode in (-signal.SIGKILL, 0)
    deepres.resume(out, show=False)
    assert same_weights(out, finished)


def test_a_truncated_checkpoint_is_passed_over(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    state = {"model": {}, "optimizer": {}, "progress": {"done": 3}}
    checkpoint.write(folder, 3, state, keep=3)
    checkpoint.write(folder, 4, state, keep=3)
    (folder / "000000004.pt").write_bytes((folder / "000000004.pt").read_bytes()[:-200])
    found = checkpoint.read_newest(folder, torch.device("cpu"))
    assert found is not None and found["progress"] == {"done": 3}
    assert checkpoint.read_newest(tmp_path, torch.device("cpu")) is None


def test_a_full_disk_keeps_the_previous_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = {"model": {"w": torch.zeros(3)}, "optimizer": {}, "progress": {}}
    checkpoint.write(tmp_path, 1, state, keep=2)

    def full(_: object, file: object) -> None:
        file.write(b"half")  # type: ignore[attr-defined]
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(DeepresError, match=r"No space left.*000000001\.pt, is whole; free some disk"):
        checkpoint.write(tmp_path, 2, state, keep=2)
    assert [path.name for path in tmp_path.iterdir()] == ["000000001.pt"]


def test_settings_of_a_later_version_are_refused_with_a_sentence(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps(json.loads((finished / "run.json").read_text()) | {"warp": 9}))
    with pytest.raises(DeepresError, match=r"not a run that deepres saved .*'warp'"):
        Run.read(tmp_path)


def test_a_folder_is_never_trained_over(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(DeepresError, match="holds a run already"):
        deepres.train(Run(**NET, out=str(finished)), show=False)
    with pytest.raises(DeepresError, match="no run to read here"):
        deepres.resume(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(DeepresError, match="cannot be written"):
        deepres.train(Run(**NET, out=str(tmp_path / "file" / "below")), show=False)
    (tmp_path / "run.json").write_text('{"net": 3}')
    with pytest.raises(DeepresError, match="not a run that deepres saved"):
        deepres.resume(tmp_path)


def test_another_runs_checkpoint_is_refused(finished: Path, tmp_path: Path) -> None:
    changed = json.loads((finished / "run.json").read_text()) | {"net": "resnet14-cifar"}
    (tmp_path / "run.json").write_text(json.dumps(changed))
    (tmp_path / "checkpoints").symlink_to(finished / "checkpoints")
    with pytest.raises(DeepresError, match="of another run"):
        deepres.resume(tmp_path, show=False)


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_non_finite_numbers_stop_before_the_step_and_name_the_module(where: str) -> None:
    class Poison(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x / 0 if where == "forward" else x + (x.abs() * 0).sqrt()  # the derivative of the root at 0 is infinite

    data = open_data("digits")
    model = deepres.create("resnet8-cifar", in_channels=1)
    model.stages[1].blocks[0].after = nn.Sequential(nn.ReLU(), Poison())
    before = {name: p.clone() for name, p in model.named_parameters()}
    says = r"output of 'stages\.1\.blocks\.0\.after\.1'" if where == "forward" else r"'stages\.1\.blocks\.0\.after\.0'"
    with pytest.raises(NonFinite, match=f"before step 1: .*{says}.*lower --lr"):
        deepres.train(Run(**{**NET, "width": 1.0}), show=False, data=data, model=model)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_adamw_resumes_to_the_bit(tmp_path: Path) -> None:
    how = dataclasses.replace(recipe("transformer", epochs=2, lr=0.01), augment="pad-crop")
    whole = Run(**{**NET, "recipe": how}, out=str(tmp_path / "whole"))
    deepres.train(whole, show=False)
    halted = dataclasses.replace(whole, out=str(tmp_path / "halted"))
    with pytest.raises(Interrupted):
        deepres.train(halted, show=False, callbacks=[Stop(30)])
    deepres.train(Run.read(tmp_path / "halted"), resume=True, show=False)
    assert same_weights(tmp_path / "whole", tmp_path / "halted")


def test_recipes_follow_the_papers() -> None:
    paper = recipe("paper-cifar")
    assert (paper.steps(352), paper.batch, paper.momentum, paper.weight_decay) == (64_000, 128, 0.9, 1e-4)
    rates = [paper.rate(step / 64_000) for step in (0, 31_999, 32_000, 47_999, 48_000, 63_999)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])
    assert recipe("paper-cifar", epochs=10).steps(352) == 3520
    cycle = recipe("digits")
    assert cycle.rate(0.3) == pytest.approx(0.05) and cycle.rate(1.0) == pytest.approx(0) and cycle.rate(0) < 0.01
    assert cycle.momentum_at(0.3) == pytest.approx(0.85) and cycle.momentum_at(1.0) == pytest.approx(0.95)
    modern = recipe("modern-imagenet")
    assert [modern.side(done, 224) for done in (0, 0.5, 0.9)] == [128, 160, 192]
    with pytest.raises(DeepresError, match="did you mean 'fast-cifar'"):
        recipe("fast-cifer")
    for epochs in (-1, math.nan, math.inf):
        with pytest.raises(DeepresError, match="epochs must be above 0"):
            recipe("digits", epochs=epochs)
    with pytest.raises(DeepresError, match="optimizer is sgd or adamw or muon or muon-sgd, not 'adam'"):
        recipe("digits", optimizer="adam")
    with pytest.raises(DeepresError, match="clip is a norm"):
        recipe("digits", clip=-1.0)


def test_the_schedule_and_momentum_are_pytorchs_own() -> None:
    """One cycle against torch's OneCycleLR, which also swings the momentum."""
    ours = Recipe("x", epochs=1, lr=0.1, schedule="one-cycle", warmup=0.3, momentum_swing=0.05)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.1, 0.9)
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=1000, final_div_factor=1e9)
    for step in range(999):
        assert theirs.get_last_lr()[0] == pytest.approx(ours.rate(step / 1000), abs=1e-3)
        assert optimizer.param_groups[0]["momentum"] == pytest.approx(ours.momentum_at(step / 1000), abs=5e-3)
        optimizer.step()
        theirs.step()


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_last_step_is_what_the_weights_moved_by(optimizer: str) -> None:
    """Against the weights before and after, in double precision, with a rate and momentum that change."""
    torch.manual_seed(0)
    model = nn.Linear(5, 3).double()
    how = Recipe("x", epochs=1, lr=0.1, weight_decay=0.0, optimizer=optimizer)
    stepping = optimizer_for(model, how)
    group = stepping.param_groups[0]
    assert last_step(stepping, model.weight, group) is None
    for rate, momentum in ((0.1, 0.9), (0.05, 0.85), (0.01, 0.95)):
        set_rate(stepping, rate, momentum)
        before = model.weight.detach().clone()
        stepping.zero_grad()
        model(torch.randn(4, 5, dtype=torch.double)).square().sum().backward()
        stepping.step()
        moved = last_step(stepping, model.weight, group)
        assert moved is not None
        torch.testing.assert_close(before - moved, model.weight.detach(), rtol=1e-9, atol=1e-12)


def test_gradients_are_clipped_to_the_norm_and_no_further() -> None:
    """Plain SGD without momentum moves the weights by rate times the clipped norm."""
    digits = open_data("digits")
    for clip, bound in ((0.01, 0.01), (1e6, None)):
        how = Recipe("x", epochs=1, lr=0.1, batch=64, augment="none", momentum=0.0, weight_decay=0.0, clip=clip)
        trainer = Trainer(Run("resnet8-cifar", "digits", how, speed="exact"), digits, DistributedContext(torch.device("cpu")))
        trainer.model.train()
        before = [p.detach().clone() for p in trainer.model.parameters()]
        trainer.step(next(trainer.loader.epoch(0)))
        after = trainer.model.parameters()
        moved = torch.cat([(b - a.detach()).flatten() for b, a in zip(before, after, strict=True)]).norm() / 0.1
        norm = trainer.progress.sums[3]  # as it was before it was clipped
        assert float(moved) == pytest.approx(bound or norm, rel=1e-3)
        assert norm > 0.01


def test_weight_decay_spares_norms_only_when_told() -> None:
    model = deepres.create("resnet8-cifar")
    assert len(optimizer_for(model, recipe("paper-cifar")).param_groups) == 1
    groups = optimizer_for(model, recipe("fast-cifar")).param_groups
    assert [group["weight_decay"] for group in groups] == [5e-4, 0.0]
    assert all(p.ndim == 1 for p in groups[1]["params"])


def test_deep_networks_start_gently_by_the_papers_rule() -> None:
    data = open_data("digits")
    run = Run("resnet110-cifar", "digits", recipe("paper-cifar", epochs=1), speed="exact", width=0.25)
    trainer = Trainer(run, data, DistributedContext(torch.device("cpu")))
    assert trainer.progress.gentle and trainer.rate() == pytest.approx(0.01)
    trainer.progress.sums, trainer.progress.step = [0.0, 10.0, 128.0, 0.0, 1.0], 19  # under 80 % wrong
    trainer.step(next(trainer.loader.epoch(0)))
    assert not trainer.progress.gentle and trainer.rate() == pytest.approx(0.1)


def test_the_papers_recipe_subtracts_the_mean_of_each_pixel(tmp_path: Path) -> None:
    out = tmp_path / "run"
    run = Run("resnet8-cifar", "digits", recipe("paper-cifar", epochs=1), str(out), speed="exact", width=0.5)
    deepres.train(run, show=False)
    data = open_data("digits")
    mean = torch.tensor(models.notes(out)["prepare"]["mean"])
    torch.testing.assert_close(mean, data.train.pixels.float().mean(0) / 255, rtol=0, atol=1e-5)
    saved = json.loads((out / "result.json").read_text())["test"]["top1"]
    assert deepres.evaluate(out, "digits").top1 == pytest.approx(saved)


def test_averaged_weights_mixing_and_growing_images(large_folder: Path, tmp_path: Path) -> None:
    """The weights that are kept are the average of those of each step, written out."""
    modern = dataclasses.replace(recipe("modern-imagenet"), epochs=4, batch=8, lr=0.01, ema=0.5)
    run = Run("resnet18", str(large_folder), modern, str(tmp_path / "run"), size=66, speed="exact", width=0.125, workers=1)
    assert isinstance(open_data(large_folder, size=100).train, deepres.data.Streamed)
    average: dict[str, torch.Tensor] = {}
    sides, given, mixed = [], torch.zeros(0), []

    class See(Callback):
        def before_step(self, trainer: Trainer, batch: Batch) -> None:
            nonlocal given
            given = batch.images
            sides.append(given.shape[-1])

        def loss(
            self, trainer: Trainer, loss: torch.Tensor, logits: object, images: torch.Tensor, labels: object
        ) -> torch.Tensor:
            mixed.append(not torch.equal(images, given))
            return loss

        def after_step(self, trainer: Trainer, batch: object) -> None:
            for name, p in trainer.model.named_parameters():
                average[name] = average[name].lerp(p.detach(), 0.5) if name in average else p.detach().clone()

    deepres.train(run, show=False, callbacks=[See()])
    assert sides == sorted(sides) and len({*sides}) == 3 and sum(mixed) > len(mixed) / 2
    saved = read_checkpoint(tmp_path / "run" / "last.safetensors")[0]
    for name, expected in average.items():
        torch.testing.assert_close(saved[name], expected, rtol=1e-4, atol=1e-6)


def test_finetuning_keeps_the_body_and_renews_the_head(finished: Path, small_folder: Path) -> None:
    run = Run("resnet8-cifar", str(small_folder), "finetune", epochs=1, width=0.5, init=str(finished), speed="exact")
    trainer = Trainer(run, open_data(small_folder), DistributedContext(torch.device("cpu")))
    body = read_checkpoint(finished / "best.safetensors")[0]
    assert torch.equal(trainer.model.state_dict()["stem.conv.weight"], body["stem.conv.weight"])
    assert trainer.model.head.fc.out_features == 3
    with pytest.raises(DeepresError, match="not the weights of resnet14-cifar"):
        Trainer(
            dataclasses.replace(run, net="resnet14-cifar"), open_data(small_folder), DistributedContext(torch.device("cpu"))
        )


def test_speed_is_measured_once_and_remembered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DEEPRES_CACHE", str(tmp_path))
    tried: list[str] = []

    seconds = {"float32": 3.0, "float32-channels-last": 2.0, "bf16": 1.5, "bf16-channels-last": 1.0}
    seconds |= {"float32-fused": 1.8, "bf16-fused": 1.4}

    def fake(_: object, __: object, ___: object, speeds: list[Speed], **____: float) -> dict[str, float]:
        tried.extend(speed.name for speed in speeds)
        return {speed.name: seconds.get(speed.name, 0.9) for speed in speeds}

    monkeypatch.setattr("deepres.training.speed_trial.trial", fake)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    model, x, y = deepres.create("resnet8-cifar"), torch.zeros(2, 3, 8, 8), torch.zeros(2).long()
    assert choose(model, x, y, steps=10).name == "bf16-channels-last"
    assert not any(SPEEDS[name].compile for name in tried)  # too short a run to compile for
    count = len(tried)
    assert choose(model, x, y, steps=10).name == "bf16-channels-last" and len(tried) == count
    assert SPEEDS[choose(model, x, y, steps=100_000).name].compile
    tried.clear()
    decoder = deepres.create("gpt-tiny", depth=1)  # tokens have no layout, so each arithmetic is tried once
    choose(decoder, torch.zeros(2, 8).long(), torch.zeros(16).long(), steps=100_000)
    assert set(tried) == {"float32", "bf16", "bf16-compiled"}
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert not choose(deepres.create("resnet14-cifar"), x, y, steps=10).bf16  # emulated bf16 crawls


def test_modes_race_in_turns_and_one_that_cannot_compile_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, y = deepres.create("resnet8-cifar", width=0.25), torch.zeros(4, 3, 8, 8), torch.zeros(4).long()
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def no_compiler(net: nn.Module) -> nn.Module:
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(torch, "compile", no_compiler)
    times = trial(model, x, y, [SPEEDS["float32"], SPEEDS["float32-compiled"], SPEEDS["float32-channels-last"]], enough=0)
    assert list(times) == ["float32", "float32-channels-last"]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_bf16_trains_as_float32_does() -> None:
    low, exact = (
        deepres.train(Run("resnet8-cifar", "digits", "digits", epochs=2, speed=speed), show=False)
        for speed in ("bf16-channels-last", "exact")
    )
    assert low.speed == "bf16-channels-last" and low.history[-1].loss < low.history[0].loss / 2
    assert [record.loss for record in low.history] == pytest.approx([record.loss for record in exact.history], rel=0.02)


def test_options_that_make_no_sense_get_a_sentence() -> None:
    with pytest.raises(DeepresError, match="did you mean 'exact'"):
        Run("resnet8-cifar", speed="exakt")
    with pytest.raises(DeepresError, match="neither 'auto' nor 'all', and 'much' is not a size"):
        Run("resnet8-cifar", memory="much")
    with pytest.raises(DeepresError, match="at least 1"):
        Run("resnet8-cifar", keep=0)
    with pytest.raises(DeepresError, match="not on this machine"):
        pick_device("cuda:7")
