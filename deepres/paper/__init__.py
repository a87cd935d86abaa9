"""The claims of the ResNet papers, each tested by a run.

Read: lab -> experiment -> block_claims, degradation_claims, depth_claims, signal_claims, imagenet -> experiments -> plan -> page;
degrade -> degrade_page.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
