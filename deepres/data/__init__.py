"""Sources of examples, their preparation and their order.

Read: decode -> crop -> files -> dataset -> sources; augment -> decode_pool -> loader; of texts vocabulary -> documents -> text.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
