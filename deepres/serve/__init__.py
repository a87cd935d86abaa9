"""A network behind HTTP.

Read: limits -> worker -> batcher (the request queue) -> receiving -> app; of language
models continuous -> completions; server.
"""

from typing import Any

import lazy_loader

from deepres.errors import DeepresError

_load, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    """A public name, imported when it is first used. Raises ``DeepresError`` where a package that serving needs is missing."""
    try:
        return _load(name)
    except ImportError as error:
        if (error.name or "").split(".")[0] not in ("fastapi", "prometheus_client", "pydantic", "starlette", "uvicorn"):
            raise
        raise DeepresError(f"deepres serve needs {error.name}, which is not installed; pip install 'deepres[serve]'") from error
