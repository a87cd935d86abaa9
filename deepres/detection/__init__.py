"""Detection: Faster R-CNN on residual backbones.

Read: backbone -> heads -> detector -> store for the network; coco_protocol, voc_protocol -> measure for the figures; recipe -> run ->
batches -> trainer -> training for a run.
"""

from deepres.detection.detector import Detector, DetectorConfig, detector
from deepres.detection.measure import DetectionScores, measure_detector
from deepres.detection.run import DetectRun
from deepres.detection.store import load_detector, load_torchvision, save_detector, to_torchvision
from deepres.detection.training import DetectResult, resume_detector, train_detector

__all__ = [
    "DetectResult",
    "DetectRun",
    "DetectionScores",
    "Detector",
    "DetectorConfig",
    "detector",
    "load_detector",
    "load_torchvision",
    "measure_detector",
    "resume_detector",
    "save_detector",
    "to_torchvision",
    "train_detector",
]
