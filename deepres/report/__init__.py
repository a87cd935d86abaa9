"""One self-contained HTML page for any result. Read: table -> charts -> images -> page.

``charts`` is imported where charts are drawn, since Plotly takes a while to import.
"""

from deepres.report.images import data_uri
from deepres.report.page import Page
from deepres.report.table import Table, mean_and_deviation, percent, share, share_range

__all__ = ["Page", "Table", "data_uri", "mean_and_deviation", "percent", "share", "share_range"]
