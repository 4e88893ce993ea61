"""Segments and Tiles are values: nothing that a program does to a layer reaches their tables."""

import copy
import io
import pickle

import pytest
import torch

from gsym import kernels
from gsym.kernels import Clusters, Segments, Tiles

TABLES = {
    Segments: ("index", "order", "pointers"),
    Tiles: ("segment", "rows", "places", "blocks", "local"),
}


def make(kind):
    segments = Segments.from_index(torch.tensor([2, 0, 1, 0, 2, 1, 0]), 3)
    return segments if kind is Segments else Tiles(segments, 3, 2)


def tables_of(value):
    found = [getattr(value, name) for name in TABLES[type(value)]]
    return found + (tables_of(value.segments) if isinstance(value, Tiles) else [])


def assert_same(value, other):
    assert type(value) is type(other)
    for a, b in zip(tables_of(value), tables_of(other), strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b)


@pytest.mark.parametrize("kind", [Segments, Tiles])
class TestValues:
    def test_writes_reach_no_kernel(self, kind):
        value, untouched = make(kind), make(kind)
        for table in tables_of(value):
            table.fill_(10**6)
        assert_same(value, untouched)

    def test_attributes_are_not_set(self, kind):
        value = make(kind)
        for name in (*TABLES[kind], "num_segments", "height", "anything"):
            with pytest.raises(
                AttributeError, match=f"never change; make new ones to alter {name}"
            ):
                setattr(value, name, torch.zeros(1))
            with pytest.raises(AttributeError, match="never change"):
                delattr(value, name)
        assert_same(value, make(kind))

    def test_layers_do_not_see_them(self, kind):
        layer = torch.nn.Module()
        layer.value = make(kind)
        assert not layer.state_dict() and not list(layer.buffers())
        assert len(list(layer.modules())) == 1
        layer.to_empty(device="cpu").double()
        assert_same(layer.value, make(kind))

    def test_copies_are_equal(self, kind):
        value = make(kind)
        file = io.BytesIO()
        torch.save(value, file)
        file.seek(0)
        for other in (
            copy.copy(value),
            copy.deepcopy(value),
            pickle.loads(pickle.dumps(value)),
            torch.load(file, weights_only=False),
        ):
            assert_same(value, other)
            assert repr(other) == repr(value)

    def test_moves_as_a_whole(self, kind):
        value = make(kind)
        assert value.to("cpu") is value
        moved = value.to("meta")
        assert moved.to(torch.device("meta")) is moved
        assert all(table.is_meta for table in tables_of(moved))
        assert value.device.type == "cpu" and moved.device.type == "meta"

    def test_is_made_where_the_index_is(self, kind):
        index = torch.tensor([2, 0, 1, 0, 2, 1, 0])
        with torch.device("meta"):
            value = Segments.from_index(index, 3)
            value = value if kind is Segments else Tiles(value, 3, 2)
        assert_same(value, make(kind))

    def test_is_made_of_plain_tensors_in_any_mode(self, kind):
        made = []

        def function(x):
            made.append(make(kind))
            return x.sin()

        with torch.inference_mode():
            function(torch.ones(1))
        torch.func.grad(function)(torch.tensor(1.0))
        torch.func.vmap(function)(torch.ones(2))
        torch.func.jvp(function, (torch.ones(1),), (torch.ones(1),))
        assert len(made) == 4
        for value in made:
            assert_same(value, make(kind))
            for table in vars(value).values():
                if isinstance(table, torch.Tensor):
                    assert not table.is_inference()
                    assert not torch._C._functorch.is_functorch_wrapped_tensor(table)


def test_the_caller_keeps_its_index():
    index = torch.tensor([1, 0, 1], dtype=torch.int32)
    segments = Segments(index, 2)
    index.fill_(10**6)
    assert segments.index.tolist() == [1, 0, 1]


def test_an_index_of_func_is_read_and_one_per_sample_refused():
    index = torch.tensor([1, 0, 1])

    def function(x, index):
        segments = Segments.from_index(index, 2)
        return kernels.segment_sum(x, segments, backend="reference").square().sum()

    x = torch.randn(3, 2)
    expected = 2 * kernels.segment_sum(x, Segments(index, 2))[index]
    torch.testing.assert_close(torch.func.grad(function)(x, index), expected)
    with pytest.raises(ValueError, match="leave it out of vmap"):
        torch.func.vmap(function)(torch.randn(4, 3, 2), index.expand(4, -1))


def test_tables_elsewhere_are_refused():
    segments, tiles = make(Segments).to("meta"), make(Tiles).to("meta")
    x, weight = torch.ones(7, 3), torch.ones(3, 3, 2)
    with pytest.raises(ValueError, match="on cpu but its index on meta"):
        kernels.segment_sum(x, segments)
    with pytest.raises(ValueError, match="on cpu but its index on meta"):
        kernels.indexed_linear(x, weight, tiles)
    with pytest.raises(ValueError, match="on meta"):
        kernels.gather_segment_sum(torch.ones(3, 2), make(Segments), segments)


class TestClusters:
    """``cluster_linear`` divides by the sizes, so they are those of the clusters."""

    @pytest.mark.parametrize("labels", [[0, 1, 0, 1, 0, 1], [1, 0, 0, 2, 2, 2]])
    def test_tables(self, labels):
        labels = torch.tensor(labels)
        clusters = Clusters(labels, int(labels.max()) + 1, 3, 2)
        assert clusters.sizes.tolist() == labels.bincount().tolist()
        assert clusters.order.tolist() == labels.argsort(stable=True).tolist()
        assert clusters.order[clusters.rank].tolist() == list(range(6))
        assert not clusters.is_sorted

    @pytest.mark.parametrize(
        ("size", "widths", "runs"), [(2, (3, 2), False), (2, (3, 1), True), (8, (3, 2), True)]
    )
    def test_the_layout_follows_sizes_and_channels(self, size, widths, runs):
        labels = torch.arange(2 * size) % 2
        assert Clusters(labels, 2, *widths).has_runs == runs
        assert not Clusters(torch.cat([labels, labels[:1]]), 2, *widths).has_runs

    def test_what_stands_sorted_is_taken_as_it_is(self):
        labels = torch.arange(16) % 2
        clusters, x = Clusters(labels, 2, 3, 2), torch.randn(16, 3)
        weight, matrix, bias = torch.randn(2, 3, 2), torch.randn(6, 4), torch.randn(2, 2)
        y = kernels.cluster_linear(x, weight, matrix, bias, clusters)
        for backend in ("native", "auto", "reference"):
            with kernels.backend(backend):
                z = kernels.cluster_linear(
                    x[clusters.order], weight, matrix, bias, clusters, is_sorted=True
                )
            torch.testing.assert_close(z, y[clusters.order])
        assert kernels.takes_sorted(x, clusters, backend="native")
        assert not kernels.takes_sorted(x, Clusters(labels.sort().values, 2, 3, 2))

    @pytest.mark.parametrize("labels", [[0, 2, 0], [0, 0, 0], []])
    def test_empty_clusters_are_refused(self, labels):
        with pytest.raises(ValueError, match="no cluster may be empty"):
            Clusters(torch.tensor(labels, dtype=torch.int64), 3, 1, 1)
