"""Ghost Inference: a trained network computes for each input only the blocks that it needs.

Read: settings, gates -> context -> route -> model -> recording -> fit -> points -> recorded -> candidates -> selection -> confirm ->
make -> opening, page.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
