"""Two processes measure two times, and still take out the same blocks."""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path

import pytest
import torch.multiprocessing as mp

import deepres
from deepres.adapters import find_blocks


def _shrink(rank: int, port: int, folder: str) -> None:
    """By the first process's clock the last blocks take longest, by the second's the first: a block's pass moves its hands."""
    os.environ |= {"WORLD_SIZE": "2", "RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    model, clock = deepres.create("resnet14-cifar", in_channels=1), [0.0]
    blocks = find_blocks(model)
    for i, block in enumerate(blocks if rank == 0 else blocks[::-1]):

        def move(*_: object, seconds: float = 2.0**i) -> None:
            clock[0] += seconds

        block.sites[0].block.register_forward_hook(move, prepend=True)
    options = {
        "recipe": "digits",
        "epochs": 2,
        "batch": 64,
        "trained": False,
        "speed": "float32",
        "memory": "all",
        "show": False,
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "perf_counter", lambda: clock[0])
        found = deepres.shrink(model, "digits", "time=0.6", out=f"{folder}/run", **options)
    Path(folder, f"{rank}.json").write_text(json.dumps([found.removed, [str(p.shape) for p in found.model.parameters()]]))


def test_the_first_process_s_times_decide(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_shrink, args=(port, str(tmp_path)), nprocs=2)
    (first, shapes), (second, others) = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first == second and shapes == others
    assert first == ["stages.2.blocks.1"]  # half of the time, and dearest of those that can go, by the first process's clock
