"""The site: a page of every module, and the look at it sees what is wrong with a page."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import site_check

from gsym_bench.studies.page import browser
from gsym_bench.suite.errors import BenchmarkError

ROOT = Path(__file__).parents[1]


def without_page(package, pages):
    """Public modules of a package that the reference has no page of."""
    names = {path.stem for path in package.iterdir() if path.suffix == ".py" or path.is_dir()}
    return {name for name in names if name[0] != "_"} - {page.stem for page in pages.glob("*.rst")}


def test_every_public_module_has_a_page(tmp_path):
    pages = ROOT / "docs" / "pages" / "reference"
    assert without_page(ROOT / "gsym", pages) == set()
    (tmp_path / "new.py").touch()
    assert without_page(tmp_path, pages) == {"new"}


GOOD = (
    '<!doctype html><html lang="en"><title>A page</title>'
    '<meta name="viewport" content="width=device-width"><main><h1>A page</h1>{}</main></html>'
)
FAULTS = {
    "": None,
    '<img src="data:,">': "image-alt",
    '<p style="color: #eee; background: #fff">pale</p>': "color-contrast",
    '<p style="background: color-mix(in srgb, red 9%, white)">red</p>': "could not be judged",
    '<div style="width: 500px">wide</div>': "light, 390 pixels: wider than the window",
    '<script src="http://127.0.0.1:9/x.js"></script>': "asks for http://127.0.0.1:9/x.js",
}


def test_faults_are_seen(tmp_path):
    pytest.importorskip("axe_core_python")
    pytest.importorskip("selenium")
    check = site_check()
    try:
        with browser() as window:
            for number, (part, expected) in enumerate(FAULTS.items()):
                page = tmp_path / f"{number}.html"
                page.write_text(GOOD.format(part))
                found = "\n".join(check.faults(window, page))
                assert expected in found if expected else found == ""
    except BenchmarkError as missing:
        pytest.skip(str(missing))
