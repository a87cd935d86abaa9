"""A network behind HTTP. Read: worker -> batcher -> app."""

from deepres.serve.app import build_app, serve
from deepres.serve.batcher import Limits

__all__ = ["Limits", "build_app", "serve"]
