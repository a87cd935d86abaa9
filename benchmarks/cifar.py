"""Table 6 and degradation on the JPEG CIFAR-10 files, with a schedule that two cores can run, beside a peer.

The peer is a widely used re-implementation's architecture and recipe (SGD, 0.1 divided by 10 at half and three quarters, crops and
flips, He initialisation), in a plain PyTorch loop, trained on the same files for as many epochs.

    python -m benchmarks.cifar --data ../shared/data/cifar10-jpeg            # trains what is missing, then records
    python -m benchmarks.cifar --data ... --part 0/2 & ... --part 1/2        # two processes share the training
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.common import BF16, SPEED, record
from benchmarks.peers import CifarResNet
from deepres.data import Prepare, Resident, pad_crop_flip
from deepres.evaluation import measure
from deepres.paper.experiments import experiment
from deepres.paper.lab import Lab, scale, timed
from deepres.paper.page import claim_table

DEPTHS = (20, 32, 56)


def train_peer(lab: Lab, depth: int, seed: int, epochs: float) -> float:
    """Test error of the peer, %; the last epoch's weights, as its users keep them."""
    path = lab.out / "peer" / f"resnet{depth}-seed{seed}.json"
    if path.exists():
        return float(json.loads(path.read_text())["test_error"])
    torch.manual_seed(seed)
    model = CifarResNet(depth)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
    model.to(memory_format=torch.channels_last)
    data, prepare = lab.data.train, Prepare.usual(32)
    assert isinstance(data, Resident)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9, weight_decay=1e-4)
    steps, done = round(epochs * -(-len(data) // 128)), 0
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [steps // 2, 3 * steps // 4])
    while done < steps:
        for index in torch.randperm(len(data), generator=generator).split(128):
            images = prepare.normalise(pad_crop_flip(data.pixels[index], torch.rand(len(index), 3, generator=generator), pad=4))
            with torch.autocast("cpu", torch.bfloat16, enabled=BF16):
                logits = model(images.to(memory_format=torch.channels_last)).float()
            optimizer.zero_grad()
            F.cross_entropy(logits, data.labels[index]).backward()
            optimizer.step()
            scheduler.step()
            done += 1
            if done == steps:
                break
    error = measure(model, lab.data.test, prepare, lab.data.classes).top1
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"test_error": error}))
    return error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--epochs", type=float, default=2.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--part", default="0/1", help="of the training; only the whole is recorded")
    parser.add_argument("--out", type=Path, default=Path("runs/cifar-record"))
    options = parser.parse_args()
    part, parts = map(int, options.part.split("/"))
    if parts > 1:
        torch.set_num_threads(max(1, torch.get_num_threads() // parts))
    base = scale("cifar").changed(data=options.data, epochs=options.epochs, seeds=options.seeds)
    differs = f"CIFAR-10 images encoded as JPEG, {options.epochs:g} epochs of 45,000 images instead of 64,000 steps"
    lab = Lab(dataclasses.replace(base, table=DEPTHS, differs=differs), options.out, SPEED)
    nets = [f"resnet{depth}-cifar" for depth in DEPTHS] + ["plain20-cifar", "plain56-cifar"]
    work: list[Callable[[], object]] = []
    for seed in lab.seeds:
        work += [lambda net=net, seed=seed: lab.train(net, seed) for net in nets]  # type: ignore[misc]
        work += [lambda depth=depth, seed=seed: train_peer(lab, depth, seed, options.epochs) for depth in (20, 56)]  # type: ignore[misc]
    for i, task in enumerate(work):
        if i % parts == part:
            task()
            print(f"{i + 1} of {len(work)}", flush=True)
    if parts > 1:
        return
    outcomes = []
    for name in ("degradation", "table6"):
        one = experiment(name)
        outcome = timed(one.run, lab)
        plain = dataclasses.asdict(outcome)
        plain["curves"] = plain.pop("figures")
        for row, (_, text, paper) in zip(plain["rows"], claim_table(outcome).rows, strict=True):
            row["text"], row["paper"] = text, ""  # a paper's error is another test's
            row.pop("published", None)
            assert paper is not None
        outcomes.append(plain)
    peer = {}
    for depth in (20, 56):
        errors = [train_peer(lab, depth, seed, options.epochs) for seed in lab.seeds]
        ours = [lab.train(f"resnet{depth}-cifar", seed).test_error for seed in lab.seeds]
        peer[f"resnet-{depth}"] = {
            "peer": [round(e, 3) for e in errors],
            "ours": [round(e, 3) for e in ours],
            "difference": round(statistics.fmean(ours) - statistics.fmean(errors), 3),
        }
    what = {"scale": "cifar", "differs": differs, "seeds": options.seeds, "outcomes": outcomes, "peer": peer}
    record("paper-cifar10-jpeg", what)


if __name__ == "__main__":
    main()
