"""The documentation against the code: its Python snippets, commands, links and file names."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
from pathlib import Path

import pytest

import deepres

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def snippets(language: str) -> list:
    found = []
    for page in PAGES:
        for number, match in enumerate(FENCE.finditer(page.read_text())):
            if match[1] == language:
                found.append(pytest.param(match[2], id=f"{page.stem}-{number}"))
    return found


def resolve(dotted: str) -> object:
    """What ``deepres.a.b.c`` names, importing submodules as needed. Raises ``ImportError`` where it names nothing."""
    value: object = deepres
    path = "deepres"
    for part in dotted.split(".")[1:]:
        path += f".{part}"
        try:
            value = getattr(value, part)
        except AttributeError:
            value = importlib.import_module(path)
    return value


def exists(dotted: str) -> bool:
    try:
        resolve(dotted)
    except ImportError:
        return False
    return True


@pytest.mark.parametrize("code", snippets("python"))
def test_python_snippets_name_what_exists(code: str) -> None:
    tree = ast.parse(code)
    names = {"deepres": "deepres"}  # a local name -> the dotted name that it stands for
    used = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "deepres":
            for alias in node.names:
                names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
                used.append(f"{node.module}.{alias.name}")
    attributes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    for node in attributes:
        first, _, rest = ast.unparse(node).partition(".")
        if first in names and re.fullmatch(r"[\w.]+", rest):
            used.append(f"{names[first]}.{rest}")
    assert [name for name in used if not exists(name)] == []


def commands() -> list:
    found = []
    for page in PAGES:
        for match in FENCE.finditer(page.read_text()):
            if match[1] != "sh":
                continue
            for line in match[2].splitlines():
                words = [word for word in shlex.split(line, comments=True) if word != "&"]
                if words[:1] == ["torchrun"]:
                    words = ["deepres", *words[words.index("deepres") + 1 :]]
                if words[:1] == ["deepres"]:
                    found.append(pytest.param(words[1:], id=f"{page.stem}: {line.split('#')[0].strip()}"))
    return found


@pytest.mark.parametrize("words", commands())
def test_commands_parse(words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Each command of the documentation is accepted by the parser; the command itself is not run."""
    import tyro

    from deepres.cli import main as cli

    parsed = []

    def parse(*args: object, **options: object) -> object:
        command = real(*args, **options)
        parsed.append(command)
        raise SystemExit(0)

    real = tyro.cli
    monkeypatch.setattr("tyro.cli", parse)
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert ended.value.code == 0 and parsed, capsys.readouterr().err


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text()):
        name, _, anchor = target.partition("#")
        linked = (page.parent / name).resolve() if name else page
        assert linked.exists(), f"{page.name} links to {target}, which does not exist"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", linked.read_text(), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in slugs, f"{page.name} links to {target}, and {linked.name} has no such heading"


@pytest.mark.parametrize("page", [ROOT / "CONTRIBUTING.md", ROOT / "docs" / "design.md"], ids=lambda page: page.stem)
def test_paths_in_the_text_exist(page: Path) -> None:
    for path in re.findall(r"`((?:deepres|tests|benchmarks|docs)/[\w./]+)`", page.read_text()):
        assert (ROOT / path).exists(), f"{page.name} names {path}"


def test_every_package_has_a_row_in_the_design() -> None:
    packages = {path.parent.name for path in (ROOT / "deepres").glob("*/__init__.py")}
    drawn = (ROOT / "docs" / "design.md").read_text().split("## Packages")[1].split("```")[1]
    assert packages <= set(re.findall(r"\w+", drawn))
