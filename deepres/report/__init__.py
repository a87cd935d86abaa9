"""One self-contained HTML page for any result."""

from deepres.report.images import data_uri
from deepres.report.page import Page

__all__ = ["Page", "data_uri"]
