"""Several processes under torchrun: as one process would, with one writer, resumable on another number."""

import dataclasses
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import timm.layers
import torch
import torch.multiprocessing as mp
from run_helpers import torchrun

import deepres
from deepres import Run
from deepres.cli.main import main
from deepres.errors import DeepresError
from deepres.models import read_checkpoint
from deepres.nn.fused import FusedNorm
from deepres.training import read_log, recipe
from deepres.training.fusion import accelerate
from deepres.training.sync_norm import _Synchronised, local_norms, synchronise_norms

DEEPRES = ("-m", "deepres")
COMMON = ["--net", "resnet8-cifar", "--width", "0.5", "--recipe", "digits", "--batch", "64", "--speed", "exact", "--sync-norm"]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("ddp") / "two"
    done = torchrun(*DEEPRES, "train", *COMMON, "--epochs", "2", "--out", str(out))
    assert done.stdout.count("test error") == 1  # one process speaks
    return out


def test_two_processes_follow_one(two: Path, tmp_path: Path) -> None:
    run = Run.read(two)
    deepres.train(Run(**{**run.__dict__, "out": str(tmp_path / "one")}), show=False)
    ours, theirs = read_log(two), read_log(tmp_path / "one")
    assert [line["epoch"] for line in ours] == [1, 2]
    for a, b in zip(ours, theirs, strict=True):
        assert a["step"] == b["step"]
        assert a["loss"] == pytest.approx(b["loss"], rel=2e-2)
    assert ours[0]["loss"] == pytest.approx(theirs[0]["loss"], rel=2e-3)
    # all examples of validation and test count once, however many processes share them
    for folder in (two, tmp_path / "one"):
        assert json.loads((folder / "result.json").read_text())["test"]["n"] == 359


def test_a_run_resumes_on_another_number_of_processes(two: Path, tmp_path: Path) -> None:
    """The first epoch on two processes, the second on one."""
    out = tmp_path / "moved"
    out.mkdir()
    (out / "run.json").write_text((two / "run.json").read_text())
    (out / "checkpoints").mkdir()
    first = sorted((two / "checkpoints").iterdir())[0]
    (out / "checkpoints" / first.name).write_bytes(first.read_bytes())
    (out / "log.jsonl").write_text((two / "log.jsonl").read_text())
    deepres.resume(out, show=False)
    moved, stayed = read_log(out), read_log(two)
    assert [line["epoch"] for line in moved] == [1, 2]
    assert moved[0] == stayed[0]
    assert moved[1]["loss"] == pytest.approx(stayed[1]["loss"], rel=2e-2)
    assert len(read_checkpoint(out / "last.safetensors")[0]) == len(read_checkpoint(two / "last.safetensors")[0])


THREADS = """
import torch
from deepres.training.distribute import join_processes
torch.set_num_threads(8)
for run in range(2):
    with join_processes("cpu"):
        print(torch.get_num_threads(), flush=True)
"""


def test_processes_share_the_threads_of_their_machine_once(tmp_path: Path) -> None:
    """A second run in the same processes does not halve them again."""
    (tmp_path / "script.py").write_text(THREADS)
    assert torchrun(str(tmp_path / "script.py")).stdout.split() == ["4"] * 4


def test_bad_input_under_torchrun_ends_with_a_sentence() -> None:
    done = torchrun(*DEEPRES, "train", "--net", "resnet9-cifar", check=False)
    assert done.returncode != 0 and "6n+2" in done.stderr


def test_a_port_in_use_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        environment = {
            **os.environ,
            "WORLD_SIZE": "2",
            "RANK": "0",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(taken.getsockname()[1]),
        }
        command = [sys.executable, "-m", "deepres", "train", *COMMON]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 2 and "give torchrun another --master-port" in done.stderr
    assert "Traceback" not in done.stderr


class OwnNorm(torch.nn.BatchNorm2d):
    """A class of a user's that only has another name."""


NORMS: dict[str, Callable[[], torch.nn.Module]] = {
    "ordinary": lambda: torch.nn.BatchNorm2d(3),
    "user's": lambda: OwnNorm(3),
    "of volumes": lambda: torch.nn.BatchNorm3d(3),
    "timm's": lambda: timm.layers.BatchNormAct2d(3, act_layer=torch.nn.SiLU, inplace=False),
    "fused": lambda: torch.nn.BatchNorm2d(3),  # once it is synchronised
}


def _images(name: str, dtype: torch.dtype) -> torch.Tensor:
    shape = (6, 3, 4, 2, 2) if name == "of volumes" else (6, 3, 4, 4)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def _normalise(rank: int, port: int, folder: str, name: str, empty: bool, dtype: torch.dtype) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    x = _images(name, dtype)
    part = x[:2] if rank == 0 else x[2:]  # parts of unequal size
    if empty:
        part = x if rank == 0 else x[:0]
    part = (part.clone() if part.ndim == 5 else part.clone(memory_format=torch.channels_last)).requires_grad_()
    norm = synchronise_norms(NORMS[name](), torch.device("cpu"))
    if name == "fused":
        norm = accelerate(torch.nn.Sequential(norm, torch.nn.ReLU()))[0]  # type: ignore[index]
        norm.relu = False
        assert isinstance(norm, FusedNorm) and norm.synchronised
    out = norm(part)
    (out**3).sum().backward()
    torch.save((out.detach(), part.grad, norm.running_var), f"{folder}/{rank}.pt")
    if rank == 0:
        with local_norms(norm):
            norm(x)  # the other process makes no forward pass here
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("name", "empty", "dtype"),
    [
        ("ordinary", False, torch.float32),
        ("ordinary", False, torch.bfloat16),  # on a CPU too, where PyTorch's own takes none
        ("user's", False, torch.float32),
        ("of volumes", False, torch.float32),
        ("timm's", False, torch.float32),
        ("fused", False, torch.float32),
        ("fused", True, torch.float32),
    ],
)
def test_synchronised_norms_are_those_of_the_whole_batch(tmp_path: Path, name: str, empty: bool, dtype: torch.dtype) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_normalise, args=(port, str(tmp_path), name, empty, dtype), nprocs=2)
    x = _images(name, dtype).float().requires_grad_()
    norm = NORMS[name]()
    out = norm(x)
    (out**3).sum().backward()
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    near = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 0.02, "atol": 0.05}
    assert parts[0][0].dtype == dtype and x.grad is not None
    torch.testing.assert_close(torch.cat([part[0] for part in parts]).float(), out.detach(), **near)
    torch.testing.assert_close(torch.cat([part[1] for part in parts]).float(), x.grad, **near)
    torch.testing.assert_close(parts[0][2], norm.running_var)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_classes_of_norms_are_changed_and_put_back(device: str) -> None:
    """PyTorch's synchronised norm needs a GPU to compute in training, so its class and its eval mode are looked at."""
    torch.manual_seed(0)
    norm = timm.layers.BatchNormAct2d(3, act_layer=torch.nn.SiLU, inplace=False)
    model = torch.nn.Sequential(torch.nn.BatchNorm2d(3), norm, torch.nn.Flatten(), torch.nn.BatchNorm1d(48)).eval()
    x, keys = _images("ordinary", torch.float32), list(model.state_dict())
    want = model(x)
    assert synchronise_norms(model, torch.device(device)) is model and list(model.state_dict()) == keys
    base = torch.nn.SyncBatchNorm if device == "cuda" else _Synchronised
    assert sum(isinstance(module, base) for module in model) == 3
    torch.testing.assert_close(model(x), want)
    with local_norms(model):
        assert type(norm) is timm.layers.BatchNormAct2d
        torch.testing.assert_close(model(x), want)
    assert isinstance(norm, base)


def test_a_norm_with_a_forward_pass_of_its_own_is_named() -> None:
    class Scaled(torch.nn.BatchNorm2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    model = torch.nn.Sequential(torch.nn.BatchNorm2d(3), Scaled(3))
    with pytest.raises(DeepresError, match=r"1 \(Scaled\): .* --sync-norm"):
        synchronise_norms(model, torch.device("cpu"))
    assert type(model[0]) is torch.nn.BatchNorm2d


def _few(out: Path | None, batch: int, exits: float | None, sync_norm: bool) -> dict[str, torch.Tensor]:
    """Weights after training on 10 digits, in batches of which some have fewer examples than there are processes."""
    digits = deepres.data.open_data("digits")
    data = dataclasses.replace(digits, train=digits.train.take(torch.arange(10)), val=digits.val.take(torch.arange(5)))
    how = dataclasses.replace(recipe("digits", epochs=1), lr=0.01)
    run = Run(
        "resnet8-cifar",
        "digits",
        how,
        str(out) if out else None,
        width=0.25,
        batch=batch,
        exits=exits,
        speed="exact",
        sync_norm=sync_norm,
    )
    return deepres.train(run, data=data, show=False).model.state_dict()


def _train_on_few(rank: int, world: int, port: int, folder: str) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_PORT": str(port)}
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    for name, *options in FEW:
        torch.save(_few(Path(folder) / name, *options), f"{folder}/{name}-{rank}.pt")


# 4, 4 and 2 examples; one at a time, with exit heads, and with norms of each process's own, which are then those of the whole batch
FEW = (("tail", 4, None, True), ("ones", 1, 0.5, True), ("local", 1, None, False))


@pytest.mark.parametrize("world", [2, 3])
def test_processes_without_an_example_change_nothing(world: int, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_train_on_few, args=(world, port, str(tmp_path)), nprocs=world)
    for name, *options in FEW:
        alone = _few(None, *options)
        for rank in range(world):
            for key, value in torch.load(tmp_path / f"{name}-{rank}.pt").items():
                if name == "local" and rank and "running" in key:
                    continue  # each process has its own; those of the first are saved
                torch.testing.assert_close(
                    value, alone[key], rtol=1e-3, atol=1e-4, msg=lambda text, at=(name, rank, key): f"{at}: {text}"
                )
        epochs = read_log(tmp_path / name)
        assert [line["step"] for line in epochs] == ([3] if name == "tail" else [10])  # every example once an epoch


def test_the_lens_on_one_process_does_not_wait_for_synchronised_norms(two: Path, tmp_path: Path) -> None:
    out = tmp_path / "seen"
    done = torchrun(*DEEPRES, "train", *COMMON, "--epochs", "2", "--lens", "every=0.5epochs", "--out", str(out))
    assert "FutureWarning" not in done.stderr
    assert len((out / "lens.jsonl").read_text().splitlines()) == 5
    one, other = (read_checkpoint(folder / "last.safetensors")[0] for folder in (two, out))
    assert all(torch.equal(one[name], other[name]) for name in one)  # and it leaves the run as it was


def test_shrinking_on_two_processes(tmp_path: Path) -> None:
    """Both come to the same network, whose removal of blocks they decided together; one of them speaks and writes."""
    out = tmp_path / "small"
    options = ["--recipe", "digits", "--epochs", "3", "--batch", "64", "--speed", "exact"]
    done = torchrun(*DEEPRES, "shrink", "resnet14-cifar", "--target", "blocks=4", *options, "--out", str(out))
    assert done.stdout.count("2 of 6 blocks are the identity and have been deleted") == 1
    assert sum(deepres.load(out / "blocks-4").config.blocks) == 4
    assert (out / "report.html").exists() and json.loads((out / "blocks-4" / "shrink.json").read_text())["difference"] < 1e-5


def test_a_claim_of_the_paper_on_two_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "paper"
    done = torchrun(*DEEPRES, "paper", "responses", "--epochs", "0.1", "--seeds", "1", "--out", str(out))
    assert done.stdout.count("The whole:") == 1 and (out / "report.html").exists()
    monkeypatch.setenv("RANK", "1")
    assert main(["paper", "responses"]) == 2 and "give --out" in capsys.readouterr().err
