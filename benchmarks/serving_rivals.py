"""LitServe and BentoML with the same network as ``deepres serve``, as their users run them, and tuned.

    PYTHON -m benchmarks.serving_rivals litserve --model net.safetensors --port 8000 [--engine openvino]

Without ``--engine`` each request is a call of the network in PyTorch, as in the libraries' first examples. With one, the network runs on
it as in ``deepres serve``, and requests are batched up to 32. Requests are multipart forms with one image, decoded by Pillow.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

BATCH, WAIT = 32, 0.002  # images in a call, and seconds to wait for them, as in ``deepres serve``
MODEL, ENGINE = "DEEPRES_BENCH_MODEL", "DEEPRES_BENCH_ENGINE"  # environment variables, which the libraries' processes inherit


def load() -> tuple[Callable[[list[Any]], list[dict[str, float]]], bool]:
    """(images of Pillow -> the five likeliest classes of each, whether to batch)."""
    import torch

    from deepres.engines import optimize
    from deepres.models import open_model

    opened = open_model(os.environ[MODEL])
    prepare, model, engine = opened.preparation(), opened.model.eval(), os.environ.get(ENGINE, "")
    if engine:
        example = prepare.example(8, torch.Generator().manual_seed(0))
        model = optimize(model, example, engine=engine, seconds=10.0)

    def classify(images: list[Any]) -> list[dict[str, float]]:
        with torch.inference_mode():
            pixels = torch.stack([prepare.image(image.convert("RGB")) for image in images])
            best = model(prepare.normalise(pixels)).float().softmax(1).topk(5)
        return [
            {str(name): share for name, share in zip(names, shares, strict=True)}
            for names, shares in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]

    return classify, bool(engine)


def bentoml_service() -> Any:
    """The service that ``bentoml serve`` looks up in this module, as ``service``."""
    bentoml: Any = importlib.import_module("bentoml")
    from PIL.Image import Image

    tuned = bool(os.environ.get(ENGINE))
    options: dict[str, Any] = (
        {"batchable": True, "max_batch_size": BATCH, "max_latency_ms": 60_000} if tuned else {"batchable": False}
    )

    class Classifier:
        def __init__(self) -> None:
            self.classify, _ = load()

    if tuned:

        def predict(self: Any, image: list[Image]) -> list[dict[str, float]]:
            return self.classify(image)
    else:

        def predict(self: Any, image: Image) -> dict[str, float]:  # type: ignore[misc]
            return self.classify([image])[0]

    # the library reads the types themselves
    predict.__annotations__ = (
        {"image": list[Image], "return": list[dict[str, float]]} if tuned else {"image": Image, "return": dict[str, float]}
    )
    Classifier.predict = bentoml.api(**options)(predict)  # type: ignore[attr-defined]
    return bentoml.service(workers=1, traffic={"timeout": 120}, logging={"access": {"enabled": False}})(Classifier)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library", choices=("litserve", "bentoml"))
    parser.add_argument("--model", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--engine", default="")
    options = parser.parse_args()
    os.environ[MODEL], os.environ[ENGINE] = options.model, options.engine
    os.environ["BENTOML_DO_NOT_TRACK"] = "True"
    command = ["-m", "benchmarks.serving_litserve", str(options.port)]
    if options.library == "bentoml":
        command = ["-m", "bentoml", "serve", "benchmarks.serving_rivals:service", "--host", "127.0.0.1"]
        command += ["--port", str(options.port), "--working-dir", str(Path.cwd())]
    os.execv(sys.executable, [sys.executable, *command])


if __name__ == "__main__":
    main()
elif "bentoml" in sys.modules and MODEL in os.environ:  # imported by `bentoml serve`
    service = bentoml_service()
