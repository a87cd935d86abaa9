"""A ghost of a network that a function of the user's own builds, in a process that knows it by ``--builder`` alone."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from running import start

from deepres.data import open_data
from deepres.ghosting import Ghost, GhostResult, Settings, save_ghost
from deepres.ghosting.confirm import Verified
from deepres.ghosting.points import Point
from deepres.models import open_model

CODE = """import timm


def build(num_classes=10):
    return timm.create_model("test_resnet", num_classes=num_classes, in_chans=1)
"""


def test_a_ghost_of_a_users_own_network_is_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "served_nets.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    point = Point(Settings(), 10.0, 1.0, 1.0, 0.0)
    seen = Verified(1, 10.0, 10.0, 0, 0, 1.0, 1.0, 0.0, 0.0, {}, (), (), ())
    made = Ghost(open_model("served_nets:build").model)
    save_ghost(GhostResult(made, point, (point,), 10.0, seen, {}, None, open_data("digits")), tmp_path / "ghost")
    refused = subprocess.run([sys.executable, "-m", "deepres", "serve", "ghost"], capture_output=True, text=True, timeout=240)
    assert refused.returncode == 2 and "add --builder served_nets:build to the command" in refused.stderr
    server = start(tmp_path / "ghost", "--builder", "served_nets:build", "--engine", "none")
    try:
        image = io.BytesIO()
        Image.new("L", (8, 8), 200).save(image, "PNG")
        status, said = server.ask("/predict", image.getvalue())
        assert status == 200 and json.loads(said)["classes"][0]["name"] in map(str, range(10))
    finally:
        server.process.kill()
        server.process.communicate()
