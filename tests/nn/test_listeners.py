"""Layers do with the modules within them what PyTorch would do: a slow twin calls every one."""

import contextlib
import copy
import os
import socket
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, prune

from gsym import ClusterGroup, Partition, PermutationGroup
from gsym.nn import EGNN, EGNNConv, GNet, GNetConv, OrbitLinear, Penguin, PenguinConv
from gsym.nn._messages import EdgeMLP
from gsym.nn._mixing import FullMixing
from gsym.nn._modules import is_plain
from gsym.nn._nodewise import NodeLinear

EDGES = torch.tensor([[0, 1, 2, 3, 1, 0, 4, 2], [1, 2, 3, 0, 0, 1, 2, 4]])
N = 5
GROUP = ClusterGroup(Partition.from_labels([0, 1, 0, 1, 1]))
SWAPS = PermutationGroup.from_cycles(N, [(0, 1, 2)])
torch.manual_seed(0)
X, POS = torch.randn(3, N, 4).double(), torch.randn(3, N, 3).double()
ATTR, VELOCITY = torch.randn(3, EDGES.size(1), 2).double(), torch.randn(3, N, 3).double()
EVERY = {
    "attention": True,
    "clamp": 5.0,  # so long that it does not hide what a hook changes
    "edge_dim": 2,
    "extra_vectors": torch.eye(3)[:1],
    "learn_axis": True,
    "normalize": True,
    "tanh": True,
    "velocity": True,
}


def penguin(cls, **options):
    return cls(4, 4, 6, alpha="feature", **EVERY, **options)


LAYERS = {
    "OrbitLinear": lambda: OrbitLinear(4, 4, GROUP),
    "OrbitLinear of a 3-cycle": lambda: OrbitLinear(4, 4, SWAPS),
    "OrbitLinear of low rank": lambda: OrbitLinear(4, 4, GROUP, mixing="low_rank", rank=2),
    "GNetConv": lambda: GNetConv(4, 4, GROUP, propagate="weighted"),
    "GNet": lambda: GNet([4, 6, 6, 4], GROUP, propagate="none"),
    "GNet of a 3-cycle": lambda: GNet([4, 6, 4], SWAPS, propagate="adjacency"),
    "EGNNConv": lambda: EGNNConv(4, 4, 6),
    "EGNNConv with a sum": lambda: EGNNConv(4, 4, 6, group=GROUP, coord_aggr="sum"),
    "EGNNConv with everything": lambda: EGNNConv(4, 4, 6, dim=3, **EVERY),
    "EGNN": lambda: EGNN(4, 4, 6, num_layers=2, dim=3, **EVERY),
    "PenguinConv": lambda: penguin(PenguinConv),
    "PenguinConv by edges": lambda: PenguinConv(4, 4, 6, alpha="edge"),
    "Penguin": lambda: penguin(Penguin, num_layers=2, group=GROUP),
}
NAMES = list(LAYERS)


def random_layer(name):
    torch.manual_seed(NAMES.index(name))
    layer = LAYERS[name]().double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(std=0.5)  # so small that no tanh hides what a hook changes
    return layer


def call(layer, x=X, pos=POS, edge_index=EDGES):
    kind = next(c for c in (OrbitLinear, GNetConv, GNet, object) if isinstance(layer, c))
    if kind is OrbitLinear:
        return layer(x)
    if kind is GNet and layer.propagate == "none":
        return layer(x)
    if kind in (GNet, GNetConv):
        return layer(x, edge_index)
    more = {"edge_attr": ATTR, "velocity": VELOCITY} if layer.edge_dim else {}
    return torch.cat(layer(x, pos, edge_index, **more), dim=-1)


def by_modules(layer):
    """The layer with a hook on every part, so that nothing within is read but called."""
    twin = copy.deepcopy(layer)
    for part in twin.modules():
        part.register_forward_hook(lambda *_: None)
    return twin


@pytest.mark.parametrize("name", NAMES)
def test_calling_the_modules_gives_what_reading_their_weights_gives(name):
    layer = random_layer(name)
    twin = by_modules(layer)
    x, pos = X.clone().requires_grad_(), POS.clone().requires_grad_()
    fast, slow = call(layer, x, pos), call(twin, x, pos)
    torch.testing.assert_close(fast, slow)
    direction = torch.randn_like(fast)
    leaves = [x, pos] if "GNN" in name or "Penguin" in name else [x]
    for one, other in zip(
        torch.autograd.grad(fast, [*leaves, *layer.parameters()], direction),
        torch.autograd.grad(slow, [*leaves, *twin.parameters()], direction),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def parts_with_weights(layer):
    return [
        (name, part)
        for name, part in layer.named_modules()
        if isinstance(getattr(part, "weight", None), nn.Parameter) and name
    ]


@pytest.mark.parametrize("name", NAMES)
def test_every_part_is_called_once_somebody_listens(name):
    layer = random_layer(name)
    parts = dict(layer.named_modules())
    for kind in ("register_forward_hook", "register_forward_pre_hook"):
        seen, hooks = set(), []
        for path, part in parts.items():
            hooks.append(getattr(part, kind)(lambda *_, path=path, seen=seen: seen.add(path)))
        call(layer)
        silent = {p for p, part in parts.items() if isinstance(part, nn.ModuleList)}
        assert seen == set(parts) - silent
        for hook in hooks:
            hook.remove()


@pytest.mark.parametrize("name", NAMES)
def test_hooks_that_change_an_output_or_a_gradient_do(name):
    plain = call(random_layer(name))
    for path, _ in parts_with_weights(random_layer(name)):
        layer = random_layer(name)
        layer.get_submodule(path).register_forward_hook(lambda m, a, y: 1.7 * y)
        assert not torch.allclose(call(layer), plain), path

        layer, seen = random_layer(name), []
        part = layer.get_submodule(path)
        part.register_full_backward_hook(lambda m, gi, go, seen=seen: seen.append(go[0]))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            call(layer, X.clone().requires_grad_(), POS.clone().requires_grad_()).sum().backward()
        assert seen, path


def test_hooks_on_all_modules_see_all_modules():
    layer, seen = random_layer("EGNN"), []
    hook = nn.modules.module.register_module_forward_hook(lambda m, *_: seen.append(m))
    try:
        call(layer)
    finally:
        hook.remove()
    assert {type(m) for m in seen} >= {nn.Linear, NodeLinear, EdgeMLP, EGNNConv}


def pruned(part):
    prune.l1_unstructured(part, "weight", amount=0.5)
    return lambda p: p.weight_orig * p.weight_mask


def normed_by_hook(part):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nn.utils.weight_norm(part, "weight")
    with torch.no_grad():
        part.weight_g.mul_(1.5)
    return lambda p: torch._weight_norm(p.weight_v, p.weight_g, 0)


@pytest.mark.parametrize("change", [pruned, normed_by_hook])
@pytest.mark.parametrize("name", NAMES)
def test_weights_that_are_computed_anew_are_those_that_count(name, change):
    for path, _ in parts_with_weights(random_layer(name)):
        layer, twin = random_layer(name), random_layer(name)
        part = layer.get_submodule(path)
        weight_of = change(part)
        # What the optimiser moves is what is computed from.
        with torch.no_grad():
            next(p for n, p in part.named_parameters() if "weight" in n or "orig" in n).mul_(1.1)
            twin.get_submodule(path).weight.copy_(weight_of(part))
        torch.testing.assert_close(call(layer), call(twin), msg=path)


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("name", ["OrbitLinear", "EGNNConv with everything", "Penguin"])
def test_spectral_norm_is_computed_once_per_call(name, old):
    norm = nn.utils.spectral_norm if old else parametrizations.spectral_norm
    for path, part in parts_with_weights(random_layer(name)):
        if part.weight.dim() != 2:
            continue
        layer, twin = random_layer(name).train(), random_layer(name)
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            norm(layer.get_submodule(path))
        lone = copy.deepcopy(layer.get_submodule(path))
        # To read the weight of the copy would be an iteration of its own.
        lone(torch.randn(1, part.weight.size(1)).double())
        found = call(layer)
        with torch.no_grad():
            lone.eval()
            twin.get_submodule(path).weight.copy_(lone.weight)
        torch.testing.assert_close(found, call(twin), msg=path)


class LowRankAdapter(nn.Module):
    """As adapters do: the module in its place, and more beside it."""

    def __init__(self, base):
        super().__init__()
        self.base = base
        self.down = nn.Linear(base.in_features, 2, bias=False).double()
        self.up = nn.Linear(2, base.out_features, bias=False).double()

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))


@pytest.mark.parametrize("name", ["EGNNConv", "EGNN", "PenguinConv", "Penguin"])
def test_an_adapter_in_place_of_a_map_counts_and_learns(name):
    paths = [p for p, m in random_layer(name).named_modules() if type(m) is nn.Linear]
    assert paths
    for path in paths:
        layer, twin = random_layer(name), random_layer(name)
        parent, _, child = path.rpartition(".")
        adapter = LowRankAdapter(layer.get_submodule(path))
        setattr(layer.get_submodule(parent), child, adapter)
        with torch.no_grad():
            twin.get_submodule(path).weight.add_(adapter.up.weight @ adapter.down.weight)
        found = call(layer)
        torch.testing.assert_close(found, call(twin), msg=path)
        found.square().sum().backward()
        assert float(adapter.up.weight.grad.abs().max()) > 0, path


def test_a_forward_put_into_an_instance_counts():
    layer = random_layer("EGNNConv")
    before, second = call(layer), layer.edges.second
    second.forward = lambda x: 0 * F.linear(x, second.weight)
    assert not torch.allclose(call(layer), before)


@pytest.mark.parametrize("name", ["GNet", "GNet of a 3-cycle", "EGNN", "Penguin"])
def test_layers_of_a_stack_may_be_wrapped_and_replaced(name):
    class Wrapper(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner, self.calls = inner, 0

        def forward(self, *args, **kwargs):
            self.calls += 1
            return self.inner(*args, **kwargs)

    layer = random_layer(name)
    before = call(layer)
    for i, conv in enumerate(layer.convs):
        layer.convs[i] = Wrapper(conv)
    torch.testing.assert_close(call(layer), before)
    assert [conv.calls for conv in layer.convs] == [1] * len(layer.convs)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", ["GNet", "GNet of a 3-cycle", "EGNN", "Penguin"])
def test_activation_checkpoints_compute_the_layers_again(name, reentrant):
    from torch.utils.checkpoint import checkpoint

    class Checkpointed(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner, self.calls = inner, 0

        def count(self, *args):
            self.calls += 1
            return self.inner(*args[:-1], **args[-1])

        def forward(self, *args, **kwargs):
            return checkpoint(self.count, *args, kwargs, use_reentrant=reentrant)

    if reentrant and name == "Penguin":
        pytest.skip("all layers share alpha, a keyword, which reentrant checkpoints do not follow")
    layer = random_layer(name)
    twin = copy.deepcopy(layer)
    for i, conv in enumerate(layer.convs):
        layer.convs[i] = Checkpointed(conv)
    grads = []
    for net in (layer, twin):
        x = X.clone().requires_grad_()
        call(net, x).square().sum().backward()
        grads.append([x.grad, *(p.grad for p in net.parameters())])
    assert [conv.calls for conv in layer.convs] == [2] * len(layer.convs)
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)


def replica(module):
    """What ``nn.DataParallel`` makes on every device: weights are plain attributes."""
    twin = module._replicate_for_data_parallel()
    for key, value in module._parameters.items():
        if value is None:
            twin._parameters[key] = None
        else:
            setattr(twin, key, value * 1)
    twin._buffers.update(module._buffers)
    for key, value in module._modules.items():
        twin._modules[key] = None if value is None else replica(value)
    return twin


@pytest.mark.parametrize("name", NAMES)
def test_a_replica_computes_what_the_module_computes(name):
    layer = random_layer(name)
    torch.testing.assert_close(call(replica(layer)), call(layer))
    with pytest.raises(ValueError, match="float32"):
        call(replica(layer), X.float(), POS.float())


def test_nothing_listens_to_a_plain_module():
    part = nn.Linear(2, 2)
    assert is_plain(nn.Linear, part, copy.deepcopy(part)) and not is_plain(NodeLinear, part)
    for kind in (
        "register_forward_hook",
        "register_forward_pre_hook",
        "register_full_backward_hook",
        "register_full_backward_pre_hook",
    ):
        hook = getattr(part, kind)(lambda *_: None)
        assert not is_plain(nn.Linear, part), kind
        hook.remove()
    assert is_plain(nn.Linear, part)
    assert is_plain(FullMixing, random_layer("OrbitLinear").mixing)


@contextlib.contextmanager
def one_process():
    from torch import distributed

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    distributed.init_process_group("gloo", rank=0, world_size=1)
    try:
        yield distributed.device_mesh.init_device_mesh("cpu", (1,))
    finally:
        distributed.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
@pytest.mark.filterwarnings("ignore:.*FSDP2-wrapped module")
@pytest.mark.parametrize("by", ["layers", "every part"])
def test_sharded_parameters_are_gathered(by):
    from torch.distributed.fsdp import fully_shard

    with one_process() as mesh:
        for name in NAMES:
            layer = random_layer(name)
            twin = copy.deepcopy(layer)
            parts = [m for m in layer.modules() if isinstance(m, nn.Module) and m is not layer]
            if by == "layers":
                parts = list(getattr(layer, "convs", []))
            for part in reversed(parts):
                if not isinstance(part, nn.ModuleList) and any(True for _ in part.parameters()):
                    fully_shard(part, mesh=mesh)
            fully_shard(layer, mesh=mesh)
            for net in (layer, twin):
                optimiser = torch.optim.SGD(net.parameters(), lr=0.01)
                for _ in range(2):
                    optimiser.zero_grad()
                    call(net).square().mean().backward()
                    optimiser.step()
            torch.testing.assert_close(call(layer), call(twin), msg=name)
