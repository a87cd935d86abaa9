"""Shared by the tests: small sets of real images, a temporary cache folder, a browser, and what may be skipped.

``DEEPRES_NO_SKIP=1`` turns every skipped test into a failed one. Continuous integration sets it, so that no test is missing there
unnoticed. Tests marked ``gpu`` are deselected where there is no CUDA device.
"""

from __future__ import annotations

import os

if "PYTEST_XDIST_WORKER" in os.environ:  # before torch is imported, and for the processes that tests start
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import shutil
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from digit_folders import write_digits


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    gpu = [item for item in items if item.get_closest_marker("gpu")]
    if gpu:
        config.hook.pytest_deselected(items=gpu)
        items[:] = [item for item in items if item not in gpu]


def _refuse_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    if os.environ.get("DEEPRES_NO_SKIP") == "1" and report.outcome == "skipped" and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"{report.nodeid} was skipped, and DEEPRES_NO_SKIP=1 allows no skips. {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _refuse_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _refuse_skip(report)
    return report


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEEPRES_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def _is_problem(message: Any) -> bool:
    """Whether a console message is an error or a warning; Plotly logs its own as traces that begin with WARN."""
    return message.type in ("error", "warning") or message.text.startswith("WARN")


@pytest.fixture
def browse() -> Iterator[Callable[..., Any]]:
    """Open an HTML file in headless Chromium. The test fails if the page logs an error or a warning, or requests anything by HTTP."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    problems: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])

        def opened(path: Path, **context: Any) -> Any:
            tab = browser.new_page(**context)
            tab.on("console", lambda message: problems.append(message.text) if _is_problem(message) else None)
            tab.on("pageerror", lambda error: problems.append(str(error)))
            tab.on("request", lambda request: problems.append(request.url) if request.url.startswith("http") else None)
            tab.goto(path.as_uri())
            return tab

        yield opened
        browser.close()
    assert problems == []


@pytest.fixture(scope="session")
def small_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3 classes of 24 images of 16x16, in one folder each."""
    return write_digits(tmp_path_factory.mktemp("small"), side=16, per_class=24)


@pytest.fixture(scope="session")
def large_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2 classes of 12 training and 12 held-out images of 120x120, which are streamed."""
    return write_digits(tmp_path_factory.mktemp("large"), side=120, per_class=12, classes=2, splits=("train", "val"))
