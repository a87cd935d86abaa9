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
    lines = write(page, "engines", {"what": "engines side by side", "rows": rows})
    assert "## Inference engines side by side" in lines
    fastest = "1,234.5 (openvino) | 80.0 (openvino tuned int8) | 1.06 (0.98 to 1.20) |"
    assert f"| r18, batch 1 * | int8 | {fastest}" in lines and f"| photos, batch 1 | int8 | {fastest}" in lines
    assert "| onnxruntime | failed | failed |" not in lines  # no row has a figure of it
    assert "| pytorch | 10.0 | 10.0 |" in lines and "| int8 against bf16, ours | 1.93 | 1.93 |" in lines
    assert "| int8: change of the validation error, points |  | +0.25 |" in lines
    assert lines[-1].startswith("*2026-01-01, 2 cores of CPU (AVX-512 bf16)")
