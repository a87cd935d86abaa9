"""Packages import their public names when they are used, by the stub beside each ``__init__.py``."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import deepres

ROOT = Path(deepres.__file__).parent
LAZY = sorted(stub.parent.name for stub in ROOT.rglob("__init__.pyi"))


@pytest.mark.parametrize("name", LAZY)
def test_every_public_name_is_there_and_no_module_hides_it(name: str) -> None:
    package = importlib.import_module(f"deepres.{name}")
    assert package.__all__ and set(package.__all__) <= set(dir(package))
    for public in package.__all__:
        assert getattr(package, public) is not None
    # importing a module sets it as an attribute of its package, where it would take the place of the public name
    assert not set(package.__all__) & {path.stem for path in (ROOT / name).glob("*.py")}


def test_options_are_imported_without_torch() -> None:
    imports = "".join(
        f"import deepres.{'.'.join(path.relative_to(ROOT).with_suffix('').parts)}\n"
        for path in sorted(ROOT.rglob("options.py"))
    )
    script = f"import sys\nsys.modules['torch'] = None\n{imports}import deepres.training.run, deepres.serve.limits\n"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert imports and done.returncode == 0, done.stderr
