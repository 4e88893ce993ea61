"""What every layer gives at one, two and three threads: the same bits, or the same to rounding.

Signals are large enough to be split among threads. docs/pages/conventions.md has the promises.
"""

import re
from pathlib import Path

import pytest
import torch
from torch_geometric.data import Data

from gsym import ClusterGroup, Partition, nn
from gsym.kernels._backends import choose
from gsym.nn import (
    EGNN,
    SPEN,
    EGNNConv,
    EgoTables,
    EquivariantTensorLinear,
    GNet,
    GNetConv,
    OrbitLinear,
    Penguin,
    PenguinConv,
    SubgraphConv,
    Subgraphs,
)
from gsym.transforms import EgoSubgraphs

PAGE = Path(__file__).parents[2] / "docs" / "pages" / "conventions.md"
N, E, C, H = 800, 8_000, 16, 32
RANDOM = torch.Generator().manual_seed(0)
GROUP = ClusterGroup(Partition((torch.rand(N, generator=RANDOM) * 6).long()))
EDGES = torch.randint(N, (2, E), generator=RANDOM)
X, POS = (torch.randn(2, N, width, generator=RANDOM) for width in (C, 3))
SUBGRAPHS = Subgraphs.from_sizes(torch.randint(4, 12, (150,), generator=RANDOM))
EGO = EgoSubgraphs(1)(Data(x=X[0], edge_index=EDGES[:, :N], num_nodes=N))
TABLES = EgoTables.build(EGO.n_id, EGO.n_sub_batch, N)

# With the compiled kernels: what has the same bits, besides being equal to rounding.
ALL, SIGNALS = "values and gradients", "values, gradients by features and coordinates"
CASES = {
    "`OrbitLinear`": (lambda: OrbitLinear(C, C, GROUP), (X,), ""),
    '`OrbitLinear` with `mixing="none"` and a group': (
        lambda: OrbitLinear(C, C, GROUP, mixing="none"),
        (X,),
        ALL,
    ),
    "`GNetConv`": (lambda: GNetConv(C, C, GROUP, propagate="weighted"), (X, EDGES), ""),
    '`GNetConv` with `propagate="pointwise"`': (
        lambda: GNetConv(C, C, GROUP, propagate="pointwise"),
        (X, EDGES),
        ALL,
    ),
    "`GNet`": (lambda: GNet([C, C, C], GROUP), (X, EDGES), ""),
    "`EGNNConv` without a group": (lambda: EGNNConv(C, C, H), (X, POS, EDGES), SIGNALS),
    "`EGNN`": (lambda: EGNN(C, C, H, num_layers=2), (X, POS, EDGES), ""),
    "`PenguinConv` with one alpha, without a group": (
        lambda: PenguinConv(C, C, H),
        (X, POS, EDGES),
        SIGNALS,
    ),
    "`Penguin`": (lambda: Penguin(C, C, H, num_layers=2, alpha="node"), (X, POS, EDGES), ""),
    "`EquivariantTensorLinear`": (
        lambda: EquivariantTensorLinear(2, 2, C, C),
        (torch.randn(SUBGRAPHS.num_pairs, C, generator=RANDOM), SUBGRAPHS),
        "",
    ),
    "`SubgraphConv`": (
        lambda: SubgraphConv(C, C, C),
        (torch.randn(TABLES.first.numel(), C, generator=RANDOM), X[0], TABLES),
        "",
    ),
    "`SPEN`": (lambda: SPEN(C, 4, [C, C], dropout=0.0), (EGO,), ""),
}


def run(layer, args):
    """Values, gradients by the signals, and gradients by the weights."""
    real = [a for a in args if isinstance(a, torch.Tensor) and a.is_floating_point()]
    leaves = {id(a): a.clone().requires_grad_() for a in real}
    y = layer(*(leaves.get(id(a), a) for a in args))
    y = y if isinstance(y, tuple) else (y,)
    total = sum((v * torch.cos(torch.arange(v.numel()) % 1000).view(v.shape)).sum() for v in y)
    wanted = [*leaves.values(), *layer.parameters()]
    found = torch.autograd.grad(total, wanted, allow_unused=True, materialize_grads=True)
    return [v.detach() for v in y], found[: len(real)], found[len(real) :]


@pytest.mark.parametrize("name", CASES)
def test_threads(name):
    make, args, promised = CASES[name]
    torch.manual_seed(0)
    layer = make()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.uniform_(-0.3, 0.3)
    before, runs = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 3):
            torch.set_num_threads(threads)
            runs.append(run(layer, args))
    finally:
        torch.set_num_threads(before)
    flat = [[tensor for part in parts for tensor in part] for parts in runs]
    assert all(map(torch.equal, flat[2], flat[3])), "the same number of threads, other bits"
    for other in flat[1:]:
        for a, b in zip(flat[0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * float(a.abs().max()))
    if promised and choose("auto", "row_mlp", X.device.type).name != "cpp":
        pytest.skip("the promise is that of the compiled kernels")
    for part in {ALL: (0, 1, 2), SIGNALS: (0, 1), "": ()}[promised]:
        for parts in runs[1:]:
            assert all(map(torch.equal, runs[0][part], parts[part])), f"part {part}"


def test_the_page_promises_the_same():
    # A layer that is not here promises nothing.
    assert {re.match("`(\\w+)`", name)[1] for name in CASES} <= set(nn.__all__)
    text = PAGE.read_text("utf-8").partition("| layer |")[2].partition("\n\n")[0]
    rows = [row.strip("| ").split(" | ") for row in text.splitlines()[2:]]
    assert {tuple(row) for row in rows} == {
        (name, promised) for name, (_, _, promised) in CASES.items() if promised
    }
