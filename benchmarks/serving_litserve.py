"""The service of LitServe; started by ``benchmarks.serving_rivals``, with the port, in the environment that has the library."""

import importlib
import os
import sys
from typing import Any

from fastapi import Request
from PIL import Image

from benchmarks.serving_rivals import BATCH, ENGINE, WAIT, load

litserve: Any = importlib.import_module("litserve")


class Classifier(litserve.LitAPI):  # at the top of the module, as its processes import it by name
    def setup(self, device: str) -> None:
        self.classify, _ = load()

    def decode_request(self, request: Request) -> Any:  # a form; the library reads this type, so it may not be a text
        form: Any = request
        return Image.open(form["image"].file)

    def batch(self, inputs: list[Any]) -> list[Any]:
        return inputs

    def unbatch(self, output: list[Any]) -> list[Any]:
        return output

    def predict(self, x: Any) -> Any:
        return self.classify(x) if isinstance(x, list) else self.classify([x])[0]

    def encode_response(self, output: Any) -> Any:
        return output


if __name__ == "__main__":
    tuned = bool(os.environ.get(ENGINE))
    api = Classifier(max_batch_size=BATCH, batch_timeout=WAIT) if tuned else Classifier()
    server = litserve.LitServer(api, accelerator="cpu", fast_queue=tuned)
    server.run(host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", generate_client_file=False)
