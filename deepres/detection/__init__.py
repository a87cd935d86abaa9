"""Detection: Faster R-CNN on residual backbones.

Read: backbone -> pooling -> heads -> faster_rcnn -> store for the network, graph for its export; coco_protocol, voc_protocol -> measure
for the figures; recipe -> run -> batches -> trainer -> training for a run.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
