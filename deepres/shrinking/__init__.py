"""Inverse Curriculum Training: removes blocks from a network while it trains.

Read: cost -> target -> schedule -> constraint -> teacher -> features -> importance -> removal -> least_squares -> writer -> mending ->
curriculum -> search -> api -> page.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
