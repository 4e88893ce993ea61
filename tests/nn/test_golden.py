"""The layers against reference arrays computed from the published formulas, and against loops.

The reference weights are laid out as published: ``w_diag[o, i, c]`` on a node's own signal and
``w_off[o, i, c, c']`` on cluster *sums*, scaled by 1/N. OrbitLinear acts on cluster *means*, so
``W[c, c'] = size(c') / N * w_off[c, c']``.
"""

from collections.abc import Callable

import pytest
import torch
from helpers import load_golden
from torch import Tensor, nn

from gsym import ClusterGroup, Orbits, Partition, PermutationGroup
from gsym.nn import GNet, GNetConv, OrbitLinear

MEANT = ("vanilla", "gc", "gcew_full", "pt_dstrow")


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_golden()


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


def differs(actual: Tensor, faulty: Tensor) -> bool:
    return float((actual - faulty).detach().abs().max()) > 0.1


@torch.no_grad()
def set_published(layer: OrbitLinear, w_diag: Tensor, w_off: Tensor, bias: Tensor) -> None:
    """Give a layer of a group without swaps the weights of the published layout."""
    sizes = torch.tensor(layer.group.partition.sizes).to(w_off)
    weight = w_off.permute(3, 1, 2, 0) * (sizes / sizes.sum())[:, None, None, None]
    own = w_diag.permute(2, 1, 0)
    for c in (sizes == 1).nonzero().view(-1).tolist():
        weight[c, :, c, :] += own[c]
    assert isinstance(layer.mixing, nn.Module)
    layer.mixing.weight.copy_(weight)
    if layer.weight_self is not None:
        layer.weight_self.copy_(own[sizes > 1])
    layer.bias.copy_(bias.expand_as(layer.bias))


def cluster_layer(labels: Tensor, *weights: Tensor) -> OrbitLinear:
    out_channels, in_channels = weights[0].shape[:2]
    group = ClusterGroup(Partition.from_labels(labels))
    layer = OrbitLinear(in_channels, out_channels, group).double()
    set_published(layer, *weights)
    return layer


def squares(golden: dict[str, Tensor]) -> OrbitLinear:
    return cluster_layer(*(golden[f"A_{name}"] for name in ("labels", "w_diag", "w_off", "bias")))


class TestEqualClusters:
    def test_values(self, golden):
        close(squares(golden)(golden["A_x"]), golden["A_y"])

    def test_is_the_dense_matrix(self, golden):
        layer, basis = squares(golden), torch.eye(32, dtype=torch.float64)
        images = layer(basis.view(32, 2, 16).transpose(1, 2)) - layer.bias[0]
        close(images.transpose(1, 2).reshape(32, 48).T, golden["A_W_dense"])

    def test_gradients(self, golden):
        layer, x = squares(golden), golden["A_x"].clone().requires_grad_()
        layer(x).square().sum().div(2).backward()
        close(x.grad, golden["A_grad_x"])
        close(layer.weight_self.grad.permute(2, 1, 0), golden["A_grad_w_diag"])
        # Chain rule: W = (4 / 16) w_off.
        close(layer.mixing.weight.grad.permute(3, 1, 2, 0) / 4, golden["A_grad_w_off"])
        close(layer.bias.grad.sum(0), golden["A_grad_bias"])

    def test_commutes_with_the_given_permutation(self, golden):
        y = squares(golden)(golden["A_x"][:, golden["A_perm"]])
        close(y, golden["A_y_perm"])
        close(golden["A_y_perm"], golden["A_y"][:, golden["A_perm"]])


def test_unequal_clusters_keep_the_identity(golden):
    layer = cluster_layer(
        golden["B_labels"], golden["A_w_diag"], golden["A_w_off"], golden["A_bias"]
    )
    y = layer(golden["A_x"])
    close(y, golden["B_y"])
    assert differs(y, golden["B_y_reference_irregular"])


def mirrored(golden: dict[str, Tensor]) -> ClusterGroup:
    return ClusterGroup(
        Partition.from_labels(golden["A_labels"]),
        swaps=PermutationGroup(4, [golden["C_sigma"]]),
    )


def test_swaps_tie_mirrored_clusters(golden):
    group, x = mirrored(golden), golden["A_x"]
    layer = OrbitLinear(2, 3, group).double()
    pairs, nodes = group.cluster_pair_orbits(), group.cluster_orbits()
    with torch.no_grad():
        for p in range(2):
            layer.weight_self[nodes.index[2 * p]] = golden["C_w_diag_rep"][:, :, p].T
            for c in range(4):
                layer.mixing.weight[pairs.index[2 * p, c]] = golden["C_w_off_rep"][:, :, p, c].T / 4
        layer.bias.copy_(golden["A_bias"].expand_as(layer.bias))
    assert layer.weight_self.size(0) == 2
    assert layer.mixing.weight.size(0) == 8
    close(layer(x), golden["C_y"])
    mirror = golden["C_mirror_perm"]
    close(layer(x[:, mirror]), golden["C_y"][:, mirror])


def test_two_layer_net(golden):
    group = ClusterGroup(Partition.from_labels(golden["A_labels"]))
    net = GNet([1, 3, 1], group, propagate="none").double()
    for i, conv in enumerate(net.convs, start=1):
        set_published(conv.linear, *(golden[f"D_{name}{i}"] for name in ("w_diag", "w_off", "b")))
    close(net.convs[0](golden["D_x"]).relu(), golden["D_hidden"])
    close(net(golden["D_x"]), golden["D_y"])


class TestProjection:
    GROUPS: tuple[tuple[str, Callable[[dict[str, Tensor]], PermutationGroup]], ...] = (
        ("S4pow4", lambda g: ClusterGroup(Partition.from_labels(g["A_labels"]))),
        ("irregular", lambda g: ClusterGroup(Partition.from_labels(g["B_labels"]))),
        ("S4pow4_semidirect_S2", mirrored),
        ("S16", lambda g: PermutationGroup.symmetric(16)),
    )

    @pytest.mark.parametrize("row", range(4), ids=[name for name, _ in GROUPS])
    def test_closed_form_and_general_group(self, golden, row):
        name, make = self.GROUPS[row]
        theta, group = golden["E_Theta"], make(golden)
        projection = group.project(theta)
        close(projection, golden[f"E_Psi_{name}"])
        close(PermutationGroup(16, group.generators).project(theta), projection)
        close(group.project(projection), projection)
        close((projection * (theta - projection)).sum(), theta.new_zeros(()))
        assert group.commutant_dim() == golden["E_dims"][row]
        if row < 3:
            close((theta - projection).square().sum(), golden["E_norm2_perp"][row])


@pytest.mark.parametrize("row", range(12))
def test_dimensions(golden, row):
    n, k, singletons, dimension = golden["F_N_k_singletons_dim"][row].tolist()
    sizes = [1] * singletons
    if k > singletons:
        share, rest = divmod(n - singletons, k - singletons)
        sizes += [share + (c < rest) for c in range(k - singletons)]
    labels = torch.repeat_interleave(torch.arange(k), torch.tensor(sizes))
    assert ClusterGroup(Partition.from_labels(labels)).commutant_dim() == dimension


@pytest.mark.parametrize(
    ("name", "row"), [("H_metrla_labels2", 6), ("H_metrla_labels9", 7), ("B_labels", 11)]
)
def test_dimensions_of_the_given_labels(golden, name, row):
    group = ClusterGroup(Partition.from_labels(golden[name]))
    assert group.commutant_dim() == golden["F_N_k_singletons_dim"][row, 3]


def pose_group(golden: dict[str, Tensor], name: str) -> PermutationGroup:
    if name == "S16":
        return PermutationGroup.symmetric(16)
    if name == "triv":
        return PermutationGroup.trivial(16)
    return PermutationGroup(16, torch.stack([golden["G_flip_legs"], golden["G_flip_arms"]]))


def pose_kernel(golden: dict[str, Tensor], name: str) -> Tensor:
    """The linear map as ``[in, out, source, target]``."""
    if name == "aut":
        return golden["G_aut_kernel"]
    if name == "triv":
        return golden["G_triv_W"].view(16, 2, 16, 3).permute(1, 3, 0, 2)
    same = torch.eye(16, dtype=torch.float64)
    own, other = (golden[f"G_S16_{w}"][:, :, None, None] for w in ("w_diag", "w_off"))
    return own * same + other * (1 - same)


def pose_layer(golden, name, propagate):
    """A layer with the given kernel, node pairs read target first."""
    conv = GNetConv(2, 3, pose_group(golden, name), propagate=propagate).double()
    kernel = pose_kernel(golden, name)
    by_target = kernel.permute(3, 2, 0, 1)
    with torch.no_grad():
        if propagate == "pointwise":
            target, source = torch.cartesian_prod(torch.arange(16), torch.arange(16)).T
            ties = conv._tables(target.device).ties
            conv.weight[ties.orbits(target, source)] = by_target.flatten(0, 1)
        elif name == "S16":
            w_diag, w_off = golden["G_S16_w_diag"], golden["G_S16_w_off"]
            conv.linear.weight_self.copy_((w_diag - w_off)[None])
            conv.linear.mixing.weight.copy_(16 * w_off[None, :, None, :])
        elif name == "triv":
            conv.linear.mixing.weight.copy_(golden["G_triv_W"].view(16, 2, 16, 3))
        else:
            pairs = conv.group.pair_orbits().index
            conv.linear.mixing.weight[pairs] = by_target
        bias = conv.bias if conv.bias is not None else conv.linear.bias
        bias.copy_(golden["G_bias"].expand_as(bias))
    return conv


def edges_of(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """``edge_index`` (source, target) and weights of the non-zero ``matrix[target, source]``."""
    target, source = matrix.nonzero().T
    return torch.stack([source, target]), matrix[target, source]


@pytest.mark.parametrize("name", ["S16", "aut", "triv"])
class TestPose:
    def test_vanilla(self, golden, name):
        close(
            pose_layer(golden, name, "none")(golden["G_x"]),
            golden[f"G_{name}_vanilla"],
        )

    def test_gc_adds_the_self_loops(self, golden, name):
        edge_index, _ = edges_of(golden["G_adj_rownorm"] * (1 - torch.eye(16)))
        y = pose_layer(golden, name, "adjacency")(golden["G_x"], edge_index)
        close(y, golden[f"G_{name}_gc"])

    def test_gcew_reaches_the_neighbours(self, golden, name):
        # The given edge weights are not tied along orbits, hence given and not learned.
        edge_index, weight = edges_of(golden["G_gcew_matrix"])
        assert edge_index.size(1) == 46
        y = pose_layer(golden, name, "adjacency")(golden["G_x"], edge_index, weight)
        close(y, golden[f"G_{name}_gcew_full"])
        assert differs(y, golden[f"G_{name}_gcew_diag"])

    def test_pt_weights_by_the_row_of_the_target(self, golden, name):
        edge_index, weight = edges_of(golden["G_pt_matrix"])
        assert edge_index.size(1) == 256
        y = pose_layer(golden, name, "pointwise")(golden["G_x"], edge_index, weight)
        close(y, golden[f"G_{name}_pt_dstrow"])
        assert differs(y, golden[f"G_{name}_pt_srcrow"])
        if name == "aut":
            assert differs(y, golden["G_aut_pt_reference"])


def test_learned_edge_weights_of_the_trivial_group(golden):
    conv = pose_layer(golden, "triv", "weighted")
    target, source = golden["G_edge_mask"].nonzero().T
    with torch.no_grad():
        conv.edge_logit.normal_()
        conv.edge_logit[target * 16 + source] = golden["G_e"]
    y = conv(golden["G_x"], torch.stack([source, target]))
    close(y, golden["G_triv_gcew_full"])
    assert differs(y, golden["G_triv_gcew_diag"])


def test_pair_orbits_of_the_skeleton(golden):
    orbits = pose_group(golden, "aut").pair_orbits()
    assert orbits.num_orbits == 118
    assert torch.equal(orbits.index, Orbits.from_keys(golden["G_pair_orbits"]).index)


class TestCoarsening:
    def test_quotient(self, golden):
        partition = Partition.from_labels(golden["A_labels"])
        edge_index, weight = edges_of(golden["I_grid_adj"])
        coarse = torch.zeros(4, 4, dtype=torch.float64)
        pairs, mean = partition.quotient(edge_index, weight)
        coarse[pairs[0], pairs[1]] = mean
        close(coarse, golden["I_coarse_adj_mean"])
        labels = partition.labels
        close(coarse[labels][:, labels], golden["I_blowup"])

    def test_the_group_preserves_the_blow_up_and_not_the_grid(self, golden):
        group = ClusterGroup(Partition.from_labels(golden["A_labels"]))
        assert group.preserves(*edges_of(golden["I_blowup"]))
        assert not group.preserves(*edges_of(golden["I_grid_adj"]))


class TestRegressionThresholds:
    """Samples below which symmetrising to S_3 beats S_2: n = 4 + noise * (dims lost) / bias."""

    S2 = ClusterGroup(Partition.from_labels([0, 0, 1]))
    S3 = PermutationGroup.symmetric(3)

    def test_invariant(self, golden):
        beta = torch.tensor([1, 1, 0.92], dtype=torch.float64)
        rows = (beta / beta.norm()).expand(3, 3)
        bias = (rows - self.S3.project(rows))[0].square().sum()
        lost = self.S2.node_orbits().num_orbits - self.S3.node_orbits().num_orbits
        close(4 + lost / 6**2 / bias, golden["I_threshold_invariant"])

    def test_equivariant(self, golden):
        assert PermutationGroup.trivial(3).commutant_dim() == 9
        a, b = 1.764052345967664, 0.4001572083672233
        damped = torch.ones(3, 3, dtype=torch.float64)
        damped[2], damped[:, 2] = 0.92, 0.92
        theta = (torch.eye(3, dtype=torch.float64) * (a - b) + b) * damped
        theta = theta / theta.norm()
        close(self.S2.project(theta), theta)
        bias = (theta - self.S3.project(theta)).square().sum()
        lost = self.S2.commutant_dim() - self.S3.commutant_dim()
        assert lost == 3
        close(4 + lost / 8**2 / bias, golden["I_threshold_equivariant"])


@pytest.mark.parametrize("sizes", [(1, 3, 5, 7), (4, 4), (9,), (1, 1, 1), (1, 6)], ids=str)
def test_the_formula_in_plain_loops(sizes):
    random = torch.Generator().manual_seed(0)
    n, k, d, e = sum(sizes), len(sizes), 2, 3
    labels = torch.repeat_interleave(torch.arange(k), torch.tensor(sizes))
    labels = labels[torch.randperm(n, generator=random)]

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random, dtype=torch.float64)

    x, w_diag, w_off, bias = draw(2, n, d), draw(e, d, k), draw(e, d, k, k), draw(e)
    y = torch.zeros(2, n, e, dtype=torch.float64)
    for node in range(n):
        c = int(labels[node])
        for o in range(e):
            y[:, node, o] = bias[o]
            for i in range(d):
                y[:, node, o] += w_diag[o, i, c] * x[:, node, i]
                for source in range(n):
                    y[:, node, o] += w_off[o, i, c, labels[source]] * x[:, source, i] / n
    close(cluster_layer(labels, w_diag, w_off, bias)(x), y)
