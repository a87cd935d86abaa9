"""``deepres generate``."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field

from tyro.conf import OmitArgPrefixes, Positional

from deepres.cli.common import keywords
from deepres.cli.parsing import BuilderOption
from deepres.errors import DeepresError
from deepres.evaluation.sampling import Sampling
from deepres.ghosting.options import DecodingOptions
from deepres.models.options import WeightsOptions


@dataclass(frozen=True, kw_only=True)
class Generate(DecodingOptions, BuilderOption, WeightsOptions):
    """Continue a text with a language model, and print it as it comes."""

    model: Positional[str]  # a run's folder, a weights file, or hf:FOLDER
    prompt: str = ""  # the text to continue
    # how the next tokens are drawn
    sampling: OmitArgPrefixes[Sampling] = field(default_factory=Sampling)
    echo: bool = True  # print the prompt in front

    def run(self) -> int:
        from deepres.evaluation.generation import generate
        from deepres.ghosting.decoding import generate_faster

        if self.speculate is None and self.ahead != DecodingOptions.ahead:
            raise DeepresError("--ahead is the number of tokens that --speculate drafts; give both, or leave it out")
        if self.speculate is None and self.depth is None:
            pieces = generate(self.model, self.prompt, self.sampling, weights=self.weights)
        else:
            decoding = DecodingOptions(**keywords(self, DecodingOptions))
            pieces = generate_faster(self.model, self.prompt, self.sampling, decoding, weights=self.weights)
        if self.echo:
            sys.stdout.write(self.prompt)
            sys.stdout.flush()
        began = time.perf_counter()
        count = 0
        for piece in pieces:
            sys.stdout.write(piece)
            sys.stdout.flush()
            count += len(piece)
        sys.stdout.write("\n")
        if sys.stderr.isatty():
            print(f"{count / (time.perf_counter() - began):,.0f} characters/s", file=sys.stderr)
        return 0
