"""Every public layer, put through what training scripts, servers and compilers do to modules.

:mod:`gsym.check.treatments` says what each treatment does; values and gradients are held against a
float64 twin that was never treated. What a layer cannot do stands in :data:`REFUSES`.
"""

from __future__ import annotations

import warnings
from functools import cache
from itertools import product

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from module_cases import CASES, REFUSES

from gsym import nn
from gsym.check import TREATMENTS
from gsym.check.module import treat
from gsym.check.report import CheckReport
from gsym.check.subject import Subject
from gsym.check.treatments import SLOW

COMPILING = {
    "compile (eager)",
    "compile",
    "export",
    "export (graph constant)",
    "ONNX",
    "compile (inductor)",
    "AOTInductor",
}
# Compilers take their time: one variant of each layer, and each way to use a graph.
COMPILED = [
    "OrbitLinear sorted",
    "OrbitLinear levels",
    "OrbitLinear blocks by row",
    "OrbitEmbedding levels",
    "GNetConv weighted",
    "GNetConv pointwise",
    "GNet adjacency",
    "EGNNConv group, options",
    "EGNN",
    "PenguinConv node",
    "Penguin",
    "EquivariantTensorLinear 2 to 2",
    "SubgraphConv",
]
AHEAD = ["GNetConv weighted", "EGNNConv group, options"]
# Compiled for the page docs/behaviour.py makes, and left out of the tests for what they hold
# already: a stack of EGNNConv is what Penguin is, with EGNNConv itself beside it, and
# tests/nn/test_egnn.py compiles it with gradients; it trains EGNN with inductor, and
# tests/kernels/test_export.py makes machine code of all primitives, those of edges among them. Of
# EGNNConv and PenguinConv the graph is an input here, and a constant in Penguin, whose ONNX has the
# operators of its layers. The operators of OrbitLinear, also in blocks, and of embeddings are in
# the exported graphs of the others.
ELSEWHERE = {
    *(("OrbitLinear blocks by row", name) for name in ("export (graph constant)", "ONNX")),
    *(("OrbitLinear levels", name) for name in ("compile", "export (graph constant)", "ONNX")),
    *(("EGNN", name) for name in ("compile", "export", "export (graph constant)", "ONNX")),
    ("OrbitLinear sorted", "ONNX"),
    *(("PenguinConv node", name) for name in ("export (graph constant)", "ONNX")),
    ("Penguin", "export"),
    *(("OrbitEmbedding levels", name) for name in ("compile", "ONNX")),
    ("EGNNConv group, options", "export (graph constant)"),
    *(("EGNNConv group, options", name) for name in SLOW),
}
# "compile" traces what "compile (eager)" traces, calls it likewise, and has gradients besides.
ELSEWHERE |= {(n, "compile (eager)") for n in COMPILED if (n, "compile") not in ELSEWHERE}


@cache
def subject(name: str) -> Subject:
    case = CASES[name]
    return Subject(case.make, case.args, case.other_args)


def outcome(case: str, treatment: str) -> CheckReport:
    report = CheckReport()
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        refusal = REFUSES.get((CASES[case].layer, treatment))
        treat(treatment, TREATMENTS[treatment], subject(case), report, refusal)
    return report


def hold(case: str, treatment: str) -> None:
    report = outcome(case, treatment)
    assert not report.failed, report
    if report.skipped:
        pytest.skip(report.skipped[treatment])
    assert report.passed == [treatment] or treatment in report.refused


@pytest.mark.parametrize("treatment", [name for name in TREATMENTS if name not in COMPILING])
@pytest.mark.parametrize("case", CASES)
def test_holds(case, treatment):
    hold(case, treatment)


@pytest.mark.parametrize(
    ("case", "treatment"),
    sorted(set(product(COMPILED, COMPILING - SLOW)) - ELSEWHERE),
)
def test_compiles(case, treatment):
    hold(case, treatment)


@pytest.mark.slow
@pytest.mark.parametrize(("case", "treatment"), sorted(set(product(AHEAD, SLOW)) - ELSEWHERE))
def test_compiles_to_machine_code(case, treatment):
    hold(case, treatment)


def test_every_public_layer_is_here():
    # These are tables, not modules.
    tables = {"EgoTables", "Subgraphs"}
    assert {case.layer for case in CASES.values()} == set(nn.__all__) - tables
    assert {CASES[name].layer for name in COMPILED} <= {case.layer for case in CASES.values()}


def _one_of_two(rank: int, path: str, queue: multiprocessing.Queue) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=2)
    failed = {}
    for case in TWO_PROCESSES:
        for treatment in ("DDP", "FSDP2"):
            report = outcome(case, treatment)
            failed |= {(case, name): reason for name, reason in report.failed.items()}
    queue.put(failed)
    dist.destroy_process_group()


TWO_PROCESSES = ["OrbitLinear unsorted", "GNet none", "GNet adjacency", "EGNN", "Penguin node"]


@pytest.mark.slow
def test_two_processes_compute_what_one_does(tmp_path):
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    ranks = [
        context.Process(target=_one_of_two, args=(rank, str(tmp_path / "store"), queue))
        for rank in range(2)
    ]
    for rank in ranks:
        rank.start()
    found = [queue.get(timeout=240) for _ in ranks]
    for rank in ranks:
        rank.join()
    assert found == [{}, {}]
    assert [rank.exitcode for rank in ranks] == [0, 0]
