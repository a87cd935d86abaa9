"""One self-contained HTML page for any result."""

from deepres.report.page import Page

__all__ = ["Page"]
