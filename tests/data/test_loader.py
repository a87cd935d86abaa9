"""The loader and its decode workers: what is drawn, who draws it, and what is left when the trainer is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import psutil
import pytest
import torch

from deepres.data import Loader, Resident, Shard, Streamed, draws, mix, open_data, seeded
from deepres.data.decode_pool import in_groups
from deepres.errors import DeepresError


def test_draws_depend_on_the_key_and_the_index_alone() -> None:
    index = torch.tensor([5, 900, 5, 2**40])
    drawn = draws(4, index, 3, 1)
    assert torch.equal(drawn[0], drawn[2]) and torch.equal(draws(4, index[1:2], 3, 1), drawn[1:2])
    assert len({tuple(draws(2, index[:1], *key)[0].tolist()) for key in [(3, 1), (1, 3), (3, 2), (0, 0), (3,)]}) == 5
    many = draws(3, torch.arange(100_000), 0, 0)
    assert float(many.min()) >= 0 and float(many.max()) < 1
    torch.testing.assert_close(many.mean(0), torch.full((3,), 0.5, dtype=torch.float64), atol=0.005, rtol=0)
    torch.testing.assert_close(torch.corrcoef(many.T), torch.eye(3, dtype=torch.float64), atol=0.02, rtol=0)


@pytest.mark.parametrize("colour", [False, True])
def test_neither_batch_size_nor_processes_change_a_pixel(colour: bool) -> None:
    data = open_data("digits", channels=3)
    split = data.train.take(torch.arange(96))

    def seen(batch: int, world: int) -> torch.Tensor:
        images = torch.empty(96, 3, 8, 8)
        for rank in range(world):
            loader = Loader(split, data.prepare, batch, augment="pad-crop-flip", colour=colour, share=Shard(rank, world))
            order = loader.order(4).split(loader._sizes())
            for rows, step in zip(order, loader.epoch(4), strict=True):
                images[rows[loader.share.of(len(rows))]] = step.images
        return images

    alone = seen(32, 1)
    for batch, world in [(96, 1), (1, 1), (32, 2), (31, 3), (2, 3)]:
        torch.testing.assert_close(seen(batch, world), alone, atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", [{"mixup": 0.4, "cutmix": 0.0}, {"mixup": 0.0, "cutmix": 1.0}, {"mixup": 0.2, "cutmix": 1.0}])
@pytest.mark.parametrize("count", [8, 7])
def test_mixing_does_not_depend_on_the_number_of_processes(kind: dict[str, float], count: int) -> None:
    images, targets = torch.rand(count, 3, 8, 8), torch.eye(count)
    whole = mix(images, targets, seeded(7, 1), **kind)
    for world in (2, 3, 5):
        parts = [mix(images[s], targets[s], seeded(7, 1), **kind) for s in (Shard(r, world).of(count) for r in range(world))]
        for i in range(2):
            torch.testing.assert_close(torch.cat([part[i] for part in parts]), whole[i])


def test_a_stream_with_fewer_examples_than_processes_gives_empty_tensors(large_folder: Path) -> None:
    data = open_data(large_folder)
    split = data.train.take(torch.arange(5))
    runs = [list(Loader(split, data.prepare, 4, shuffle=False, share=Shard(rank, 4)).epoch(0, size=32)) for rank in range(4)]
    assert [tuple(step.images.shape) for step in runs[1]] == [(0, 1, 32, 32), (0, 1, 32, 32)]
    assert all(len(step.labels) for step in runs[0])  # the norm statistics of the first process are those that are saved
    assert sum(len(step.labels) for run in runs for step in run) == 5


def test_an_empty_split_is_refused_with_a_sentence() -> None:
    data = open_data("digits")
    for empty in (Resident(torch.empty(0, 1, 8, 8, dtype=torch.uint8), torch.empty(0, dtype=torch.int64)), Streamed(())):
        with pytest.raises(DeepresError, match="no examples"):
            Loader(empty, data.prepare, 4)


@pytest.mark.parametrize(("workers", "processes"), [(0, False), (3, False), (2, True)])
def test_groups_come_in_order_and_errors_reach_the_caller(workers: int, processes: bool) -> None:
    assert list(in_groups(abs, [[-3, 2], [], [-1]], workers, processes=processes)) == [[3, 2], [], [1]]
    with pytest.raises(TypeError):
        list(in_groups(abs, [[1], ["x"]], workers, processes=processes))  # type: ignore[list-item]


@pytest.mark.parametrize("dies", ["at once", "at work"])
def test_a_decode_process_that_is_killed_is_named_and_the_others_end(dies: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if dies == "at once":
        monkeypatch.setattr(sys, "executable", "/bin/false")
    before = set(psutil.Process().children())
    keys = [[1] * 4, [9] * 4, [1] * 4]
    with pytest.raises(DeepresError, match=r"a decode process ended unexpectedly \(exit code (9|1)\).*--workers"):
        list(in_groups(os._exit if dies == "at work" else abs, keys, 2, processes=True))
    assert not set(psutil.Process().children()) - before


def test_numbers_that_make_no_sense_get_a_sentence(large_folder: Path) -> None:
    data = open_data(large_folder)
    for wrong, says in (({"batch": 0}, "--batch is"), ({"batch": 4, "workers": -1}, "--workers is")):
        with pytest.raises(DeepresError, match=says):
            Loader(data.train, data.prepare, **wrong)


def test_threads_and_processes_decode_the_same(large_folder: Path) -> None:
    data = open_data(large_folder)
    runs = [
        [
            step.images
            for step in Loader(data.train, data.prepare, 8, augment="scale-crop", workers=2, processes=p).epoch(1, size=32)
        ]
        for p in (False, True)
    ]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_an_epoch_that_is_left_early_ends_its_workers(large_folder: Path) -> None:
    data = open_data(large_folder)
    before = set(psutil.Process().children())  # of other tests in this process
    epoch = Loader(data.train, data.prepare, 2, workers=2, processes=True).epoch(0, size=32)
    next(epoch)
    workers = set(psutil.Process().children()) - before
    assert len(workers) == 2
    epoch.close()  # type: ignore[attr-defined]
    assert not workers & set(psutil.Process().children())


# no `if __name__ == "__main__"`: processes that import this module again would start processes without end
SCRIPT = """
import sys, time
from deepres.data import Loader, open_data
data = open_data(sys.argv[1])
for step in Loader(data.train, data.prepare, 2, workers=2, processes=sys.argv[2] == "processes").epoch(0, size=32):
    print(len(step.labels), flush=True)
    time.sleep(float(sys.argv[3]))
"""


def start(folder: Path, script: Path, how: str, pause: float) -> subprocess.Popen[str]:
    script.write_text(textwrap.dedent(SCRIPT))
    return subprocess.Popen([sys.executable, str(script), str(folder), how, str(pause)], stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("how", ["threads", "processes"])
def test_a_script_without_a_main_guard_works(how: str, large_folder: Path, tmp_path: Path) -> None:
    script = start(large_folder, tmp_path / "script.py", how, 0)
    output, _ = script.communicate(timeout=120)
    assert script.returncode == 0 and sum(map(int, output.split())) > 8


def test_decode_processes_end_when_the_trainer_is_killed(large_folder: Path, tmp_path: Path) -> None:
    script = start(large_folder, tmp_path / "script.py", "processes", 60)
    assert script.stdout is not None
    script.stdout.readline()
    workers = psutil.Process(script.pid).children(recursive=True)
    assert len(workers) == 2
    os.kill(script.pid, signal.SIGKILL)
    script.communicate()
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert alive == []
