"""``python -m benchmarks.tell`` puts what the benchmark of engines records into docs/results.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import tell

MACHINE = {"cpu": "CPU", "amx": False, "bf16": True, "threads": 2, "gpu": None, "torch": "2", "torchvision": "0", "commit": "a"}


def speed(images: float) -> dict[str, Any]:
    values = {"images_per_second": images, "lowest": images - 1, "highest": images + 1}
    return {"n": 9, **values, "ratio": images / 10, "ratio_lowest": 0.1, "ratio_highest": 9.0}


def row(trained: bool) -> dict[str, Any]:
    return {
        "batch": 1,
        "trained": trained,
        "candidates": {"pytorch": speed(10), "openvino tuned int8": speed(80), "deepres int8": speed(1234.5)},
        "names": {"deepres int8": "deepres int8: openvino int8, close answers"},
        "failed": {"onnxruntime": "no memory"},
        "against_best_rival": {"deepres int8": {"rival": "openvino tuned int8", "ratio": 1.06, "lowest": 0.98, "highest": 1.2}},
        "int8_against_bf16": {"ratio": 1.93, "lowest": 1.9, "highest": 2.0},
        "measured_by_optimize": [
            {"engine": "openvino", "rise": 0.25, "problem": ""},
            {"engine": "torch", "rise": None, "problem": "x"},
        ],
        "date": "2026-01-01",
        "machine": MACHINE,
    }


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, path in (("RESULTS", tmp_path), ("PAGE", tmp_path / "results.md"), ("PICTURES", tmp_path / "pictures")):
        monkeypatch.setattr(tell, name, path)
    return tmp_path / "results.md"


def write(page: Path, name: str, result: dict[str, Any]) -> list[str]:
    (page.parent / f"{name}.json").write_text(json.dumps({"date": "2026-01-01", "machine": MACHINE, **result}))
    tell.main()
    return page.read_text().splitlines()


def test_engines(page: Path) -> None:
    rows = {"r18, batch 1": row(False), "photos, batch 1": row(True)}
    lines = write(page, "engines-amx", {"what": "engines side by side", "rows": rows})
    assert "## Inference engines side by side, with AMX" in lines
    fastest = "1,234.5 (openvino) | 80.0 (openvino tuned int8) | 1.06 (0.98 to 1.20) | not measured |"
    assert f"| r18, batch 1 * | int8 | {fastest}" in lines and f"| photos, batch 1 | int8 | {fastest}" in lines
    assert "| onnxruntime | failed | failed |" not in lines  # no row has a figure of it
    assert "| pytorch | 10.0 | 10.0 |" in lines and "| int8 against bf16, ours | 1.93 | 1.93 |" in lines
    assert "| int8: change of the validation error, points |  | +0.25 |" in lines
    assert lines[-1].startswith("*2026-01-01, 2 cores of CPU (AVX-512 bf16)")


def test_levers(page: Path) -> None:
    one = {"n": 9, "images_per_second": 1234.5, "ratio": 4.0, "ratio_lowest": 3.5, "ratio_highest": 4.25}
    good = {"n": 3, "refused": [], "test_error": {"mean": 20.5, "spread": 0.25}, "val_error": {"mean": 19.0, "spread": None}}
    rows = {
        "whole, as it is": {**good, "speed": {"1": {**one, "product_of_single": 5.0}}},
        "whole, int8": {"n": 0, "refused": ["int8 raises the error"], "speed": {}},
    }
    about = {
        "what": "net on data",
        "images": {"train": 1000, "val": 10, "test": 20},
        "seeds": 3,
        "target": "blocks=6",
        "turns": 9,
    }
    lines = write(page, "levers", {**about, "epochs": 1.0, "error": 0.5, "int8_error": 0.3, "engine": "openvino", "rows": rows})
    assert "| whole, as it is | 19.00 % | 20.50 ± 0.25 % | 1,234.5, 4.00 (3.50 to 4.25) |  |" in lines
    assert "| whole, int8 | refused | refused |  |  |" in lines
    assert "The ratios of each lever alone multiply to 5.00 at batch 1 (4.00 measured)." in lines


def test_serving_tells_the_ceiling_where_it_was_measured(page: Path) -> None:
    row = {"p50_ms": 30.0, "p50_ms_lowest": 29.0, "p50_ms_highest": 31.0, "p99_ms": 40.0, "answers_per_second": 25.0}
    row |= {"lowest": 24.0, "highest": 26.0, "answers": 150}
    call = {"n": 40, "batch": 15, "ms": 300.0, "ms_lowest": 290.0, "ms_highest": 320.0}
    result = {
        "what": "a network",
        "turns": 3,
        "seconds": 6.0,
        "engine": "openvino",
        "versions": {"fastapi": "1"},
        "load": {"a": row},
    }
    result |= {"one_client_against_decoding_and_call": 1.2, "share_of_engine_at_32_clients": 0.9}
    result["alone"] = {"decoding and the call of one": {**call, "batch": 1}, "engine at the batch of 32 clients": call}
    before = write(page, "serving-rivals", result)
    assert "| a | 30.0 ms (29.0 to 31.0) | 40.0 ms | 25.0 (24.0 to 26.0) | 150 |" in before
    stages = {
        "receive": 0.1,
        "decode": 3.0,
        "wait": 0.0,
        "transfer": 0.9,
        "call": 25.0,
        "answer": 0.1,
        "request": 29.2,
        "batch": 1.0,
    }
    row["core_ms"] = {"first process": 3.3, "other processes": 67.7, "clients": 0.2}
    result["load"] = {"a": row, "deepres, 1 client": {**row, "mean_ms": stages}}
    result |= {
        "decoding_core_ms": 2.0,
        "ceiling_with_decoding": 0.95,
        "close_calls": 0.25,
        "share_of_engine_at_32_clients_resized": 0.93,
    }
    after = write(page, "serving-rivals", result)
    assert "| a | 30.0 ms (29.0 to 31.0) | 40.0 ms | 25.0 (24.0 to 26.0) | 3.3, 67.7, 0.2 | 150 |" in after
    told = "receive 0.1, decode 3.0, wait 0.0, transfer 0.9, call 25.0, answer 0.1; 1.0 images in a call."
    assert f"Mean milliseconds of a request's stages, deepres, 1 client: {told}" in after
    assert any("which leaves 95 % at most; 25 % of the photographs are close calls" in line for line in after)
