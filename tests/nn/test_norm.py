"""ELU and GraphNorm on sorted rows."""

import pytest
import torch
import torch.nn.functional as F
from torch_geometric.nn import GraphNorm

from gsym import kernels
from gsym.kernels import Segments, norms
from gsym.kernels.cpp import library
from gsym.kernels.cpp import norms as cpp_norms
from gsym.nn._norm import ELUGraphNorm

needs_cpp = pytest.mark.skipif(not library.is_usable(), reason="no C++")


def pair(channels, dtype=torch.float64):
    torch.manual_seed(0)
    ours, theirs = ELUGraphNorm(channels).to(dtype), GraphNorm(channels).to(dtype)
    for parameter in ours.parameters():
        torch.nn.init.normal_(parameter)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


@pytest.mark.parametrize("channels", [3, 16, 48])
@pytest.mark.parametrize("backend", ["auto", "native"])
def test_equals_elu_and_the_norm_of_pyg_with_every_gradient(channels, backend):
    ours, theirs = pair(channels)
    index = torch.repeat_interleave(torch.arange(5), torch.tensor([1, 600, 0, 7, 300]))
    x = 1 + 2 * torch.randn(index.numel(), channels, dtype=torch.float64, requires_grad=True)
    with kernels.backend(backend):
        found = ours(x, Segments(index, 6))
    expected = theirs(F.elu(x), index, 6)
    outer = torch.linspace(0.5, 1, x.numel(), dtype=torch.float64).view(x.shape)
    results = [
        (y, *torch.autograd.grad(y, [x, *norm.parameters()], outer))
        for y, norm in ((found, ours), (expected, theirs))
    ]
    # PyG's parameters come in another order than names.
    names = [["value", "x", *(n for n, _ in norm.named_parameters())] for norm in (ours, theirs)]
    here, there = (dict(zip(n, r, strict=True)) for n, r in zip(names, results, strict=True))
    for name, value in here.items():
        torch.testing.assert_close(value, there[name], rtol=1e-9, atol=1e-9, msg=name)


@needs_cpp
def test_compiled_loops_run_and_threads_change_no_bit(monkeypatch):
    ours, _ = pair(16, torch.float32)
    x = torch.randn(5_000, 16, requires_grad=True)
    graphs = Segments(torch.arange(5_000) // 700, 9)
    ran, original = [], cpp_norms._run
    monkeypatch.setattr(
        cpp_norms, "_run", lambda name, *args: ran.append(name) or original(name, *args)
    )
    found, before = [], torch.get_num_threads()
    for threads in (1, 3):
        torch.set_num_threads(threads)
        try:
            y = ours(x, graphs)
            found.append([y, *torch.autograd.grad(y.square().sum(), [x, *ours.parameters()])])
        finally:
            torch.set_num_threads(before)
    assert ran == ["norm_forward", "norm_backward"] * 2
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@needs_cpp
def test_the_operators_pass_opcheck():
    segments = Segments(torch.tensor([0, 0, 0, 2, 2]), 3)
    tables = [segments.index, segments.order, segments.pointers]
    tensors = [torch.randn(*shape).double() for shape in ((5, 16), (16,), (16,), (16,))]
    grad, rest = torch.randn_like(tensors[0]), (tables, 1e-5, "cpp")
    _, stored = norms.normalised(tensors, *rest)
    torch.library.opcheck(norms.normalised_grads.registered, (grad, tensors, stored, *rest))
    leaves = [x.requires_grad_() for x in tensors]
    torch.library.opcheck(norms.normalised.registered, (leaves, *rest))


@needs_cpp
def test_gradients_of_a_batch():
    ours, _ = pair(16)
    x = torch.randn(5, 16, dtype=torch.float64, requires_grad=True)
    y = ours(x, Segments(torch.tensor([0, 0, 0, 2, 2]), 3))
    outer = torch.randn(3, *y.shape, dtype=torch.float64)
    (found,) = torch.autograd.grad(y, x, outer, is_grads_batched=True, retain_graph=True)
    for one, right in zip(found, outer, strict=True):
        (expected,) = torch.autograd.grad(y, x, right, retain_graph=True)
        torch.testing.assert_close(one, expected)


@needs_cpp
def test_two_derivatives():
    ours, _ = pair(16)
    x = torch.randn(7, 16, dtype=torch.float64, requires_grad=True)
    graphs = Segments(torch.tensor([0, 0, 0, 2, 2, 2, 2]), 3)
    inputs = (x, *ours.parameters())
    names = [name for name, _ in ours.named_parameters()]

    def function(x, *values):
        given = dict(zip(names, values, strict=True))
        return torch.func.functional_call(ours, given, (x, graphs))[:, :3]

    assert torch.autograd.gradgradcheck(function, inputs)


def test_unsorted_rows_and_nothing_at_all():
    ours, theirs = pair(16)
    index = torch.tensor([2, 0, 2, 1])
    x = torch.randn(4, 16, dtype=torch.float64)
    torch.testing.assert_close(ours(x, Segments(index, 3)), theirs(F.elu(x), index, 3))
    assert ours(x[:0], Segments(index[:0], 2)).shape == (0, 16)
