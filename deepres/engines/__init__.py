"""Inference engines: run a trained network as fast as this machine can, with the same predictions.

Read ``engine`` (the interface), ``source`` (a network to convert) and one engine such as ``openvino_engine``; ``registry`` lists
them. ``compare`` measures them, ``answers`` deals with inputs that low precision cannot decide, ``choosing`` holds ``optimize``,
``remembered`` keeps the choice and ``building`` builds it. ``exporters`` writes the files of other engines.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
