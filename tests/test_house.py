"""The structure that docs/design.md describes, checked on the source code. ``python tests/test_house.py`` prints every violation."""

from __future__ import annotations

import ast
import re
import statistics
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "deepres"

# From the ground up. A package imports packages of lower rows; within its own row it may import others as long as there is no cycle.
FLOORS = (
    ("errors", "callback", "deprecation", "options", "paths"),
    ("kernels",),
    ("data", "nn", "report"),
    ("adapters",),
    ("models",),
    ("evaluation",),
    ("exits",),
    ("training",),
    ("lens",),
    ("shrinking", "ghosting"),
    ("detection",),
    ("engines", "paper", "serve"),
    ("cli",),
    ("__main__",),
)
FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names}
LINES = 400  # of a file
FUNCTION = 80  # lines of a function
# Names that several files define on purpose: what is found by its name, and the two steps of one public function
INTERFACES = {
    "ADAPTER": "of each file in adapters/families",
    "Ghost": "the command's options, found by the command's name, and the network",
    "Prediction": "an answer of the server, under this name in its OpenAPI schema, and of `deepres.predict`",
    "create": "nn's builds a network, models' gives it pretrained weights",
    "read": "of each file in data/readers",
    "read_folder": "of the files in data/readers whose data are folders",
}
MEDIAN = 150  # lines, over the files of the package
FRAGMENTS = re.compile(
    r"(What|Of|Whether|How|Where|When|Why|Who)\b"
)  # first words of a docstring that is not a sentence or a noun phrase

# Classes and children of torchvision, timm and transformers. Only adapters may name them.
FOREIGN_CLASSES = re.compile(
    r"^(BasicBlock|Bottleneck|CNBlock|CNBlockConfig|EncoderBlock|VisionTransformer|SwinTransformer(Block)?|ConvNeXt(Block|Stage|Layer)?|"
    r"InvertedResidual|MBConv|FusedMBConv|MaxxVit\w*|MobileVit\w*|(ViT|DeiT|Deit|Dinov2|DINOv2|Bert|GPT2|Llama|Mistral|Qwen2|ResNet)"
    r"(Layer|Block|Model|Encoder|DecoderLayer|Config|BasicLayer|BottleNeckLayer|For\w+))$"
)
FOREIGN_CHILDREN = {
    *(
        "layer1",
        "layer2",
        "layer3",
        "layer4",
        "downsample",
        "drop_path",
        "layer_scale",
        "patch_embed",
        "pos_embed",
        "conv_stem",
    ),
    *("self_attention", "attn", "mlp", "num_hidden_layers", "layer_types", "id2label", "pretrained_cfg", "default_cfg"),
    *("model_type", "image_size", "img_size", "max_position_embeddings"),
}


def package_of(path: Path) -> str:
    """``adapters`` of ``deepres/adapters/site.py``; a module of the root is its own package."""
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def sources() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if "__pycache__" not in path.parts)


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), filename=str(path))


def public_homes() -> dict[str, str]:
    """The package in which each name of ``deepres.__init__`` is defined, read without importing it."""
    for node in tree(PACKAGE / "__init__.py").body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == "_PUBLIC":
            table = ast.literal_eval(node.value)
            return {name: home.split(".")[1] for home, names in table.items() for name in names}
    raise AssertionError("deepres/__init__.py has no table _PUBLIC")


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Packages of ours that a file imports anywhere, also within functions but not for type checking alone, with line numbers."""
    homes = public_homes()
    module = tree(path)
    only_types = {
        inner
        for node in ast.walk(module)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for part in node.body
        for inner in ast.walk(part)
    }

    def by_root(name: str) -> str | None:
        return homes.get(name, name if name in FLOOR else None)

    for node in ast.walk(module):
        if node in only_types:
            continue
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("deepres."):
                    yield alias.name.split(".")[1], node.lineno
        elif isinstance(node, ast.ImportFrom) and node.module:
            parts = node.module.split(".")
            if parts[0] == "deepres":
                found = [parts[1]] if len(parts) > 1 else [name for alias in node.names if (name := by_root(alias.name))]
                yield from ((name, node.lineno) for name in found)
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "deepres" and (name := by_root(node.attr)):
            yield name, node.lineno


def upward_imports() -> list[str]:
    found = []
    for path in sources():
        mine = package_of(path)
        if mine == "__init__":  # the face: it imports each name when it is first used
            continue
        if mine not in FLOOR:
            found.append(f"{path.relative_to(ROOT)}: package {mine} has no place in FLOORS of tests/test_house.py")
            continue
        for other, line in imports(path):
            if other not in FLOOR:
                found.append(f"{path.relative_to(ROOT)}:{line}: imports {other}, which has no place in FLOORS")
            elif FLOOR[other] > FLOOR[mine]:
                found.append(f"{path.relative_to(ROOT)}:{line}: {mine} imports {other}, which stands above it")
    return found


def package_cycles() -> list[str]:
    graph: dict[str, set[str]] = defaultdict(set)
    for path in sources():
        if (mine := package_of(path)) != "__init__":
            graph[mine] |= {other for other, _ in imports(path) if other != mine}
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        return [" -> ".join(error.args[1])]
    return []


def module_cycles() -> list[str]:
    """Cycles of imports at module level within the packages, which work or fail by the order in which they are imported."""
    graph: dict[str, set[str]] = {}
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in sources()}
    for name, path in modules.items():
        found = set()
        for node in tree(path).body:
            if isinstance(node, ast.ImportFrom) and node.module in modules:
                below = {f"{node.module}.{alias.name}" for alias in node.names} & modules.keys()
                found |= below or {node.module}
        graph[name] = found - {name}
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        return [" -> ".join(error.args[1])]
    return []


def foreign_names() -> list[str]:
    """Class names and child names of other libraries outside adapters, and reads of a site's row."""
    found = []
    for path in sources():
        if package_of(path) in ("adapters", "nn", "__init__", "__main__"):
            continue
        for node in ast.walk(tree(path)):
            what = None
            if isinstance(node, ast.Attribute):
                if node.attr == "pattern" and not _is_own(node.value):
                    what = ".pattern"
                elif node.attr in FOREIGN_CHILDREN:
                    what = f".{node.attr}"
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                if FOREIGN_CLASSES.match(node.value) or node.value in FOREIGN_CHILDREN:
                    what = repr(node.value)
            elif isinstance(node, ast.Call) and ast.unparse(node).startswith("getattr(") and len(node.args) > 1:
                if isinstance(node.args[1], ast.Constant) and node.args[1].value == "config":
                    what = ast.unparse(node)
            elif isinstance(node, ast.Attribute | ast.Compare) and re.search(
                r"__(name|module)__ (==|in) |__(name|module)__\.startswith", ast.unparse(node)
            ):
                what = ast.unparse(node)
            elif isinstance(node, ast.IfExp) and {224, 32} <= {
                side.value for side in (node.body, node.orelse) if isinstance(side, ast.Constant)
            }:
                what = "32 or 224"
            if what:
                found.append(f"{path.relative_to(ROOT)}:{node.lineno}: {what}")
    return found


def _is_own(node: ast.expr) -> bool:
    """``self``, or a constant, which may be a regular expression."""
    return isinstance(node, ast.Name) and (node.id == "self" or node.id.isupper())


def repeated_names() -> list[str]:
    """Public classes, functions and constants that two or more files define at top level."""
    homes: dict[str, set[str]] = defaultdict(set)
    for path in sources():
        for node in tree(path).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                names = [node.name]
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                names = [target.id for target in targets if isinstance(target, ast.Name)]
            else:
                continue
            for name in names:
                if not name.startswith("_"):
                    homes[name].add(str(path.relative_to(ROOT)))
    return [
        f"{name}: {', '.join(sorted(files))}"
        for name, files in sorted(homes.items())
        if len(files) > 1 and name not in INTERFACES
    ]


def fragment_docstrings() -> list[str]:
    """Docstrings of modules and of public classes and functions that open with a clause instead of an imperative or a noun phrase."""
    found = []
    for path in sources():
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                name = getattr(node, "name", "module")
                text = ast.get_docstring(node) or ""
                if not name.startswith("_") and FRAGMENTS.match(text):
                    found.append(f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 1)}: {name}: {text.splitlines()[0]}")
    return found


def long_files() -> list[str]:
    everything = [*sources(), *(path for folder in ("tests", "benchmarks") for path in sorted((ROOT / folder).rglob("*.py")))]
    count = {path: len(path.read_text().splitlines()) for path in everything}
    return [f"{path.relative_to(ROOT)}: {lines} lines" for path, lines in count.items() if lines > LINES]


def long_functions() -> list[str]:
    found = []
    for path in sources():
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > FUNCTION:
                    found.append(f"{path.relative_to(ROOT)}:{node.lineno}: {node.name} has {lines} lines")
    return found


def median_lines() -> float:
    """Over the files that are not only a package's face."""
    return statistics.median(len(path.read_text().splitlines()) for path in sources() if path.name != "__init__.py")


def machine_paths() -> list[str]:
    """Paths of one machine in tracked text, such as home folders."""
    pattern = re.compile(r"(?<![\w.~-])/(?:work|root|home/\w+|Users/\w+)/[\w.-]+")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0")
    found = []
    for name in filter(None, listed):
        path = ROOT / name
        if not path.is_file() or path == Path(__file__):
            continue
        try:
            lines = path.read_text().splitlines()
        except UnicodeDecodeError:
            continue
        found += [f"{name}:{number}: {hit.group()}" for number, line in enumerate(lines, 1) if (hit := pattern.search(line))]
    return found


CHECKS = (
    upward_imports,
    package_cycles,
    module_cycles,
    foreign_names,
    repeated_names,
    fragment_docstrings,
    long_files,
    long_functions,
    machine_paths,
)
HOLDING = (
    upward_imports,
    package_cycles,
    module_cycles,
    fragment_docstrings,
    long_files,
    long_functions,
    repeated_names,
    machine_paths,
)  # the script also prints what does not hold yet


@pytest.mark.parametrize("check", HOLDING, ids=lambda check: check.__name__)
def test_house_has_no(check) -> None:
    assert check() == []


def test_imports_are_found_wherever_they_stand(tmp_path: Path) -> None:
    path = tmp_path / "sample.py"
    path.write_text(
        "from typing import TYPE_CHECKING\n"
        "import deepres.data.files\n"
        "from deepres import lens, shrink\n"
        "if TYPE_CHECKING:\n    from deepres.training import Run\n"
        "def late():\n    from deepres.serve import app\n    return deepres.evaluate\n"
    )
    assert sorted(imports(path)) == [("data", 2), ("evaluation", 8), ("lens", 3), ("serve", 7), ("shrinking", 3)]


def test_median_file_is_short() -> None:
    assert median_lines() <= MEDIAN


if __name__ == "__main__":
    for check in CHECKS:
        print(f"== {check.__name__}", *check(), sep="\n  ")
    print("== median lines", median_lines())
