"""Products in an adapted basis: compiled against the dense definition, with every gradient."""

import pytest
import torch

from gsym import kernels
from gsym.kernels import adapted
from gsym.kernels.adapted import AdaptedTables, adapted_linear
from gsym.kernels.cpp import adapted as cpp_adapted
from gsym.kernels.cpp import library
from gsym_bench.kernels.groups import GROUPS, cyclic, mirror

pytestmark = pytest.mark.skipif(not library.is_usable(), reason="no C++")


@pytest.fixture(autouse=True)
def always(monkeypatch):
    monkeypatch.setattr(adapted, "MOST_ORBITS", 10**9)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def lanes(dtype):
    return library.library().gsym_vector_bytes() // dtype.itemsize


def tables_of(group):
    basis = group.adapted_basis.basis
    parts = basis.entry, basis.orbit, basis.coefficient
    return AdaptedTables(basis.matrix, basis.shapes, *parts, group.pair_orbits().index)


def make(group, batch, a, b, dtype=torch.float64):
    """Rows and weights; a and b in vectors."""
    generator = torch.Generator().manual_seed(batch)
    shape = batch, group.num_nodes, a * lanes(dtype)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    shape = group.commutant_dim(), a * lanes(dtype), b * lanes(dtype)
    weight = torch.randn(shape, generator=generator, dtype=torch.float64)
    return x.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_()


def defined(group, x, weight):
    """The definition: node t receives the sum over s of ``x_s`` times the weight of (t, s)."""
    return torch.einsum("...si,tsio->...to", x, weight[group.pair_orbits().index])


def results(f, *given):
    """Values and every gradient by name."""
    y = f(*given)
    grad = torch.linspace(0.3, 1, max(y.numel(), 1))[: y.numel()].to(y).view(y.shape).sin()
    return dict(zip(("y", "x", "weight"), (y, *torch.autograd.grad(y, given, grad)), strict=True))


def assert_alike(found, expected, tolerance):
    for name, there in expected.items():
        here = found[name].detach().double()
        assert here.shape == there.shape, name
        if there.numel():
            scale = float(there.detach().abs().max()) or 1.0
            error = float((here - there).abs().max()) / scale
            assert error <= tolerance, f"{name}: error {error:.1e}"


@pytest.mark.parametrize("name", GROUPS)
def test_equals_the_definition_with_every_gradient(name):
    group = GROUPS[name]
    given, tables = make(group, 3, 2, 1), tables_of(group)
    with kernels.trace() as ran:
        found = results(lambda x, w: adapted_linear(x, w, tables), *given)
    assert ran == ["cpp"]
    assert_alike(found, results(lambda x, w: defined(group, x, w), *given), 1e-12)


@pytest.mark.parametrize("batch", [0, 1, 63, 64, 65, 130])
@pytest.mark.parametrize("vectors", [(1, 3), (5, 1)])
def test_any_number_of_samples_and_channels(batch, vectors):
    group = mirror(7, 3)
    given, tables = make(group, batch, *vectors), tables_of(group)
    found = results(lambda x, w: adapted_linear(x, w, tables), *given)
    assert_alike(found, results(lambda x, w: defined(group, x, w), *given), 1e-12)


@pytest.mark.parametrize("name", ["3-cycle and swap", "D4 on 8 x 8", "Q8"])
def test_float32(name):
    group = GROUPS[name]
    given, tables = make(group, 5, 2, 1, torch.float32), tables_of(group)
    found = results(lambda x, w: adapted_linear(x, w, tables), *given)
    exact = [t.detach().double().requires_grad_() for t in given]
    assert_alike(found, results(lambda x, w: defined(group, x, w), *exact), 1e-5)
    assert all(value.dtype == torch.float32 for value in found.values())


def test_strides_and_leading_axes():
    group, tables = cyclic(3), tables_of(cyclic(3))
    x, weight = make(group, 8, 2, 1)
    x = x.detach().view(2, 4, 3, -1).transpose(0, 1).requires_grad_()
    weight = weight.detach().transpose(0, 2).contiguous().transpose(0, 2).requires_grad_()
    assert not x.is_contiguous() and not weight.is_contiguous()
    found = results(lambda x, w: adapted_linear(x, w, tables), x, weight)
    assert_alike(found, results(lambda x, w: defined(group, x, w), x, weight), 1e-12)


@pytest.mark.parametrize("wanted", ["x", "weight"])
def test_one_gradient_alone(wanted):
    group, tables = mirror(7, 3), tables_of(mirror(7, 3))
    x, weight = make(group, 3, 2, 1)
    both = results(lambda x, w: adapted_linear(x, w, tables), x, weight)
    leaf = {"x": x, "weight": weight}[wanted]
    given = [t if t is leaf else t.detach() for t in (x, weight)]
    y = adapted_linear(*given, tables)
    grad = torch.linspace(0.3, 1, y.numel()).to(y).view(y.shape).sin()
    assert torch.equal(torch.autograd.grad(y, leaf, grad)[0], both[wanted])


def test_bits_do_not_depend_on_threads():
    group, found = GROUPS["D4 on 8 x 8"], []
    given, tables = make(group, 70, 1, 1), tables_of(group)
    for threads in (1, 3, 3):
        torch.set_num_threads(threads)
        found.append(results(lambda x, w: adapted_linear(x, w, tables), *given))
    for other in found[1:]:
        assert all(torch.equal(value, other[name]) for name, value in found[0].items())


def test_second_derivatives():
    group, tables = cyclic(3), tables_of(cyclic(3))
    given = make(group, 2, 1, 1)

    def f(x, weight):
        return adapted_linear(x, weight, tables)

    assert torch.autograd.gradcheck(f, given, fast_mode=True)
    assert torch.autograd.gradgradcheck(f, given, fast_mode=True)


def test_batched_gradients():
    group, tables = mirror(7, 3), tables_of(mirror(7, 3))
    given = make(group, 2, 1, 2)
    y = adapted_linear(*given, tables)
    outer = torch.randn(2, *y.shape, dtype=torch.float64)
    both = torch.autograd.grad(y, given, outer, is_grads_batched=True, retain_graph=True)
    for i in range(2):
        one = torch.autograd.grad(y, given, outer[i], retain_graph=True)
        for a, b in zip(both, one, strict=True):
            torch.testing.assert_close(a[i], b)


def test_the_registered_operator():
    group, tables = cyclic(3), tables_of(cyclic(3))
    x, weight = make(group, 2, 1, 1)
    kept = [tables._program, tables._double, tables._rows]
    # The compiler gets torch alone, so what it would make of the operator does not count.
    utilities = "test_schema", "test_autograd_registration", "test_faketensor"
    given = x, weight, kept, "cpp"
    torch.library.opcheck(adapted.in_blocks.registered, given, test_utils=utilities)
    given = torch.ones_like(x), x.detach(), weight.detach(), kept, True, True, "cpp"
    torch.library.opcheck(adapted.in_blocks_grads.registered, given, test_utils=utilities)


def test_leaves_the_rest_to_torch(monkeypatch):
    group, tables = cyclic(3), tables_of(cyclic(3))
    x, weight = make(group, 2, 1, 1)
    assert adapted_linear(x[..., 1:], weight[:, 1:], tables) is None  # no whole vectors
    assert adapted_linear(x.half(), weight.half(), tables) is None
    with kernels.backend("native"):
        assert adapted_linear(x, weight, tables) is None
    found = []
    torch.func.vmap(lambda x: found.append(adapted_linear(x, weight, tables)) or x)(x)
    assert found == [None]
    with monkeypatch.context() as patch:
        patch.setattr(adapted, "MOST_ORBITS", 2)  # of three
        assert adapted_linear(x, weight, tables) is None
    assert adapted_linear(x, weight, tables) is not None
    torch.set_num_threads(2)  # one home, which is one thread's
    assert adapted_linear(x, weight, tables) is None


@pytest.mark.parametrize("change", ["short", "other", "numbers", "type"])
def test_a_program_that_does_not_fit_is_refused(change):
    tables, other = tables_of(mirror(7, 3)), tables_of(mirror(7, 1))
    x, weight = make(mirror(7, 3), 2, 1, 1)
    program, numbers, error = tables._program, tables._double, ValueError
    if change == "short":
        program = program[:-1]
    elif change == "other":
        program, numbers = other._program, other._double
    elif change == "numbers":
        numbers = numbers[:-1]
    else:
        numbers, error = tables._single, TypeError
    with pytest.raises(error):
        cpp_adapted.adapted_linear(x.detach(), weight.detach(), program, numbers)
