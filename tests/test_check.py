"""What measures and what judges: :mod:`gsym.check` on layers whose error is known."""

import pytest
import torch
from torch import Tensor, nn

from gsym import ClusterGroup, Partition, PermutationGroup
from gsym.check import (
    MAX_GENERATORS,
    TOLERANCE,
    assert_equivariant,
    check_layer,
    equivariance_error,
)
from gsym.nn import OrbitLinear

CYCLE = PermutationGroup.from_cycles(4, [(0, 1, 2)])
X = torch.arange(8, dtype=torch.float64).view(4, 2) + 1


def first_only(x: Tensor) -> Tensor:
    """Keep node 0 and clear the rest: as far from equivariant as can be."""
    y = torch.zeros_like(x)
    y[..., 0, :] = x[..., 0, :]
    return y


class TestError:
    def test_is_zero_for_a_map_of_every_node_alone(self):
        assert equivariance_error(torch.square, CYCLE, X) == 0

    def test_is_the_relative_distance_of_the_two_sides(self):
        # f(gx) has x_2 at node 0, g f(x) has x_0 at node 1, and both are zero elsewhere.
        here, there = X[2].norm(), X[0].norm()
        expected = float((here**2 + there**2).sqrt() / (here + there))
        assert equivariance_error(first_only, CYCLE, X) == pytest.approx(expected, rel=1e-12)

    def test_acts_by_sending_node_i_to_its_image(self):
        seen = []

        def record(x: Tensor) -> Tensor:
            seen.append(x.clone())
            return x

        equivariance_error(record, CYCLE, X)
        moved = next(x for x in seen if not torch.equal(x, X))
        assert torch.equal(moved[CYCLE.generators[0]], X)

    def test_takes_the_worst_generator(self):
        group = PermutationGroup.from_cycles(4, [(2, 3)], [(0, 1)], [(2, 3)])
        one = PermutationGroup.from_cycles(4, [(0, 1)])
        assert equivariance_error(first_only, group, X) == equivariance_error(first_only, one, X)
        assert equivariance_error(first_only, group, X) > 0.1

    def test_takes_the_worst_of_several_outputs(self):
        def pair(x: Tensor) -> tuple[Tensor, Tensor]:
            return 1e6 * x, first_only(x)

        assert equivariance_error(pair, CYCLE, X) == equivariance_error(first_only, CYCLE, X)
        with pytest.raises(AssertionError, match="not equivariant"):
            assert_equivariant(pair, CYCLE, X)
        assert_equivariant(lambda x: [x, x.square()], CYCLE, X)

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_is_infinite_if_an_output_is_not_finite(self, value):
        assert equivariance_error(lambda x: x * value, CYCLE, X) == float("inf")
        with pytest.raises(AssertionError, match="relative error inf"):
            assert_equivariant(lambda x: x * value, CYCLE, X)

    def test_is_zero_for_the_trivial_group_and_for_zero_outputs(self):
        assert equivariance_error(first_only, PermutationGroup.trivial(4), X) == 0
        assert_equivariant(first_only, PermutationGroup.trivial(4), X)
        assert equivariance_error(torch.zeros_like, CYCLE, X) == 0

    def test_passes_the_graph_on_unmoved(self):
        graph = torch.tensor([[0, 1], [1, 2]])

        def layer(x: Tensor, edge_index: Tensor, weight: Tensor) -> Tensor:
            assert edge_index is graph
            return x * weight

        assert equivariance_error(layer, CYCLE, X, graph, torch.tensor(2.0)) == 0

    @pytest.mark.parametrize("shape", [(5, 2), (4,), (4, 5, 2)])
    def test_wants_a_signal_on_the_nodes_of_the_group(self, shape):
        message = rf"x must be \[..., 4, c\] for .*on 4 nodes\); got \[{shape[0]}"
        for check in (equivariance_error, assert_equivariant):
            with pytest.raises(ValueError, match=message):
                check(torch.square, CYCLE, torch.zeros(shape))


class TestJudgement:
    @pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
    def test_tolerance_follows_the_type_of_the_signal(self, dtype):
        def layer(size: float):
            return lambda x: x.double() + size * first_only(x.double())

        x, swap = torch.ones(4, 1, dtype=dtype), PermutationGroup.from_cycles(4, [(0, 1)])
        small, large = layer(TOLERANCE[dtype]), layer(10 * TOLERANCE[dtype])
        assert_equivariant(small, swap, x)
        with pytest.raises(AssertionError, match=rf"allowed {TOLERANCE[dtype]:.0e}, {dtype}"):
            assert_equivariant(large, swap, x)
        assert_equivariant(large, swap, x, tolerance=1.0)
        with pytest.raises(AssertionError, match="allowed 1e-20"):
            assert_equivariant(small, swap, x, tolerance=1e-20)

    def test_names_the_permutation_that_fails(self):
        group = PermutationGroup.from_cycles(6, [(4, 5)], [(0, 1, 2)], [(3, 4)])
        message = r"not equivariant: relative error \S+ .* under the permutation \(0 1 2\) of .*"
        with pytest.raises(AssertionError, match=message + "PermutationGroup.*on 6 nodes"):
            assert_equivariant(first_only, group, torch.ones(6, 1))

    def test_fails_at_the_line_of_the_caller(self):
        with pytest.raises(AssertionError) as caught:
            assert_equivariant(first_only, CYCLE, X)
        shown = [entry for entry in caught.traceback if not entry.ishidden(caught)]
        assert shown[-1].path.name == "test_check.py"
        with pytest.raises(AssertionError) as caught:
            check_layer(lambda group: nn.Linear(2, 2), CYCLE)
        shown = [entry for entry in caught.traceback if not entry.ishidden(caught)]
        assert shown[-1].path.name == "test_check.py"

    @pytest.mark.parametrize("training", [False, True])
    def test_evaluates_a_module_and_leaves_it_as_it_was(self, training):
        layer = nn.Sequential(nn.Dropout(0.5), nn.Linear(2, 2)).double().train(training)
        modes = []
        layer[0].register_forward_hook(lambda module, *_: modes.append(module.training))
        assert_equivariant(layer, CYCLE, X)
        assert modes
        assert not any(modes)
        assert layer.training == training
        assert layer[0].training == training

    def test_leaves_a_part_in_eval_mode(self):
        layer = nn.Sequential(nn.Dropout(0.5), nn.Linear(2, 2)).double().train()
        layer[0].eval()
        assert_equivariant(layer, CYCLE, X)
        assert not layer[0].training

    def test_leaves_a_module_as_it_was_when_it_raises(self):
        layer = nn.Linear(3, 3).double().train()
        with pytest.raises(RuntimeError, match="shapes"):
            equivariance_error(layer, CYCLE, X)
        assert layer.training

    def test_keeps_no_graph(self):
        layer = OrbitLinear(2, 2, CYCLE).double()
        outputs = []
        layer.register_forward_hook(lambda *args: outputs.append(args[-1]))
        assert_equivariant(layer, CYCLE, X)
        assert not any(y.requires_grad for y in outputs)


class Force(nn.Module):
    """Minus the gradient of an energy that the group leaves alone, in one of several ways."""

    in_channels = out_channels = 2

    def __init__(self, group: PermutationGroup, way: str = "autograd") -> None:
        super().__init__()
        self.linear = OrbitLinear(2, 3, group, bias=False)
        self.way = way

    def energy(self, x: Tensor) -> Tensor:
        return self.linear(x).square().square().sum()

    def forward(self, x: Tensor) -> Tensor:
        if self.way == "func":
            return -torch.func.grad(self.energy)(x)
        x = x if x.requires_grad else x.detach().requires_grad_()
        if self.way == "backward":
            self.energy(x).backward()
            return -x.grad
        if self.way == "asks":  # a layer that gives no forces where nobody differentiates
            energy = self.energy(x)
            if not energy.requires_grad:
                return torch.zeros_like(x)
            return -torch.autograd.grad(energy, x)[0]
        (force,) = torch.autograd.grad(self.energy(x), x, create_graph=True)
        if self.way == "twice":
            (force,) = torch.autograd.grad(force.square().sum(), x, create_graph=True)
        return -force


class UntiedForce(Force):
    def energy(self, x: Tensor) -> Tensor:
        return super().energy(x) + x[..., 0, :].square().sum()


class Adapted(nn.Module):
    """One step of gradient descent on its own weight before it answers."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        loss = (x * self.weight).square().mean()
        return x * (self.weight - 0.1 * torch.autograd.grad(loss, self.weight)[0])


class TestLayersThatDifferentiate:
    @pytest.mark.parametrize("way", ["autograd", "func", "backward", "asks", "twice"])
    @pytest.mark.parametrize("context", [torch.enable_grad, torch.no_grad, torch.inference_mode])
    def test_are_measured(self, way, context):
        sound, broken = Force(CYCLE, way).double(), UntiedForce(CYCLE, way).double()
        with context():
            x = X / 8
            assert equivariance_error(sound, CYCLE, x) < 1e-12
            assert_equivariant(sound, CYCLE, x)
            assert equivariance_error(broken, CYCLE, x) > 1e-3
            with pytest.raises(AssertionError, match="not equivariant"):
                assert_equivariant(broken, CYCLE, x)

    def test_still_are_after_training(self):
        force = Force(CYCLE).double()
        optimiser = torch.optim.Adam(force.parameters(), lr=0.1)
        for _ in range(3):
            optimiser.zero_grad()
            force(X / 8).square().mean().backward()
            optimiser.step()
        assert equivariance_error(force, CYCLE, X / 8) < 1e-12

    def test_by_their_parameters_are_measured(self):
        assert_equivariant(Adapted(), CYCLE, X)

    @pytest.mark.parametrize("way", ["autograd", "backward"])
    def test_are_left_as_they_were(self, way):
        force = Force(CYCLE, way).double()
        force.linear.bias = nn.Parameter(torch.zeros(2, 3).double(), requires_grad=False)
        first, *others = force.parameters()
        first.grad = torch.full_like(first, 3.0)
        before, x, state = first.grad, X.clone(), torch.get_rng_state()
        wanted = [p.requires_grad for p in force.parameters()]
        equivariance_error(force, CYCLE, x)
        assert first.grad is before
        assert bool((before == 3).all())
        assert all(p.grad is None for p in others)
        assert x.grad is None
        assert not x.requires_grad
        assert [p.requires_grad for p in force.parameters()] == wanted
        assert torch.equal(torch.get_rng_state(), state)
        assert force.training

    def test_are_left_as_they_were_when_they_raise(self):
        force = Force(CYCLE).double()
        force.linear.bias = nn.Parameter(torch.zeros(2, 3).double(), requires_grad=False)
        wanted = [p.requires_grad for p in force.parameters()]
        with pytest.raises(ValueError, match="takes 2 channels but x has 1"):
            equivariance_error(force, CYCLE, X[:, :1])
        assert [p.requires_grad for p in force.parameters()] == wanted

    @pytest.mark.parametrize("way", ["autograd", "func"])
    def test_pass_the_kit(self, way):
        options = {"dimension": None, "compile_backend": "eager"}
        report = check_layer(lambda g: Force(g, way), CYCLE, **options)
        assert len(report.passed) == (11 if way == "func" else 10)
        if way == "autograd":
            assert "does not trace torch.autograd.grad" in report.skipped["compile"]

    def test_fail_the_kit_where_they_break_the_group(self):
        with pytest.raises(AssertionError, match="FAILED   equivariant: not equivariant"):
            check_layer(UntiedForce, CYCLE, dimension=None, compile_backend="eager")


def test_a_layer_made_in_inference_mode_is_measured():
    with torch.inference_mode():
        layer, x = OrbitLinear(2, 2, CYCLE).double(), X.clone()
    assert equivariance_error(layer, CYCLE, X) < 1e-12
    assert_equivariant(layer, CYCLE, x)
    assert equivariance_error(layer, PermutationGroup.symmetric(4), x) > 1e-3


def test_a_random_layer_leaves_the_random_state():
    state = torch.get_rng_state()
    assert equivariance_error(lambda x: x + torch.randn_like(x), CYCLE, X) > 1e-3
    check_layer(lambda g: OrbitLinear(1, 1, g), CYCLE, compile_backend="eager")
    assert torch.equal(torch.get_rng_state(), state)


class TestStructures:
    def test_nests_of_signals_are_compared_part_by_part(self):
        def layer(x: Tensor) -> dict[str, object]:
            return {"x": x, "pair": (x.square(), [None, 2 * x])}

        def broken(x: Tensor) -> dict[str, object]:
            return {**layer(x), "pair": (x.square(), [None, first_only(x)])}

        assert_equivariant(layer, CYCLE, X)
        assert equivariance_error(broken, CYCLE, X) == equivariance_error(first_only, CYCLE, X)

    @pytest.mark.parametrize(
        ("value", "error", "message"),
        [
            (lambda x: None, TypeError, "the output of the layer must be a tensor"),
            (lambda x: 1.0, TypeError, "got float"),
            (lambda x: {"a": (x, "b")}, TypeError, r"the output\['a'\]\[1\] .* got str"),
            (lambda x: x.sum(), ValueError, r"must be a signal \[..., 4, c\] .* shape \[\]"),
            (lambda x: (x, x.mean(-2)), ValueError, r"the output\[1\] .*got shape \[2\]"),
            (lambda x: x[..., :3, :], ValueError, r"got shape \[3, 2\]"),
        ],
    )
    def test_others_are_refused(self, value, error, message):
        for check in (equivariance_error, assert_equivariant):
            with pytest.raises(error, match=message):
                check(value, CYCLE, X)

    def test_outputs_that_change_their_structure_are_refused(self):
        moody = lambda x: (x, x if x[0, 0] == X[0, 0] else None)  # noqa: E731
        with pytest.raises(ValueError, match=r"returns .* for one signal and .* for another"):
            equivariance_error(moody, CYCLE, X)


class TestVacuous:
    @pytest.mark.parametrize("shape", [(0, 4, 2), (4, 0), (2, 0, 4, 1)])
    def test_an_empty_signal_fails(self, shape):
        x = torch.zeros(shape)
        with pytest.raises(AssertionError, match=r"vacuous: x is empty, \[.*; pass samples"):
            assert_equivariant(first_only, CYCLE, x)
        with pytest.raises(ValueError, match="nothing to measure on an empty x"):
            equivariance_error(first_only, CYCLE, x)

    @pytest.mark.parametrize(
        ("layer", "message"),
        [
            (torch.zeros_like, "the output is zero throughout"),
            (lambda x: (x, 0 * x), r"the output\[1\] is zero throughout"),
            (lambda x: x[..., :0], r"the output is empty, \[4, 0\]"),
            (lambda x: (), "returns no tensor"),
            (lambda x: torch.ones_like(x), "the same at every node whatever the signal is"),
        ],
    )
    def test_outputs_that_cannot_be_compared_fail(self, layer, message):
        with pytest.raises(AssertionError, match="vacuous: .*" + message):
            assert_equivariant(layer, CYCLE, X)

    def test_a_mean_over_the_nodes_is_compared(self):
        assert_equivariant(lambda x: x.mean(-2, keepdim=True).expand_as(x), CYCLE, X)

    def test_a_type_without_tolerance_wants_one(self):
        x = X.to(torch.float8_e4m3fn)
        with pytest.raises(TypeError, match=r"no default tolerance for torch\.float8_e4m3fn"):
            assert_equivariant(lambda x: x.double(), CYCLE, x)


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64])
def test_wants_a_floating_point_signal(dtype):
    with pytest.raises(TypeError, match="must be floating point"):
        equivariance_error(lambda x: x, CYCLE, X.to(dtype))


def test_wants_real_outputs():
    turned = lambda x: torch.complex(x, x * torch.arange(x.size(-2))[:, None])  # noqa: E731
    with pytest.raises(TypeError, match="real and imaginary"):
        equivariance_error(turned, CYCLE, X)


class TestManyGenerators:
    GROUP = ClusterGroup(Partition(torch.arange(300) // 3))

    def broken(self, x: Tensor) -> Tensor:
        y = x.clone()
        y[..., 147, :] *= 2
        return y

    def test_a_fault_in_one_cluster_of_many_is_seen(self):
        assert self.GROUP.num_generators > MAX_GENERATORS
        x = torch.randn(300, 1, generator=torch.Generator().manual_seed(0)).double()
        assert equivariance_error(self.broken, self.GROUP, x) > 1e-3
        with pytest.raises(AssertionError, match="not equivariant"):
            assert_equivariant(self.broken, self.GROUP, x)
        assert_equivariant(torch.square, self.GROUP, x)

    def test_the_cost_is_bounded(self):
        calls = []

        def count(x: Tensor) -> Tensor:
            calls.append(x)
            return x

        equivariance_error(count, self.GROUP, torch.ones(300, 1))
        assert len(calls) <= MAX_GENERATORS + 1

    def test_the_result_is_repeatable_and_leaves_the_random_state(self):
        state = torch.get_rng_state()
        x = torch.arange(300.0)[:, None]
        first = equivariance_error(self.broken, self.GROUP, x)
        assert equivariance_error(self.broken, self.GROUP, x) == first
        assert torch.equal(torch.get_rng_state(), state)


class TestReport:
    def test_names_what_passed_and_why_something_was_skipped(self):
        everything = PermutationGroup.symmetric(3)
        report = check_layer(
            lambda group: OrbitLinear(1, 1, group),
            everything,
            dimension=None,
            compile_backend="eager",
        )
        assert len(report.passed) == 10
        assert not report.failed
        assert report.skipped == {
            "not over-tied": "no permutation outside the group moves its pair orbits",
            "dimension": "the layer is not linear in the signal",
        }
        assert "passed   gradcheck\n" in str(report)
        assert "skipped  dimension: the layer is not linear" in str(report)

    def test_counts_all_failures(self):
        with pytest.raises(AssertionError, match=r"fails \d+ checks for .*on 4 nodes") as caught:
            check_layer(lambda group: nn.Linear(2, 2), CYCLE, compile_backend="eager")
        text = str(caught.value)
        assert int(text.split()[3]) == text.count("FAILED   ") > 1

    def test_a_nonlinear_layer_passes_without_a_dimension(self):
        class Net(nn.Sequential):
            in_channels = out_channels = 1

        def make(group: PermutationGroup) -> nn.Module:
            return Net(OrbitLinear(1, 2, group), nn.Tanh(), OrbitLinear(2, 1, group))

        report = check_layer(make, CYCLE, dimension=None, compile_backend="eager")
        assert "dimension" in report.skipped
