"""A network behind HTTP. Read: limits -> worker -> batcher (the request queue) -> receiving -> app -> server."""

from deepres.errors import DeepresError

try:
    from deepres.serve.app import build_app
    from deepres.serve.limits import Limits
    from deepres.serve.server import serve
except ImportError as error:
    if (error.name or "").split(".")[0] not in ("fastapi", "prometheus_client", "pydantic", "starlette", "uvicorn"):
        raise
    raise DeepresError(f"deepres serve needs {error.name}, which is not installed; pip install 'deepres[serve]'") from error

__all__ = ["Limits", "build_app", "serve"]
