"""Language models: a character model of 4 layers, trained with AdamW and with Muon, and its throughput beside a plain PyTorch loop.

Each row of ``language-training.json`` is one training; rows that are there are not measured again. Both optimizers have the best of
three learning rates (``TRIED``), chosen by the validation loss of seed 0.

    python -m benchmarks.language --data tinyshakespeare.txt training
    python -m benchmarks.language --data tinyshakespeare.txt throughput    # some six minutes on an idle machine
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

import deepres
from benchmarks.common import BF16, RESULTS, Remote, in_groups, record, summary
from deepres import Run
from deepres.data import Data, open_data
from deepres.evaluation import measure
from deepres.training import Recipe, Trainer, recipe
from deepres.training.distribute import DistributedContext
from deepres.training.speed import SPEEDS
from deepres.training.speed_trial import exactness

NET, BATCH, CONTEXT = "gpt-tiny", 12, 64  # 4 layers of 128 channels
CASES = {"adamw": ("language", 5e-3, 2000), "muon": ("language-muon", 8e-3, 1200)}  # recipe, learning rate, steps
TRIED = {"adamw": (1e-3, 3e-3, 5e-3), "muon": (2e-3, 4e-3, 8e-3)}
SEEDS = 3
REACH = 1.88  # nats; what the widely used minimal trainer states for this model on a laptop's CPU
ROWS = "language-training"


def how(optimizer: str, steps: int | None = None) -> Recipe:
    name, lr, usual = CASES[optimizer]
    return dataclasses.replace(recipe(name, lr=lr, batch=BATCH), epochs=None, iterations=steps or usual)


def train_one(data: Data, optimizer: str, seed: int) -> dict[str, Any]:
    began = time.perf_counter()
    result = deepres.train(Run(NET, data.name, how(optimizer), seed=seed, speed="float32"), show=False, data=data)
    found = measure(result.model, data.val, data.prepare, data.classes)
    _, lr, steps = CASES[optimizer]
    return {
        "optimizer": optimizer,
        "lr": lr,
        "steps": steps,
        "seed": seed,
        "val_loss": round(found.loss, 4),
        "bits_per_byte": round(found.loss / math.log(2), 4),  # the text is ASCII, so a character is a byte
        "val_error": round(found.top1, 2),
        "seconds": round(time.perf_counter() - began, 1),
    }


def training(path: str) -> None:
    """The loss of each optimizer over the seeds."""
    data = open_data(path, size=CONTEXT)
    file = RESULTS / f"{ROWS}.json"
    rows: list[dict[str, Any]] = json.loads(file.read_text())["rows"] if file.exists() else []
    for seed in range(SEEDS):
        for optimizer in CASES:
            if not any((row["optimizer"], row["seed"]) == (optimizer, seed) for row in rows):
                rows.append(train_one(data, optimizer, seed))
                record(ROWS, {"what": _what(), "tried": TRIED, "reach": REACH, "rows": rows, **_over_seeds(rows)})


def _what() -> str:
    return f"{NET} on the characters of tinyshakespeare, batches of {BATCH} x {CONTEXT}"


def _over_seeds(rows: list[dict[str, Any]]) -> dict[str, Any]:
    found = {}
    for optimizer in CASES:
        losses = [row["val_loss"] for row in rows if row["optimizer"] == optimizer]
        if losses:
            spread = statistics.stdev(losses) if len(losses) > 1 else 0.0
            found[optimizer] = {"n": len(losses), "val_loss": round(statistics.fmean(losses), 4), "deviation": round(spread, 4)}
    return found


# ---- throughput: to be measured on an idle machine


def ours(path: str, speed: str) -> tuple[Callable[[], None], str]:
    """``Trainer.step`` with what ``deepres.train`` sets for a run."""
    data = open_data(path, size=CONTEXT)
    trainer = Trainer(Run(NET, data.name, how("adamw"), speed=speed), data, DistributedContext(torch.device("cpu")))
    trainer.model.train()
    batch = next(trainer.loader.epoch(0))
    settings = contextlib.ExitStack()
    settings.enter_context(exactness(SPEEDS[trainer.speed.name]))
    settings.enter_context(trainer.heap())

    def step(_: contextlib.ExitStack = settings) -> None:
        trainer.step(batch)

    return step, f"deepres --speed {speed}" + (f" ({trainer.speed.name})" if speed == "auto" else "")


def peer(path: str, bf16: bool, compile: bool) -> tuple[Callable[[], None], str]:
    """A plain loop: forward, backward, clipping, fused AdamW; nothing is checked or logged."""
    data = open_data(path, size=CONTEXT)
    torch.manual_seed(0)
    model = Plain(len(data.classes))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, (0.9, 0.99), weight_decay=0.1, fused=True)
    rows = torch.arange(BATCH)
    x, y = (part[rows].long() for part in (data.train.pixels, data.train.labels))  # type: ignore[union-attr]
    call: Callable[[torch.Tensor], torch.Tensor] = torch.compile(model) if compile else model

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16) if bf16 else contextlib.nullcontext():
            logits = call(x)
        loss = F.cross_entropy(logits.float().flatten(0, 1), y.flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step, "plain loop" + (" bf16" if bf16 else "") + (" compiled" if compile else "")


class _Layer(torch.nn.Module):
    """One layer as minimal trainers write it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = torch.nn.LayerNorm(width), torch.nn.LayerNorm(width)
        self.qkv, self.out = torch.nn.Linear(width, 3 * width), torch.nn.Linear(width, width)
        self.up, self.down = torch.nn.Linear(width, 4 * width), torch.nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, length, width = x.shape
        q, k, v = (t.view(n, length, self.heads, -1).transpose(1, 2) for t in self.qkv(self.norm1(x)).split(width, 2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(n, length, width)
        x = x + self.out(y)
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))


class Plain(torch.nn.Module):
    """A GPT of the same size, as minimal trainers write it."""

    def __init__(self, vocabulary: int, width: int = 128, heads: int = 4, layers: int = 4) -> None:
        super().__init__()
        self.embed, self.places = torch.nn.Embedding(vocabulary, width), torch.nn.Embedding(CONTEXT, width)
        self.layers = torch.nn.ModuleList(_Layer(width, heads) for _ in range(layers))
        self.norm, self.head = torch.nn.LayerNorm(width), torch.nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens) + self.places.weight[: tokens.shape[1]]
        for layer in self.layers:
            x = layer(x)
        logits: torch.Tensor = self.head(self.norm(x))
        return logits


def throughput(path: str, groups: int = 3, turns: int = 15) -> None:
    """Tokens a second of a training step, alternating, each candidate in fresh processes."""
    kinds = [(False, False), (False, True), *([(True, False), (True, True)] if BF16 else [])]
    speeds = [
        "auto",
        "bf16-compiled" if BF16 else "float32-compiled",
    ]  # auto does not compile for a run that compiling outlasts
    times = in_groups(
        lambda: [
            *(Remote(peer, path, bf16, compiled) for bf16, compiled in kinds),
            *(Remote(ours, path, speed) for speed in speeds),
        ],
        groups,
        turns,
        warm=5,
    )
    best = min((name for name in times if name.startswith("plain")), key=lambda name: statistics.median(times[name]))
    found_all = summary(times, BATCH * CONTEXT, best, "tokens")
    record("language-throughput", {"what": _what(), "processes": groups, "best_peer": best, **found_all})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="the text, tinyshakespeare.txt")
    parser.add_argument("--groups", type=int, default=3, help="of fresh processes, for throughput")
    parser.add_argument("--turns", type=int, default=15, help="of each candidate in a group")
    parser.add_argument("parts", nargs="*", choices=["training", "throughput"], default=["training", "throughput"])
    given = parser.parse_args()
    for part in given.parts:
        if part == "training":
            training(given.data)
        else:
            throughput(given.data, given.groups, given.turns)
