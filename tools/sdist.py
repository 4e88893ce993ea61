"""Write the sdist into a folder: ``python tools/sdist.py dist``. pip builds wheels only."""

from __future__ import annotations

import sys
from pathlib import Path

from hatchling.build import build_sdist

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    print(folder / build_sdist(str(folder)))
