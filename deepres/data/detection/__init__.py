"""Data for detection: images with boxes. Read: examples -> voc, coco, yolo -> opening."""

from deepres.data.detection.examples import BoxData, BoxExample, Problem
from deepres.data.detection.opening import open_boxes

__all__ = ["BoxData", "BoxExample", "Problem", "open_boxes"]
