"""What counts as state and what follows from the group; checkpoints that know their group."""

import copy
import io
import pickle
import warnings

import pytest
import torch

from gsym import ClusterGroup, Partition, PermutationGroup
from gsym.errors import GroupError
from gsym.nn import EGNN, GNet, GNetConv, OrbitLinear, Penguin

N = 6
EDGES = torch.stack([torch.arange(N), (torch.arange(N) + 1) % N])
TURN = PermutationGroup.from_cycles(3, [(0, 1, 2)])


def clusters(labels=(0, 0, 1, 1, 2, 2)):
    return ClusterGroup(Partition.from_labels(list(labels)))


def swapped():
    return ClusterGroup(Partition.from_labels([0, 1, 0, 1, 2, 2]), swaps=TURN)


def turned():
    return PermutationGroup.from_cycles(N, [(0, 1, 2)])


def quotient(group):
    coarse = group.partition.quotient(EDGES)[0]
    return OrbitLinear(4, 4, group, mixing="quotient", cluster_edge_index=coarse)


MAKE = {
    "clusters": lambda: OrbitLinear(4, 4, clusters()),
    "swaps": lambda: OrbitLinear(4, 4, swapped()),
    "3-cycle": lambda: OrbitLinear(4, 4, turned()),
    "low rank": lambda: OrbitLinear(4, 4, swapped(), mixing="low_rank", rank=2),
    "quotient": lambda: quotient(clusters()),
    "weighted": lambda: GNetConv(4, 4, turned(), propagate="weighted"),
    "pointwise": lambda: GNetConv(4, 4, swapped(), propagate="pointwise"),
    "GNet": lambda: GNet([4, 6, 4], clusters()),
    "EGNN": lambda: EGNN(4, 4, 8, num_layers=2, group=turned(), learn_axis=True, dim=3),
    "Penguin": lambda: Penguin(4, 4, 8, num_layers=2, extra_vectors=[[0.0, 0.0, 1.0]]),
}


@pytest.fixture(params=MAKE)
def make(request):
    return MAKE[request.param]


X, POS = torch.randn(2, N, 4), torch.randn(2, N, 3)


def call(layer):
    if isinstance(layer, EGNN | Penguin):
        return torch.cat(layer(X, POS, EDGES), dim=-1)
    return layer(X) if isinstance(layer, OrbitLinear) else layer(X, EDGES)


def test_no_index_is_a_buffer(make):
    assert all(buffer.is_floating_point() for buffer in make().buffers())


def test_built_on_meta_and_filled_later(make):
    source = make()
    with torch.device("meta"):  # the group, too
        layer = make()
    assert all(p.is_meta for p in layer.parameters())
    twin = copy.deepcopy(layer)
    layer.to_empty(device="cpu").load_state_dict(source.state_dict())
    twin.load_state_dict(source.state_dict(), assign=True)
    for filled in (layer, twin):
        torch.testing.assert_close(call(filled), call(source))
    layer.reset_parameters()
    assert bool(call(layer).isfinite().all())


@pytest.mark.parametrize(
    "treat",
    [
        lambda layer: layer.to_empty(device="cpu"),
        lambda layer: layer.type(torch.float16).type(torch.float32),
        lambda layer: layer.half().float(),
        lambda layer: layer.share_memory(),
        copy.deepcopy,
        copy.copy,
        lambda layer: pickle.loads(pickle.dumps(layer)),
    ],
    ids=["to_empty", "type", "half", "share_memory", "deepcopy", "copy", "pickle"],
)
def test_tables_stand_what_is_done_to_state(make, treat):
    source = make()
    layer = treat(copy.deepcopy(source))
    layer.load_state_dict(source.state_dict())
    torch.testing.assert_close(call(layer), call(source))


def test_a_pickle_holds_no_table_and_fills_them_at_once():
    layer = pickle.loads(pickle.dumps(OrbitLinear(4, 4, clusters())))
    assert set(layer._by_device.found) == {torch.device("cpu")}
    assert len(pickle.dumps(layer._by_device)) < 200


# Checkpoints


def saved(labels):
    return OrbitLinear(4, 4, clusters(labels)).state_dict()


SAME_SHAPES = (0, 1, 0, 1, 2, 2)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("scale", [1, 3, -1, 1 / 7])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_another_group_is_refused_and_both_are_named(strict, scale, kind):
    state = {key: (scale * value).to(kind) for key, value in saved((0, 0, 1, 1, 2, 2)).items()}
    target = OrbitLinear(4, 4, clusters(SAME_SHAPES))
    with pytest.raises(GroupError, match="saved with another group") as refusal:
        target.load_state_dict(state, strict=strict)
    said = str(refusal.value)
    assert "S_2)^3 on 6 nodes, order 8, clusters of 2 + 2 + 2, labels 0 0 1 1 2 2" in said
    assert "this layer has (S_2)^3 on 6 nodes" in said and "labels 0 1 0 1 2 2" in said


def test_a_state_that_does_not_name_its_group_is_told():
    for labels in ((0, 0, 1, 1, 2, 2), SAME_SHAPES):
        state = saved(labels)
        del state["_extra_state"]
        target = OrbitLinear(4, 4, clusters(SAME_SHAPES))
        with pytest.warns(UserWarning, match="does not say for which group"):
            target.load_state_dict(state, strict=False)
        with pytest.warns(UserWarning), pytest.raises(RuntimeError, match="Missing key"):
            target.load_state_dict(state)


def test_a_state_without_anything_of_a_layer_is_none_of_its_business():
    layer = torch.nn.ModuleDict({"a": OrbitLinear(4, 4, clusters()), "b": torch.nn.Linear(2, 2)})
    state = {key: value for key, value in layer.state_dict().items() if key.startswith("b.")}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer.load_state_dict(state, strict=False)


def mixed(states):
    return {key: sum(state[key] for state in states) for key in states[0]}


def test_sums_over_several_groups_and_differences_are_told():
    one, other = saved((0, 0, 1, 1, 2, 2)), saved(SAME_SHAPES)
    difference = {key: one[key] - saved((0, 0, 1, 1, 2, 2))[key] for key in one}
    for state in (mixed([one, other]), difference):
        with pytest.warns(UserWarning, match="has it blurred"):
            OrbitLinear(4, 4, clusters(SAME_SHAPES)).load_state_dict(state)


@pytest.mark.parametrize(
    ("count", "kind"),
    [(2, torch.bfloat16), (40, torch.bfloat16), (40, torch.float16), (1000, torch.float32)],
)
def test_averages_keep_the_name(count, kind):
    state = {key: value.to(kind) for key, value in saved((0, 0, 1, 1, 2, 2)).items()}
    weights = torch.rand(count).softmax(0).tolist()
    average = mixed([{key: w * value for key, value in state.items()} for w in weights])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        OrbitLinear(4, 4, clusters()).load_state_dict(average)
    with pytest.raises(GroupError):
        OrbitLinear(4, 4, clusters(SAME_SHAPES)).load_state_dict(average)


def test_what_a_layer_saves_is_read_without_pickles(make):
    layer, file = make(), io.BytesIO()
    torch.save({"state": layer.state_dict(), "group": None}, file)
    file.seek(0)
    other = make()
    other.load_state_dict(torch.load(file, weights_only=True)["state"])
    torch.testing.assert_close(call(other), call(layer))
    group = layer.group if not isinstance(layer, Penguin) else clusters()
    assert PermutationGroup.from_dict(group.to_dict()) == group
