"""The HTTP service of a detector: POST /predict answers an image by boxes."""

from __future__ import annotations

import json

import numpy as np
import torch
from fastapi import FastAPI, Query, Request, Response
from PIL import Image
from pydantic import BaseModel, Field

from deepres.data import Prepare
from deepres.detection.faster_rcnn import FixedTransform
from deepres.serve.app import Predictions, app_around
from deepres.serve.batcher import Answer
from deepres.serve.detector_worker import DetectorWorker, ResizedImage
from deepres.serve.limits import Limits
from deepres.serve.receiving import Receiver


class DetectedObject(BaseModel):
    """An object and its place in the image."""

    name: str = Field(description="the class")
    confidence: float
    box: list[float] = Field(description="left, top, right and bottom, in pixels of the image")


class Detections(BaseModel):
    """The answer for one image."""

    objects: list[DetectedObject] = Field(description="the objects found, the most certain first")


class DetectionReceiver(Receiver):
    """Receives bodies, and decodes and resizes images for a detector."""

    def __init__(self, limits: Limits, worker: DetectorWorker) -> None:
        super().__init__(limits, Prepare.usual(32))  # of which the number of channels alone is used
        noted = worker.facts.prepare
        self.transform = FixedTransform(noted["size"], noted["longest"], [0.0] * 3, [1.0] * 3).eval()
        self.transform.antialias = noted["antialias"]

    @torch.inference_mode()
    def prepared(self, image: Image.Image) -> np.ndarray:
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
        resized, _ = self.transform.resize(pixels, None)
        return ResizedImage(resized.numpy(), (image.height, image.width)).boxed()


class DetectionService(Predictions):
    """Answers requests to /predict by boxes, and counts them."""

    def __init__(self, worker: DetectorWorker, limits: Limits) -> None:
        super().__init__(worker, limits, tighten=False, receiver=DetectionReceiver(limits, worker))

    async def predict(
        self, request: Request, threshold: float = Query(0.05, ge=0, le=1, description="least confidence of an object")
    ) -> Response:
        """Detect objects in the image file that is the request's body."""
        return await self.respond(request, lambda found: self._objects(found, threshold))

    def _objects(self, found: Answer, threshold: float) -> bytes:
        """``Detections`` as JSON."""
        classes = self.worker.facts.classes
        rows = [row for row in found.probabilities.tolist() if row[5] >= threshold]
        rows.sort(key=lambda row: -row[5])
        objects = [{"name": classes[int(row[4])], "confidence": row[5], "box": row[:4]} for row in rows]
        return json.dumps({"objects": objects}, ensure_ascii=False).encode()


def build_detections(worker: DetectorWorker, limits: Limits) -> FastAPI:
    """Build the service around a detector's ``worker``, as ``build_app`` does around a classifier's."""
    return app_around(DetectionService(worker, limits), Detections)
