"""``python -m benchmarks.levers``: every network on every runtime, kept where it is interrupted, and what is told of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import deepres
from benchmarks import common, levers
from deepres import Run


def test_three_levers_on_digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    ground = tmp_path / "ground"
    deepres.train(Run("resnet14-cifar", "digits", "digits", str(ground), epochs=4, speed="exact"), show=False)
    asked = (
        f"--ground {ground} --data digits --size 8 --target blocks=4 --epochs 1 --seeds 1 --error 50 --int8-error 50".split()
    )
    asked += f"--examples 60 --turns 2 --images 32 --out {tmp_path / 'out'}".split()
    levers.main(asked)
    folder = tmp_path / "out" / "seed0"
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    with monkeypatch.context() as patch:  # nothing is made or measured again
        patch.setattr(levers.Levers, "network", lambda *_: pytest.fail("a network was opened again"))
        levers.main([*asked, "--no-times"])
    assert before == {path: path.stat().st_mtime_ns for path in before}
    found = json.loads((tmp_path / "levers.json").read_text())
    rows = found["rows"]
    assert list(rows) == [f"{name}, {runtime}" for name in levers.NETWORKS for runtime in levers.RUNTIMES]
    whole = rows[levers.AS_IS]
    assert whole["test_error"]["mean"] < 60 and whole["speed"]["1"]["ratio"] == whole["speed"]["32"]["ratio"] == 1
    assert abs(rows["whole, optimized"]["test_error"]["mean"] - whole["test_error"]["mean"]) < 2
    assert len(deepres.adapters.find_blocks(deepres.models.open_model(folder / "shrunk").model)) == 4
    for row in rows.values():
        assert row["n"] == 1 and not row["refused"] and row["speed"]["32"]["n"] == 2
    assert rows[levers.ALL]["speed"]["1"]["product_of_single"] > 0


def test_a_refused_row_has_its_reason_and_no_figures() -> None:
    errors = {key: {"val_error": 5.0, "test_error": 6.0} for key in (levers.AS_IS, *levers.SINGLE, levers.ALL)}
    speeds = {batch: {key: [2.0, 4.0] for key in errors} for batch in ("1", "32")}
    speeds["1"] |= {"whole, int8": [6.0, 12.0], "shrunk, as it is": [4.0, 8.0], levers.ALL: [10.0, 22.0]}
    seed = {"errors": errors, "speeds": speeds}
    table = levers.summary([seed, {**seed, "errors": {**errors, levers.AS_IS: {"val_error": 5.0, "test_error": 8.0}}}])
    assert table[levers.AS_IS]["test_error"] == {"mean": 7.0, "spread": 1.41}
    assert table[levers.ALL]["speed"]["1"]["ratio"] == 5.25 and table[levers.ALL]["speed"]["1"]["product_of_single"] == 6.0
    refused = {**errors, levers.ALL: {"refused": "int8 raises the error"}}
    row = levers.summary([{**seed, "errors": refused}])[levers.ALL]
    assert row == {"n": 0, "refused": ["int8 raises the error"], "speed": {}}
