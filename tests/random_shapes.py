"""Random calls of every primitive that has C++, compared with the definition in float64.

Shapes are small, and odd: nothing at all, one row, widths that fill no vector, long segments,
strides, shared and own operands, indices of either type.
"""

import random

import torch

from gsym import PermutationGroup, kernels
from gsym.kernels import Clusters, Segments, Tiles, ops
from gsym.kernels.adapted import AdaptedTables, adapted_linear
from gsym.kernels.cpp import library as cpp_library
from gsym.kernels.lifted import graph_sums
from gsym.kernels.subgraphs import Subgraphs
from gsym.nn import EgoTables, SubgraphConv
from gsym.nn._norm import ELUGraphNorm

TOLERANCE = {torch.float32: 2e-4, torch.float64: 1e-10}


class Draw(random.Random):
    """Random shapes and tensors of one seed."""

    def __init__(self, seed):
        super().__init__(seed)
        self.torch = torch.Generator().manual_seed(seed)
        self.dtype = self.choice([torch.float32, torch.float64])

    def coin(self, chance=0.5):
        return self.random() < chance

    def size(self, least=0):
        """Mostly small, sometimes none, sometimes more than a piece of work."""
        kind = self.random()
        if kind < 0.08:
            return least
        if kind < 0.2:
            return max(1, least)
        if kind < 0.97:
            return self.randint(max(2, least), 60)
        return self.randint(1000, 3000)

    def width(self):
        return self.choice([0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 24, 31, 32, 33, 40, 65])

    def batch(self):
        return self.choice([(), (), (1,), (2,), (3,), (2, 3), (0,), (2, 0)])

    def index(self, rows, segments, in_order=None):
        """Segments of a random index, in some of the draws with tables of int64."""
        if segments == 0:
            rows = 0
        high = self.choice([segments, max(segments // 3, 1)])  # the rest stays empty
        index = torch.randint(max(high, 1), (rows,), generator=self.torch)
        if in_order or (in_order is None and self.coin()):
            index = index.sort().values
        made = Segments.from_index(index, segments)
        return widened(made) if self.coin(0.3) else made

    def numbers(self, *shape, ties=False):
        """A tensor that asks for a gradient, at times with strides of its own."""
        kinds = ["plain", "plain", "every other", "from the middle", "turned", "repeated"]
        kind = self.choice(kinds if len(shape) > 1 else kinds[:4])
        given = {
            "every other": (*shape[:-1], 2 * shape[-1]),
            "from the middle": (shape[0] + 1, *shape[1:]),
            "turned": (*shape[:-2], shape[-1], shape[0 if len(shape) < 2 else -2]),
            "repeated": (min(shape[0], 1), *shape[1:]),
        }.get(kind, shape)
        x = torch.randn(given, generator=self.torch, dtype=torch.float64)
        x = (x.round() if ties else x).to(self.dtype)
        if kind == "every other":
            x = x[..., ::2]
        elif kind == "from the middle":
            x = x[1:]
        elif kind == "turned":
            x = x.transpose(-1, -2)
        elif kind == "repeated":
            x = x.expand(shape)
        assert x.shape == shape
        return x.detach().requires_grad_()


def widened(segments):
    """The same index in tables of int64."""
    made = object.__new__(Segments)
    tables = {name: getattr(segments, name).long() for name in Segments._tables}
    made._fill(**vars(segments) | tables)
    return made


def agree(primitive, x, *args, **options):
    """Values and gradients of the compiled primitive are those of its definition."""
    args = (x, *args)
    given = list(tensors_of(args)) + list(tensors_of(tuple(options.values())))
    exact = {id(t): t.detach().double().requires_grad_(t.requires_grad) for t in given}
    y = primitive(*args, **options, backend="cpp")
    truth = primitive(
        *(replaced(arg, exact) for arg in args),
        **{name: replaced(value, exact) for name, value in options.items()},
        backend="reference",
    )
    results = [t for t in tensors_of((y,)) if t.requires_grad]
    truths = [t for t in tensors_of((truth,)) if t.requires_grad]
    compare("value", list(tensors_of((y,))), list(tensors_of((truth,))), x.dtype)
    if not results:
        return
    outer = [torch.randn(t.shape, dtype=torch.float64) for t in truths]
    wanted = [t for t in given if t.requires_grad]
    grads = torch.autograd.grad(results, wanted, [o.to(x.dtype) for o in outer], allow_unused=True)
    true_grads = torch.autograd.grad(
        truths, [exact[id(t)] for t in wanted], outer, allow_unused=True
    )
    compare("gradient", grads, true_grads, x.dtype)


def compare(what, ones, others, dtype):
    """Errors are small beside the largest number of all: where terms cancel, rounding stays."""
    largest = max(
        [1.0, *(float(t.detach().abs().max()) for t in others if t is not None and t.numel())]
    )
    limit = TOLERANCE[dtype] * largest
    for number, (one, other) in enumerate(zip(ones, others, strict=True)):
        if one is None or other is None:
            assert one is None or not one.any(), f"{what} {number} is not zero"
            assert other is None or not other.any(), f"{what} {number} is zero"
            continue
        assert one.shape == other.shape, f"{what} {number}: {one.shape}, not {other.shape}"
        error = float((one.double() - other).detach().abs().max()) if one.numel() else 0.0
        assert error <= limit, f"{what} {number}: off by {error:.2e} of {limit:.2e}, {one.shape}"


def tensors_of(values):
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, tuple):
            yield from tensors_of(value)


def replaced(value, exact):
    if isinstance(value, torch.Tensor):
        return exact[id(value)]
    if isinstance(value, tuple):
        return tuple(replaced(part, exact) for part in value)
    return value


def reductions(draw):
    segments = draw.index(draw.size(), draw.size())
    rows, count = segments._index.numel(), segments.num_segments
    primitive = draw.choice([ops.segment_sum, ops.segment_mean, ops.segment_max])
    if draw.coin(0.1):
        y = draw.numbers(*draw.batch(), count, draw.width())
        return agree(ops.segment_gather, y, segments)
    x = draw.numbers(*draw.batch(), rows, draw.width(), ties=primitive is ops.segment_max)
    return agree(primitive, x, segments)


def gathers(draw):
    source = draw.index(draw.size(), draw.size())
    entries, batch = source._index.numel(), draw.batch()
    segments = draw.index(entries, draw.size(1))
    x = draw.numbers(*batch, source.num_segments, draw.width())
    weight = draw.choice([None, (entries,), (*batch, entries)])
    weight = None if weight is None else draw.numbers(*weight)
    agree(ops.gather_segment_sum, x, source, segments, weight)


def products(draw):
    segments = draw.index(draw.size(), draw.size(1))
    rows, k, batch = segments._index.numel(), segments.num_segments, draw.batch()
    ins, outs = draw.width(), draw.width()
    if k > 100:
        ins, outs = min(ins, 5), min(outs, 5)
    tiles = Tiles(segments, ins, outs)
    weight = draw.numbers(draw.choice([1, k]), ins, outs)
    shared = draw.choice([None, (k, outs), (*batch, k, outs)])
    shared = None if shared is None else draw.numbers(*shared)
    agree(ops.indexed_linear, draw.numbers(*batch, rows, ins), weight, tiles, shared)


def clusters(draw):
    k = draw.randint(1, 6)
    sizes = torch.tensor([draw.randint(1, 9) for _ in range(k)])
    if draw.coin(0.1):
        sizes[draw.randrange(k)] = 2000
    index = torch.repeat_interleave(torch.arange(k), sizes)
    index = index[torch.randperm(index.numel(), generator=draw.torch)]
    ins, outs = draw.width(), draw.width()
    tied = Clusters(index, k, ins, outs)
    x = draw.numbers(*draw.batch(), index.numel(), ins)
    weight = draw.numbers(draw.choice([1, k]), ins, outs)
    matrix, bias = draw.numbers(k * ins, k * outs), draw.numbers(k, outs)
    agree(kernels.cluster_linear, x, weight, matrix, bias, tied, draw.coin(0.3))


def nodes(draw):
    lanes = cpp_library.library().gsym_vector_bytes() // draw.dtype.itemsize
    ins, more, hidden, outs = (draw.randint(1, 3) * lanes for _ in range(4))
    shape = (*draw.batch(), draw.size())
    x = draw.numbers(*shape, ins)
    if draw.coin():
        weight, other = draw.numbers(1, ins, outs), draw.numbers(1, ins, outs)
        return agree(ops.linear_pair, x, weight, draw.numbers(1, outs), other)
    beside = draw.numbers(*shape, more) if draw.coin() else None
    width = ins + (0 if beside is None else more)
    first = draw.numbers(1, width, hidden), draw.numbers(1, hidden)
    last = draw.numbers(1, hidden, outs), draw.numbers(1, outs)
    return agree(ops.row_mlp, x, first, last, beside)


def edges(draw):
    n, h, dims = draw.size(), draw.width(), draw.randint(0, 4)
    segments = draw.index(draw.size(), n, in_order=True)
    entries, batch = segments._index.numel(), draw.batch()
    source = draw.index(entries, n)

    def small(*shape):
        return (draw.numbers(*shape) * 0.3).detach().requires_grad_()

    options = {}
    if draw.coin(0.7):
        options["pos"] = draw.numbers(*draw.choice([(), batch]), n, dims)
        options["distance"] = small(h)
        if draw.coin(0.7):
            options["coord"] = small(h, h), small(h), small(1, h)
            options["mean"], options["tanh"] = draw.coin(), draw.coin()
            options["normalize"] = draw.coin(0.3)
            options["clamp"] = draw.choice([None, 0.01, 100.0])
    if draw.coin(0.4):
        a = draw.randint(1, 5)
        options["edge_attr"] = small(*draw.choice([(), batch]), entries, a), small(h, a)
    if draw.coin(0.4):
        options["gate"] = small(1, h), small(1)
    ends = small(*batch, n, h), small(*batch, n, h)
    agree(ops.edge_mlp_sum, ends[0], ends[1], source, segments, small(h, h), small(h), **options)


def subgraphs(draw):
    sizes = [draw.choice([0, 1, 2, 3, 5, 9, 17]) for _ in range(draw.randint(0, 9))]
    sizes = torch.tensor(sizes, dtype=torch.int64)
    batch = torch.repeat_interleave(torch.arange(sizes.numel()), sizes)
    q, k = draw.choice([1, 1, 2, 3]), draw.choice([1, 1, 2])
    options = {}
    if q > 1:
        colour = torch.randint(0, q, batch.shape, generator=draw.torch)
        options |= {"colour": colour, "num_colours": q}
    if k > 1:
        options |= {"kind": torch.arange(sizes.numel()) % k, "num_kinds": k}
    if draw.coin(0.3):
        every = Subgraphs.from_batch(batch, sizes.numel())
        kept = torch.rand(every.num_pairs, generator=draw.torch) < 0.5
        options["pairs"] = torch.stack([every.row[kept], every.col[kept]])
    made = Subgraphs.from_batch(batch, sizes.numel(), **options)
    lanes = cpp_library.library().gsym_vector_bytes() // draw.dtype.itemsize
    c, d = (draw.choice([draw.width() or 1, draw.randint(1, 3) * lanes]) for _ in range(2))
    x = draw.numbers(*draw.batch(), made.num_pairs, c)
    graph = draw.numbers(k, (q + q * q) * c, (q + q * q) * d)
    node = draw.numbers(k * q, (1 + 2 * q) * c, (1 + 2 * q) * d)
    pair = draw.numbers(k * q * q, c, d), draw.numbers(k * q * q, c, d)
    bias = None, None
    if draw.coin():
        bias = draw.numbers(k * q * q, d), draw.numbers(k * q, d)
    agree(kernels.subgraph_linear, x, made, (2, 2), graph, node, pair, *bias)


def ego_networks(draw):
    """Of a layer and its sums of subgraphs; as for norms."""
    lanes = cpp_library.library().gsym_vector_bytes() // draw.dtype.itemsize
    sizes = [draw.choice([0, 1, 2, 3, 5, 9, 17, 60]) for _ in range(draw.randint(1, 30))]
    n = max(len(sizes), *sizes) + draw.randint(0, 5)
    nodes = [torch.randperm(n, generator=draw.torch)[:m] for m in sizes]
    owner = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    tables = EgoTables.build(torch.cat(nodes), owner, n)
    c, e, d = draw.width() or 1, draw.width(), draw.randint(1, 3) * lanes
    layer = SubgraphConv(c, e, d).to(draw.dtype)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, generator=draw.torch)
    twin = SubgraphConv(c, e, d).double()
    twin.load_state_dict(layer.state_dict())
    pair = draw.numbers(tables.first.numel(), c)
    node = draw.numbers(n, e) if e else None
    found = []
    for net, backend in ((layer, "auto"), (twin, "native")):
        kind = next(net.parameters()).dtype
        given = [None if x is None else x.detach().to(kind).requires_grad_() for x in (pair, node)]
        with kernels.backend(backend):
            out = [*net(*given, tables), graph_sums(given[0], tables.lifted)]
        outer = [torch.linspace(-1, 1, max(y.numel(), 1))[: y.numel()].view(y.shape) for y in out]
        leaves = [x for x in (*given, *net.parameters()) if x is not None]
        grads = torch.autograd.grad(out, leaves, [g.to(kind) for g in outer])
        found.append((out, grads))
    (values, grads), (true_values, true_grads) = found
    compare("value", values, true_values, pair.dtype)
    compare("gradient", grads, true_grads, pair.dtype)


def norms(draw):
    """Of a layer, which has no definition of its own: in float64 without compiled code."""
    lanes = cpp_library.library().gsym_vector_bytes() // draw.dtype.itemsize
    segments = draw.index(draw.size(), draw.size(1), in_order=True)
    x = draw.numbers(segments._index.numel(), draw.randint(1, 3) * lanes)
    layer = ELUGraphNorm(x.size(1)).to(draw.dtype)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, generator=draw.torch)
    twin = ELUGraphNorm(x.size(1)).double()
    twin.load_state_dict(layer.state_dict())
    exact = x.detach().double().requires_grad_()
    y = layer(x, segments)
    with kernels.backend("native"):
        truth = twin(exact, segments)
    outer = torch.randn(truth.shape, generator=draw.torch, dtype=torch.float64)
    grads = torch.autograd.grad(y, [x, *layer.parameters()], outer.to(x.dtype))
    true_grads = torch.autograd.grad(truth, [exact, *twin.parameters()], outer)
    compare("value", [y], [truth], x.dtype)
    compare("gradient", grads, true_grads, x.dtype)


def adapted(draw):
    """Of a layer; as for norms."""
    lanes = cpp_library.library().gsym_vector_bytes() // draw.dtype.itemsize
    n = draw.randint(2, 12)
    nodes = draw.sample(range(n), n)
    cycles = [nodes[:3], nodes[3:5]] if n > 4 else [nodes[:2]]
    group = PermutationGroup.from_cycles(n, [tuple(c) for c in cycles])
    basis = group.adapted_basis.basis
    parts = basis.entry, basis.orbit, basis.coefficient
    tables = AdaptedTables(basis.matrix, basis.shapes, *parts, group.pair_orbits().index)
    a, b = draw.randint(1, 3) * lanes, draw.randint(1, 3) * lanes
    x = draw.numbers(*draw.batch(), n, a)
    weight = draw.numbers(group.commutant_dim(), a, b)
    exact = [t.detach().double().requires_grad_() for t in (x, weight)]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    y = adapted_linear(x, weight, tables)
    torch.set_num_threads(threads)
    every = exact[1][group.pair_orbits().index]
    truth = torch.einsum("...si,tsio->...to", exact[0], every)
    compare("value", [y], [truth], x.dtype)
    outer = torch.randn(truth.shape, generator=draw.torch, dtype=torch.float64)
    grads = torch.autograd.grad(y, [x, weight], outer.to(x.dtype))
    true_grads = torch.autograd.grad(truth, exact, outer)
    compare("gradient", grads, true_grads, x.dtype)


_ALL = (
    *(reductions, gathers, products, clusters, nodes, edges, subgraphs),
    *(ego_networks, norms, adapted),
)
CASES = {case.__name__: case for case in _ALL}
