"""What a new method or criterion takes: one file of the library, found by itself.

A copy of the package gets a toy of each kind; nothing else in it changes.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

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


def test_a_method_and_a_criterion_are_one_file_each(tmp_path):
    shutil.copytree(
        Path(gsym.__file__).parent,
        tmp_path / "gsym",
        ignore=lambda _, names: [n for n in names if n in ("__pycache__", "csrc")],
    )
    for path, text in TOYS.items():
        assert not (tmp_path / path).exists()
        (tmp_path / path).write_text(text)
    run = subprocess.run(
        [sys.executable, "-c", USE],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
