"""Primitives in exported programs: operators of torch alone, any batch, ONNX and AOTInductor."""

import warnings

import pytest
import torch
from helpers import make_clusters
from torch import nn

from gsym import kernels
from gsym.kernels import Segments, Tiles

N, E, K, C = 6, 14, 3, 4


class Everything(nn.Module):
    """All primitives, one after another; the graph is a constant or an input."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        labels = torch.tensor([2, 0, 1, 1, 0, 2])
        self.clusters = Segments(labels, K)
        self.tiles = Tiles(self.clusters, C, C)
        self.rows = make_clusters(labels, K, (C, C), runs=False)
        self.runs = make_clusters(labels, K, (C, C), runs=True)
        target = torch.randint(N, (E,)).sort().values
        self.graph = Segments(torch.randint(N, (E,)), N), Segments(target, N)
        self.order, self.rank = labels.argsort(stable=True), labels.argsort(stable=True).argsort()

        def part(*shape):
            return nn.Parameter(torch.randn(*shape) / 3)

        self.own, self.matrix, self.bias = part(K, C, C), part(K * C, K * C), part(K, C)
        self.one, self.other, self.row = part(1, C, C), part(1, C, C), part(1, C)
        self.edge = nn.ParameterList(part(*s) for s in ((C, C), (C,), (C,)))
        self.coord = nn.ParameterList(part(*s) for s in ((C, C), (C,), (1, C)))

    def forward(self, x, pos, edge_index=None):
        source, target = self.graph
        if edge_index is not None:
            source, target = (Segments.traced(ends, N) for ends in edge_index)
        y = kernels.cluster_linear(x, self.own, self.matrix, self.bias, self.rows)
        sorted_y = kernels.permute_rows(y, self.order, self.rank)
        y = y + kernels.cluster_linear(sorted_y, self.own, self.matrix, self.bias, self.runs)
        y = kernels.indexed_linear(y, self.own, self.tiles, self.bias)
        y = y + kernels.grouped_linear(y.unflatten(1, (K, 2)), self.own, self.bias).flatten(1, 2)
        pooled = kernels.segment_mean(y, self.clusters) + kernels.segment_max(y, self.clusters)
        y = y + kernels.segment_gather(pooled, self.clusters)
        y = kernels.gather_segment_sum(y, source, target, x.new_ones(E) / 2)
        y = kernels.row_mlp(y, (self.one, self.row), (self.other, self.row))
        receiver, sender = kernels.linear_pair(y, self.one, self.row, self.other)
        weight, bias, distance = self.edge
        total, moved = kernels.edge_mlp_sum(
            *(receiver, sender, source, target, weight, bias),
            **{"pos": pos, "distance": distance, "coord": tuple(self.coord), "clamp": 0.5},
        )
        return total + kernels.segment_sum(x, self.clusters)[:, :1], pos + moved


@pytest.fixture(scope="module", params=["constant", "input"])
def program(request):
    """The module, arguments of two batch sizes, and the exported program."""
    module = Everything()
    given = () if request.param == "constant" else (torch.randint(N, (2, E)).sort().values,)
    small, large = ((torch.randn(b, N, C), torch.randn(b, N, 3), *given) for b in (2, 5))
    batch = torch.export.Dim("batch")
    shapes = ({0: batch}, {0: batch}, *({} for _ in given))
    return module, small, large, torch.export.export(module, small, dynamic_shapes=shapes)


def assert_near(found, expected):
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(torch.as_tensor(a), b, rtol=1e-5, atol=1e-5)


def test_has_operators_of_torch_alone(program):
    module, small, large, exported = program
    exported = exported.run_decompositions()
    names = {str(node.target) for node in exported.graph.nodes if node.op == "call_function"}
    assert names and not [name for name in names if "gsym" in name]
    for args in (small, large):
        assert_near(exported.module()(*args), module(*args))


def test_strict_export(program):
    module, small, *_ = program
    exported = torch.export.export(module, small, strict=True)
    assert_near(exported.module()(*small), module(*small))


def test_onnx(program, tmp_path):
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason=f"{name} is not installed")
    import onnxruntime

    module, small, large, exported = program
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(exported, dynamo=True, verbose=False).save(tmp_path / "m.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]
    for args in (small, large):
        found = session.run(None, dict(zip(names, (a.numpy() for a in args), strict=True)))
        assert_near(found, module(*args))


@pytest.mark.parametrize("program", ["constant"], indirect=True)
def test_aot_inductor(program, tmp_path):
    # Graphs that are inputs are compiled in tests/test_module_behaviour.py.
    module, small, large, exported = program
    path = torch._inductor.aoti_compile_and_package(exported, package_path=str(tmp_path / "m.pt2"))
    loaded = torch._inductor.aoti_load_package(path)
    for args in (small, large):
        assert_near(loaded(*args), module(*args))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_jit_trace_keeps_what_is_computed(program):
    module, small, large, _ = program
    with torch.no_grad():
        traced = torch.jit.trace(module, small)
        assert_near(traced(*large), module(*large))
