"""What compiled code, which sees addresses alone, is not given."""

import pytest
import torch

from gsym import kernels
from gsym.kernels import Segments
from gsym.kernels.cpp import edges as cpp_edges
from gsym.kernels.cpp import library as cpp_library
from gsym.kernels.cpp import nodes as cpp_nodes
from gsym.kernels.cpp import rows as cpp_rows
from gsym.kernels.segments import TileTables

pytestmark = pytest.mark.usefixtures("built")


def test_a_tensor_without_memory_is_refused():
    for x in (torch.empty(3, device="meta"), torch.empty(0, device="meta")):
        with pytest.raises(TypeError, match="plain tensors on the CPU; got Tensor on meta"):
            cpp_library.addresses([x])
    cpp_library.addresses([torch.empty(0)])
    assert cpp_library.addresses([None]) == [None]


def test_a_tensor_of_other_strides_is_refused():
    with pytest.raises(TypeError, match="contiguous"):
        cpp_library.addresses([torch.empty(3, 2).t()])


def test_a_sign_that_lies_in_a_bit_of_the_view_is_refused():
    x = torch._neg_view(torch.ones(3, 1))
    with pytest.raises(TypeError, match=r"resolve_neg\(\)"):
        cpp_library.addresses([x])
    segments = Segments.from_index(torch.tensor([0, 1, 1]), 2)
    with pytest.raises(TypeError, match=r"resolve_neg\(\)"):
        kernels.segment_sum(x, segments, backend="cpp")
    total = kernels.segment_sum(x.resolve_neg(), segments, backend="cpp")
    assert total.tolist() == [[-1.0], [-2.0]]


def tables(**changed):
    """An index of four rows in three segments, and what is changed about it."""
    segments = Segments.from_index(torch.tensor([0, 2, 0, 1]), 3)
    given = {
        "index": segments.index,
        "order": segments.order,
        "pointers": segments.pointers,
        "local": segments.order,
    }
    return given | changed


BAD_TABLES = {
    "a short index": ({"index": torch.zeros(3, dtype=torch.int32)}, ValueError),
    "a long order": ({"order": torch.zeros(5, dtype=torch.int32)}, ValueError),
    "pointers beyond": ({"pointers": torch.tensor([0, 2, 3, 9], dtype=torch.int32)}, ValueError),
    "pointers before": ({"pointers": torch.tensor([-4, 2, 3, 4], dtype=torch.int32)}, ValueError),
    "half an index": ({"index": torch.zeros(4, dtype=torch.int16)}, TypeError),
    "numbers": ({"order": torch.zeros(4)}, TypeError),
    "no memory": ({"pointers": torch.zeros(4, dtype=torch.int32, device="meta")}, TypeError),
}


# Tables that a function does not take.
NOT_TAKEN = {"linear": {"order", "pointers"}, "gather": {"index"}, "dot": {"index"}}
BORDER = [
    (case, function)
    for case, (changed, _) in BAD_TABLES.items()
    for function in ("sum", "max", "ties", "gather", "dot", "linear", "outer")
    if not changed.keys() & NOT_TAKEN.get(function, set())
]


@pytest.mark.parametrize(("case", "function"), BORDER)
def test_tables_that_do_not_fit_are_refused(case, function):
    """Also by the functions behind the primitives, which take what Segments hold."""
    changed, error = BAD_TABLES[case]
    t = tables(**changed)
    index, order, pointers, local = t["index"], t["order"], t["pointers"], t["local"]
    tiles = TileTables(index, index, index, index, local, index, order, pointers)
    x, y = torch.randn(1, 4, 5), torch.randn(1, 3, 5)
    call = {
        "sum": lambda: cpp_rows._reduce(
            "segment_sum", x, order, pointers, index=index, columns=torch.arange(4).int()
        ),
        "max": lambda: cpp_rows._reduce(
            "segment_max", x, order, pointers, index=index, columns=torch.arange(4).int()
        ),
        "ties": lambda: cpp_rows.tie_spread(y, x, y, index, order, pointers),
        "gather": lambda: cpp_rows.gather_sum(
            x, torch.ones(4), torch.zeros(4, dtype=torch.int32), order, pointers
        ),
        "dot": lambda: cpp_rows.gather_dot(
            y, x, torch.zeros(4, dtype=torch.int32), order, pointers, index, index
        ),
        "linear": lambda: cpp_rows.indexed_linear(x, torch.ones(3, 5, 2), None, tiles, False),
        "outer": lambda: cpp_rows.indexed_outer(x, torch.randn(1, 4, 3), tiles, False),
    }[function]
    with pytest.raises(error):
        call()


@pytest.mark.parametrize("end", [9, -1])
def test_edges_that_do_not_fit_are_refused(end):
    x, index = torch.randn(1, 3, 8), torch.tensor([0, 0, 2], dtype=torch.int32)
    pointers = torch.tensor([0, 2, 2, end], dtype=torch.int32)
    given = {"receiver": x, "sender": x, "weight": torch.eye(8), "bias": torch.zeros(8)}
    for columns, match in ((index, "do not fit"), (index[:2], "columns holds 2")):
        pipeline = cpp_edges.CppPipeline(given, index, columns, pointers, False, False, None, True)
        with pytest.raises(ValueError, match=match):
            pipeline.forward()


def test_no_memory_is_an_error():
    """Not the end of the interpreter, as what C++ throws would be."""
    x, weight, bias = torch.zeros(16, 16), torch.zeros(1, 16, 16), torch.zeros(1, 16)
    record, _ = cpp_nodes._pair([x, weight, bias, weight])
    record.threads = 2**40
    with pytest.raises(MemoryError, match="smaller batches"):
        cpp_nodes._run("pair_backward", x, record, x, x, x.clone(), torch.zeros(528))
