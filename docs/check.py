"""Look at the built site in a browser: accessible, nothing cut off, nothing from elsewhere.

python docs/check.py FOLDER does it with axe-core, and looks at pages of a choice of group as well.
Without a browser it says so and passes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from axe_core_python.selenium import Axe

from gsym_bench.studies.page import browser, emulate, write_pages
from gsym_bench.suite.errors import BenchmarkError

PAGES = ("index.html", "chart.html", "choosing.html", "tutorials/index.html")
TUTORIALS = "tutorials/[0-9]*.html"
WIDTHS = (390, 1280)


def faults(window: Any, page: Path) -> Iterator[str]:
    """What is wrong with a page, in light and dark, on a phone and on a desk."""
    for dark in (False, True):
        for width in WIDTHS:
            emulate(window, dark=dark, width=width)
            window.get_log("performance")
            window.get(page.as_uri())
            window.execute_script(
                "for (const d of document.querySelectorAll('details')) d.open = true"
            )
            where = f"{page.name}, {'dark' if dark else 'light'}, {width} pixels"
            if window.execute_script("return document.documentElement.scrollWidth") > width:
                yield f"{where}: wider than the window"
            for entry in window.get_log("performance"):
                event = json.loads(entry["message"])["message"]
                if event["method"] == "Network.requestWillBeSent":
                    address = event["params"]["request"]["url"]
                    if not address.startswith(("file:", "data:")):
                        yield f"{where}: asks for {address}"
            axe = Axe().run(window)
            for found in axe["violations"]:
                for node in found["nodes"]:
                    yield f"{where}: {found['id']}, {found['help']}: {node['html'][:200]}"
            # A rule that stops, as on a colour that it cannot parse, judges nothing of the page.
            for stopped in axe["incomplete"]:
                if "error" in stopped:
                    yield f"{where}: {stopped['id']} could not be judged: {stopped['message']}"


def main(folder: Path) -> int:
    """Print what is wrong; the exit status says whether anything is."""
    try:
        with browser() as window, TemporaryDirectory() as made:
            pages = [folder / name for name in PAGES]
            pages += sorted(folder.glob(TUTORIALS))
            pages += write_pages(Path(made)).values()
            found = [fault for page in pages for fault in faults(window, page)]
    except BenchmarkError as missing:
        print(f"The site was not looked at: {missing}")  # noqa: T201
        return 0
    print("\n".join(dict.fromkeys(found)) or f"{len(pages)} pages have no fault.")  # noqa: T201
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve()))
