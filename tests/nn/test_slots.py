"""Sequences that share a cache without seeing each other."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from deepres import DeepresError
from deepres.nn.slots import SlotCache
from deepres.nn.transformer import Transformer
from deepres.nn.transformer_zoo import transformer


def small(name: str) -> Transformer:
    return transformer(name, depth=2, width=32, vocabulary=40, context=24).eval()


@torch.no_grad()
@pytest.mark.parametrize("name", ["gpt-tiny", "llama-tiny"])
def test_sequences_that_join_and_leave_get_the_logits_of_their_own_pass(name: str) -> None:
    model = small(name)
    texts = {key: torch.randint(40, (20,)) for key in "abcd"}
    cache, rows, seen = SlotCache(model, 3), [], {}

    def check(key: str, logits: Tensor) -> None:
        whole = model(texts[key][None, : seen[key]])[0, -1]
        torch.testing.assert_close(logits, whole, rtol=1e-4, atol=1e-5)

    def join(key: str, length: int) -> None:
        seen[key] = length
        rows.append(key)
        check(key, cache.join(texts[key][None, :length])[0])

    def step() -> None:
        logits = cache.step(torch.stack([texts[key][seen[key]] for key in rows])[:, None])
        for row, key in enumerate(rows):
            seen[key] += 1
            check(key, logits[row])

    def leave(key: str) -> None:
        row = rows.index(key)
        cache.leave(row)
        rows[row] = rows[-1]
        rows.pop()

    join("a", 9)
    step()
    join("b", 2)
    join("c", 5)
    step()
    leave("a")  # "c" moves to its row
    step()
    join("d", 3)  # where "c" was
    step()
    leave("d")
    leave("b")
    step()
    assert rows == ["c"] and cache.running == 1


@torch.no_grad()
def test_a_sequence_that_cannot_join_leaves_no_row() -> None:
    model = small("gpt-tiny")
    cache, text = SlotCache(model, 2), torch.randint(40, (20,))
    cache.join(text[None, :3])
    with pytest.raises(DeepresError, match="longer than the context"):
        cache.join(torch.zeros(1, 25, dtype=torch.int64))
    assert cache.running == 1
    logits = cache.step(text[None, 3:4])
    torch.testing.assert_close(logits[0], model(text[None, :4])[0, -1], rtol=1e-4, atol=1e-5)
