"""Inference engines: run a trained network as fast as this machine can, with the same predictions."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
