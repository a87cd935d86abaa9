"""The control task of benchmarks/control.py needs what it says, and its ghost is told from what happened."""

import torch

from benchmarks.control import BLOCKS, FARTHEST, WIDTH, data_of, needed, network, rows
from benchmarks.tell_ghost import control_text


def test_an_input_needs_the_blocks_whose_receptive_field_reaches_both_marks() -> None:
    for blocks in (0, 1, 3, BLOCKS):
        net = network(max(blocks, 1)).eval()
        x = torch.randn(1, 2, 1, 2 * FARTHEST + 1, requires_grad=True)
        signal = net.stem(x)
        for block in list(net.stages[0].blocks)[:blocks]:
            signal = block(signal)
        signal[0, :, 0, FARTHEST].square().sum().backward()
        assert x.grad is not None
        seen = x.grad.abs().sum((0, 1, 2)).nonzero().flatten()
        span = int(seen.max() - seen.min())  # the largest distance of two marks that one feature sees
        assert int(needed(torch.tensor([span]))) == blocks and int(needed(torch.tensor([span + 1]))) == blocks + 1
    assert int(needed(torch.tensor([FARTHEST]))) == BLOCKS


def test_labels_compare_two_marked_bits_and_no_bit_alone_tells_them() -> None:
    split, distance = rows(4000, torch.Generator().manual_seed(0))
    bits, marks = split.pixels[:, 0, 0] > 0, split.pixels[:, 1, 0] > 0
    places = marks.nonzero()[:, 1].view(-1, 2)
    ends = bits.gather(1, places)
    assert split.pixels.shape == (4000, 2, 1, WIDTH) and torch.equal(places[:, 1] - places[:, 0], distance)
    assert torch.equal(ends[:, 0] == ends[:, 1], split.labels.bool())
    for end in ends.unbind(1):
        assert abs(float(split.labels[end].float().mean()) - 0.5) < 0.04
    data, far = data_of(500)
    assert len(data.train) == 500 and len(far) == len(data.test) and not torch.equal(data.train.labels, data.val.labels[:500])


def test_the_text_of_the_results() -> None:
    accuracy = {"exit behind 4 blocks": {"1 to 4": 99.0, "5 to 8": 51.0}, "whole": {"1 to 4": 100.0, "5 to 8": 98.0}}
    trial = {"seed": 0, "spearman": 0.951, "error": {"whole": 1.0, "ghost": 1.5}, "shallow_error": 35.0, "blocks_used": 9.8}
    trials = [{**trial, "used_by_needed": {"0": used, "16": 16.0}, "accuracy": accuracy} for used in (4.0, 5.0)]
    text = control_text({"what": "rows", "blocks": [16, 4], "allowed": 1.0, "seeds": 2, "trials": trials})
    assert "| 0 | 0.951 | 1.00 % | 1.50 % | 9.8 of 16 | 35.00 % |" in text and "| blocks used | 4.5 | 16.0 |" in text
    assert "| exit behind 4 blocks | 99 % | 51 % |" in text
