"""The table of architectures in the documentation: ``python -m deepres.adapters.table > docs/architectures.md``."""

from __future__ import annotations

from deepres.adapters.adapter import Adapter, adapters

_HEAD = """\
# Architectures

<!-- Written by `python -m deepres.adapters.table`; change the adapters in deepres/adapters/families instead. -->

A *residual site* is a place in a network where `y = after(shortcut(x) + f(x))`. `deepres.sites(model)` finds the sites of the
networks below, of networks that contain their blocks, and of blocks that you name with
[`deepres.register_site`](lens.md#supported-networks). All parts of deepres that measure, remove or skip depth use sites.

A *block* is one site, or the sites of a Transformer layer (attention, MLP). Its *signal* is `NCHW` (channels first), `NHWC`
(channels last) or `NLC` (tokens).

The tests check for every row that all sites are found, that observing changes no bit, that bypassing a block equals removing
it, and that removed blocks stay removed after saving and loading, by deepres and by the library itself. How a network is saved
depends on what was removed:

- If whole blocks were removed, the constructors of torchvision and timm build the network with the remaining depths, and it
  loads the `state_dict` of the smaller network. Hugging Face's configurations get the smaller depth.
- If only a part of a block was removed, `save_pretrained` of Hugging Face's networks writes zeros for its weights. The
  constructors of torchvision and timm cannot build such blocks, so use `deepres.save`.

| library | networks | blocks | sites in a block | signal | limits |
|---|---|---|---|---|---|
"""
_REFUSED = """
## Not supported

For these networks, `sites` raises a `DeepresError` with the reason.

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
