"""One self-contained HTML page: text, tables and Plotly figures, no network needed to open it."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deepres.errors import DeepresError


@dataclass
class Page:
    """Parts in the order in which they were added. Everything but figures is plain text and escaped."""

    title: str
    lead: str
    footer: str = ""
    parts: list[dict[str, Any]] = field(default_factory=list)

    def heading(self, text: str) -> None:
        self.parts.append({"kind": "heading", "text": text})

    def text(self, text: str) -> None:
        self.parts.append({"kind": "text", "text": text})

    def said(self, lines: Sequence[str]) -> None:
        """What was found, in words."""
        self.parts.append({"kind": "said", "lines": list(lines)})

    def table(self, caption: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        self.parts.append({"kind": "table", "caption": caption, "head": list(head), "rows": [list(row) for row in rows]})

    def figure(self, figure: Any, caption: str) -> None:
        """A ``plotly.graph_objects.Figure``. The caption is also what a screen reader says."""
        # "</" would end the script that the figure stands in
        spec = json.dumps(json.loads(figure.to_json(validate=False))).replace("</", "<\\/")
        self.parts.append({"kind": "figure", "caption": caption, "json": spec})

    def write(self, path: str | Path) -> Path:
        """Write the page, whole or not at all."""
        from jinja2 import Environment, PackageLoader, StrictUndefined
        from plotly.offline import get_plotlyjs

        template = Environment(
            loader=PackageLoader("deepres.report", "."), autoescape=True, undefined=StrictUndefined
        ).get_template("page.html")
        path = Path(path)
        html = template.render(
            title=self.title, lead=self.lead, footer=self.footer, parts=self.parts, plotly=get_plotlyjs(), height=430
        )
        part = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            part.write_text(html, encoding="utf-8")
            os.replace(part, path)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise DeepresError(f"{path}: the report cannot be written ({error.strerror})") from error
        return path
