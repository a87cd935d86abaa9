"""Training. Read: recipes -> run -> trainer -> step -> epoch -> checkpoint -> loop; the other modules serve these."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
