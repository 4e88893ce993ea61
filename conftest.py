"""Names that the docstring examples use without importing them."""

import pytest
import torch

import gsym


@pytest.fixture(autouse=True)
def _doctest_names(doctest_namespace: dict[str, object]) -> None:
    doctest_namespace.update(torch=torch, gsym=gsym)
    doctest_namespace.update({name: getattr(gsym, name) for name in gsym.__all__})
