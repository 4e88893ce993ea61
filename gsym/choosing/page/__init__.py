"""The page that shows a choice: one self-contained HTML file."""

from __future__ import annotations

from gsym.choosing.page.page import write_page

__all__ = ["write_page"]
