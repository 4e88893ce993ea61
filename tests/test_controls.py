"""Faulty layers that the checks must reject, and sound ones that they must not.

Each control is :class:`Plain`, a sound layer in the fewest lines, with one line spoiled.
"""

import re

import pytest
import torch
from torch import Tensor, nn

from gsym import ClusterGroup, Partition, PermutationGroup
from gsym.check import assert_equivariant, check_layer, equivariance_error
from gsym.nn import GNetConv, OrbitLinear

CLUSTERS = ClusterGroup(Partition([1, 0, 2, 1, 2, 2]))
TURNED = ClusterGroup(
    Partition([0, 1, 2, 0, 1, 2, 3]), swaps=PermutationGroup.from_cycles(4, [(0, 1, 2)])
)
CYCLE = PermutationGroup.from_cycles(5, [(0, 1, 2)])
GROUPS = {"clusters": CLUSTERS, "turned clusters": TURNED, "3-cycle": CYCLE}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def failures(make_layer, group: PermutationGroup, *args: Tensor, **keywords) -> dict[str, str]:
    """The reason of every failed check, by its name."""
    with pytest.raises(AssertionError) as caught:
        check_layer(make_layer, group, *args, compile_backend="eager", **keywords)
    lines = str(caught.value).splitlines()
    failed = [line.removeprefix("FAILED   ") for line in lines if line.startswith("FAILED")]
    assert failed
    return dict(line.split(": ", 1) for line in failed)


class Plain(nn.Module):
    """One weight per pair orbit, one channel."""

    in_channels = out_channels = 1
    table: Tensor

    def __init__(self, group: PermutationGroup) -> None:
        super().__init__()
        orbits = group.pair_orbits()
        self.table = orbits.index
        self.num_orbits = orbits.num_orbits
        self.weight = nn.Parameter(torch.randn(orbits.num_orbits))

    def matrix(self) -> Tensor:
        return self.weight[self.table]

    def forward(self, x: Tensor) -> Tensor:
        return self.matrix() @ x


class AliasedWeights(Plain):
    """Every orbit beyond the first gets a new Parameter on the storage of the first."""

    def __init__(self, group: PermutationGroup) -> None:
        super().__init__(group)
        self.weight = nn.Parameter(torch.randn(1))

    def matrix(self) -> Tensor:
        copies = [nn.Parameter(self.weight) for _ in range(self.num_orbits - 1)]
        return torch.cat([self.weight, *copies])[self.table]


class MissingIdentity(Plain):
    """The diagonal of a cluster shares the weight of the cluster's block."""

    def __init__(self, group: ClusterGroup) -> None:
        super().__init__(group)
        labels, k = group.partition.labels, group.partition.num_clusters
        self.table = labels[:, None] * k + labels
        self.weight = nn.Parameter(torch.randn(k * k))


class UntiedEdgeWeights(Plain):
    """A learned adjacency with one logit per pair of nodes, all equal at first."""

    def __init__(self, group: PermutationGroup) -> None:
        super().__init__(group)
        self.edge_logit = nn.Parameter(torch.zeros(group.num_nodes, group.num_nodes))

    def matrix(self) -> Tensor:
        return super().matrix() * self.edge_logit.softmax(1)


class NodeStatistics(Plain):
    """A running mean for each node, which only training fills."""

    mean: Tensor

    def __init__(self, group: PermutationGroup) -> None:
        super().__init__(group)
        self.register_buffer("mean", torch.zeros(group.num_nodes, 1))

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.size(0) > 4:
            self.mean.lerp_(x.detach().mean(0), 0.5)
        return super().forward(x - self.mean)


class NodeBias(Plain):
    def __init__(self, group: PermutationGroup) -> None:
        super().__init__(group)
        self.bias = nn.Parameter(torch.zeros(group.num_nodes, 1))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.bias


class ReversedConvention(Plain):
    """Commutes with a rotation up to its inverse: rows -t in place of t."""

    def matrix(self) -> Tensor:
        n = self.table.size(0)
        return super().matrix()[-torch.arange(n) % n]


class OutOfTheOptimiser(Plain):
    def __init__(self, group: PermutationGroup) -> None:
        super().__init__(group)
        self.scale = [torch.randn(1, dtype=torch.float64, requires_grad=True)]

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.scale[0].to(x.dtype)


class UnusedParameter(Plain):
    def __init__(self, group: PermutationGroup) -> None:
        super().__init__(group)
        self.bias = nn.Parameter(torch.zeros(1))


class DetachedParameter(UnusedParameter):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.bias.detach()


class ResetParameter(Plain):
    """Every forward pass puts the weights back to where they were at the first."""

    def forward(self, x: Tensor) -> Tensor:
        if not hasattr(self, "start"):
            self.start = self.weight.detach().clone()
        y = super().forward(x)
        self.weight.data.copy_(self.start)
        return y


class StaleTable(Plain):
    """Orbit tables cached by the number of nodes alone."""

    tables: dict[int, Tensor] = {}  # noqa: RUF012  # sharing it is the fault

    def __init__(self, group: PermutationGroup) -> None:
        super().__init__(group)
        self.table = self.tables.setdefault(group.num_nodes, self.table)


class NotANumber(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * float("nan")


class OffByOneRow(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).roll(1, -2)


class WrongGradient(Plain):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return 2 * y - y.detach()


class WrongSecondGradient(Plain):
    def forward(self, x: Tensor) -> Tensor:
        matrix = self.matrix()
        return matrix.detach() @ x + (matrix - matrix.detach()) @ x.detach()


class GraphBreak(Plain):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y if y.numel() == 0 or float(y.detach().abs().max()) < 1e9 else -y


class WrongWhenCompiled(Plain):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return 2 * y if torch.compiler.is_compiling() else y


class UnsavedState(Plain):
    def __init__(self, group: PermutationGroup) -> None:
        super().__init__(group)
        self.scale = float(torch.rand(1)) + 0.5

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.scale


class AlwaysFloat64(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).double()


class ContiguousOnly(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.view(-1).view(x.shape))


class MixedSamples(Plain):
    """Samples of a batch leak into each other."""

    def forward(self, x):
        y = super().forward(x)
        return y + 0.5 * y.roll(1, 0)


class Bent(Plain):
    """Equivariant, but not linear: its kinks fill any number of dimensions."""

    def forward(self, x):
        return super().forward(x) + 0.3 * (x.abs() - x).sum(-1, keepdim=True)


class SomeSamplesOnly(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.reshape(x.size(0), -1)[..., None])


@pytest.mark.parametrize("name", GROUPS)
def test_the_plain_layer_passes_everything(name):
    report = check_layer(Plain, GROUPS[name], compile_backend="eager")
    assert len(report.passed) == 12
    assert not report.skipped


AT_ONCE = "equivariant"
TRAINED = "equivariant after training"


@pytest.mark.parametrize(
    ("layer", "check", "reason", "others"),
    [
        (
            AliasedWeights,
            "live parameters",
            r"tensor of shape \[1\] that parameters\(\) does not list",
            {"not over-tied", "dimension", "gradcheck", "gradgradcheck"},
        ),
        (MissingIdentity, "dimension", "span 9 dimensions; the theory says 11", set()),
        (UntiedEdgeWeights, TRAINED, "error .* permutation", {AT_ONCE, "dimension"}),
        (NodeStatistics, TRAINED, "error .* permutation", set()),
        (NodeBias, AT_ONCE, "error .* permutation", {TRAINED}),
        (OffByOneRow, AT_ONCE, "error .* permutation", {TRAINED}),
        (OutOfTheOptimiser, "live parameters", "does not list, so no optimiser", {"state_dict"}),
        (UnusedParameter, "live parameters", "parameter bias receives no gradient", set()),
        (DetachedParameter, "live parameters", "bias receives no gradient", {"gradcheck"}),
        (ResetParameter, "dimension", "span 1 dimensions; the theory says 11", {TRAINED}),
        (WrongGradient, "gradcheck", "Jacobian mismatch", set()),
        (WrongSecondGradient, "gradgradcheck", "Jacobian mismatch", set()),
        (GraphBreak, "compile", "data-dependent", set()),
        (WrongWhenCompiled, "compile", "not close", set()),
        (UnsavedState, "state_dict", "the loaded layer differs", set()),
        (AlwaysFloat64, "dtype", r"float32 input gives torch\.float64", set()),
        (ContiguousOnly, "layouts", "stride", set()),
        (MixedSamples, "batch independence", "not close", set()),
        (Bent, "dimension", "not linear in the signal", set()),
        (SomeSamplesOnly, "layouts", "0 elements", set()),
    ],
)
def test_control(layer, check, reason, others):
    found = failures(layer, CLUSTERS)
    assert re.search(reason, found[check])
    assert set(found) == {check} | others


def test_outputs_that_are_not_numbers():
    found = failures(NotANumber, CLUSTERS)
    assert "relative error inf" in found[AT_ONCE]
    assert "relative error inf" in found[TRAINED]


def test_untied_edge_weights_look_sound_until_they_move():
    assert_equivariant(UntiedEdgeWeights(CLUSTERS), CLUSTERS, torch.randn(2, 6, 1))


@pytest.mark.parametrize("make_layer", [Plain, lambda group: OrbitLinear(1, 1, group)])
def test_weights_tied_over_a_larger_group(make_layer):
    found = failures(lambda group: make_layer(PermutationGroup.symmetric(6)), CLUSTERS)
    assert set(found) == {"not over-tied", "dimension"}
    assert "weights are tied that the group leaves free" in found["not over-tied"]
    assert found["dimension"].startswith("the maps span 2 dimensions; the theory says 11")


@pytest.mark.parametrize("make_layer", [Plain, lambda group: OrbitLinear(1, 1, group)])
def test_weights_tied_over_a_smaller_group(make_layer):
    found = failures(lambda group: make_layer(PermutationGroup.trivial(6)), CLUSTERS)
    assert set(found) == {AT_ONCE, TRAINED, "dimension"}
    assert found["dimension"].startswith("the maps span 13 dimensions; the theory says 11")


def test_stale_orbit_table():
    # The other group has the same orbits in number and size, on other nodes.
    other = ClusterGroup(Partition([0, 1, 2, 1, 2, 2]))
    StaleTable(other)
    assert set(failures(StaleTable, CLUSTERS)) == {AT_ONCE, TRAINED}


def test_an_orbit_table_that_came_with_the_state_of_another_group():
    class SavedTable(Plain):
        def __init__(self, group: PermutationGroup) -> None:
            super().__init__(group)
            table = self.table
            del self.table
            self.register_buffer("table", table)

    other = ClusterGroup(Partition([0, 1, 2, 1, 2, 2]))
    layer, x = SavedTable(CLUSTERS), torch.randn(2, 6, 1)
    assert_equivariant(layer, CLUSTERS, x)
    layer.load_state_dict(SavedTable(other).state_dict())
    with pytest.raises(AssertionError, match="not equivariant"):
        assert_equivariant(layer, CLUSTERS, x)


class TestReversedConvention:
    SWAP = PermutationGroup.from_cycles(2, [(0, 1)])
    ROTATION = PermutationGroup.from_cycles(3, [(0, 1, 2)])

    def test_of_a_layer_is_seen_with_a_3_cycle(self):
        assert set(failures(ReversedConvention, self.ROTATION)) == {AT_ONCE, TRAINED}

    def test_of_a_layer_is_not_seen_with_a_swap(self):
        assert AT_ONCE in check_layer(ReversedConvention, self.SWAP, compile_backend="eager").passed

    @pytest.mark.parametrize(("group", "seen"), [(SWAP, False), (ROTATION, True)])
    def test_of_the_action(self, group, seen):
        layer, x, (perm,) = Plain(group).double(), torch.randn(3, 1).double(), group.generators
        x = x[: group.num_nodes]
        after, expected = layer(x[perm]), torch.empty_like(x)
        expected[perm] = layer(x)
        assert bool((after - expected).norm() > 0.1) == seen


class DiagonalAdjacency(GNetConv):
    """The learned adjacency acts by its diagonal alone, so that nodes hear nothing of others."""

    def _propagate(self, x, graph, weight):
        loop = graph.source.index == graph.target.index
        return super()._propagate(x, graph, weight * loop[:, None])


def preserved_graph(group: PermutationGroup) -> Tensor:
    """A graph without self-loops that the group preserves, not symmetric."""
    index = group.pair_orbits().index.clone()
    index.fill_diagonal_(0)
    target, source = (index % 3 == 1).nonzero().T
    edge_index = torch.stack([source, target])
    assert group.preserves(edge_index)
    return edge_index


def edge_dimension(group: PermutationGroup, edge_index: Tensor) -> int:
    """Free weights on the edges and self-loops."""
    loops = torch.arange(group.num_nodes).expand(2, -1)
    return group.edge_orbits(torch.cat([edge_index, loops], dim=1)).num_orbits


def averaged_dimension(group: PermutationGroup, edge_index: Tensor) -> int:
    """Dimension of the products of the mean over neighbours with all equivariant maps."""
    adjacency = torch.eye(group.num_nodes)
    adjacency[edge_index[1], edge_index[0]] = 1
    adjacency /= adjacency.sum(1, keepdim=True)
    basis = nn.functional.one_hot(group.pair_orbits().index).permute(2, 0, 1).float()
    return int(torch.linalg.matrix_rank((adjacency @ basis).flatten(1)))


def test_an_adjacency_used_on_its_diagonal_alone():
    # Full mixing would hide it, because every map it still spans is equivariant.
    edge_index = preserved_graph(CLUSTERS)
    dimension = edge_dimension(CLUSTERS, edge_index)
    keywords = {"propagate": "weighted", "mixing": "none"}
    check_layer(
        lambda group: GNetConv(1, 2, group, **keywords),
        CLUSTERS,
        edge_index,
        dimension=dimension,
        compile_backend="eager",
    )
    found = failures(
        lambda group: DiagonalAdjacency(1, 2, group, **keywords),
        CLUSTERS,
        edge_index,
        dimension=dimension,
    )
    assert set(found) == {"dimension"}
    assert f"span 6 dimensions; the theory says {2 * dimension}" in found["dimension"]
    assert dimension > 3


# Sound layers


def mixing_case(mixing: str, group: PermutationGroup) -> tuple[dict[str, object], int]:
    """Options of OrbitLinear and the dimension of the maps it spans."""
    clusters = group
    if not isinstance(clusters, ClusterGroup):
        clusters = ClusterGroup(Partition.singletons(group.num_nodes), swaps=group)
    k, nodes = clusters.partition.num_clusters, clusters.cluster_orbits()
    if mixing == "full":
        return {}, group.commutant_dim()
    if mixing == "none":
        return {}, nodes.num_orbits
    if mixing == "low_rank":
        # Its factors see orbits of nodes alone, as does the product of their symmetric groups.
        return {"rank": 2}, ClusterGroup(Partition(group.node_orbits().index)).commutant_dim()
    pairs = clusters.cluster_pair_orbits().index
    target, source = (pairs % 3 == 1).nonzero().T
    kept = (pairs % 3 == 1) | torch.eye(k, dtype=torch.bool)
    large = nodes.index[torch.tensor(clusters.partition.sizes) > 1]
    dimension = pairs[kept].unique().numel() + large.unique().numel()
    return {"cluster_edge_index": torch.stack([source, target])}, dimension


@pytest.mark.parametrize("mixing", ["full", "low_rank", "quotient", "none"])
@pytest.mark.parametrize("name", GROUPS)
def test_linear_is_sound(name, mixing):
    options, dimension = mixing_case(mixing, GROUPS[name])
    report = check_layer(
        lambda group: OrbitLinear(1, 2, group, mixing=mixing, **options),
        GROUPS[name],
        dimension=dimension,
        compile_backend="eager",
    )
    assert len(report.passed) == 12


@pytest.mark.parametrize("propagate", ["none", "adjacency", "weighted", "pointwise"])
@pytest.mark.parametrize("name", GROUPS)
def test_conv_is_sound(name, propagate):
    group = GROUPS[name]
    edge_index = preserved_graph(group)
    dimension = {
        "adjacency": averaged_dimension(group, edge_index),
        "pointwise": edge_dimension(group, edge_index),
    }.get(propagate, group.commutant_dim())
    report = check_layer(
        lambda group: GNetConv(2, 1, group, propagate=propagate),
        group,
        *(() if propagate == "none" else (edge_index,)),
        dimension=dimension,
        compile_backend="eager",
    )
    assert len(report.passed) == 12


@pytest.mark.parametrize("name", GROUPS)
def test_a_dense_layer_is_far_from_equivariant(name):
    group = GROUPS[name]
    n = group.num_nodes
    matrix = torch.randn(n, n)
    assert equivariance_error(lambda x: matrix @ x, group, torch.randn(2, n, 1)) > 0.1
