"""Detection: Faster R-CNN on residual backbones. Read: backbone -> heads -> detector -> store."""

from deepres.detection.detector import Detector, DetectorConfig, detector
from deepres.detection.store import load_detector, load_torchvision, save_detector, to_torchvision

__all__ = [
    "Detector",
    "DetectorConfig",
    "detector",
    "load_detector",
    "load_torchvision",
    "save_detector",
    "to_torchvision",
]
