"""Measurements inside a network.

Read: sample -> signals, gradient_split, paths, ablations, probes, layers -> measurements -> sentences -> figures -> page. ``monitor``
takes snapshots during training; ``layer_gradients`` has the gradient norms by layer, which plain networks have too.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
