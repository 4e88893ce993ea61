"""The look at the site sees what is wrong with a page, and nothing on one without a fault."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from gsym_bench.studies.page import browser
from gsym_bench.suite.errors import BenchmarkError

pytest.importorskip("axe_core_python")
pytest.importorskip("selenium")
FILE = Path(__file__).parents[1] / "docs" / "check.py"
spec = importlib.util.spec_from_file_location("site_check", FILE)
check = importlib.util.module_from_spec(spec)
spec.loader.exec_module(check)

GOOD = (
    '<!doctype html><html lang="en"><title>A page</title>'
    '<meta name="viewport" content="width=device-width"><main><h1>A page</h1>{}</main></html>'
)
FAULTS = {
    "": None,
    '<img src="data:,">': "image-alt",
    '<p style="color: #eee; background: #fff">pale</p>': "color-contrast",
    '<div style="width: 500px">wide</div>': "light, 390 pixels: wider than the window",
    '<script src="http://127.0.0.1:9/x.js"></script>': "asks for http://127.0.0.1:9/x.js",
}


def test_faults_are_seen(tmp_path):
    try:
        with browser() as window:
            for number, (part, expected) in enumerate(FAULTS.items()):
                page = tmp_path / f"{number}.html"
                page.write_text(GOOD.format(part))
                found = "\n".join(check.faults(window, page))
                assert expected in found if expected else found == ""
    except BenchmarkError as missing:
        pytest.skip(str(missing))
