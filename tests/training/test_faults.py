"""Networks and situations that once stopped a run: attention by the default recipe, text, growing images, changed data."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from run_helpers import Stop, same_weights
from torch import nn

import deepres
from deepres import Callback, DeepresError, Run
from deepres.data import Data, Resident, difference, digest, open_data
from deepres.lens import Monitor
from deepres.training import Interrupted, Recipe, Trainer, memory, recipe
from deepres.training.network import usual_recipe


def test_a_vision_transformer_trains_by_the_default_recipe(small_folder: Path, tmp_path: Path) -> None:
    config = transformers.ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=16,
        patch_size=4,
        num_channels=1,
        num_labels=3,
    )
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    result = deepres.train(
        Run(f"hf:{tmp_path / 'vit'}", str(small_folder), epochs=10, batch=16, out=str(tmp_path / "run"), speed="exact"),
        show=False,
    )
    how = Run.read(tmp_path / "run").recipe
    assert isinstance(how, Recipe) and (how.name, how.optimizer, how.batch) == ("transformer", "adamw", 16)
    assert result.history[-1].loss < 0.95 * result.history[0].loss


def test_the_default_recipe_follows_from_the_network() -> None:
    assert usual_recipe(deepres.create("resnet20-cifar")) == "fast-cifar"
    assert usual_recipe(nn.TransformerEncoderLayer(8, 2)) == "transformer"
    assert Run("resnet20-cifar").recipe == "auto"
    with pytest.raises(DeepresError, match="lr must be above 0"):
        Run("resnet20-cifar", lr=-1.0)


def test_the_lens_looks_at_a_language_model(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("deep residual learning, again and again. " * 60)
    monitor = Monitor("every=1epoch", say=lambda _: None)
    data = open_data(tmp_path / "text.txt", size=16)
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=16, vocab_size=len(data.classes))
    )
    run = Run("custom", "text", recipe("transformer", epochs=1), speed="exact")
    deepres.train(run, show=False, data=data, model=model, callbacks=[monitor])
    (seen,) = monitor.snapshots
    assert len(seen.sites) == 4 and all(site.gradient > 0 and 0 < site.by_shortcut <= 1 for site in seen.sites)


def test_growing_images_resume_to_the_bit_in_mid_epoch(tmp_path: Path) -> None:
    """The side changes at a quarter of the run, in the middle of the first epoch: an epoch keeps the side that it began with."""
    how = Recipe("x", epochs=2, batch=256, lr=0.05, augment="none", sizes=((0.25, 0.5), (1.0, 1.0)))
    whole, halted = (
        Run("resnet8-cifar", "digits", how, str(tmp_path / name), speed="exact", width=0.25) for name in ("whole", "halted")
    )
    deepres.train(whole, show=False)
    with pytest.raises(Interrupted):
        deepres.train(halted, show=False, callbacks=[Stop(4)])
    sides: list[int] = []

    class See(Callback):
        def before_step(self, trainer: Trainer, batch: Any) -> None:
            sides.append(batch.images.shape[-1])

    deepres.train(halted, resume=True, show=False, callbacks=[See()])
    assert sides[:2] == [4, 4] and sides[2:] == [8] * 6
    assert same_weights(tmp_path / "whole", tmp_path / "halted")


def test_data_that_changed_between_a_run_and_its_resume_are_named(small_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(small_folder, tmp_path / "data")
    how = Recipe("x", epochs=1, batch=16, lr=0.01, augment="none")
    run = Run("resnet8-cifar", str(tmp_path / "data"), how, str(tmp_path / "run"), speed="exact", width=0.25)
    with pytest.raises(Interrupted):
        deepres.train(run, show=False, callbacks=[Stop(1)])
    shutil.copytree(tmp_path / "data" / "digit-2", tmp_path / "data" / "digit-3")
    with pytest.raises(
        DeepresError, match=r"data have changed .*digit-2 then, .*digit-3 now, training examples: 54 then, 72 now"
    ):
        deepres.train(run, resume=True, show=False)
    (tmp_path / "data" / "digit-3").rename(tmp_path / "kept")
    (tmp_path / "data" / "digit-2").rename(tmp_path / "data" / "other")
    with pytest.raises(DeepresError, match=r"\(classes: digit-0, digit-1, digit-2 then, digit-0, digit-1, other now\)"):
        deepres.train(run, resume=True, show=False)


def _first_half(path: Path, folder: Path) -> Run:
    how = Recipe("x", epochs=1, batch=16, lr=0.01, augment="none")
    run = Run("resnet8-cifar", str(path), how, str(folder), speed="exact", width=0.25)
    with pytest.raises(Interrupted):
        deepres.train(run, show=False, callbacks=[Stop(1)])
    return run


def _swap(one: Path, other: Path) -> None:
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)


@pytest.mark.parametrize("size", [8, 112], ids=["decoded", "streamed"])
def test_examples_that_moved_or_changed_between_a_run_and_its_resume_are_named(size: int, tmp_path: Path) -> None:
    for part, count in (("train", 12), ("val", 4), ("test", 4)):
        for label in "ab":
            (tmp_path / "data" / part / label).mkdir(parents=True)
            for i in range(count):
                noise = np.random.default_rng([i, ord(label)]).integers(0, 255, (size, size), np.uint8)
                noise[: i % 3] = 0  # so that files differ in size
                Image.fromarray(noise).save(tmp_path / "data" / part / label / f"{label}{i}.png")
    run = _first_half(tmp_path / "data", tmp_path / "run")
    a, b = (tmp_path / "data" / "train" / label for label in "ab")

    def refused(what: str) -> None:
        with pytest.raises(DeepresError, match=rf"data have changed since .*\({what}\); put them back"):
            deepres.train(run, resume=True, show=False)

    shutil.copytree(tmp_path / "data", tmp_path / "kept")
    (a / "a1.png").rename(b / "moved.png")
    (b / "b1.png").rename(a / "moved.png")
    refused(r"training: 2 examples are there under a new name, the first '.*/train/a/moved.png' of class 'a'")
    shutil.rmtree(tmp_path / "data")
    shutil.copytree(tmp_path / "kept", tmp_path / "data")
    _swap(a / "a1.png", b / "b2.png")
    refused(r"training: 2 examples are of other content, the first '.*/train/a/a1.png' of class 'a'")
    _swap(a / "a1.png", b / "b2.png")
    with open(tmp_path / "data" / "test" / "b" / "b3.png", "ab") as file:
        file.write(bytes(8))
    refused(r"test: 1 example is of other content, the first '.*/test/b/b3.png' of class 'b'")
    shutil.rmtree(tmp_path / "data")
    (tmp_path / "kept").rename(tmp_path / "elsewhere")
    moved = dataclasses.replace(run, data=str(tmp_path / "elsewhere"))  # the same data by another path
    assert deepres.train(moved, resume=True, show=False).history


def test_labels_of_a_table_and_contents_of_arrays_are_compared_as_well(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    rows = [(f"files/{i}.png", "ab"[i % 2], "test" if i < 4 else "train") for i in range(24)]
    for i, (name, _, _) in enumerate(rows):
        Image.fromarray(np.full((8, 8), 10 * i, np.uint8)).save(tmp_path / name)

    def table(rows: list[tuple[str, str, str]]) -> Data:
        lines = [",".join(row) for row in [("path", "label", "split"), *rows]]
        (tmp_path / "list.csv").write_text("\n".join(lines) + "\n")
        return open_data(tmp_path / "list.csv")

    before = table(rows)
    swapped = [(n, {"files/7.png": "a", "files/8.png": "b"}.get(n, label), split) for n, label, split in rows]
    after = table(swapped)
    assert difference(digest(before), digest(before), before) == ""
    said = difference(digest(before), digest(after), after)
    assert "2 examples are of another class, the first " in said and "files/7.png' of class 'a'" in said
    digits = open_data("digits")
    assert isinstance(digits.train, Resident)
    pixels = digits.train.pixels.clone()
    pixels[5] += 1
    other = dataclasses.replace(digits, train=dataclasses.replace(digits.train, pixels=pixels))
    assert difference(digest(digits), digest(other), other).startswith(
        "training: 1 example is of other content, the first 'number 5' of class "
    )
    texts = []
    for name in ("x", "y"):
        (tmp_path / "text.txt").write_text(f"abc{name} xy" * 500)
        texts.append(open_data(tmp_path / "text.txt"))
    assert "the first 'number 0';" in difference(digest(texts[0]), digest(texts[1]), texts[1])  # which has no class


def test_a_checkpoint_without_digests_still_resumes(small_folder: Path, tmp_path: Path) -> None:
    run = _first_half(small_folder, tmp_path / "run")
    (path,) = (tmp_path / "run" / "checkpoints").glob("*.pt")
    state = torch.load(path, weights_only=True)
    del state["examples"]
    torch.save(state, path)
    assert deepres.train(run, resume=True, show=False).history


def test_batch_norm_over_one_value_is_refused_with_a_sentence() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, 10))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.body(x[:1])

    run = Run("custom", "digits", Recipe("x", epochs=1, batch=64, augment="none"), speed="exact", memory="all")
    with pytest.raises(DeepresError, match=r"cannot normalise one value per channel .*raise --batch"):
        deepres.train(run, show=False, model=Net())


def test_the_file_cache_of_a_container_counts_as_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, gib = torch.device("cpu"), 1 << 30
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: type("M", (), {"available": 100 * gib}))
    for folder, names, prefix in (
        (tmp_path / "v2", ("memory.max", "memory.current"), ""),
        (tmp_path / "v1" / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes"), "total_"),
    ):
        folder.mkdir(parents=True)
        monkeypatch.setattr(memory, "CGROUP", tmp_path / folder.relative_to(tmp_path).parts[0])
        (folder / names[0]).write_text(str(8 * gib))
        (folder / names[1]).write_text(str(7 * gib))
        assert memory.available_bytes(cpu) == 1 * gib
        stat = f"anon {2 * gib}\n{prefix}inactive_file {3 * gib}\n{prefix}active_file {2 * gib}\n"
        (folder / "memory.stat").write_text(stat)
        assert memory.available_bytes(cpu) == 6 * gib
