"""Names that the docstring examples use without importing them."""

import importlib.util

import pytest
import torch

import gsym

# Collecting the examples of a module imports it, and this one needs an optional package.
collect_ignore = (
    [] if importlib.util.find_spec("torch_scatter") else ["gsym/kernels/_torch_scatter.py"]
)


@pytest.fixture(autouse=True)
def _doctest_names(doctest_namespace: dict[str, object]) -> None:
    doctest_namespace.update(torch=torch, gsym=gsym)
    doctest_namespace.update({name: getattr(gsym, name) for name in gsym.__all__})
