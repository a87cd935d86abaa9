"""One self-contained HTML page: text, tables and Plotly figures, no network needed to open it."""

from __future__ import annotations

import base64
import gzip
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from deepres.errors import DeepresError
from deepres.paths import os_reason
from deepres.report.table import Table

FIGURE_HEIGHT = 430  # pixels

_STYLES = {"chain.css": ("chain", "gallery"), "boxes.css": ("boxes",)}  # style sheet -> the parts that need it


@dataclass(frozen=True)
class Shade:
    """A piece of text on a background whose strength is ``share``, from 0 to 1; ``hint`` is shown on hovering."""

    text: str
    share: float
    hint: str = ""


@dataclass
class Page:
    """A title, a lead, and parts in the order in which they were added. All text is escaped."""

    title: str
    lead: str
    footer: str = ""
    parts: list[dict[str, Any]] = field(default_factory=list)

    def heading(self, text: str) -> None:
        self.parts.append({"kind": "heading", "text": text})

    def text(self, text: str) -> None:
        self.parts.append({"kind": "text", "text": text})

    def summary(self, lines: Sequence[str]) -> None:
        """Add the findings in sentences, set off from the rest."""
        self.parts.append({"kind": "summary", "lines": list(lines)})

    def table(self, table: Table) -> None:
        self.parts.append({"kind": "table", "caption": table.caption, "head": list(table.head), "rows": list(table.rows)})

    def figure(self, figure: Any, caption: str) -> None:
        """Add a ``plotly.graph_objects.Figure`` (see ``charts``). A screen reader reads the caption in its place."""
        self.parts.append({"kind": "figure", "caption": caption, "json": _script(json.loads(figure.to_json(validate=False)))})

    def chain(
        self, title: str, measures: Sequence[dict[str, Any]], sites: Sequence[dict[str, Any]], edges: Sequence[float]
    ) -> None:
        """Add a network as an interactive chain of blocks.

        ``measures``: the quantities by which blocks can be coloured, each with ``key``, ``label``, ``unit`` and ``log``.
        ``sites``: each with ``index``, ``name``, ``kind``, ``stage``, ``opens``, ``values`` by key, ``details`` as pairs of
        text, ``histogram`` (counts between ``edges``, or None) and ``ablation`` (``change``, ``low``, ``high``, or None).
        """
        spec = _script({"measures": list(measures), "sites": list(sites), "edges": list(edges)})
        self.parts.append({"kind": "chain", "title": title, "measures": list(measures), "json": spec})

    def shaded(
        self, rows: Sequence[tuple[str, Sequence[Shade]]], caption: str, low: str, high: str, *, flow: bool = False
    ) -> None:
        """Add rows of shaded text as a table, or with ``flow`` as running text. ``low`` and ``high`` explain the ends of the scale."""
        lines = [
            {
                "name": name,
                "cells": [{"text": s.text, "share": round(min(max(s.share, 0.0), 1.0), 3), "hint": s.hint} for s in row],
            }
            for name, row in rows
        ]
        self.parts.append({"kind": "shaded", "rows": lines, "caption": caption, "low": low, "high": high, "flow": flow})

    def gallery(self, images: Sequence[tuple[str, str]]) -> None:
        """Add a row of images, each as (``data:`` address, caption)."""
        self.parts.append({"kind": "gallery", "images": list(images)})

    def boxes(
        self, title: str, pictures: Sequence[dict[str, Any]], key: Sequence[tuple[str, str]], *, threshold: float | None = None
    ) -> None:
        """Add photographs with boxes. ``key``: the classes with their colours. ``threshold``: where a slider of confidence begins.

        ``pictures``: each with ``image`` (a ``data:`` address), its ``width`` and ``height``, the ``view`` that is shown of it,
        ``caption``, ``truth`` (boxes as left, top, width, height) and ``found`` (box, colour, confidence in 0..1, text).
        """
        slider = None if threshold is None else round(100 * threshold)
        self.parts.append({"kind": "boxes", "title": title, "pictures": list(pictures), "key": list(key), "slider": slider})

    def write(self, path: str | Path) -> Path:
        """Write the page to a temporary file and move it to ``path``, so that a page is never half written.

        Raises ``DeepresError`` where it cannot be written.
        """
        from jinja2 import Environment, PackageLoader, StrictUndefined

        template = Environment(
            loader=PackageLoader("deepres.report", "."), autoescape=True, undefined=StrictUndefined
        ).get_template("page.html")
        path = Path(path)
        html = template.render(
            title=self.title,
            lead=self.lead,
            footer=self.footer,
            parts=self.parts,
            plotly=_plotly() if any(part["kind"] == "figure" for part in self.parts) else "",
            height=FIGURE_HEIGHT,
            style="\n".join(_asset(name) for name, kinds in _STYLES.items() if self._has(*kinds)),
            script="\n".join(_asset(f"{kind}.js") for kind in ("chain", "boxes") if self._has(kind)),
        )
        part = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            part.write_text(html, encoding="utf-8", errors="replace")  # names of files need not be text
            os.replace(part, path)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise DeepresError(f"{path}: the report cannot be written ({os_reason(error)})") from error
        return path

    def _has(self, *kinds: str) -> bool:
        return any(part["kind"] in kinds for part in self.parts)


def _script(value: Any) -> str:
    """JSON for use inside a script element, which a "</" would end. NaN and infinities become null."""
    return json.dumps(finite(value)).replace("</", "<\\/")


def finite(value: Any) -> Any:
    """``value`` of JSON with null in place of NaN and infinities, which JSON does not have."""
    if isinstance(value, dict):
        return {key: finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _asset(name: str) -> str:
    return (files("deepres.report") / name).read_text(encoding="utf-8")


@cache
def _plotly() -> str:
    """Plotly's script as base64 of gzip: a third of the size. The browser unpacks it after the first paint."""
    from plotly.offline import get_plotlyjs

    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode()
