"""Two processes measure two times, and still take out the same blocks."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest
import torch.multiprocessing as mp

import deepres
from deepres.shrinking import cost


def _shrink(rank: int, port: int, folder: str) -> None:
    os.environ |= {"WORLD_SIZE": "2", "RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}

    def times(model: object, units: list[object], inputs: object) -> list[float]:
        """By the first process's clock the last blocks cost most, by the second's the first."""
        shares = [2.0**i for i in range(len(units))]
        return [share / sum(shares) for share in (shares if rank == 0 else shares[::-1])]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cost, "block_times", times)
        found = deepres.shrink(
            "resnet14-cifar",
            "digits",
            "time=0.6",
            recipe="digits",
            epochs=2,
            batch=64,
            speed="float32",
            memory="all",
            show=False,
            out=f"{folder}/run",
        )
    Path(folder, f"{rank}.json").write_text(json.dumps([found.removed, [str(p.shape) for p in found.model.parameters()]]))


def test_one_process_s_times_decide(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_shrink, args=(port, str(tmp_path)), nprocs=2)
    (first, shapes), (second, others) = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first == second and shapes == others
    assert first == ["stages.2.blocks.1"]  # half of the time, and dearest of those that can go, by the first process's clock
