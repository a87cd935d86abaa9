"""The part of docs/results.md on shrinking, ghosts and int8 together."""

from __future__ import annotations

from typing import Any

from benchmarks.tell_format import markdown, plain


def levers_text(result: dict[str, Any]) -> str:
    """The table of ``benchmarks.levers``: errors, and speed against the network as it is."""
    rows = [
        [key, *(_error(row, name) for name in ("val_error", "test_error")), *(_speed(row, batch) for batch in ("1", "32"))]
        for key, row in result["rows"].items()
    ]
    images = result["images"]
    text = (
        f"`python -m benchmarks.levers`: {plain(result['what'])}; {images['train']:,} training, {images['val']:,} validation and "
        f"{images['test']:,} test images; {result['seeds']} seed{'s' if result['seeds'] > 1 else ''}. Shrunk to {result['target']} in "
        f"{result['epochs']:g} further epochs; ghosts may raise the validation error of their network by {result['error']:g} points and "
        f"int8 by {result['int8_error']:g}; all but the rows as it is run on {result['engine']}. Ratios are to the whole network as it is, "
        f"medians and range over {result['turns']} alternating turns for each seed.\n\n"
        + markdown(["", "validation error", "test error", "images/s at batch 1, ratio", "images/s at batch 32, ratio"], rows)
    )
    products = [
        f"{one['product_of_single']:.2f} at batch {batch} ({one['ratio']:.2f} measured)"
        for row in result["rows"].values()
        for batch, one in row["speed"].items()
        if "product_of_single" in one
    ]
    return text + (f"\n\nThe ratios of each lever alone multiply to {' and '.join(products)}." if products else "")


def _error(row: dict[str, Any], name: str) -> str:
    if name not in row:
        return "refused" if row["refused"] else ""
    one = row[name]
    return f"{one['mean']:.2f} %" if one["spread"] is None else f"{one['mean']:.2f} ± {one['spread']:.2f} %"


def _speed(row: dict[str, Any], batch: str) -> str:
    if batch not in row["speed"]:
        return ""
    one = row["speed"][batch]
    return f"{one['images_per_second']:,.1f}, {one['ratio']:.2f} ({one['ratio_lowest']:.2f} to {one['ratio_highest']:.2f})"
