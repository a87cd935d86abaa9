"""The counters and histograms that a server shows at ``/metrics``."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

LATENCIES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)  # bucket bounds, seconds

STAGES = ("receive", "decode", "wait", "transfer", "answer")  # with deepres_call_seconds, all that a request's time goes into


class Metrics:
    """Prometheus metrics of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        more: Any = {"registry": self.registry}
        self.requests = Counter("deepres_requests", "Requests to /predict, by status code.", ["status"], **more)
        self.seconds = Histogram("deepres_request_seconds", "Latency of a request to /predict.", buckets=LATENCIES, **more)
        self._stages = Histogram(
            "deepres_stage_seconds",
            "Time of a stage of a request; of transfer, of a batch.",
            ["stage"],
            buckets=LATENCIES,
            **more,
        )
        self._by_stage = {name: self._stages.labels(name) for name in STAGES}
        self.call = Histogram("deepres_call_seconds", "Time of one call of the network.", buckets=LATENCIES, **more)
        sizes = (1, 2, 4, 8, 16, 32, 64, 128, 256)
        self.batch = Histogram("deepres_batch_images", "Images in one call of the network.", buckets=sizes, **more)
        self.waiting = Gauge("deepres_waiting_images", "Images that wait for a call of the network.", **more)
        shares = [i / 10 for i in range(1, 11)]
        self.depth = Histogram("deepres_depth", "Share of the blocks that ran for an image.", buckets=shares, **more)
        self.level = Gauge("deepres_ghost_level", "Steps by which the ghost is tightened; 0 is as it was made.", **more)
        self.restarts = Counter("deepres_worker_restarts", "Restarts of the network's process after it died or hung.", **more)

    def stage(self, name: str, seconds: float) -> None:
        """Note the time of one of ``STAGES``."""
        self._by_stage[name].observe(seconds)
