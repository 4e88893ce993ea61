"""Names that the docstring examples use without importing them."""

import importlib.util

import pytest
import torch

import gsym

# Collecting the examples of a module imports it, and these need an optional package.
OPTIONAL = {
    "torch_scatter": "gsym/kernels/_torch_scatter.py",
    "pymetis": "gsym/coarsening/_metis.py",
    "networkit": "gsym/coarsening/_leiden.py",
    "tyro": "gsym/_cli.py",
}
collect_ignore = [path for name, path in OPTIONAL.items() if not importlib.util.find_spec(name)]


@pytest.fixture(autouse=True)
def _doctest_names(doctest_namespace: dict[str, object]) -> None:
    doctest_namespace.update(torch=torch, gsym=gsym)
    doctest_namespace.update({name: getattr(gsym, name) for name in gsym.__all__})
