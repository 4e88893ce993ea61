"""What a new method, criterion, layer, back-end or primitive takes: the files of each recipe.

A copy of the package gets a toy of each kind; nothing else in it changes. A task is added in
``tests/benchmarks/test_registry.py``.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import gsym

TOYS = {
    "gsym/coarsening/methods/halves.py": """
from gsym.coarsening._request import Method
from gsym.groups import Partition

def _halves(request):
    n = request.num_nodes
    return request.chain([Partition([2 * i // n for i in range(n)])])

METHODS = {"halves": Method(_halves, "two halves, by number", "3", needs=("edge_index",))}
""",
    "gsym/choosing/criteria/orbits.py": '''
import numpy as np
from gsym.choosing.choice import Candidate, Words
from gsym.choosing.criteria._criterion import Criterion, register_criterion

@register_criterion("orbits")
class Orbits(Criterion):
    """How far from two orbits."""

    words = Words("distance")

    def evaluate(self, groups, data):
        rows = np.ones(len(data.samples.left_out))
        return [Candidate(g, rows * abs(g.node_orbits().num_orbits - 2)) for g in groups]
''',
}
# Everywhere that people meet them: the functions, their lists, the command line and the page.
USE = """
import contextlib, io, torch, gsym
from gsym._cli import main
edges = torch.tensor([[0, 1, 2, 3, 4], [1, 2, 3, 4, 5]])
h = gsym.coarsen(edges, 6, method="halves")
assert h[2].labels.tolist() == [0, 0, 0, 1, 1, 1]
assert "``halves``" in gsym.coarsen.__doc__ and "two halves, by number" in gsym.coarsen.__doc__
choice = gsym.choose_group(h, torch.randn(20, 6), criterion="orbits")
assert choice.partition == h[2]
assert "Lowest distance" in choice.report("page.html").read_text()
text = io.StringIO()
with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
    main(["choose", "--help"])
assert "halves" in text.getvalue() and "orbits" in text.getvalue()
"""


LAYER = {
    "gsym/nn/toy.py": """
from torch import Tensor, nn

class Toy(nn.Module):
    \"\"\"A multiple of the signal.\"\"\"

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Linear(1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor.weight[0, 0]
""",
    "gsym/nn/__init__.py": (
        "__all__ = [",
        'from gsym.nn.toy import Toy\n\n__all__ = [\n    "Toy",',
    ),
    "tests/module_cases.py": (
        "\nREFUSES:",
        '\nCASES["Toy"] = Case("Toy", nn_toy, (X,), None)\nREFUSES:',
        "\n\nclass MovingConv",
        "\n\nfrom gsym.nn import Toy as nn_toy\n\n\nclass MovingConv",
    ),
}
USE_LAYER = """
import copy, torch
from gsym import nn
from gsym.check import TREATMENTS
from gsym.check.module import treat
from gsym.check.report import CheckReport
from gsym.check.subject import Subject
from module_cases import CASES
assert {case.layer for case in CASES.values()} >= {"Toy"} and "Toy" in nn.__all__
case, report = CASES["Toy"], CheckReport()
for name in ("vmap", "deepcopy"):
    treat(name, TREATMENTS[name], Subject(case.make, case.args, case.other_args), report, None)
assert report.passed == ["vmap", "deepcopy"] and not report.failed, report
"""
BACKEND = {
    "gsym/kernels/toy.py": """
from gsym.kernels import native

def takes(op, *given, dtype=None):
    return op == "segment_sum"

def segment_sum(x, index, order, pointers, dtype):
    return native.segment_sum(x, index, order, pointers, dtype)
""",
    "gsym/kernels/_backends.py": (
        '        Backend("native",',
        '        Backend("toy", lambda: importlib.import_module("gsym.kernels.toy")),\n'
        '        Backend("native",',
    ),
}
USE_BACKEND = """
import torch, gsym
s = gsym.kernels.Segments.from_index(torch.tensor([0, 2, 2]), 3)
x = torch.randn(3, 2, dtype=torch.double, requires_grad=True)
with gsym.kernels.trace() as ran:
    y = gsym.kernels.segment_sum(x, s, backend="toy")
assert ran == ["toy"], ran
assert torch.equal(y, gsym.kernels.segment_sum(x, s, backend="reference"))
call = lambda x: gsym.kernels.segment_sum(x, s, backend="toy")
assert torch.autograd.gradcheck(call, x) and torch.autograd.gradgradcheck(call, x)
try:
    gsym.kernels.segment_sum(x, s, backend="unknown")
except ValueError as error:
    assert "toy" in str(error), error
else:
    raise AssertionError
"""
# An operator of plain torch; a loop of a back-end is one of its files more.
PRIMITIVE = {
    "gsym/kernels/reference.py": (
        "\ndef segment_gather",
        "\ndef twice(x: Tensor) -> Tensor:\n"
        '    """Twice every number."""\n    return 2 * x\n\n\ndef segment_gather',
    ),
    "gsym/kernels/_operators.py": (
        "\n@operator(1)\ndef segment_gather",
        """
@operator(1)
def twice(x: Tensor, backend: str) -> Tensor:
    return 2 * x


@twice.fake
def _(x: Tensor, backend: str) -> Tensor:
    return torch.empty_like(x)


@twice.plain
def _(x: Tensor, backend: str) -> Tensor:
    return 2 * x


@twice.gradient(_nothing)
def _(ctx: Context, grad: Tensor) -> Grads:
    (backend,) = ctx.rest
    return (twice(grad, backend),)


@operator(1)
def segment_gather""",
    ),
    "gsym/kernels/_primitives.py": (
        "\ndef segment_gather",
        """
def twice(x: Tensor, *, backend: Backend) -> Tensor:
    _backends.in_plain_torch()
    return _operators.twice(x, backend.name)


def segment_gather""",
    ),
    "gsym/kernels/ops.py": (
        "\ndef segment_gather",
        """
def twice(x: Tensor, *, backend: str = "auto") -> Tensor:
    return run(_primitives.twice, backend, are_alike(x), x)


def segment_gather""",
    ),
    "gsym/kernels/__init__.py": ("    segment_sum,\n)", "    segment_sum,\n    twice,\n)"),
}
USE_PRIMITIVE = """
import torch, gsym
x = torch.randn(3, 2, dtype=torch.double, requires_grad=True)
for name in ("reference", "native"):
    call = lambda x: gsym.kernels.twice(x, backend=name)
    assert torch.equal(call(x), 2 * x)
    assert torch.autograd.gradcheck(call, x) and torch.autograd.gradgradcheck(call, x)
assert torch.equal(torch.compile(call, fullgraph=True, backend="aot_eager")(x), 2 * x)
assert torch.equal(torch.func.vmap(call)(x), 2 * x)
"""
RECIPES = {
    "a method and a criterion": (TOYS, USE, 2),
    "a layer": (LAYER, USE_LAYER, 3),
    "a back-end": (BACKEND, USE_BACKEND, 2),
    "a primitive": (PRIMITIVE, USE_PRIMITIVE, 6),
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_files_of_a_recipe_are_enough(recipe, tmp_path):
    changes, use, most = RECIPES[recipe]
    assert len(changes) <= most
    root = Path(gsym.__file__).parent
    shutil.copytree(
        root,
        tmp_path / "gsym",
        ignore=lambda _, names: [n for n in names if n in ("__pycache__", "csrc")],
    )
    (tmp_path / "tests").mkdir()
    shutil.copy(Path(__file__).with_name("module_cases.py"), tmp_path / "tests")
    for name, change in changes.items():
        path = tmp_path / name
        if isinstance(change, str):
            assert not path.exists()
            path.write_text(change)
            continue
        text = path.read_text()
        for old, new in zip(change[::2], change[1::2], strict=True):
            assert text.count(old) == 1, old
            text = text.replace(old, new)
        path.write_text(text)
    folders = tmp_path, tmp_path / "tests", Path(__file__).parent
    run = subprocess.run(
        [sys.executable, "-c", use],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, folders))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
