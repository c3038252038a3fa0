"""One self-contained HTML page about a run, and the picture of the README."""

from __future__ import annotations

from rlforget.report.page import write_report
from rlforget.report.picture import save_picture

__all__ = ["save_picture", "write_report"]
