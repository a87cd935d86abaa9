"""The part of docs/results.md on serving."""

from __future__ import annotations

from typing import Any

from benchmarks.tell_format import markdown, plain


def serving_text(result: dict[str, Any]) -> str:
    rows = [
        [
            name,
            f"{one['p50_ms']:.0f} ms",
            f"{one['p99_ms']:.0f} ms",
            f"{one['answers_per_second']:.0f} ({one['lowest']:.0f} to {one['highest']:.0f})",
            f"{one['answers']:,}",
        ]
        for name, one in result["load"].items()
    ]
    error = result["test_error"]
    return (
        f"`python -m benchmarks.serving_ghost`: {plain(result['what'])}; {result['turns']} alternating turns of {result['seconds']:g} "
        "s each, with the clients "
        f"on the same machine. The network has {error['network']:.2f} % test error and its ghost {error['ghost']:.2f} %. "
        f"{100 * result['left_early']:.0f} % of the ghost's inputs exit early, and {100 * result['blocks_run']:.0f} % of its blocks "
        "run.\n\n" + markdown(["", "p50", "p99", "answers per second, median and range", "answers"], rows)
    )


def rivals_text(result: dict[str, Any]) -> str:
    timed = any("core_ms" in one for one in result["load"].values())
    rows = [
        [
            name,
            f"{one['p50_ms']:.1f} ms ({one['p50_ms_lowest']:.1f} to {one['p50_ms_highest']:.1f})",
            f"{one['p99_ms']:.1f} ms",
            f"{one['answers_per_second']:.1f} ({one['lowest']:.1f} to {one['highest']:.1f})",
            *([_core_ms(one["core_ms"])] if timed else []),
            f"{one['answers']:,}",
        ]
        for name, one in result["load"].items()
    ]
    alone, versions = result["alone"], ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    one, engine = alone["decoding and the call of one"], alone["engine at the batch of 32 clients"]
    head = ["", "p50, median and range", "p99", "answers per second, median and range"]
    return (
        f"`python -m benchmarks.serving`: {result['what']}; {result['turns']} alternating turns of {result['seconds']:g} s each, with the "
        f"clients on the same machine; {versions}. The tuned rivals run the network on the engine of `deepres serve`, {result['engine']}, "
        f"and batch up to 32 images. Decoding and the call of one image take {one['ms']:.1f} ms alone, of which one client's median is "
        f"{result['one_client_against_decoding_and_call']:.2f} times. 32 clients reach "
        f"{100 * result['share_of_engine_at_32_clients']:.0f} % of what the engine gives at their mean batch of {engine['batch']}"
        + (_of_the_ceiling(result) if "ceiling_with_decoding" in result else "")
        + ".\n\n"
        + "".join(
            f"{_stages(name, row)}\n\n"
            for name, row in result["load"].items()
            if name.startswith("deepres, ") and "mean_ms" in row
        )
        + markdown(
            [*head, *(["core-ms an answer: first process, those that it started, clients"] if timed else []), "answers"], rows
        )
    )


def _stages(name: str, row: dict[str, Any]) -> str:
    stages = [f"{what} {row['mean_ms'][what]:.1f}" for what in ("receive", "decode", "wait", "transfer", "call", "answer")]
    return (
        f"Mean milliseconds of a request's stages, {name}: {', '.join(stages)}; {row['mean_ms']['batch']:.1f} images in a call."
    )


def _core_ms(spent: dict[str, float]) -> str:
    return ", ".join(f"{spent[name]:.1f}" for name in ("first process", "other processes", "clients"))


def _of_the_ceiling(result: dict[str, Any]) -> str:
    return (
        f", and {100 * result['share_of_engine_at_32_clients_resized']:.0f} % where they send images of the network's size. Decoding a "
        f"photograph takes {result['decoding_core_ms']:.1f} ms of a core, which leaves {100 * result['ceiling_with_decoding']:.0f} % at "
        f"most; {100 * result['close_calls']:.0f} % of the photographs are close calls, computed again in float32 in both"
    )
