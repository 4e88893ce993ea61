"""Names that the docstring examples use without importing them, and how Triton kernels run."""

import importlib.util
import os

import pytest
import torch

# Before anything imports Triton, which torch does on its own: without a device its kernels are run
# on the CPU, in every worker of pytest-xdist.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Collecting the examples of a module imports it, and these need an optional package.
OPTIONAL = {
    "torch_scatter": "gsym/kernels/_torch_scatter.py",
    "pymetis": "gsym/coarsening/_metis.py",
    "networkit": "gsym/coarsening/_leiden.py",
    "tyro": "gsym/_cli.py",
}
collect_ignore = [path for name, path in OPTIONAL.items() if not importlib.util.find_spec(name)]
import gsym  # noqa: E402
import gsym

# Collecting the examples of a module imports it, and these need an optional package.
collect_ignore = [
    f"gsym/kernels/{name}.py"
    for package, names in {
        "torch_scatter": ["_torch_scatter"],
        "triton": ["_triton", "_triton_rows", "_triton_edges"],
    }.items()
    if importlib.util.find_spec(package) is None
    for name in names
]


@pytest.fixture(autouse=True)
def _doctest_names(doctest_namespace: dict[str, object]) -> None:
    doctest_namespace.update(torch=torch, gsym=gsym)
    doctest_namespace.update({name: getattr(gsym, name) for name in gsym.__all__})
