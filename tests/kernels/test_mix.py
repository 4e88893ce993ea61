"""mix_clusters: cluster_linear with a function in place of the matrix."""

from __future__ import annotations

import pytest
import torch
from helpers import make_clusters
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from gsym import kernels
from gsym.kernels import Clusters

LABELS = {
    "unsorted": [1, 0, 1, 2, 1, 0, 1],
    "sorted": [0, 0, 1, 1, 1, 2, 2],
    "runs": [0, 1, 2, 0, 1, 2, 0, 1, 2],
    "alone": [2, 0, 1],
}


def given(name: str, batch: tuple[int, ...] = (2,), matrices: int = 3) -> tuple[Tensor, ...]:
    torch.manual_seed(0)
    labels = torch.tensor(LABELS[name])
    runs = name in ("runs", "alone")
    clusters = make_clusters(labels, 3, (2, 4), runs=runs)
    x = torch.randn(*batch, labels.numel(), 2, dtype=torch.float64, requires_grad=True)
    own = torch.randn(matrices, 2, 4, dtype=torch.float64, requires_grad=True)
    matrix = torch.randn(6, 12, dtype=torch.float64, requires_grad=True)
    return x, own, matrix, clusters


def mixed_by(matrix: Tensor):
    return lambda means: (means.flatten(-2).square() @ matrix).unflatten(-1, (3, 4))


def define(x: Tensor, own: Tensor, matrix: Tensor, clusters: Clusters) -> Tensor:
    index = clusters.segments.index
    means = torch.stack([x[..., index == c, :].mean(-2) for c in range(3)], dim=-2)
    shared = mixed_by(matrix)(means)
    rows = torch.einsum("...ri,rio->...ro", x, own.expand(3, -1, -1)[index])
    return rows + shared[..., index, :]


@pytest.mark.parametrize("backend", ["auto", "native", "reference"])
@pytest.mark.parametrize("matrices", [1, 3])
@pytest.mark.parametrize("batch", [(), (2,), (2, 3), (0,)])
@pytest.mark.parametrize("name", LABELS)
def test_equals_its_definition(name, batch, matrices, backend) -> None:
    x, own, matrix, clusters = given(name, batch, matrices)
    right = define(x, own, matrix, clusters)
    y = kernels.mix_clusters(x, own, mixed_by(matrix), clusters, backend=backend)
    torch.testing.assert_close(y, right, rtol=0, atol=1e-12)
    outer = torch.randn_like(right)
    found = torch.autograd.grad(y, (x, own, matrix), outer)
    wanted = torch.autograd.grad(right, (x, own, matrix), outer)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    with torch.no_grad():
        y = kernels.mix_clusters(x, own, mixed_by(matrix), clusters, backend=backend)
        torch.testing.assert_close(y, right, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", LABELS)
def test_of_sorted_rows(name) -> None:
    x, own, matrix, clusters = given(name)
    right = define(x, own, matrix, clusters)[:, clusters.order]
    for backend in ("auto", "native", "reference"):
        for wants in (True, False):
            with torch.set_grad_enabled(wants):
                rows = x[:, clusters.order]
                y = kernels.mix_clusters(
                    rows, own, mixed_by(matrix), clusters, True, backend=backend
                )
            torch.testing.assert_close(y, right, rtol=0, atol=1e-12)


@pytest.mark.parametrize("backend", ["auto", "native"])
@pytest.mark.parametrize("name", LABELS)
def test_derivatives(name, backend) -> None:
    x, own, matrix, clusters = given(name)

    def function(x, own, matrix):
        return kernels.mix_clusters(x, own, mixed_by(matrix), clusters, backend=backend)

    assert gradcheck(function, (x, own, matrix))
    assert gradgradcheck(function, (x, own, matrix))


def test_of_some_gradients_alone() -> None:
    x, own, matrix, clusters = given("unsorted")
    outer = torch.randn(2, 7, 4, dtype=torch.float64)
    full = dict(
        zip(
            "xom",
            torch.autograd.grad(define(x, own, matrix, clusters), (x, own, matrix), outer),
            strict=True,
        )
    )
    for wanted in ("x", "o", "m", "xo", "om"):
        leaves = {"x": x, "o": own, "m": matrix}
        some = {k: v if k in wanted else v.detach() for k, v in leaves.items()}
        y = kernels.mix_clusters(some["x"], some["o"], mixed_by(some["m"]), clusters)
        found = torch.autograd.grad(y, [some[k] for k in wanted], outer)
        for key, value in zip(wanted, found, strict=True):
            torch.testing.assert_close(value, full[key])


def test_a_mix_that_forgets_the_means() -> None:
    x, own, _, clusters = given("unsorted")
    row = torch.randn(1, 4, dtype=torch.float64, requires_grad=True)
    y = kernels.mix_clusters(x, own, lambda _: row.expand(3, -1), clusters)
    right = torch.einsum("bri,rio->bro", x, own[clusters.segments.index]) + row
    torch.testing.assert_close(y, right)
    for a, b in zip(
        torch.autograd.grad(y.sum(), (x, own, row)),
        torch.autograd.grad(right.sum(), (x, own, row)),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", ["unsorted", "runs"])
def test_under_transforms_and_the_compiler(name) -> None:
    x, own, matrix, clusters = given(name)

    def function(x, own, matrix):
        return kernels.mix_clusters(x, own, mixed_by(matrix), clusters)

    right = define(x, own, matrix, clusters)
    torch.testing.assert_close(torch.func.vmap(function, (0, None, None))(x, own, matrix), right)
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")(x, own, matrix)
    torch.testing.assert_close(compiled, right)
    for a, b in zip(
        torch.autograd.grad(compiled.square().sum(), (x, own, matrix)),
        torch.autograd.grad(right.square().sum(), (x, own, matrix)),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_half_precision_and_autocast() -> None:
    x, own, matrix, clusters = (
        v.detach().float() if isinstance(v, Tensor) else v for v in given("unsorted")
    )
    right = define(x, own, matrix, clusters)
    half = kernels.mix_clusters(x.bfloat16(), own.bfloat16(), mixed_by(matrix.bfloat16()), clusters)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), right, rtol=0.1, atol=0.2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = kernels.mix_clusters(x, own, mixed_by(matrix), clusters)
    assert cast.dtype == torch.bfloat16
    torch.testing.assert_close(cast.float(), right, rtol=0.1, atol=0.2)


def test_refuses_what_does_not_fit() -> None:
    x, own, matrix, clusters = given("unsorted")
    with pytest.raises(ValueError, match="one label per row"):
        kernels.mix_clusters(x[:, 1:], own, mixed_by(matrix), clusters)
    with pytest.raises(TypeError, match="Clusters"):
        kernels.mix_clusters(x, own, mixed_by(matrix), clusters.segments)
    with pytest.raises(ValueError, match="weight must be"):
        kernels.mix_clusters(x, own[:2], mixed_by(matrix), clusters)
