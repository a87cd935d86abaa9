"""Open data so that they fit a network: its size, channels, preparation and labels."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from deepres.adapters import ModelSpec, spec_of
from deepres.data import Data, Tokens, open_data
from deepres.data.text import is_text
from deepres.errors import DeepresError
from deepres.models.exported import need_layers
from deepres.models.head import replace_head, select_outputs
from deepres.models.labels import LabelMatch, match_labels, output_names, relabel
from deepres.models.opening import OpenedModel, at_size, check_size, library_prepare, open_model
from deepres.models.tokens import vocabulary_of

_LARGE = 96  # pixels; smaller images are used at their own size, with their own mean and deviation


@dataclass(frozen=True, eq=False)
class Paired:
    """A network and the data that go with it."""

    opened: OpenedModel
    data: Data  # prepared as the network wants it, and labelled by its outputs where they fit
    match: LabelMatch

    @property
    def model(self) -> nn.Module:
        return self.opened.model

    @property
    def fits(self) -> bool:
        """Return whether the network's classes are the data's; if not, it can be measured against its own answers only."""
        return self.match.fits

    @property
    def remarks(self) -> tuple[str, ...]:
        """Sentences that the user should see: of how the network was opened, how labels were matched, and what the data lack."""
        return (*self.opened.remarks, *((self.match.remark,) if self.match.remark else ()), *self.data.notes)

    def need_fit(self) -> None:
        """Raises ``DeepresError`` where the network's classes are not the data's."""
        if not self.fits:
            raise DeepresError(f"{self.data.name}: its classes are not those of {self.opened.name} ({self.match.remark})")


def open_with_data(
    reference: nn.Module | str | Path, data: Data | str | Path, *, weights: str | Path | None = None, size: int | None = None
) -> Paired:
    """Open a network and data that fit it. A network without weights is built for the data's classes and channels.

    Raises ``DeepresError`` for a reference or data that do not exist, and for data that the network cannot take.
    """
    if isinstance(reference, nn.Module) or Path(str(reference)).exists():
        return data_for(open_model(reference, weights=weights), data, size=size)
    tokens = vocabulary_of(weights or str(reference)) if is_text(data) else None
    known = data if isinstance(data, Data) else open_data(data, size=size, tokens=tokens)
    opened = open_model(reference, weights=weights, classes=len(known.classes), channels=(known.prepare.channels or None))
    return data_for(opened, data, size=size, known=known)


def data_for(opened: OpenedModel, data: Data | str | Path, *, size: int | None = None, known: Data | None = None) -> Paired:
    """The data that go with a network: opened at its size and channels, prepared and labelled as it wants them.

    ``size``: side of the input in pixels, or the context of a language model in tokens, instead of the network's. A ``Data`` is
    taken at the size that it has; ``known`` is ``data`` already opened, by default.

    Raises ``DeepresError`` for data that the network cannot take.
    """
    check_size(size)
    spec, fixed = opened.spec, isinstance(data, Data)
    if known is None and isinstance(data, Data):
        known = data
    if spec.classifies_texts:
        raise DeepresError(
            f"{opened.name}: classifies texts ({spec.classes} classes, and {spec.vocabulary:,} tokens), and labelled texts are not "
            "supported as data, only images with labels, and texts for language models; from Python, lens.look takes batches of any input"
        )
    if (known is not None and known.is_text) or (not isinstance(data, Data) and is_text(data)):
        return _text_for(opened, data, size, known)
    if spec.inputs == "tokens" or spec.channels is None:
        raise DeepresError(
            f"{opened.name}: has no convolution, so it takes no images; give it a text as --data, and from Python lens.look "
            "takes any input"
        )
    wanted = size or spec.size or (opened.prepare.size if opened.prepare else None)
    if not isinstance(data, Data):
        if known is None or wanted not in (None, known.prepare.size) or known.prepare.channels != spec.channels:
            known = open_data(data, size=wanted, channels=spec.channels)
        usual = spec.usual_size
        if wanted is None and known.prepare.size > _LARGE and usual > _LARGE and usual != known.prepare.size:
            known = open_data(data, size=usual, channels=spec.channels)
    assert known is not None
    _check_channels(opened, known)
    prepare = known.prepare
    if opened.prepare is not None and not (fixed and opened.given):
        prepare = at_size(opened.prepare, size or opened.prepare.size)
    elif (not opened.given and opened.trained) or (
        not fixed and opened.trained and spec.mean is not None and known.prepare.size > _LARGE
    ):
        prepare = library_prepare(spec, known.prepare.size)
    opened.need_size(prepare.size)
    return _matched(opened, dataclasses.replace(known, prepare=prepare))


def data_to_train(opened: OpenedModel, data: Data | str | Path, *, size: int | None = None, known: Data | None = None) -> Data:
    """The data to train a network on: as ``data_for`` has them, with labels in the data's own order, which the head then follows."""
    unnamed = dataclasses.replace(opened, classes=None, spec=dataclasses.replace(opened.spec, classes=None))
    found = data_for(unnamed, data, size=size, known=known).data
    if isinstance(data, Data) and data.prepare.size != found.prepare.size:  # its images have been brought to a size already
        kept = dataclasses.replace(found.prepare, size=data.prepare.size, resize=data.prepare.resize)
        found = dataclasses.replace(found, prepare=kept)
    return found


def adapt_head(opened: OpenedModel, classes: Sequence[str]) -> OpenedModel:
    """Bring the last layer of a trained network, in place, to one output for each of ``classes``, in their order.

    Outputs whose names are among the classes are kept. Where not every class has one, the layer starts afresh; a network whose labels
    are not known keeps its outputs if it has as many. Remarks of the result say what was done.

    Raises ``DeepresError`` for an exported file, whose layers cannot be trained.
    """
    need_layers(opened.model, opened.name)
    labels, outputs = opened.classes, opened.spec.classes
    match = match_labels(labels, outputs, classes, positional=False)
    here = tuple(range(len(classes)))
    if match.by == "none":
        replace_head(opened.model, len(classes))
        said = f"its head starts afresh with {len(classes)} outputs, since {match.remark}"
    elif match.order != here or outputs not in (None, len(classes)):
        select_outputs(opened.model, match.order)
        said = f"{len(classes)} of its {outputs} outputs are kept, matched by name"
    else:
        said = f"its {outputs} outputs are kept, whose labels are not known" if labels is None and outputs is not None else ""
    return dataclasses.replace(
        opened,
        spec=spec_of(opened.model),
        classes=tuple(classes),
        remarks=(*opened.remarks, *((f"{opened.name}: {said}",) if said else ())),
    )


def _check_channels(opened: OpenedModel, data: Data) -> None:
    spec: ModelSpec = opened.spec
    if spec.channels not in (None, data.prepare.channels):
        raise DeepresError(
            f"{data.name}: its images were opened with {data.prepare.channels} channels and the network takes {spec.channels}; "
            f"open them with open_data(..., channels={spec.channels})"
        )


def _text_for(opened: OpenedModel, data: Data | str | Path, size: int | None, known: Data | None) -> Paired:
    if opened.spec.inputs != "tokens":
        name = known.name if known is not None else data
        raise DeepresError(f"{opened.name}: takes images and {name} is a text")
    tokens = opened.prepare.vocabulary if isinstance(opened.prepare, Tokens) else None
    if known is None:
        assert not isinstance(data, Data)
        known = open_data(data, size=size, tokens=tokens)
    longest = opened.spec.longest or known.prepare.size
    if size is not None and size > longest:
        raise DeepresError(f"{opened.name}: reads at most {longest} tokens at a time, and --size asks for {size}")
    context = size or min(longest, opened.prepare.size if opened.prepare is not None else known.prepare.size)
    if not isinstance(data, Data) and context != known.prepare.size:
        known = open_data(data, size=context, tokens=tokens)
    return _matched(opened, known)


def _matched(opened: OpenedModel, data: Data) -> Paired:
    labels = opened.classes
    if data.is_text:  # its classes are tokens, which differ by case and are never taken for one another
        fits = list(labels) == list(data.classes) if labels else opened.spec.classes == len(data.classes)
        return Paired(
            opened, data, LabelMatch("position" if fits else "none", remark="" if fits else "it is read by other tokens")
        )
    match = match_labels(labels, opened.spec.classes, data.classes, positional=not opened.notes.get("classes"))
    if match.fits:
        data = relabel(data, match.order, labels or output_names(opened.spec.classes, data.classes))
    return Paired(opened, data, match)
