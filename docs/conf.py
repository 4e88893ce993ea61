"""The site: Sphinx with the theme and the gallery that the field's libraries use."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import warnings
from importlib import metadata
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path[:0] = [str(HERE), str(ROOT)]

project = "gsym"
author = "The gsym authors"
copyright = author
release = metadata.version("gsym")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
    "formulas",
    "tables",
]

# A link to the repository, where this checkout was cloned from one that a browser can open.
_remote = subprocess.run(
    ["git", "-C", str(HERE), "remote", "get-url", "origin"], capture_output=True, text=True
).stdout.strip()
repository = _remote.removesuffix(".git") if _remote.startswith("https://") else None

html_theme = "pydata_sphinx_theme"
html_title = "gsym"
html_static_path = ["pages/_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "navbar_align": "left",
    "show_toc_level": 2,
    # All pages but the tutorials, whose code needs the width; patterns may not overlap.
    "secondary_sidebar_items": {"[!t]**": ["page-toc"]},
    "navigation_with_keys": False,
    "show_prev_next": False,
    "header_links_before_dropdown": 6,
    "footer_start": [],
    "footer_end": [],
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
    **(
        {"icon_links": [{"name": "Repository", "url": repository, "icon": "fa-brands fa-git-alt"}]}
        if repository
        else {}
    ),
}
html_sidebars = {"index": []}

exclude_patterns = ["results/poses"]
# Links into pages are to headings, as GitHub names them.
myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence", "attrs_inline", "dollarmath", "substitution"]
# What the front page says of versions stands where they are set.
_tested = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
_project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
_torch = next(name for name in _project["dependencies"] if name.startswith("torch>="))
myst_substitutions = {"torch_tested": _tested["torch"], "torch_floor": _torch.split(">=")[1]}

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 80
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
napoleon_preprocess_types = False
napoleon_custom_sections = ["Shapes", "Symmetry", "Cost", "Reference"]

copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

warnings.filterwarnings("ignore", message=".*torch.jit.script.*")
# PyTorch warns of itself where it saves a program.
warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
sphinx_gallery_conf = {
    "examples_dirs": ["../gallery"],
    "gallery_dirs": ["tutorials"],
    "filename_pattern": r"/\d\d_",
    "within_subsection_order": "FileNameSortKey",
    "matplotlib_animations": False,
    "remove_config_comments": True,
    "show_memory": False,
    "show_signature": False,
    "abort_on_example_error": True,
    "download_all_examples": False,
    "image_scrapers": ("matplotlib",),
    "reset_modules": ("matplotlib",),
    "min_reported_time": 0,
    "write_computation_times": False,
}


def _link_tutorials(app: Any, name: str, source: list[str]) -> None:
    """Pages link to scripts of tutorials, which GitHub shows; here, to the pages made of them."""
    source[0] = re.sub(
        r"\]\(((?:\.\./)*)\.\./gallery/(?:(\w+)\.py)?\)",
        lambda found: f"]({found[1]}tutorials/{found[2] or 'index'})",
        source[0],
    )


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("source-read", _link_tutorials)
