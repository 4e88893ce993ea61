"""Names that the docstring examples use without importing them, and how Triton kernels run."""

import importlib.util
import os

import pytest
import torch

# Before anything imports Triton, which torch does on its own: without a device its kernels are run
# on the CPU, in every worker of pytest-xdist.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

import gsym

# Collecting the examples of a module imports it, and these need an optional package.
OPTIONAL = {
    "torch_scatter": ["kernels/torch_scatter.py"],
    "triton": ["kernels/triton"],
    "pymetis": ["coarsening/methods/_metis.py"],
    "networkit": ["coarsening/methods/_leiden.py"],
    "tyro": ["_cli"],
}
collect_ignore = [
    f"gsym/{module}"
    for package, modules in OPTIONAL.items()
    if importlib.util.find_spec(package) is None
    for module in modules
]


@pytest.fixture(autouse=True)
def _doctest_names(doctest_namespace: dict[str, object]) -> None:
    doctest_namespace.update(torch=torch, gsym=gsym)
    doctest_namespace.update({name: getattr(gsym, name) for name in gsym.__all__})
