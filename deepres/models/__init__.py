"""One way in and out for networks.

Read: checkpoint -> names -> weights -> builders -> store -> exported -> segmented -> opening; labels -> pairing.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
