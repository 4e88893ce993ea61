"""Where a model loses a symmetry: planted faults are found where they are, and nowhere else."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.nn import GCNConv, global_mean_pool

import gsym
from gsym import ClusterGroup, Hierarchy, Partition, PermutationGroup
from gsym.check import Profile, profile, profiling
from gsym.check.profiling import moves
from gsym.errors import SignalError
from gsym.nn import OrbitEmbedding, OrbitLinear

N = 6
CLUSTERS = ClusterGroup(Partition([0, 1, 0, 0, 1, 2]))
CHAIN = [PermutationGroup.trivial(N), CLUSTERS, PermutationGroup.symmetric(N)]
X = torch.randn(4, N, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


class Across(nn.Module):
    """A map across nodes that knows each of them, or is tied."""

    def __init__(self, tied: bool):
        super().__init__()
        self.map = OrbitLinear(1, 1, CLUSTERS) if tied else nn.Linear(N, N)

    def forward(self, x: Tensor) -> Tensor:
        x = x.mT
        if isinstance(self.map, nn.Linear):
            return self.map(x).mT
        return self.map(x.unsqueeze(-1)).squeeze(-1).mT


class Net(nn.Module):
    """Five layers, of which some know the nodes."""

    def __init__(self, *untied: int):
        super().__init__()
        self.layers = nn.ModuleList(Across(i not in untied) for i in range(5))
        self.act = nn.ReLU(inplace=True)
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = self.act(layer(x))
        return self.head(x.mean(dim=-2))


def by_name(found: Profile):
    return {m.name: m for m in found.modules}


class TestWhere:
    @pytest.mark.parametrize("place", range(5))
    def test_a_planted_module_is_the_first(self, place):
        found = profile(Net(place).double(), CHAIN, X)
        trivial, clusters, everything = found.first_lost
        assert trivial is None
        assert clusters is not None and clusters.name == f"layers.{place}.map"
        # A map tied within clusters knows the clusters.
        assert everything is not None
        assert everything.name == "layers.0.map"

    def test_nothing_is_lost_where_all_is_tied(self):
        found = profile(Net().double(), CHAIN, X)
        assert found.first_lost[:2] == (None, None)
        for module in (m for m in found.modules if m.calls):
            assert module.errors[0] == 0
            # At rounding level, and not by chance exactly nothing.
            assert module.errors[1] < 1e-14
        assert by_name(found)[""].errors[2] > 0.01

    def test_after_the_fault_everything_is_off_and_before_it_nothing(self):
        modules = by_name(profile(Net(2).double(), CHAIN, X))
        errors = [modules[f"layers.{i}"].errors[1] for i in range(5)]
        assert max(errors[:2]) < 1e-14 and min(errors[2:]) > 1e-3
        assert modules["layers.2"].inputs[1] < 1e-14 < 1e-3 < modules["layers.3"].inputs[1]

    def test_exchanges_of_clusters_within_a_layer_are_no_loss(self):
        swaps = PermutationGroup.from_cycles(4, [(0, 1, 2)])
        turned = ClusterGroup(Partition([0, 1, 2, 0, 1, 2, 3]), swaps=swaps)
        x = torch.randn(4, 7, 3, dtype=torch.float64)
        found = profile(OrbitLinear(3, 2, turned).double(), [turned], x)
        assert found.first_lost == (None,) and found.modules[-1].errors[0] < 1e-14

    def test_messages_along_edges_are_not_the_fault(self):
        class Edges(nn.Module):
            def forward(self, x):
                return x[:, [0, 1, 2, 3, 4, 5, 0]] * x[:, [1, 2, 3, 4, 5, 0, 3]]

        class Both(nn.Module):
            def __init__(self):
                super().__init__()
                self.edges, self.across = Edges(), Across(False)

            def forward(self, x):
                return self.edges(x).sum(-2, keepdim=True) * 0 + self.across(x)

        (lost,) = profile(Both().double(), [CLUSTERS], X).first_lost
        assert lost is not None and lost.name == "across.map"

    def test_the_whole_is_named_where_its_own_code_does_it(self):
        class Own(nn.Module):
            def __init__(self):
                super().__init__()
                self.first, self.last = nn.Linear(3, 3), nn.Linear(3, 3)
                self.bias = nn.Parameter(torch.randn(N, 1))

            def forward(self, x):
                return self.last(self.first(x) + self.bias)

        (lost,) = profile(Own().double(), [CLUSTERS], X).first_lost
        assert lost is not None and lost.name == ""

    def test_an_untied_embedding_is_found(self):
        class Embedded(nn.Module):
            def __init__(self, embedding):
                super().__init__()
                self.embedding, self.head = embedding, nn.Linear(5, 1)

            def forward(self, x):
                e = self.embedding(torch.arange(N))
                return self.head(torch.cat([x, e.expand(4, -1, -1)], dim=-1))

        untied = profile(Embedded(nn.Embedding(N, 2)).double(), CHAIN, X)
        assert untied.first_lost[1].name == untied.first_lost[2].name == "embedding"
        tied = profile(Embedded(OrbitEmbedding(2, CLUSTERS)).double(), CHAIN, X)
        assert tied.first_lost[1] is None and tied.first_lost[2].name == "embedding"

    def test_a_graph_that_the_group_does_not_preserve(self):
        edges = torch.tensor([[0, 1, 2, 3, 4, 5, 1, 2], [1, 0, 3, 2, 5, 4, 2, 1]])

        class Graph(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv, self.lin = GCNConv(3, 4), nn.Linear(4, 2)

            def forward(self, x, edge_index):
                return global_mean_pool(self.lin(self.conv(x, edge_index).relu()), None)

        swap = PermutationGroup.from_cycles(N, [(4, 5)])
        found = profile(Graph().double(), [swap, CLUSTERS], X[0], edges)
        assert found.first_lost[0] is None
        # A part is named before the whole.
        assert found.first_lost[1].name.startswith("conv")


class TestAxes:
    def run(self, function, x=X):
        class Only(nn.Module):
            def __init__(self):
                super().__init__()
                self.part = nn.Identity()

            def forward(self, x):
                return self.part(function(x))

        return by_name(profile(Only(), CHAIN, x))["part"]

    @pytest.mark.parametrize(
        ("function", "axis"),
        [
            (lambda x: x, "-2"),
            (lambda x: x.mT, "-1"),
            (lambda x: x[:, None].transpose(1, 2), "-3"),
            (lambda x: x @ x.mT, "-2, -1"),
            (lambda x: x.mean(-2), "none"),
            (lambda x: x.flatten(-2), "in -1, blocks"),
            (lambda x: x.mT.flatten(-2), "in -1"),
            (lambda x: x.flatten(0, 1), "in -2"),
            (lambda x: (x.mean(-2), x), "none, -2"),
            (lambda x: {"complex": torch.complex(x, x.square())}, "-3"),
        ],
    )
    def test_nodes_are_found(self, function, axis):
        part = self.run(function)
        assert part.axis == axis and max(part.errors) < 1e-14

    def test_as_many_channels_as_nodes(self):
        x = torch.randn(4, N, N, dtype=torch.float64)
        with pytest.warns(UserWarning, match="as many channels as nodes, 6"):
            part = self.run(lambda x: x.cos(), x)
        assert part.axis == "-2" and max(part.errors) == 0

    @pytest.mark.parametrize("pool", [lambda x: x.mean(-2), lambda x: x.mean(-2, keepdim=True)])
    def test_as_many_invariant_channels_as_nodes(self, pool):
        class Pools(nn.Module):
            def __init__(self):
                super().__init__()
                self.wide, self.head = nn.Linear(3, N), nn.Linear(N, 2)

            def forward(self, x):
                return self.head(self.wide(pool(x)))

        for x in (X, X[0]):
            found = profile(Pools().double(), CHAIN, x)
            assert found.first_lost == (None,) * 3
            assert {m.axis for m in found.modules} == {"none"}
            assert max(max(m.inputs) for m in found.modules) < 1e-14

    def test_what_changes_is_lost_on_the_axis_of_nodes(self):
        part = self.run(lambda x: x.mean(-1) * torch.arange(N))
        assert part.axis == "-1" and part.errors[2] > 0.1

    def test_what_should_not_change_is_seen_to(self):
        assert self.run(lambda x: x[:, 0]).errors[2] > 0.1
        assert self.run(lambda x: x.mean(-2)).errors[2] < 1e-15

    def test_integers_are_no_numbers(self):
        part = self.run(lambda x: x.argmax(-2))
        assert part.axis == "none" and all(map(math.isnan, part.errors))


class TestMoves:
    @pytest.mark.parametrize("group", CHAIN[1:], ids=str)
    def test_a_3_cycle_is_among_them(self, group):
        cycles = [p for p in moves(group) if int((p != torch.arange(N)).sum()) == 3]
        assert cycles and all(torch.equal(p[p[p]], torch.arange(N)) for p in cycles)

    @pytest.mark.parametrize("sizes", [[2, 2, 2], [1, 5], [9, 9, 30], [1] * 4, [40]])
    def test_all_are_of_the_group(self, sizes):
        labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
        group = ClusterGroup(Partition(labels[torch.randperm(labels.numel())]))
        found = list(moves(group))
        assert all(map(group.contains, found)) and len(found) <= 9
        assert bool(found) == (max(sizes) > 1)

    def test_of_two_reflections_the_rotation_is_tried(self):
        square = PermutationGroup(4, [[1, 0, 3, 2], [0, 3, 2, 1]])
        *_, turn = moves(square)
        assert not torch.equal(turn[turn], torch.arange(4))

    def test_a_reversed_convention_is_seen(self, monkeypatch):
        def begin(self, level, perm):
            self.level, self.inverse = level, perm

        monkeypatch.setattr(profiling._Watch, "begin", begin)
        swap = PermutationGroup.from_cycles(N, [(4, 5)])
        found = profile(nn.Identity(), [swap, CLUSTERS], X)
        assert found.modules[0].errors[0] == 0 and found.modules[0].errors[1] > 0.1


class TestCalls:
    def test_every_call_of_a_cell_counts(self):
        class Recurrent(nn.Module):
            def __init__(self):
                super().__init__()
                self.cell, self.knows = nn.GRUCell(3, 3), Across(False)

            def forward(self, x):
                h = torch.zeros(24, 3, dtype=x.dtype)
                for step in range(3):
                    h = self.cell(x.flatten(0, 1), h)
                    if step == 1:
                        h = self.knows(h.view(4, N, 3)).flatten(0, 1)
                return h.view(4, N, 3)

        found = profile(Recurrent().double(), [CLUSTERS], X)
        cell = by_name(found)["cell"]
        assert cell.calls == 3 and cell.errors[0] > 1e-3
        assert found.first_lost[0].name == "knows.map"

    def test_what_is_not_called_is_listed(self):
        net = Net()
        net.spare = nn.Linear(2, 2)
        found = profile(net.double(), CHAIN, X)
        assert found.modules[-1].name == "spare"
        assert by_name(found)["spare"].calls == 0
        assert "not called" in str(found)

    def test_another_number_of_calls_is_infinitely_far(self):
        class Chooses(nn.Module):
            def __init__(self):
                super().__init__()
                self.part = nn.Identity()

            def forward(self, x):
                y = self.part(x)
                return self.part(y) if x[0, 0, 0] == X[0, 0, 0] else y

        assert by_name(profile(Chooses(), [CLUSTERS], X))["part"].errors == (math.inf,)

    def test_the_model_is_left_as_it_was(self):
        net = Net(1).double().train()
        before = {k: v.clone() for k, v in net.state_dict().items()}
        profile(net, CHAIN, X)
        assert net.training and all(p.requires_grad for p in net.parameters())
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
        for name, value in net.state_dict().items():
            assert torch.equal(value, before[name])

    def test_hooks_go_where_it_raises(self):
        class Fails(nn.Module):
            def forward(self, x):
                raise KeyError("no")

        net = Fails()
        with pytest.raises(KeyError):
            profile(net, CHAIN, X)
        assert not net._forward_hooks and not net._forward_pre_hooks


class TestPrinted:
    def test_table(self):
        text = str(profile(Net(3).double(), CHAIN, X))
        assert "trivial: holds throughout" in text
        assert "3 clusters: is lost in layers.3.map, Linear" in text
        assert "S_n: is lost in layers.0.map, OrbitLinear" in text
        head = text.splitlines()[0].split()
        assert head == ["module", "class", "nodes", "trivial", "3", "clusters", "S_n"]

    def test_heat_map(self):
        matplotlib = pytest.importorskip("matplotlib")
        matplotlib.use("agg")
        found = profile(Net(3).double(), CHAIN, X)
        ax = found.plot()
        assert ax.images[0].get_array().shape == (len(found.modules), 3)
        assert [t.get_text() for t in ax.get_xticklabels()] == list(found.names)
        assert found.plot(ax) is ax
        matplotlib.pyplot.close(ax.figure)

    def test_a_hierarchy(self):
        found = profile(Net(), Hierarchy.from_partitions([CLUSTERS.partition]), X.float())
        assert found.names == ("trivial", "3 clusters", "S_n")
        assert found.tolerance == 1e-4 and found.first_lost[1] is None


class TestPage:
    def test_a_choice_shows_it(self, tmp_path):
        hierarchy = Hierarchy.from_partitions([CLUSTERS.partition])
        choice = gsym.choose_group(hierarchy, torch.randn(40, N))
        found = profile(Net(3), hierarchy, X.float())
        text = choice.report(tmp_path / "page.html", profile=found).read_text()
        table = text[text.index('id="profile"') :]
        assert table.count(" lost here<") == 2
        assert f"{found.modules[0].errors[2]:.1e}" in table and "layers.3.map" in table
        assert 'id="profile"' not in choice.report(tmp_path / "page.html").read_text()
        other = profile(nn.Identity(), [PermutationGroup.symmetric(5)], torch.randn(2, 5, 1))
        with pytest.raises(SignalError, match="of 5 nodes but the choice of 6"):
            choice.report(tmp_path / "page.html", profile=other)


class TestBadInput:
    @pytest.mark.parametrize(
        ("given", "error", "words"),
        [
            ((torch.square, CHAIN, X), TypeError, "must be a module; got builtin"),
            ((nn.Identity(), CHAIN, X[:, :4]), ValueError, r"must be \[..., 6, c\]"),
            ((nn.Identity(), CHAIN, X.long()), TypeError, "floating point"),
            ((nn.Identity(), CLUSTERS, X), TypeError, "for one"),
            ((nn.Identity(), CHAIN, X[:0]), ValueError, "empty"),
            ((nn.Identity(), CHAIN, X.new_ones(6, 6, 2)), ValueError, "another axis of 6"),
            ((nn.Identity(), CHAIN, X.to(torch.float8_e5m2)), TypeError, "tolerance="),
        ],
    )
    def test_is_refused(self, given, error, words):
        with pytest.raises(error, match=words):
            profile(*given)
