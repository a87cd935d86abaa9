"""Inverse Curriculum Training of other libraries' networks: torchvision's ResNet-34 on photographs, a GPT-2-like network on a text.

    python -m benchmarks.families --data ../shared/data/cifar10-jpeg --text ../shared/data/tinyshakespeare.txt

Each is trained for some epochs, and from there goes on as long twice: as it is, and shrunk. So the two that are compared have had the
same epochs, and the whole one the same second schedule.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
import torchvision
from torch import nn

from benchmarks.common import record
from benchmarks.shrink import subset
from deepres import Run, train
from deepres.data import Data, Resident, open_data
from deepres.shrink import shrink
from deepres.shrink.shrink import shrink_recipe
from deepres.train import Recipe, recipe


def gpt2(data: Data) -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    shape = {"n_layer": 8, "n_embd": 96, "n_head": 4, "vocab_size": len(data.classes), "n_positions": data.prepare.size}
    return GPT2LMHeadModel(GPT2Config(**shape, bos_token_id=0, eos_token_id=0, use_cache=False))  # type: ignore[no-any-return]


def beginning(data: Data, tokens: int) -> Data:
    """The text's first examples."""
    assert isinstance(data.train, Resident)
    return dataclasses.replace(data, train=data.train.take(torch.arange(min(tokens, len(data.train)))))


def case(build: Callable[[], nn.Module], data: Data, first: Recipe, then: Recipe, target: str, seeds: int) -> dict[str, object]:
    whole: list[float] = []
    small: list[float] = []
    times: list[float] = []
    for seed in range(seeds):
        torch.manual_seed(seed)
        run = Run(
            "custom",
            data.name,
            first,
            seed=seed,
            speed="float32-channels-last" if not data.is_text else "float32",
            memory="all",
        )
        start = train(run, data=data, model=build(), show=False).model
        after = dataclasses.replace(run, recipe=then)
        whole.append(train(after, data=data, model=copy.deepcopy(start), show=False).test.top1)
        shrunk = shrink(start, data, target, recipe=then, show=False, seed=seed, speed=run.speed, memory="all")
        small.append(shrunk.result.test.top1)
        times.append(shrunk.time)
        print(seed, whole[-1], small[-1], *shrunk.words(), sep="\n  ", flush=True)
    rises = [b - a for a, b in zip(whole, small, strict=True)]
    return {
        "target": target,
        "blocks": list(shrunk.blocks),
        "whole": [round(e, 2) for e in whole],
        "shrunk": [round(e, 2) for e in small],
        "rise": round(statistics.fmean(rises), 2),
        "rise_spread": round(statistics.stdev(rises), 2) if seeds > 1 else 0.0,
        "time": round(statistics.fmean(times), 3),
        "times": [round(t, 3) for t in times],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--images", type=int, default=6_000)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--windows", type=int, default=3_000, help="examples of the text, of 128 characters each")
    parser.add_argument("--epochs", type=float, default=6.0, help="before and again after")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    photos = subset(open_data(options.data, size=options.size), options.images, options.size)
    text = beginning(open_data(options.text), options.windows)
    half = {"epochs": options.epochs}
    words = dataclasses.replace(
        shrink_recipe(), batch=32, lr=0.3, augment="none", label_smoothing=0.0, weight_decay=1e-4, **half
    )
    cases = {
        f"torchvision resnet34, {options.images:,} images at {options.size}x{options.size}": case(
            lambda: torchvision.models.resnet34(num_classes=10),
            photos,
            recipe("fast-cifar", lr=0.1, **half),
            dataclasses.replace(shrink_recipe(), **half),
            "time=0.6",
            options.seeds,
        ),
        f"GPT-2-like of 8 layers, {options.windows:,} windows of {text.prepare.size} characters": case(
            lambda: gpt2(text), text, words, words, "blocks=5", options.seeds
        ),
    }
    record("shrink-families", {"epochs": options.epochs, "seeds": options.seeds, "cases": cases})


if __name__ == "__main__":
    main()
