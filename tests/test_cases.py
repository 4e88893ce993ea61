"""What others reported of layers elsewhere, tried on ours: one class for each kind of report."""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, get_ema_multi_avg_fn

from gsym import ClusterGroup, Partition, PermutationGroup
from gsym.check import assert_equivariant, check_layer, equivariance_error
from gsym.check.treatments.parallel import process_group
from gsym.nn import EGNN, EGNNConv, GNet, GNetConv, OrbitLinear, Penguin, PenguinConv

PAIRS = ClusterGroup(Partition([0, 0, 1, 1]))
EDGES = torch.tensor([[0, 1, 2, 3, 1, 0], [1, 2, 3, 0, 0, 1]])
OTHER = torch.tensor([[3, 2, 1, 0, 2, 3], [0, 3, 2, 1, 1, 0]])


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def first(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


def relative(got: Tensor, want: Tensor) -> float:
    return float((got.double() - want.double()).norm() / want.double().norm())


class TestAveragesOfTables:
    """torchvision's recipe for EMA averages buffers: v - 1 came of tables of integers."""

    GROUP = ClusterGroup(Partition([i % 5 for i in range(40)]))
    LAYERS = {  # noqa: RUF012
        "linear": lambda g: OrbitLinear(3, 1, g),
        "net": lambda g: GNet([3, 8, 1], g, propagate="none"),
        "low_rank": lambda g: OrbitLinear(3, 3, g, mixing="low_rank", rank=2),
        "adjacency": lambda g: GNetConv(3, 3, g),
        "weighted": lambda g: GNetConv(3, 3, g, propagate="weighted"),
        "pointwise": lambda g: GNetConv(3, 3, g, propagate="pointwise"),
    }

    @pytest.mark.parametrize("name", LAYERS)
    @pytest.mark.parametrize("decay", [0.9, 0.99, 0.996, 0.999, 0.9995, 0.9999])
    def test_a_model_averaged_with_itself_is_itself(self, name, decay):
        net = self.LAYERS[name](self.GROUP)
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.normal_()
        args = (torch.randn(2, 40, 3),)
        if name in ("adjacency", "weighted", "pointwise"):
            args += (torch.randint(0, 40, (2, 200)),)
        for function in (
            {"multi_avg_fn": get_ema_multi_avg_fn(decay)},
            {"avg_fn": get_ema_avg_fn(decay)},
        ):
            averaged = AveragedModel(net, use_buffers=True, **function)
            for _ in range(50):
                averaged.update_parameters(net)
            assert relative(averaged(*args), net(*args)) < 1e-4


class TestStaleGraphs:
    """A graph known by its identity and version is another one after copies and unseen writes."""

    X, POS = torch.randn(2, 4, 8), torch.randn(2, 4, 3)

    class Net(nn.Module):
        def __init__(self, edges: Tensor) -> None:
            super().__init__()
            self.register_buffer("edges", edges)
            self.conv = EGNNConv(8, 8, 16)
            nn.init.normal_(self.conv.edges.coord_last.weight)

        def forward(self) -> Tensor:
            return self.conv(TestStaleGraphs.X, TestStaleGraphs.POS, self.edges)[1]

    def test_deepcopy_then_load_state_dict(self):
        edges = torch.empty(2, 6, dtype=torch.int64)  # its version is 2, a copy's is 1
        edges[0], edges[1] = EDGES[0], EDGES[1]
        net, other = self.Net(edges), self.Net(OTHER.clone())
        net()
        twin = copy.deepcopy(net)
        twin.load_state_dict(other.state_dict())
        torch.testing.assert_close(twin(), other(), rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("way", ["numpy", "data.copy_", "data =", "swap_tensors"])
    def test_a_write_that_no_counter_sees(self, way):
        conv = self.Net(EDGES.clone()).conv
        fresh = copy.deepcopy(conv)
        array = EDGES.numpy().copy()
        edges = torch.from_numpy(array)
        before = conv(self.X, self.POS, edges)[1]
        if way == "numpy":
            array[:] = OTHER.numpy()
        elif way == "data.copy_":
            edges.data.copy_(OTHER)
        elif way == "data =":
            edges.data = OTHER.clone()
        else:
            torch.utils.swap_tensors(edges, OTHER.clone())
        want = fresh(self.X, self.POS, OTHER.clone())[1]
        torch.testing.assert_close(conv(self.X, self.POS, edges)[1], want, rtol=1e-5, atol=1e-5)
        assert (before - want).abs().max() > 1e-2


def test_threads_that_share_a_layer_get_their_own_graphs():
    """62 of 4,418 calls were answered with the graph of another thread."""
    x, pos = torch.randn(2, 4, 8), torch.randn(2, 4, 3)
    conv = EGNNConv(8, 8, 16)
    nn.init.normal_(conv.edges.coord_last.weight)
    graphs = [EDGES, OTHER]
    want = [conv(x, pos, e)[1].detach().clone() for e in graphs]
    assert (want[0] - want[1]).abs().max() > 1e-2
    wrong, together = [], threading.Barrier(4)

    def work(turn: int) -> None:
        together.wait()
        for _ in range(400):
            with torch.no_grad():
                got = conv(x, pos, graphs[turn].clone())[1]
            if (got - want[turn]).abs().max() > 1e-4:
                wrong.append(turn)

    threads = [threading.Thread(target=work, args=(i % 2,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


class TestForwardMode:
    """Tangents of custom operators came back as zero, without a word."""

    LAYERS = {  # noqa: RUF012
        "none": (lambda: OrbitLinear(8, 8, PAIRS, mixing="none"), "x"),
        "low_rank": (lambda: OrbitLinear(8, 8, PAIRS, mixing="low_rank", rank=2), "x"),
        "S_n adjacency": (lambda: GNetConv(8, 8), "xe"),
        "pointwise": (lambda: GNetConv(8, 8, PAIRS, propagate="pointwise"), "xe"),
        "EGNN": (lambda: EGNNConv(8, 8, 16, residual=False), "xpe"),
        "EGNN group": (lambda: EGNNConv(8, 8, 16, group=PAIRS, residual=False), "xpe"),
        "PEnGUiN": (lambda: PenguinConv(8, 8, 16, alpha="node", residual=False), "xpe"),
    }

    @pytest.mark.parametrize("name", LAYERS)
    def test_the_tangent_is_the_difference_quotient(self, name):
        make, takes = self.LAYERS[name]
        layer = make().double().requires_grad_(False)
        x, v = torch.randn(2, 4, 8).double(), torch.randn(2, 4, 8).double()
        args = [torch.randn(2, 4, 3).double()] * ("p" in takes) + [EDGES] * ("e" in takes)

        def function(x: Tensor) -> Tensor:
            return first(layer(x, *args))

        want = (function(x + 1e-6 * v) - function(x - 1e-6 * v)) / 2e-6
        assert relative(torch.func.jvp(function, (x,), (v,))[1], want) < 1e-6
        with forward_ad.dual_level():
            tangent = forward_ad.unpack_dual(function(forward_ad.make_dual(x, v))).tangent
            assert tangent is not None
            assert relative(tangent, want) < 1e-6


class TestSortedPartitions:
    """One tensor passed twice: no sorted partition compiled, the first example among them."""

    LABELS = ([0, 0, 1, 1, 1], [0, 0, 0, 0], [0, 0, 1, 2, 2, 2], [1, 1, 1, 0, 0], [0, 1, 0, 1, 0])

    @pytest.mark.parametrize("labels", LABELS, ids=str)
    @pytest.mark.parametrize("layer", ["OrbitLinear", "GNetConv", "GNet"])
    def test_compiles_to_the_same(self, labels, layer):
        group, n = ClusterGroup(Partition(labels)), len(labels)
        made, args = {
            "OrbitLinear": (OrbitLinear(3, 3, group), ()),
            "GNetConv": (
                GNetConv(3, 3, group),
                (torch.stack([torch.arange(n), (torch.arange(n) + 1) % n]),),
            ),
            "GNet": (GNet([3, 4, 3], group, propagate="none"), ()),
        }[layer]
        x = torch.randn(2, n, 3)
        torch.compiler.reset()
        got = torch.compile(made, fullgraph=True, backend="eager")(x, *args)
        torch.testing.assert_close(got, made(x, *args))

    def test_the_kit_passes(self):
        group = ClusterGroup(Partition([0, 0, 1, 1, 1]))
        assert "compile" in check_layer(lambda g: OrbitLinear(2, 2, g), group).passed


class TestContainers:
    """Stacks ran their layers by a private method, past hooks, checkpointing and FSDP2."""

    X, POS = torch.randn(2, 4, 8), torch.randn(2, 4, 3)
    NETS = {  # noqa: RUF012
        "EGNN": (lambda: EGNN(8, 8, 16, num_layers=2), (POS, EDGES)),
        "Penguin": (lambda: Penguin(8, 8, 16, num_layers=2), (POS, EDGES)),
        "GNet none": (lambda: GNet([8, 8, 8], PAIRS, propagate="none"), ()),
        "GNet adjacency": (lambda: GNet([8, 8, 8], PAIRS, propagate="adjacency"), (EDGES,)),
    }

    @pytest.mark.parametrize("name", NETS)
    def test_hooks_of_the_layers_run(self, name):
        make, args = self.NETS[name]
        net, calls = make(), []
        for conv in net.convs:
            conv.register_forward_hook(lambda *_: calls.append(1))
        net(self.X, *args)
        assert len(calls) == 2

    @pytest.mark.parametrize("name", NETS)
    def test_layers_are_checkpointed(self, name):
        make, args = self.NETS[name]
        net, calls = make(), []
        want = first(net(self.X, *args))
        for place, conv in enumerate(net.convs):
            net.convs[place] = checkpoint_wrapper(conv)
            run = net.convs[place].checkpoint_fn

            def counted(function, *args, run=run, **keywords):
                calls.append(1)
                return run(function, *args, **keywords)

            net.convs[place].checkpoint_fn = counted
        got = first(net(self.X, *args))
        assert len(calls) == 2
        torch.testing.assert_close(got, want)

    @pytest.mark.parametrize("name", NETS)
    def test_layers_are_sharded(self, name):
        make, args = self.NETS[name]
        net = make()
        want = first(net(self.X, *args)).detach()
        with process_group():
            mesh = init_device_mesh("cpu", (1,))
            for conv in net.convs:
                fully_shard(conv, mesh=mesh)
            fully_shard(net, mesh=mesh)
            got = first(net(self.X, *args))
            got.sum().backward()
            torch.testing.assert_close(got, want)


class TestReplicas:
    """In a replica of nn.DataParallel weights are attributes: next(self.parameters()) stops."""

    @pytest.mark.parametrize("name", ["OrbitLinear", "GNetConv", "EGNNConv", "PenguinConv"])
    def test_computes_what_the_module_computes(self, name):
        layer, args = {
            "OrbitLinear": (OrbitLinear(8, 8, PAIRS), ()),
            "GNetConv": (GNetConv(8, 8, PAIRS), (EDGES,)),
            "EGNNConv": (EGNNConv(8, 8, 16), (torch.randn(2, 4, 3), EDGES)),
            "PenguinConv": (PenguinConv(8, 8, 16), (torch.randn(2, 4, 3), EDGES)),
        }[name]

        def replica(module: nn.Module) -> nn.Module:
            twin = module._replicate_for_data_parallel()
            for key, value in module._parameters.items():
                if value is None:
                    twin._parameters[key] = None
                else:
                    setattr(twin, key, value * 1)
            for key, value in module._modules.items():
                twin._modules[key] = None if value is None else replica(value)
            return twin

        x, twin = torch.randn(2, 4, 8), replica(layer)
        assert not list(twin.parameters())
        torch.testing.assert_close(first(twin(x, *args)), first(layer(x, *args)))


class TestArithmeticOnCheckpoints:
    """Averages of checkpoints of one group were refused as those of another group."""

    WAYS = {  # noqa: RUF012
        "sum / 3": lambda a, b, c: sum((a, b, c)) / 3,
        "running sum": lambda a, b, c: a.clone().add_(b).add_(c) / 3,
        "weighted sum": lambda a, b, c: sum(
            w * t for w, t in zip((0.2, 0.3, 0.5), (a, b, c), strict=True)
        ),
        "EMA": lambda a, b, c: 0.999 * a + 0.001 * b,
        "EMA cast back": lambda a, b, c: (0.999 * a + 0.001 * b).to(a.dtype),
        "a + b - c": lambda a, b, c: a + b - c,
        "b - a": lambda a, b, c: b - a,
    }

    @pytest.mark.parametrize("way", WAYS)
    @pytest.mark.parametrize("name", ["OrbitLinear", "EGNN"])
    def test_loads(self, name, way):
        def make() -> nn.Module:
            return (
                OrbitLinear(3, 3, PAIRS) if name == "OrbitLinear" else EGNN(3, 3, 8, num_layers=2)
            )

        states = [make().state_dict() for _ in range(3)]
        mixed = {key: self.WAYS[way](*(s[key] for s in states)) for key in states[0]}
        layer = make()
        layer.load_state_dict(mixed)
        for key, parameter in layer.named_parameters():
            assert torch.equal(parameter, mixed[key].to(parameter.dtype))


class TestHalfPrecision:
    @pytest.mark.parametrize("scale", [1, 100, 150])
    def test_the_gradient_with_create_graph_is_the_gradient(self, scale):
        """It was NaN where |r|^2 passes the largest float16, and fine without create_graph."""
        torch.manual_seed(1)
        conv, x = EGNNConv(8, 8, 16).half(), torch.randn(4, 8).half()
        pos = (torch.randn(4, 3) * scale).half().requires_grad_()
        loss = conv(x, pos, EDGES)[0].float().square().sum()
        (plain,) = torch.autograd.grad(loss, pos, retain_graph=True)
        (graph,) = torch.autograd.grad(loss, pos, create_graph=True)
        wide = pos.detach().double().requires_grad_()
        value = copy.deepcopy(conv).double()(x.double(), wide, EDGES)[0].square().sum()
        (want,) = torch.autograd.grad(value, wide)
        assert relative(plain, want) < 0.05
        assert relative(graph, want) < 0.05

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_a_hub_of_many_neighbours_hears_their_mean(self, dtype):
        n = 70001
        star = torch.stack([torch.arange(1, n), torch.zeros(n - 1, dtype=torch.int64)])
        conv, x = GNetConv(1, 1, bias=False).to(dtype), torch.ones(n, 1, dtype=dtype)
        want, got = float(conv.linear(x)[0]), float(conv(x, star)[0])
        assert abs(got - want) <= 0.05 * abs(want)

    def test_weights_whose_sum_overflows_are_averaged(self):
        conv, x = GNetConv(2, 2, bias=False).half(), torch.randn(3, 2).half()
        weight, edges = torch.tensor([40000.0, 40000.0]), torch.tensor([[0, 1], [2, 2]])
        want = copy.deepcopy(conv).double()(x.double(), edges, weight.double())[2]
        got = conv(x, edges, weight)[2]
        assert ((got.double() - want).abs() < 0.05).all()


class TestForces:
    """Checks ran without gradients, so that layers which take some inside could not be checked."""

    def test_a_gradient_of_an_invariant_energy_is_equivariant(self):
        n = 4
        edges = torch.tensor([(i, j) for i in range(n) for j in range(n) if i != j]).T

        class Force(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv = EGNNConv(2, 2, 8)

            def forward(self, pos: Tensor) -> Tensor:
                pos = pos.detach().requires_grad_()
                x = torch.ones(*pos.shape[:-1], 2, dtype=pos.dtype)
                return -torch.autograd.grad(self.conv(x, pos, edges)[0].sum(), pos)[0]

        net, pos = Force().double(), torch.randn(2, n, 3).double()
        everything = PermutationGroup.symmetric(n)
        assert equivariance_error(net, everything, pos) < 1e-12
        assert_equivariant(net, everything, pos)
