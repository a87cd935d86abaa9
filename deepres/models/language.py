"""Language models opened for use: the decoder with the tokens that it reads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from deepres.adapters.transformer_weights import from_hugging_face
from deepres.data import Tokens, Vocabulary
from deepres.errors import DeepresError
from deepres.models.opening import open_trained
from deepres.nn.transformer import Transformer


@dataclass(frozen=True, eq=False)
class LanguageModel:
    """A decoder in eval mode, and the vocabulary that it reads and writes."""

    model: Transformer
    vocabulary: Vocabulary
    name: str

    @property
    def context(self) -> int:
        """Tokens that it can see at a time."""
        return self.model.config.context

    def prompt(self, text: str) -> Tensor:
        """The tokens (1, L) of a prompt. An empty one becomes the token that ends documents, or else a line's end.

        Raises ``DeepresError`` for characters that the network does not know, and for more tokens than its context has.
        """
        try:
            tokens = self.vocabulary.encode(text).tolist()
        except DeepresError as error:
            raise DeepresError(f"the prompt: {error}") from error
        if not tokens:
            if self.vocabulary.end is not None:
                tokens = [self.vocabulary.end]
            elif "\n" in self.vocabulary.names:
                tokens = self.vocabulary.encode("\n").tolist()
            else:
                raise DeepresError(
                    "the prompt is empty, and the network knows no token that a text begins behind; give a prompt"
                )
        if len(tokens) > self.context:
            raise DeepresError(
                f"the prompt has {len(tokens):,} tokens and the context of {self.name} is {self.context:,}; give a shorter one"
            )
        return torch.tensor([tokens])


def open_language_model(reference: nn.Module | str | Path, *, weights: str | Path | None = None) -> LanguageModel:
    """Open the language model that ``reference`` names, as in ``open_model``. GPT-2 and Llama of Hugging Face become networks of ours.

    Raises ``DeepresError`` for a network that is none, and for one whose tokens are not known.
    """
    opened = open_trained(reference, weights=weights)
    if opened.spec.inputs != "tokens":
        raise DeepresError(f"{opened.name}: takes images; a language model is needed here")
    model = opened.model if isinstance(opened.model, Transformer) else from_hugging_face(opened.model)
    if not model.config.vocabulary:
        raise DeepresError(f"{opened.name}: takes images; a language model is needed here")
    vocabulary = opened.prepare.vocabulary if isinstance(opened.prepare, Tokens) else None
    if vocabulary is None:
        raise DeepresError(
            f"{opened.name}: its tokens are not known; open a run of deepres, or a Hugging Face folder with a tokenizer.json"
        )
    if len(vocabulary) != model.config.vocabulary:
        raise DeepresError(
            f"{opened.name}: its weights are for {model.config.vocabulary:,} tokens, and its vocabulary has {len(vocabulary):,}"
        )
    return LanguageModel(model.eval(), vocabulary, opened.name)
