"""The cache folder, and paths as users give them."""

from __future__ import annotations

from pathlib import Path

import pytest

from deepres import DeepresError, paths


def test_the_cache_falls_back_where_home_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", unknown)
    monkeypatch.setenv("DEEPRES_CACHE", str(tmp_path / "chosen"))
    assert paths.cache_folder() == tmp_path / "chosen"
    monkeypatch.delenv("DEEPRES_CACHE")
    monkeypatch.setattr(paths.tempfile, "gettempdir", lambda: str(tmp_path))
    paths._default_folder.cache_clear()
    folder = paths.cache_folder()
    assert folder.parent == tmp_path and folder.stat().st_mode & 0o077 == 0
    paths._default_folder.cache_clear()


def test_a_home_that_is_not_known_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somewhere")
    assert paths.user_path("~/data") == Path("/somewhere/data")
    with pytest.raises(DeepresError, match="home folder is not known"):
        paths.user_path("~nobody-of-this-name/data")
