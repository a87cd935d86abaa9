"""The part of docs/results.md on language models."""

from __future__ import annotations

from typing import Any

from benchmarks.notes import METHODS
from benchmarks.tell_format import markdown, speed_cells


def language_text(result: dict[str, Any]) -> str:
    """Any of the results of language models, by what it holds."""
    if "tried" in result and "rows" in result:  # of the training
        rows = [
            [name, f"{one['val_loss']:.3f} ± {one['deviation']:.3f}", str(one["n"]), f"{min(steps):,}"]
            for name in ("adamw", "muon")
            if (one := result.get(name)) and (steps := [row["steps"] for row in result["rows"] if row["optimizer"] == name])
        ]
        return f"{result['what']}. To be reached: {result['reach']:g} nats.\n\n" + markdown(
            ["optimizer", "validation loss, nats", "seeds", "steps"], rows
        )
    if "ways" in result:  # of shrinking
        spread = [f" ± {one['deviation']:.3f}" if one["deviation"] is not None else "" for one in result["ways"].values()]
        rows = [
            [METHODS.get(name, name), f"{one['test_rise']:+.3f}{more}", f"{one['parts_removed']:g}", str(one["n"])]
            for (name, one), more in zip(result["ways"].items(), spread, strict=True)
        ]
        given = [f"{row['test_loss']:.3f}" for row in result["rows"] if row["way"] == "whole"]
        return (
            f"`python -m benchmarks.language_shrink`: {result['what']}. The given networks have a test loss of {', '.join(given)} "
            "nats; the rise is against them.\n\n"
            + markdown(["", "rise of the test loss, nats", "parts removed", "seeds"], rows)
        )
    if "measured_again" in result:  # of speculation
        found, best = result["measured_again"], result["tried"][result["best"]]
        return (
            f"`python -m benchmarks.language_generation speculate`: {result['what']}. The best of {len(result['tried'])} settings "
            f"({result['best']}; blocks {', '.join(map(str, best['blocks']))}), measured again over {result['n']} turns: "
            f"{found['ratio']:.2f} times the tokens a second ({found['tokens_per_second']:,.0f} and "
            f"{found['plain_tokens_per_second']:,.0f}); {100 * found['acceptance']:.0f} % of the drafted tokens are accepted, "
            f"{found['tokens_per_pass']:.1f} tokens for each pass of the whole."
        )
    groups = {name: one for name, one in result.items() if name.startswith("batch ")} or {"": result}
    rows = [
        [*([group] if group else []), name, *speed_cells(one, "tokens")]
        for group, ways in groups.items()
        for name, one in ways.items()
        if isinstance(one, dict) and "tokens_per_second" in one
    ]
    n = next(one["n"] for ways in groups.values() for one in ways.values() if isinstance(one, dict) and "n" in one)
    head = [*(["", ""] if "" not in groups else [""]), "tokens/s, median", "range", "against the best peer"]
    return f"{result['what']}; {n} turns each, alternating.\n\n{markdown(head, rows)}"
