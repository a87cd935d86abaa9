"""One self-contained HTML page for any result."""

from deepres.report.images import data_uri
from deepres.report.page import LAYOUT, Page

__all__ = ["LAYOUT", "Page", "data_uri"]
