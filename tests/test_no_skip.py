"""DEEPRES_NO_SKIP=1 makes a skipped test fail, at every stage at which a test can be skipped."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

SKIPS = {
    "mark": "import pytest\n@pytest.mark.skip(reason='why not')\ndef test_one(): pass\n",
    "call": "import pytest\ndef test_one(): pytest.skip('why not')\n",
    "fixture": "import pytest\n@pytest.fixture\ndef one(): pytest.skip('why not')\ndef test_one(one): pass\n",
    "module": "import pytest\npytest.skip('why not', allow_module_level=True)\n",
}


@pytest.mark.parametrize("stage", SKIPS)
def test_a_skip_fails_only_where_it_is_forbidden(
    stage: str, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(Path(__file__).with_name("conftest.py"), pytester.path / "conftest.py")
    pytester.makepyfile(test_sample=SKIPS[stage])
    monkeypatch.delenv("DEEPRES_NO_SKIP", raising=False)
    pytester.inline_run("-p", "no:cacheprovider").assertoutcome(skipped=1)
    monkeypatch.setenv("DEEPRES_NO_SKIP", "1")
    strict = pytester.inline_run("-p", "no:cacheprovider")
    assert strict.ret != 0 and len(strict.getfailures()) == 1
    assert "why not" in str(strict.getfailures()[0].longrepr)
