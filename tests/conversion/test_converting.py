"""convert: five models of PyG, tied along a group; what is kept, lost, and left alone."""

import copy
import itertools
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader
from torch_geometric.nn import (
    GCN,
    GIN,
    DenseGCNConv,
    GATConv,
    GCNConv,
    GINConv,
    GraphSAGE,
    SAGEConv,
    global_mean_pool,
)
from torch_geometric.nn import Sequential as PyGSequential
from torch_geometric.utils import to_dense_adj

import gsym
from gsym import ClusterGroup, Hierarchy, Partition, PermutationGroup
from gsym.check import equivariance_error
from gsym.conversion._projecting import Entries, project
from gsym.errors import GraphError, GroupError, SignalError
from gsym.nn import OrbitEmbedding, OrbitLinear

N = 7
TRIVIAL, EVERYTHING = PermutationGroup.trivial(N), PermutationGroup.symmetric(N)
CLUSTERS = ClusterGroup(Partition([0, 1, 0, 2, 0, 1, 3]))
TURNED = ClusterGroup(
    Partition([0, 1, 2, 0, 1, 2, 3]), swaps=PermutationGroup.from_cycles(4, [(0, 1, 2)])
)
CYCLE = PermutationGroup.from_cycles(N, [(0, 1, 2)])
GROUPS = {"clusters": CLUSTERS, "turned": TURNED, "3-cycle": CYCLE, "S_n": EVERYTHING}
CHAIN = [TRIVIAL, CLUSTERS, EVERYTHING]
EDGES = torch.tensor([[0, 1, 1, 2, 3, 4, 5, 2, 6, 6], [1, 0, 2, 1, 4, 3, 2, 5, 0, 6]])
WEIGHT = torch.rand(EDGES.size(1), generator=torch.Generator().manual_seed(1)) + 0.5


class DiffusionCell(nn.Module):
    """A DCRNN cell unrolled over time, on random walks along and against the edges."""

    def __init__(self):
        super().__init__()
        A = to_dense_adj(EDGES, max_num_nodes=N)[0]
        for name, walk in (("forth", A), ("back", A.T)):
            self.register_buffer(name, (walk / walk.sum(1, keepdim=True).clamp(min=1)).T)
        self.gate, self.candidate = nn.Linear(3 * 8, 2 * 5), nn.Linear(3 * 8, 5)
        self.start = nn.Parameter(torch.randn(N, 5))
        self.head = nn.Linear(5, 2)

    def diffuse(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.forth @ x, self.back @ x], dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.start.expand(x.size(0), N, 5)
        for _ in range(2):
            u = self.diffuse(torch.cat([x, h], -1))
            r, z = self.gate(u).sigmoid().chunk(2, -1)
            c = self.candidate(self.diffuse(torch.cat([x, r * h], -1))).tanh()
            h = torch.lerp(c, h, z)
        return self.head(h)


class Embedded(nn.Module):
    """An MLP on signals with node embeddings, and a bias of every node."""

    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding(N, 4)
        self.net = nn.Sequential(nn.Linear(3 + 4, 16), nn.ReLU(), nn.Linear(16, 2))
        self.shift = nn.Parameter(torch.randn(N, 2))

    def forward(self, x: Tensor) -> Tensor:
        e = self.emb(torch.arange(N, device=x.device)).expand(*x.shape[:-1], -1)
        return self.net(torch.cat([x, e], -1)) + self.shift


class Mixer(nn.Module):
    """Linear maps across nodes and across channels in turn, as MLP-mixers have."""

    def __init__(self):
        super().__init__()
        self.across, self.within = nn.Linear(N, N), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.within(self.across(x.mT).mT.tanh())


class Dense(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = DenseGCNConv(3, 5), DenseGCNConv(5, 2, improved=True)
        self.register_buffer("adj", torch.zeros(0))

    def forward(self, x: Tensor) -> Tensor:
        adj = to_dense_adj(EDGES, max_num_nodes=N).to(x)
        return self.last(self.first(x, adj).relu(), adj)


class Pooled(nn.Module):
    """A classifier of graphs."""

    def __init__(self):
        super().__init__()
        self.net, self.head = GCN(3, 5, 2), nn.Linear(5, 2)

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor | None = None) -> Tensor:
        return self.head(global_mean_pool(self.net(x, edge_index), batch))


# The five models of the field, and others: whether they are called with the graph.
MODELS = {
    "GCN": (lambda: GCN(3, 5, 2, 2), True),
    "GIN": (lambda: GIN(3, 5, 2, 2, train_eps=True), True),
    "SAGE": (lambda: GraphSAGE(3, 5, 2, 2), True),
    "DCRNN": (DiffusionCell, False),
    "MLP with embeddings": (Embedded, False),
    "mixer": (Mixer, False),
    "dense GCN": (Dense, False),
}
# Its first map takes 7 channels, as many as there are nodes.
NODES = {"MLP with embeddings": ["emb", "shift"]}


def signal(*batch, dtype=torch.float64):
    random = torch.Generator().manual_seed(len(batch))
    return torch.randn(*batch, N, 3, generator=random, dtype=torch.float64).to(dtype)


def build(name, dtype=torch.float64):
    torch.manual_seed(0)
    make, takes_graph = MODELS[name]
    model = make().to(dtype)
    return model, ((EDGES,) if takes_graph else ())


def converted(name, group, dtype=torch.float64, **options):
    model, args = build(name, dtype)
    new = gsym.convert(model, group, edge_index=EDGES, nodes=NODES.get(name), **options)
    return model, new, args


def average(group, M):
    """The mean over the group of P M P^T, from orbits of pairs grown pair by pair."""
    moves, out, seen = group.generators.tolist(), torch.empty_like(M), set()
    for start in itertools.product(range(N), repeat=2):
        if start in seen:
            continue
        orbit, new = {start}, [start]
        while new:
            new = [(g[i], g[j]) for g in moves for i, j in new if (g[i], g[j]) not in orbit]
            orbit |= set(new)
        at = tuple(torch.tensor(sorted(orbit)).T)
        out[at] = M[at].mean()
        seen |= orbit
    return out


@pytest.mark.parametrize("name", MODELS)
class TestModels:
    @pytest.mark.parametrize(
        ("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)]
    )
    def test_the_trivial_group_changes_no_output(self, name, dtype, tolerance):
        model, new, args = converted(name, TRIVIAL, dtype)
        x = signal(4, dtype=dtype)
        torch.testing.assert_close(new(x, *args), model(x, *args), rtol=tolerance, atol=tolerance)
        assert {part.loss for part in new.conversion.replaced} <= {0.0}
        assert new.conversion.replaced and not new.conversion.may_break

    @pytest.mark.parametrize("group", GROUPS.values(), ids=GROUPS)
    def test_is_exact_for_the_group_after_training_too(self, name, group):
        model, new, args = converted(name, group, strict=True)
        x = signal(16)
        assert equivariance_error(new, group, x, *args) < 1e-12
        # The model was not, by itself.
        assert equivariance_error(model, group, x, *args) > 1e-4
        losses = train(new, x, 2 * x[..., 1:], *args)
        assert losses[-1] < 0.95 * losses[0]
        assert equivariance_error(new, group, x, *args) < 1e-12

    def test_changes_outside_of_the_group(self, name):
        _, new, args = converted(name, CLUSTERS)
        outside = PermutationGroup.from_cycles(N, [(0, 1, 3)])
        assert equivariance_error(new, outside, signal(4), *args) > 1e-4

    def test_a_chain_starts_as_its_finest_group_and_is_exact_for_it(self, name):
        x = signal(4)
        _, fine, args = converted(name, CLUSTERS)
        _, chain, _ = converted(name, [EVERYTHING, CLUSTERS])
        torch.testing.assert_close(chain(x, *args), fine(x, *args), rtol=1e-10, atol=1e-10)
        train(chain, x, torch.randn(4, N, 2).double(), *args)
        assert equivariance_error(chain, CLUSTERS, x, *args) < 1e-12
        assert equivariance_error(chain, EVERYTHING, x, *args) > 1e-4

    def test_the_model_is_untouched_and_every_weight_learns(self, name):
        model, args = build(name)
        before = copy.deepcopy(model.state_dict())
        new = gsym.convert(model, CLUSTERS, edge_index=EDGES, nodes=NODES.get(name))
        assert list(model.state_dict()) == list(before)
        assert all(torch.equal(model.state_dict()[k], before[k]) for k in before)
        start = {k: p.detach().clone() for k, p in new.named_parameters()}
        train(new, signal(16), torch.randn(16, N, 2).double(), *args)
        still = [k for k, p in new.named_parameters() if torch.equal(p, start[k])]
        assert still == []
        assert not {id(p) for p in new.parameters()} & {id(p) for p in model.parameters()}

    def test_state_and_copies(self, name):
        _, new, args = converted(name, CLUSTERS)
        _, other, _ = converted(name, CLUSTERS)
        with torch.no_grad():
            for p in new.parameters():
                p.add_(torch.randn_like(p))
        other.load_state_dict(new.state_dict())
        x = signal(4)
        torch.testing.assert_close(other(x, *args), new(x, *args))
        torch.testing.assert_close(copy.deepcopy(new)(x, *args), new(x, *args))
        _, foreign, _ = converted(name, TURNED)
        with pytest.raises((GroupError, RuntimeError)):
            foreign.load_state_dict(new.state_dict())


def train(model, x, target, *args, epochs=2):
    """Full epochs of Adam over batches of four; the loss before and after."""
    optimiser = torch.optim.Adam(model.parameters(), lr=0.02)
    losses = [float(F.mse_loss(model(x, *args), target).detach())]
    for _ in range(epochs):
        for part, wanted in zip(x.split(4), target.split(4), strict=True):
            optimiser.zero_grad()
            F.mse_loss(model(part, *args), wanted).backward()
            optimiser.step()
        losses.append(float(F.mse_loss(model(x, *args), target).detach()))
    return losses


class TestLoss:
    @pytest.mark.parametrize("group", GROUPS.values(), ids=GROUPS)
    def test_is_that_of_the_projection(self, group):
        conv = GCNConv(2, 3).double()
        new = gsym.convert(conv, group, edge_index=EDGES)
        (part,) = new.conversion.replaced
        eye = torch.eye(N, dtype=torch.float64)[..., None].expand(-1, -1, 2)
        axes = torch.eye(2).double()
        with torch.no_grad():
            K, L = (
                torch.stack([m(e * b, EDGES) - m(0 * e, EDGES) for b in axes for e in eye])
                for m in (conv, new)
            )
        assert part.loss == pytest.approx(float((K - L).norm() / K.norm()), rel=1e-9)
        M = (K.view(2, N, N, 3)[0, :, :, 0]).T
        tied = (L.view(2, N, N, 3)[0, :, :, 0]).T
        torch.testing.assert_close(tied, average(group, M), rtol=1e-9, atol=1e-12)

    @pytest.mark.parametrize(
        "options",
        [
            {"aggr": "sum"},
            {"root_weight": False},
            {"project": True},
            {"normalize": True},
            {"flow": "target_to_source"},
        ],
        ids=str,
    )
    def test_of_sage_is_of_the_whole_map(self, options):
        conv = SAGEConv(2, 3, **options).double()
        same = gsym.convert(conv, TRIVIAL, edge_index=EDGES)
        x = signal(2)[..., :2]
        torch.testing.assert_close(same(x, EDGES), conv(x, EDGES))
        if {"project", "normalize"} & set(options):
            return
        new = gsym.convert(conv, CLUSTERS, edge_index=EDGES)
        basis = torch.eye(2 * N).double().view(2 * N, N, 2)
        with torch.no_grad():
            K, L = ([m(b, EDGES) - m(0 * b, EDGES) for b in basis] for m in (conv, new))
        K, L = torch.stack(K), torch.stack(L)
        expected = float((K - L).norm() / K.norm())
        assert new.conversion.replaced[0].loss == pytest.approx(expected, rel=1e-9)

    @pytest.mark.parametrize(
        "options",
        [
            {"improved": True},
            {"normalize": False},
            {"add_self_loops": False},
            {"bias": False},
            {"flow": "target_to_source"},
            {"aggr": "mean"},
            {"cached": True},
        ],
        ids=str,
    )
    def test_variants_of_gcn(self, options):
        conv = GCNConv(3, 2, **options).double()
        new = gsym.convert(conv, TRIVIAL, edge_index=EDGES, edge_weight=WEIGHT)
        x, weight = signal(2), WEIGHT.double()
        torch.testing.assert_close(
            new(x, EDGES, weight), conv(x, EDGES, weight), rtol=1e-6, atol=1e-6
        )

    def test_of_a_linear_map_and_a_table(self):
        _, new, _ = converted("mixer", CLUSTERS)
        model, _ = build("mixer")
        weight, bias = model.across.weight.detach(), model.across.bias.detach()
        lost = float((weight - average(CLUSTERS, weight)).norm() / weight.norm())
        mean = torch.stack([bias[CLUSTERS.partition.labels == c].mean() for c in range(4)])
        other = float((bias - mean[CLUSTERS.partition.labels]).norm() / bias.norm())
        assert new.conversion.replaced[0].loss == pytest.approx(max(lost, other))

    @pytest.mark.parametrize(
        "levels",
        [[CLUSTERS], [TURNED], [CYCLE], CHAIN, CHAIN[::-1], [CLUSTERS, CYCLE], [TURNED, CLUSTERS]],
        ids=lambda levels: " and ".join(map(str, levels)),
    )
    def test_projection_is_the_nearest_of_the_sums(self, levels):
        """Against least squares over a basis of the sum of commutants."""
        random = torch.Generator().manual_seed(3)
        M = torch.randn(N, N, generator=random, dtype=torch.float64)
        M[M.abs() < 0.5] = 0
        basis = torch.stack(
            [average(g, e.view(N, N)).flatten() for g in levels for e in torch.eye(N * N).double()]
        ).T
        nearest = (basis @ torch.linalg.pinv(basis, rtol=1e-10) @ M.flatten()).view(N, N)
        row, column = M.nonzero().T
        maps, lost = project(levels, Entries.of(row, column, M[row, column], N))
        total = torch.zeros(N, N, dtype=torch.float64)
        for tied, group in zip(maps, levels, strict=True):
            labels = group.as_clusters().partition.labels
            total += tied.pair[labels][:, labels] + torch.diag(tied.own[labels])
        torch.testing.assert_close(total, nearest, rtol=1e-8, atol=1e-8)
        assert lost == pytest.approx(float((M - nearest).norm()), abs=1e-7)

    @pytest.mark.parametrize("conv", [GCNConv(3, 2), SAGEConv(3, 2), GINConv(nn.Linear(3, 2))])
    def test_nothing_is_lost_of_a_graph_that_the_group_preserves(self, conv):
        # A triangle of 0, 2 and 4 with every edge twice, and node 1 that hears all of it.
        triangle = torch.tensor(
            [[0, 0, 2, 2, 4, 4] * 2 + [0, 2, 4], [2, 4, 0, 4, 0, 2] * 2 + [1] * 3]
        )
        group = ClusterGroup(Partition([0, 1, 0, 2, 0, 3, 4]))
        assert gsym.convert(conv, group, edge_index=triangle).conversion.replaced[0].loss < 1e-12
        once = gsym.convert(conv, group, edge_index=triangle[:, 1:])
        assert once.conversion.replaced[0].loss > 1e-3


class TestBatches:
    def loader(self, edges=EDGES):
        data = [Data(x=signal(5, dtype=torch.float32)[i], edge_index=edges) for i in range(5)]
        return DataLoader(data, batch_size=2)

    @pytest.mark.parametrize("conv", [GCNConv(3, 2), SAGEConv(3, 2), GINConv(nn.Linear(3, 2))])
    def test_stacked_batches_give_what_their_graphs_give(self, conv):
        new = gsym.convert(conv, CLUSTERS, edge_index=EDGES)
        same = gsym.convert(conv, TRIVIAL, edge_index=EDGES)
        for batch in self.loader():
            y = new(batch.x, batch.edge_index)
            alone = torch.cat([new(one.x, one.edge_index) for one in batch.to_data_list()])
            torch.testing.assert_close(y, alone)
            torch.testing.assert_close(
                same(batch.x, batch.edge_index), conv(batch.x, batch.edge_index)
            )

    def test_a_classifier_trains_on_batches(self):
        torch.manual_seed(0)
        model = Pooled()
        new = gsym.convert(model, CLUSTERS, edge_index=EDGES, strict=True)
        optimiser = torch.optim.Adam(new.parameters(), lr=0.05)
        losses = []
        for _ in range(4):
            for batch in self.loader():
                loss = new(batch.x, batch.edge_index, batch.batch).square().mean()
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                losses.append(float(loss.detach()))
        assert losses[-1] < losses[0]
        x = signal(dtype=torch.float32)
        moved = x[CLUSTERS.generators[0]]
        torch.testing.assert_close(new(x, EDGES), new(moved, EDGES))

    def test_edges_may_come_in_any_order(self):
        new = gsym.convert(GCNConv(3, 2), CLUSTERS, edge_index=EDGES, edge_weight=WEIGHT)
        order = torch.randperm(EDGES.size(1))
        x = signal(dtype=torch.float32)
        assert torch.equal(new(x, EDGES[:, order], WEIGHT[order]), new(x, EDGES, WEIGHT))

    def test_parallel_edges_too(self):
        edges = torch.tensor([[0, 0, 0, 1], [1, 1, 1, 2]])
        weight, order = torch.tensor([1.0, 2, 4, 3]), torch.tensor([3, 1, 2, 0])
        conv = GCNConv(3, 2)
        new = gsym.convert(conv, TRIVIAL, edge_index=edges, edge_weight=weight)
        x = signal(dtype=torch.float32)
        y = new(x, edges[:, order], weight[order])
        torch.testing.assert_close(y, conv(x, edges, weight))
        twice = torch.cat([edges, edges + N], dim=1)
        new(torch.cat([x, x]), twice, torch.cat([weight, weight]))
        with pytest.raises(GraphError, match="edge_weight differs"):
            new(x, edges, weight[order])

    def test_another_graph_is_refused(self):
        new = gsym.convert(GCNConv(3, 2), CLUSTERS, edge_index=EDGES)
        x = signal(dtype=torch.float32)
        new(x, EDGES)
        for other in (EDGES.flip(0), EDGES[:, 1:], EDGES.clone().fill_(0)):
            with pytest.raises(GraphError, match="converted for a graph of 10 edges on 7 nodes"):
                new(x, other)
        for batch in self.loader(EDGES[:, :-1]):
            with pytest.raises(GraphError):
                new(batch.x, batch.edge_index)
        mixed = next(iter(DataLoader([
            Data(x=x, edge_index=EDGES), Data(x=x, edge_index=EDGES.flip(0)),
        ], batch_size=2)))  # fmt: skip
        with pytest.raises(GraphError, match="equal copies"):
            new(mixed.x, mixed.edge_index)

    def test_other_signals_are_refused(self):
        new = gsym.convert(GCNConv(3, 2), CLUSTERS, edge_index=EDGES)
        with pytest.raises(SignalError, match=r"\[\.\.\., 7, c\].*got \[4, 6, 3\]"):
            new(torch.randn(4, 6, 3), EDGES)
        with pytest.raises(SignalError, match=r"\[b\*7, c\].*got \[8, 3\]"):
            new(torch.randn(8, 3), EDGES)
        with pytest.raises(SignalError, match="a tuple"):
            new((torch.randn(7, 3), None), EDGES)
        with pytest.raises(TypeError, match="edge_index must be a tensor"):
            new(torch.randn(7, 3), EDGES.tolist())

    def test_weights_are_those_of_the_conversion(self):
        x = signal(dtype=torch.float32)
        plain = gsym.convert(GCNConv(3, 2), CLUSTERS, edge_index=EDGES)
        plain(x, EDGES, torch.ones(10))
        with pytest.raises(GraphError, match="pass edge_weight= to"):
            plain(x, EDGES, WEIGHT)
        weighted = gsym.convert(GCNConv(3, 2), CLUSTERS, edge_index=EDGES, edge_weight=WEIGHT)
        with pytest.raises(GraphError, match="pass it in the call"):
            weighted(x, EDGES)

    def test_dense_graphs_are_compared(self):
        adj = to_dense_adj(EDGES, max_num_nodes=N)[0]
        conv = DenseGCNConv(3, 2)
        new = gsym.convert(conv, TRIVIAL, edge_index=EDGES)
        mask = torch.rand(4, N) > 0.5
        x = signal(4, dtype=torch.float32)
        torch.testing.assert_close(new(x, adj, mask), conv(x, adj.expand(4, N, N), mask))
        with pytest.raises(GraphError, match="not the graph of the conversion"):
            new(x, adj.T)
        with pytest.raises(ValueError, match="add_loop must be True"):
            new(x, adj, None, False)

    def test_compiles_on_its_graph(self):
        new = gsym.convert(GCNConv(3, 2), CLUSTERS, edge_index=EDGES).eval()
        x = signal(2, dtype=torch.float32)
        expected = new(x, EDGES)
        torch.compiler.reset()
        compiled = torch.compile(new, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(x, EDGES), expected)


class TestLeftAlone:
    def reasons(self, model, group=CLUSTERS, **options):
        found = gsym.convert(model, group, edge_index=EDGES, **options).conversion
        return {part.name: (part.reason, part.may_break) for part in found.left}

    def test_what_acts_on_channels_is_safe(self):
        left = self.reasons(nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.PReLU()))
        assert left == {k: ("acts on channels, alike at every node", False) for k in "012"}

    @pytest.mark.parametrize(
        ("conv", "words"),
        [
            (SAGEConv(3, 2, aggr="max"), "aggregates by max"),
            (type("Mine", (GCNConv,), {})(3, 2), "which the group does not preserve"),
            (GATConv(3, 2), "which the group does not preserve"),
        ],
    )
    def test_convolutions_that_are_not_known(self, conv, words):
        reason, may_break = self.reasons(conv)[""]
        assert words in reason and may_break
        with pytest.raises(ValueError, match=words):
            gsym.convert(conv, CLUSTERS, edge_index=EDGES, strict=True)

    def test_a_graph_that_the_group_preserves_is_safe(self):
        swap = PermutationGroup.from_cycles(N, [(3, 4)])
        assert self.reasons(GATConv(3, 2), swap)[""] == (
            "uses the graph, which the group preserves", False,
        )  # fmt: skip

    def test_convolutions_without_a_graph(self):
        with pytest.warns(UserWarning, match="the model: no graph is given, pass edge_index="):
            new = gsym.convert(GCNConv(3, 2), CLUSTERS)
        assert new.conversion.may_break[0].reason.endswith("pass edge_index=")
        with pytest.raises(ValueError, match="pass edge_index="):
            gsym.convert(GCNConv(3, 2), CLUSTERS, strict=True)

    def test_maps_from_and_to_nodes_are_tied_where_they_are_named(self):
        model = nn.Sequential(nn.Linear(N, 5), nn.ReLU(), nn.Linear(5, N)).double()
        left = self.reasons(model)
        assert all(may_break and "nodes=" in reason for reason, may_break in left.values())
        new = gsym.convert(model, CLUSTERS, nodes=["0", "2"], strict=True)
        x = signal(4)[..., 0]
        assert equivariance_error(lambda x: new(x.mT).mT, CLUSTERS, x.mT) < 1e-12
        same = gsym.convert(model, TRIVIAL, nodes=["0", "2"])
        torch.testing.assert_close(same(x), model(x))
        assert new[0].weight.shape == (5, N)

    def test_signals_laid_flat_may_break_it(self):
        (reason, may_break), *_ = self.reasons(nn.Sequential(nn.Linear(3 * N, 4))).values()
        assert may_break and "21 = 7 x 3" in reason

    @pytest.mark.parametrize("make", [lambda: nn.Linear(3 * N, 4), lambda: nn.BatchNorm1d(3 * N)])
    def test_signals_laid_flat_are_no_matter_of_nodes_but_of_safe(self, make):
        for nodes in (None, []):
            assert self.reasons(nn.Sequential(make()), nodes=nodes)["0"] == (
                "21 = 7 x 3 could be signals laid flat", True,
            )  # fmt: skip
        reason, may_break = self.reasons(nn.Sequential(make()), safe=["0"], strict=True)["0"]
        assert reason.endswith("; said to be safe") and not may_break

    @pytest.mark.parametrize("shape", [(3 * N, N), (N, 3 * N)])
    def test_signals_laid_flat_on_one_side(self, shape):
        flat = "21 = 7 x 3 could be signals laid flat"
        for options in ({}, {"nodes": []}, {"nodes": ["0"]}):
            model = nn.Sequential(nn.Linear(*shape))
            assert self.reasons(model, **options)["0"] == (flat, True)
            with pytest.raises(ValueError, match=flat):
                gsym.convert(model, CLUSTERS, strict=True, **options)
        # Named, its axis of nodes is tied all the same.
        new = gsym.convert(model, CLUSTERS, nodes=["0"], safe=["0"], strict=True)
        assert [p.name for p in new.conversion.replaced] == ["0"]

    def test_modules_that_are_no_submodules(self):
        class Plain(nn.Module):
            def __init__(self):
                super().__init__()
                self.seen = nn.Linear(3, 2)
                self.steps = [nn.ReLU(), self.seen, {"deep": (nn.Linear(N, N),)}]
                self.steps.append(self.steps)

        left = self.reasons(Plain())
        assert set(left) == {"seen", "steps[2]['deep'][0]"}
        assert "ModuleList" in left["steps[2]['deep'][0]"][0] and left["steps[2]['deep'][0]"][1]
        with pytest.raises(ValueError, match="ModuleList"):
            gsym.convert(Plain(), CLUSTERS, strict=True)

    def test_own_parameters_laid_flat(self):
        class Flat(nn.Module):
            def __init__(self):
                super().__init__()
                self.shift = nn.Parameter(torch.randn(3 * N))

        assert self.reasons(Flat())["shift"] == ("21 = 7 x 3 could be signals laid flat", True)

    def test_hooks_parametrisations_and_shared_weights(self):
        hooked, normed, first = Mixer(), Mixer(), Mixer()
        hooked.across.register_forward_hook(lambda *_: None)
        nn.utils.parametrizations.weight_norm(normed.across)
        last = Mixer()
        last.across.weight = first.across.weight
        assert self.reasons(hooked)["across"] == ("has hooks", True)
        assert self.reasons(normed)["across.weight"] == ("is parametrised", True)
        shared = self.reasons(nn.Sequential(first, last))
        assert shared["0.across"] == ("shares weights with another part", True)

    def test_one_module_in_two_places_stays_one(self):
        part = Mixer()
        new = gsym.convert(nn.ModuleList([part, part]), CLUSTERS)
        assert new[0] is new[1] and len(new.conversion.replaced) == 1

    def test_embeddings(self):
        for options, word in (({"padding_idx": 0}, "padding_idx"), ({"sparse": True}, "sparse")):
            assert word in self.reasons(nn.Embedding(N, 2, **options))[""][0]
        counted = nn.Embedding(N, 2, scale_grad_by_freq=True)
        assert "scale_grad_by_freq" in self.reasons(counted)[""][0]
        assert self.reasons(nn.Embedding(12, 2))[""] == ("its rows are not nodes", False)

    def test_layers_of_gsym(self):
        assert self.reasons(OrbitLinear(2, 2, CLUSTERS))[""] == ("is tied already", False)
        assert self.reasons(OrbitLinear(2, 2, TURNED))[""][1]
        assert self.reasons(OrbitLinear(2, 2, levels=CHAIN))[""][1]
        assert not self.reasons(OrbitLinear(2, 2, levels=CHAIN), CHAIN)[""][1]

    def test_other_modules_with_an_axis_of_nodes(self):
        class Own(nn.Module):
            def __init__(self, part):
                super().__init__()
                self.part, self.shift = part, nn.Parameter(torch.randn(N, 2))

        for part in (nn.LayerNorm((N, 3)), nn.BatchNorm1d(N), nn.Conv1d(N, N, 1)):
            told = ("has weights with an axis of 7", True)
            assert self.reasons(part)[""] == told
            with pytest.raises(ValueError, match=r"name those that do not in safe=:\n  part, "):
                gsym.convert(Own(part), CLUSTERS, nodes=["shift"], strict=True)
            gsym.convert(Own(part), CLUSTERS, nodes=["shift"], safe=["part"], strict=True)

    def test_tensors(self):
        class Own(nn.Module):
            def __init__(self):
                super().__init__()
                self.cube = nn.Parameter(torch.randn(N, N, N))
                self.count = nn.Buffer(torch.arange(N))
                self.adaptive = nn.Parameter(torch.randn(N, N))
                self.first = nn.Parameter(torch.randn(1, N, 4))
                self.second = nn.Parameter(torch.randn(4, N))
                self.listed = nn.ParameterList([torch.randn(N, 1)])
                self.scale = nn.Parameter(torch.ones(1))

            def forward(self, x):
                y = self.adaptive.softmax(-1) @ x + self.first[0, :, :3] * self.second.mT[:, :3]
                return (y + self.listed[0]) * self.scale

        model = Own().double()
        new = gsym.convert(model, CYCLE)
        assert {p.name for p in new.conversion.may_break} == {"cube", "count"}
        assert {p.name for p in new.conversion.replaced} == {
            "adaptive", "first", "second", "listed.0",
        }  # fmt: skip
        assert equivariance_error(new, CYCLE, signal(2)) < 1e-12
        assert equivariance_error(model, CYCLE, signal(2)) > 1e-3
        same = gsym.convert(model, TRIVIAL)
        torch.testing.assert_close(same(signal(2)), model(signal(2)))

    @pytest.mark.parametrize("dtype", [torch.bool, torch.int64])
    @pytest.mark.parametrize("nodes", [None, []])
    def test_masks_and_numbers_of_nodes(self, dtype, nodes):
        class Masked(nn.Module):
            def __init__(self, mask):
                super().__init__()
                self.register_buffer("mask", mask.to(dtype))
                self.register_buffer("edges", torch.arange(2 * N).view(2, N))

            def forward(self, x):
                return x * self.mask[:, None].to(x.dtype)

        labels = CYCLE.node_orbits().index
        for mask, breaks in ((torch.arange(N) == 1, True), (labels == labels[0], False)):
            model = Masked(mask)
            new = gsym.convert(model, CYCLE, nodes=nodes)
            told = [p.name for p in new.conversion.may_break]
            assert told == (["mask"] if breaks else [])
            assert (equivariance_error(new, CYCLE, signal(2)) > 1e-3) is breaks
            assert torch.equal(new.mask, model.mask)
        model.mask = 1j * (torch.arange(N) == 1)
        assert [p.name for p in gsym.convert(model, CYCLE).conversion.may_break] == ["mask"]


class Shifted(nn.Module):
    """A parameter with a row of every node."""

    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.randn(N, 3))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.shift


class TestTiedBefore:
    @pytest.mark.parametrize("first", [TRIVIAL, CLUSTERS], ids=str)
    def test_along_another_group_may_break_it(self, first):
        once = gsym.convert(Shifted().double(), first)
        with pytest.raises(ValueError, match=r"shift.*is tied along another group"):
            gsym.convert(once, EVERYTHING, strict=True)
        again = gsym.convert(once, first, strict=True).conversion
        assert [(p.name, p.reason) for p in again.left] == [("shift", "is tied already")]
        chain = gsym.convert(once, [first, EVERYTHING], strict=True)
        assert equivariance_error(chain, first, signal(2)) < 1e-12

    def test_a_map_to_nodes_along_another_group(self):
        once = gsym.convert(nn.Sequential(nn.Linear(5, N)), CLUSTERS, nodes=["0"])
        left = gsym.convert(once, EVERYTHING).conversion.may_break
        assert {p.name for p in left} == {"0.weight", "0.bias"}
        with pytest.raises(ValueError, match="'0', which cannot be tied: is parametrised"):
            gsym.convert(once, EVERYTHING, nodes=["0"])

    def test_what_is_tied_now_is_not_left_alone(self):
        assert gsym.convert(Shifted(), CLUSTERS).conversion.left == ()


class Listed(nn.Module):
    """A module that is also held in a list, in a tuple of a dict, and by another name."""

    def __init__(self, part):
        super().__init__()
        self.part = self.other = part
        self.steps = [part]
        self.steps.append(self.steps)
        self.table = {"both": (part, 1)}
        self.__dict__["direct"] = part

    def forward(self, x: Tensor) -> Tensor:
        y = self.steps[0](x.mT) + self.table["both"][0](x.mT)
        return (y + self.direct(x.mT)).mT


class TestAliases:
    def test_lists_tuples_and_dicts_hold_the_new_module(self):
        model = Listed(nn.Linear(N, N)).double()
        new = gsym.convert(model, CYCLE, strict=True)
        assert equivariance_error(new, CYCLE, signal(2)) < 1e-12
        assert equivariance_error(model, CYCLE, signal(2)) > 1e-3
        same = gsym.convert(model, TRIVIAL)
        torch.testing.assert_close(same(signal(2)), model(signal(2)))

    @pytest.mark.parametrize("name", ["part", "other"])
    def test_either_name_will_do(self, name):
        new = gsym.convert(Listed(nn.Linear(N, 3)), CLUSTERS, nodes=[name], strict=True)
        assert [p.became for p in new.conversion.replaced] == ["Linear from nodes, tied"]


class TestUnclear:
    def test_as_many_channels_as_nodes_are_refused(self):
        model = nn.Sequential(nn.Linear(3, N), nn.Linear(N, N), nn.Linear(N, 2))
        with pytest.raises(ValueError, match=r"0, 2 may have 7 channels.*what 1 acts on.*nodes="):
            gsym.convert(model, CLUSTERS)
        assert gsym.convert(model, CLUSTERS, nodes=[]).conversion.replaced == ()

    def test_and_named(self):
        class Both(nn.Module):
            def __init__(self):
                super().__init__()
                self.up, self.across, self.within = (
                    nn.Linear(3, N),
                    nn.Linear(N, N),
                    nn.Linear(N, N),
                )

            def forward(self, x):
                return self.within(self.across(self.up(x).mT).mT)

        new = gsym.convert(Both().double(), CLUSTERS, nodes=["across"], strict=True)
        assert [p.name for p in new.conversion.replaced] == ["across"]
        assert equivariance_error(new, CLUSTERS, signal(2)) < 1e-12

    @pytest.mark.parametrize(
        ("nodes", "words"),
        [
            (["acros"], "'acros', which is not in the model; an axis of 7 has across"),
            (["within"], r"'within', which is \[2, 3\]"),
        ],
    )
    def test_wrong_names(self, nodes, words):
        with pytest.raises(ValueError, match=words):
            gsym.convert(Mixer(), CLUSTERS, nodes=nodes)
        with pytest.raises(TypeError, match="write"):
            gsym.convert(Mixer(), CLUSTERS, nodes="across")

    def test_names_that_make_no_difference(self):
        with pytest.raises(ValueError, match="'0', which cannot be tied: its rows are not nodes"):
            gsym.convert(nn.Sequential(nn.Embedding(10, N)), CLUSTERS, nodes=["0"])
        with pytest.raises(
            ValueError, match="safe names 'across', which is not left alone; within is"
        ):
            gsym.convert(Mixer(), CLUSTERS, safe=["across"])
        with pytest.raises(TypeError, match="safe must be a list of names"):
            gsym.convert(Mixer(), CLUSTERS, safe="within")


class TestModule:
    def test_prints_what_became_of_everything(self):
        text = str(converted("MLP with embeddings", CLUSTERS)[1].conversion)
        assert "Embedding(7, 4)" in text and "OrbitEmbedding" in text and "28 to 16" in text
        assert "parameter [7, 2]" in text and "left alone" in text and "net.0" in text
        assert "MAY BREAK IT" not in text

    def test_modes_types_and_frozen_weights_are_kept(self):
        model = Mixer().eval()
        model.across.weight.requires_grad_(False)
        new = gsym.convert(model, CLUSTERS)
        assert not new.across.training and not new.across.mix.map.mixing.weight.requires_grad
        assert new.across.bias.orbit_weight.requires_grad
        for frozen in (GCNConv(3, 2), Shifted(), nn.Embedding(N, 2)):
            frozen.requires_grad_(False)
            new = gsym.convert(frozen, CLUSTERS, edge_index=EDGES)
            assert not any(p.requires_grad for p in new.parameters())
        half_frozen = GCNConv(3, 2)
        half_frozen.lin.requires_grad_(False)
        new = gsym.convert(half_frozen, CLUSTERS, edge_index=EDGES)
        assert all(p.requires_grad for p in new.mix.parameters())
        half = gsym.convert(Mixer().bfloat16(), CLUSTERS)
        assert {p.dtype for p in half.parameters()} == {torch.bfloat16}

    def test_random_numbers_are_as_without(self):
        torch.manual_seed(0)
        model = Mixer()
        torch.manual_seed(1)
        expected = torch.rand(3)
        torch.manual_seed(1)
        gsym.convert(model, CLUSTERS)
        assert torch.equal(torch.rand(3), expected)

    def test_a_hierarchy_brings_its_graph(self):
        hierarchy = Hierarchy.from_partitions([CLUSTERS.partition], edge_index=EDGES)
        new = gsym.convert(GCNConv(3, 2), hierarchy, strict=True)
        assert len(new.mix.map.levels) == 3
        new = gsym.convert(GCNConv(3, 2), hierarchy, edge_weight=WEIGHT)
        new(signal(dtype=torch.float32), EDGES, WEIGHT)

    def test_sequential_of_pyg(self):
        model = PyGSequential("x, e", [(GCNConv(3, 4), "x, e -> x"), nn.ReLU(), nn.Linear(4, 2)])
        new = gsym.convert(model, TRIVIAL, edge_index=EDGES)
        x = signal(dtype=torch.float32)
        torch.testing.assert_close(new(x, EDGES), model(x, EDGES))

    def test_once_more(self):
        once = gsym.convert(Mixer(), CLUSTERS)
        twice = gsym.convert(once, CLUSTERS)
        assert twice.conversion.replaced == () and once.conversion.replaced

    def test_pickles(self):
        new = gsym.convert(GCNConv(3, 2), CLUSTERS, edge_index=EDGES)
        x = signal(dtype=torch.float32)
        new(x, EDGES)
        assert torch.equal(pickle.loads(pickle.dumps(new))(x, EDGES), new(x, EDGES))

    def test_embedding_is_a_layer_of_gsym(self):
        _, new, _ = converted("MLP with embeddings", CHAIN)
        assert isinstance(new.emb, OrbitEmbedding) and len(new.emb.levels) == 3
        assert new.emb.weight.shape == (N, 4) and len(new.emb.energy()) == 3


class TestBadInput:
    def test_models(self):
        with pytest.raises(TypeError, match="must be a module; got function"):
            gsym.convert(lambda x: x, CLUSTERS)
        with pytest.raises(TypeError, match="compiled"):
            gsym.convert(torch.compile(Mixer(), backend="eager"), CLUSTERS)
        with pytest.raises(ValueError, match="has no values yet; call the model once"):
            gsym.convert(GCNConv(-1, 2), CLUSTERS, edge_index=EDGES)
        with torch.device("meta"):
            unfilled = Mixer()
        with pytest.raises(ValueError, match="has no values yet"):
            gsym.convert(unfilled, CLUSTERS)
        taken = Mixer()
        taken.conversion = nn.Linear(1, 1)
        with pytest.raises(ValueError, match="attribute conversion"):
            gsym.convert(taken, CLUSTERS)

    def test_groups_and_graphs(self):
        with pytest.raises(TypeError, match="for one"):
            gsym.convert(Mixer(), CLUSTERS.partition)
        with pytest.raises(GroupError, match="same 7 nodes"):
            gsym.convert(Mixer(), [CLUSTERS, Partition.single(3)])
        with pytest.raises(GraphError, match=r"0..6; edge 0 names node 7"):
            gsym.convert(GCNConv(3, 2), CLUSTERS, edge_index=torch.tensor([[7], [0]]))
