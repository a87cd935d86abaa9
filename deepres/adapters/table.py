"""The table of architectures in the documentation: ``python -m deepres.adapters.table > docs/architectures.md``."""

from __future__ import annotations

from deepres.adapters.adapter import Adapter, adapters

_HEAD = """\
# Architectures

<!-- Written by `python -m deepres.adapters.table`; change the adapters in deepres/adapters/families instead. -->

`deepres.sites(model)` finds the residual sites of these networks, of networks that contain their blocks, and of blocks that
you name with `deepres.register_site`. Everything in deepres that looks at depth, removes it or skips it works on sites. The
tests walk every row: all sites are found, observing changes no bit, bypassing a block equals removing it, and what was removed
stays removed after `deepres.save` and `deepres.load` and after the library's own saving and loading. Where only a part of a
block was removed, `save_pretrained` of Hugging Face's networks writes zeros for its weights. The constructors of torchvision
and timm build no such blocks, so `deepres.save` is the way to keep them; a network without whole blocks is built by their
constructors with the depths that are left, and takes the `state_dict` of the smaller one.

A *block* is one site, or the several of a Transformer's layer (attention, MLP). Its *signal* is `NCHW` (channels first),
`NHWC` (channels last) or `NLC` (tokens).

| library | networks | blocks | sites in a block | signal | limits |
|---|---|---|---|---|---|
"""
_REFUSED = """
## Not supported

For these `sites` raises a `DeepresError` with the reason.

| library | networks | reason |
|---|---|---|
"""


def _row(adapter: Adapter) -> str:
    classes = [key.rpartition(":")[2] for key in adapter.patterns]
    parts = list(dict.fromkeys(row.part or "the block" for rows in adapter.patterns.values() for row in rows))
    layouts = list(dict.fromkeys(row.layout for rows in adapter.patterns.values() for row in rows))
    blocks = ", ".join(f"`{name}`" for name in dict.fromkeys(classes))
    cells = (adapter.library, adapter.name, blocks, ", ".join(parts), ", ".join(layouts), adapter.notes)
    return "| " + " | ".join(cells) + " |\n"


def architectures_page() -> str:
    """The page, in Markdown."""
    order = {"deepres": 0, "torchvision": 1, "timm": 2}
    known = sorted(adapters(), key=lambda adapter: order.get(adapter.library, 3))
    rows = "".join(_row(adapter) for adapter in known if not adapter.refused)
    refused = "".join(f"| {a.library} | {a.name} | {a.refused} |\n" for a in known if a.refused)
    return _HEAD + rows + _REFUSED + refused


if __name__ == "__main__":
    print(architectures_page(), end="")
