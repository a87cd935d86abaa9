"""How blocks are built, one row per site of a block class: what ends the branch, what the shortcut is, what comes after.

Classes are named by text, so that no library is imported to know its blocks. A row also serves subclasses.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from deepres.errors import DeepresError


@dataclass(frozen=True)
class SitePattern:
    """Where in a block the parts of ``after(shortcut(x) + branch(x))`` are. Names are attribute paths inside the block.

    Of several names the first that the block has counts. Most blocks are one site, from their input to their output. A
    Transformer's block is two in a row, and its rows say with ``part``, ``start``, ``core`` and ``then`` where each lies.
    """

    end: tuple[str, ...]  # the module whose output is the branch's
    shortcut: tuple[str, ...] = ()  # the module on the shortcut; absent or None means identity
    after: tuple[str, ...] = ()  # the activation behind the sum; absent means none
    shared: tuple[str, ...] = ()  # what a shortcut that is a module takes its input from, together with the branch
    part: str = ""  # the site's name inside its block
    start: tuple[str, ...] = ()  # the branch's first module, whose input is the site's; absent: the block's input is
    core: tuple[str, ...] = ()  # the module that does the work; what follows it in the branch turns nothing into nothing
    then: tuple[str, ...] = ()  # the module that the sum goes into; absent: the sum is the block's output
    pair: bool = False  # whether the core gives a tuple, of which the first is meant

    def find(self, block: nn.Module, part: str) -> nn.Module | None:
        """The module that plays ``part`` in ``block``."""
        for path in getattr(self, part):
            module: object = block
            for name in path.split("."):
                module = getattr(module, name, None)
            if isinstance(module, nn.Module):
                return module
        return None


def _halves(
    first: str, attention: str, second: str, mlp: str, *, pair: bool, ends: tuple[str, str] | None = None
) -> list[SitePattern]:
    """A pre-norm Transformer block: ``x = x + attention(first(x)); x = x + mlp(second(x))``."""
    ends = ends or (attention, mlp)
    return [
        SitePattern((ends[0],), part="attention", start=(first,), core=(attention,), then=(second,), pair=pair),
        SitePattern((ends[1],), part="mlp", start=(second,), core=(mlp,)),
    ]


_timm_end = ("drop_path", "se")
_llama = _halves("input_layernorm", "self_attn", "post_attention_layernorm", "mlp", pair=True)
_ROWS: dict[str, list[SitePattern]] = {
    "deepres.nn.residual:Residual": [SitePattern(("branch",), ("shortcut",), ("after",))],
    "torchvision.models.resnet:BasicBlock": [SitePattern(("bn2",), ("downsample",), ("relu",))],
    "torchvision.models.resnet:Bottleneck": [SitePattern(("bn3",), ("downsample",), ("relu",))],
    "torchvision.models.convnext:CNBlock": [SitePattern(("stochastic_depth",))],
    "torchvision.models.vision_transformer:EncoderBlock": _halves(
        "ln_1", "self_attention", "ln_2", "mlp", pair=True, ends=("dropout", "mlp")
    ),
    "timm.models.resnet:BasicBlock": [SitePattern((*_timm_end, "bn2"), ("downsample",), ("act2",))],
    "timm.models.resnet:Bottleneck": [SitePattern((*_timm_end, "bn3"), ("downsample",), ("act3",))],
    "timm.models.res2net:Bottle2neck": [SitePattern(("drop_path", "se", "bn3"), ("downsample",), ("relu",))],
    "timm.models.resnest:ResNestBottleneck": [SitePattern(("bn3",), ("downsample",), ("act3",))],
    "timm.models.sknet:SelectiveKernelBasic": [SitePattern((*_timm_end, "conv2"), ("downsample",), ("act",))],
    "timm.models.sknet:SelectiveKernelBottleneck": [SitePattern((*_timm_end, "conv3"), ("downsample",), ("act",))],
    "timm.models.resnetv2:PreActBasic": [SitePattern(("drop_path",), ("downsample",), shared=("norm1",))],
    "timm.models.resnetv2:PreActBottleneck": [SitePattern(("drop_path",), ("downsample",), shared=("norm1",))],
    "timm.models.resnetv2:Bottleneck": [SitePattern(("drop_path",), ("downsample",), ("act3",))],
    "timm.models.convnext:ConvNeXtBlock": [SitePattern(("drop_path",), ("shortcut",))],
    "timm.models.vision_transformer:Block": _halves(
        "norm1", "attn", "norm2", "mlp", pair=False, ends=("drop_path1", "drop_path2")
    ),
    "transformers.models.vit.modeling_vit:ViTLayer": _halves(
        "layernorm_before", "attention", "layernorm_after", "mlp", pair=True
    ),
    "transformers.models.deit.modeling_deit:DeiTLayer": _halves(
        "layernorm_before", "attention", "layernorm_after", "mlp", pair=True
    ),
    "transformers.models.dinov2.modeling_dinov2:Dinov2Layer": _halves(
        "norm1", "attention", "norm2", "mlp", pair=True, ends=("layer_scale1", "layer_scale2")
    ),
    "transformers.models.gpt2.modeling_gpt2:GPT2Block": [
        SitePattern(("attn",), part="attention", start=("ln_1",), core=("attn",), then=("ln_cross_attn", "ln_2"), pair=True),
        SitePattern(
            ("crossattention",),
            part="cross-attention",
            start=("ln_cross_attn",),
            core=("crossattention",),
            then=("ln_2",),
            pair=True,
        ),
        SitePattern(("mlp",), part="mlp", start=("ln_2",), core=("mlp",)),
    ],
    "transformers.models.llama.modeling_llama:LlamaDecoderLayer": _llama,
    "transformers.models.mistral.modeling_mistral:MistralDecoderLayer": _llama,
    "transformers.models.qwen2.modeling_qwen2:Qwen2DecoderLayer": _llama,
}


def _key(kind: type) -> str:
    return f"{kind.__module__}:{kind.__qualname__}"


def patterns_of(block: nn.Module) -> list[SitePattern]:
    """The rows of a block's class or of the nearest of its base classes; without those whose modules this block lacks."""
    rows: list[SitePattern] = next((_ROWS[key] for kind in type(block).__mro__ if (key := _key(kind)) in _ROWS), [])
    return [row for row in rows if not row.part or row.find(block, "core") is not None]


def register_site(
    block: type[nn.Module],
    *,
    end: str,
    shortcut: str | None = None,
    after: str | None = None,
    part: str = "",
    start: str | None = None,
    core: str | None = None,
    then: str | None = None,
    pair: bool = False,
) -> None:
    """Make blocks of your own class known: ``register_site(MyBlock, end="norm2", shortcut="proj", after="relu")``.

    The block's forward must compute ``after(shortcut(x) + f(x))`` with ``f(x)`` the output of the module ``end``; leave out
    ``shortcut`` where it is the identity and ``after`` where nothing follows.

    A block with several sites in a row, such as a Transformer's, takes a call for each, with a ``part`` to name it by:
    ``register_site(MyLayer, part="attention", start="norm1", core="attn", end="drop1", then="norm2")``. ``start`` is the
    branch's first module, ``core`` the one that does the work (``pair`` where it returns a tuple), and ``then`` the module
    that the sum goes into (leave it out for the block's last site).

    A second call for the same class and part replaces the first.
    """
    if not (isinstance(block, type) and issubclass(block, nn.Module)):
        raise DeepresError(f"register_site takes a class of torch.nn.Module, not {block!r}")
    if bool(part) != bool(start and core):
        raise DeepresError("register_site: part, start and core belong together: a site inside a block needs all three")
    names = {"shortcut": shortcut, "after": after, "start": start, "core": core, "then": then}
    row = SitePattern((end,), part=part, pair=pair, **{key: (name,) if name else () for key, name in names.items()})
    others = [known for known in _ROWS.get(_key(block), []) if part and known.part and known.part != part]
    _ROWS[_key(block)] = [*others, row]
