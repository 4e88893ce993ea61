"""Segments and Tiles are values: nothing that a program does to a layer reaches their tables."""

import copy
import io
import pickle

import pytest
import torch

from gsym import kernels
from gsym.kernels import Segments, Tiles, ops

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


@pytest.mark.parametrize("runs", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
class TestSizes:
    """``cluster_linear`` divides by the sizes, so they are those of the clusters."""

    def call(self, runs, sizes, rows=None):
        x, bias = torch.ones(rows or (6 if runs else 7), 3), torch.zeros(3, 2)
        weight, matrix = torch.ones(3, 3, 2), torch.ones(9, 6)
        return kernels.cluster_linear(x, weight, matrix, bias, sizes, None if runs else make(Tiles))

    def test_that_are_right(self, runs, dtype):
        sizes = torch.tensor([2, 2, 2] if runs else [3, 2, 2], dtype=dtype)
        assert self.call(runs, sizes).shape == (6 if runs else 7, 2)

    @pytest.mark.parametrize("sizes", [[2, 3, 2], [7, 0, 0], [1, 1, 1], [3, 2, float("nan")]])
    def test_that_are_wrong(self, runs, dtype, sizes):
        with kernels.trace() as ran, pytest.raises(ValueError, match="must count the rows"):
            self.call(runs, torch.tensor(sizes, dtype=dtype))
        assert not ran


def test_empty_clusters_are_refused():
    tiles = Tiles(Segments(torch.tensor([0, 2, 0]), 3), 1, 1)
    args = torch.ones(3, 1, 1), torch.ones(3, 3), torch.zeros(3, 1)
    for sizes in ([2.0, 1.0, 1.0], [2.0, 0.0, 1.0]):
        with pytest.raises(ValueError, match="no cluster may be empty"):
            ops.cluster_linear(torch.ones(3, 1), *args, torch.tensor(sizes), tiles)
    with pytest.raises(ValueError, match="no cluster may be empty"):
        ops.cluster_linear(torch.ones(0, 1), *args, torch.zeros(3))
