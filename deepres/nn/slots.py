"""A cache of keys and values whose rows are at different positions: sequences join and leave while the others go on."""

from __future__ import annotations

import torch
from torch import Tensor

from deepres.nn.attention import KeyValues, LayerCaches, attentions
from deepres.nn.transformer import Transformer


class _SlotKeyValues(KeyValues):
    """One layer's part of ``SlotCache``. A call works on the rows that the cache has chosen."""

    def __init__(self, owner: SlotCache, heads: int, width: int, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__(owner.slots, heads, owner.context, width, dtype=dtype, device=device)
        self._owner = owner

    @property
    def start(self) -> Tensor:
        return self._owner.starts

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        owner, (rows, _, new, _) = self._owner, keys.shape
        at = owner.starts + torch.arange(new, device=keys.device)
        row = torch.arange(owner.first, owner.first + rows, device=keys.device)[:, None]
        self.keys[row, :, at] = keys.transpose(1, 2)
        self.values[row, :, at] = values.transpose(1, 2)
        part, seen = slice(owner.first, owner.first + rows), owner.longest + new
        return self.keys[part, :, :seen], self.values[part, :, :seen]

    def mask(self, new: int, seen: int) -> Tensor:
        """(N, 1, new, seen): a row sees its own positions, not what a longer row or an earlier sequence left behind them."""
        at = self._owner.starts + torch.arange(new, device=self.keys.device)
        return (torch.arange(seen, device=self.keys.device) <= at[..., None])[:, None]


class SlotCache:
    """Keys and values of up to ``slots`` sequences of their own lengths, in memory taken once.

    The running sequences are always rows 0 to ``running - 1``, so that a step reads the memory as it lies.
    """

    def __init__(self, model: Transformer, slots: int) -> None:
        self.model, self.slots, self.context = model, slots, model.config.context
        self.lengths: list[int] = []  # of the running sequences, tokens
        weight = next(model.parameters())
        self.device = weight.device
        self.layers: list[KeyValues] = LayerCaches(
            model,
            (
                _SlotKeyValues(self, layer.kv_heads, layer.head_width, weight.dtype, weight.device)
                for layer in attentions(model)
            ),
        )
        self._choose(0, 0)

    @property
    def running(self) -> int:
        """Sequences that have joined and not left."""
        return len(self.lengths)

    def _choose(self, first: int, count: int) -> None:
        chosen = self.lengths[first : first + count]
        self.first, self.longest = first, max(chosen, default=0)
        self.starts = torch.tensor(chosen, device=self.device)[:, None]

    @torch.inference_mode()
    def join(self, prompt: Tensor) -> Tensor:
        """Let a sequence of the tokens (1, L) run in the next row; return the logits (1, K) of its next token."""
        assert self.running < self.slots
        self.lengths.append(0)
        self._choose(self.running - 1, 1)
        try:
            logits: Tensor = self.model(prompt, self.layers)[:, -1]
        except BaseException:  # such as a prompt that is too long: the row stays free
            self.lengths.pop()
            raise
        self.lengths[-1] = prompt.shape[1]
        return logits

    @torch.inference_mode()
    def step(self, tokens: Tensor) -> Tensor:
        """One more token for each running sequence, (N, 1), in the order of the rows; return the logits (N, K) of the next ones."""
        self._choose(0, self.running)
        logits: Tensor = self.model(tokens, self.layers)[:, -1]
        self.lengths = [length + 1 for length in self.lengths]
        return logits

    def leave(self, row: int) -> None:
        """Forget the sequence in ``row``. The last row takes its place, so whoever keeps a list of them does the same."""
        last = self.running - 1
        if row != last:
            for layer in self.layers:
                layer.keys[row, :, : self.lengths[last]] = layer.keys[last, :, : self.lengths[last]]
                layer.values[row, :, : self.lengths[last]] = layer.values[last, :, : self.lengths[last]]
            self.lengths[row] = self.lengths[last]
        self.lengths.pop()
