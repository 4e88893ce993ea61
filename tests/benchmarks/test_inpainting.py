"""The inpainting task: holes, groups, baselines."""

from __future__ import annotations

import gzip

import numpy as np
import pytest
import torch

from gsym.check import equivariance_error
from gsym.groups import ClusterGroup, Partition
from gsym_bench.tasks.inpainting import (
    Inpainting,
    InpaintingMNIST,
    PublishedLayer,
    draw_holes,
    grid_edges,
    harmonic_fill,
    patch_groups,
)


@pytest.fixture(scope="module")
def digits():
    return Inpainting().load(None, "quick", 0)


def write_idx(path, array):
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    path.write_bytes(gzip.compress(header + array.astype(np.uint8).tobytes()))


def test_holes_are_squares_within_the_image():
    holes = draw_holes(500, 8, 4, torch.Generator().manual_seed(0)).view(-1, 8, 8)
    assert (holes.sum((1, 2)) == 16).all()
    rows, columns = holes.any(2), holes.any(1)
    for line in (rows, columns):
        assert (line.sum(1) == 4).all()
        start = line.int().argmax(1)
        # Every offset comes up, the last one included.
        assert start.unique().tolist() == [0, 1, 2, 3, 4]


def test_holes_follow_the_generator():
    same = [draw_holes(20, 8, 4, torch.Generator().manual_seed(s)) for s in (0, 0, 1)]
    assert torch.equal(same[0], same[1]) and not torch.equal(same[0], same[2])


def test_digits(digits):
    assert [len(part) for part in (digits.train, digits.val, digits.test)] == [80, 20, 1000]
    assert digits.train.inputs.shape == (80, 64, 1)
    hole = digits.train.aux["hole"]
    assert (digits.train.inputs[hole] == 0).all()
    assert torch.equal(digits.train.inputs[~hole], digits.train.targets[~hole])
    everything = torch.cat([p.targets for p in (digits.train, digits.val, digits.test)])
    assert everything.min() == -1 and everything.max() == 1


def test_seeds_differ(digits):
    other = Inpainting().load(None, "quick", 1)
    assert not torch.equal(other.test.targets, digits.test.targets)
    again = Inpainting().load(None, "quick", 0)
    assert torch.equal(again.test.inputs, digits.test.inputs)


def test_groups_shrink_to_the_trivial_one(digits):
    dims = [group.commutant_dim() for group in digits.groups.values()]
    assert dims == sorted(dims) and dims[0] == 2 and dims[-1] == 64**2
    names = list(digits.groups)
    assert len(names) == 7 and names[0] == "S_64" and names[-1] == "trivial"


def test_published_groups():
    groups = patch_groups(28, (28, 14, 7, 4, 2, 1), (14, 2))
    dims = {name: group.commutant_dim() for name, group in groups.items()}
    # k^2 + k weights, one for k = 784 fewer per pixel; half of that with the mirror.
    assert dims == {
        "S_784": 2,
        "(S_196)^4 x| S_2": 10,
        "(S_196)^4": 20,
        "(S_49)^16": 272,
        "(S_16)^49": 2450,
        "(S_4)^196 x| S_2": 19306,
        "(S_4)^196": 38612,
        "trivial": 614656,
    }


def test_mirror_swaps_left_and_right():
    group = patch_groups(4, (2,), (2,))["(S_4)^4 x| S_2"]
    image = torch.arange(16).view(4, 4)
    assert group.contains(image.flip(1).flatten())
    assert not group.contains(image.flip(0).flatten())


def test_grid_edges():
    edges = grid_edges(3)
    assert edges.shape == (2, 24)
    rows, columns = edges // 3, edges % 3
    assert ((rows[0] - rows[1]).abs() + (columns[0] - columns[1]).abs() == 1).all()
    assert torch.unique(edges, dim=1).size(1) == 24


def test_harmonic_fill_of_a_linear_ramp_is_exact():
    row, column = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    ramps = torch.stack([2 * row - 3 * column + 1, column, row]).flatten(1)[..., None]
    hole = torch.zeros(8, 8, dtype=torch.bool)
    hole[2:6, 1:5] = True
    other = torch.zeros(8, 8, dtype=torch.bool)
    other[1:4, 3:7] = True
    masks = torch.stack([hole, other, hole]).flatten(1)[..., None]
    spoiled = ramps.masked_fill(masks, 1e6)
    filled = harmonic_fill(spoiled, masks, grid_edges(8))
    torch.testing.assert_close(filled, ramps, rtol=0, atol=1e-5)
    assert torch.equal(filled[~masks], ramps[~masks])


def test_harmonic_fill_at_a_corner_averages_neighbours():
    values = torch.rand(1, 64, 1, generator=torch.Generator().manual_seed(0))
    hole = torch.zeros(1, 8, 8, 1, dtype=torch.bool)
    hole[:, :3, 5:] = True
    hole = hole.flatten(1, 2)
    filled = harmonic_fill(values, hole, grid_edges(8))[0, :, 0]
    source, target = grid_edges(8)
    for node in hole[0, :, 0].nonzero()[:, 0]:
        torch.testing.assert_close(filled[node], filled[source[target == node]].mean())


def test_baselines_keep_what_is_known_and_rank_as_expected(digits):
    task = Inpainting()
    errors = {}
    for name, fit in task.baselines().items():
        prediction = fit(digits)(digits.test)
        hole = digits.test.aux["hole"]
        assert torch.equal(prediction[~hole], digits.test.targets[~hole])
        errors[name] = task.metrics(prediction, digits.test, digits)
    # A hole of 16 of 64 pixels holds all the error of a baseline.
    for found in errors.values():
        assert found["MSE"] == pytest.approx(found["MSE in the hole"] / 4, rel=1e-4)
    assert errors["ridge"]["MSE"] < errors["mean"]["MSE"] < errors["copy"]["MSE"]


def test_ridge_strength_is_chosen_on_validation(digits):
    fit = Inpainting().baselines()["ridge"]
    own = fit(digits)(digits.test)
    without_test = type(digits)(**{**vars(digits), "test": digits.train})
    assert torch.equal(fit(without_test)(digits.test), own)
    other_val = type(digits)(**{**vars(digits), "val": digits.train})
    assert not torch.equal(fit(other_val)(digits.test), own)


def test_published_setting_on_files(tmp_path):
    folder = tmp_path / "mnist"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for part, count in (("train", 400), ("t10k", 1200)):
        write_idx(folder / f"{part}-images-idx3-ubyte.gz", rng.integers(0, 256, (count, 28, 28)))
        write_idx(folder / f"{part}-labels-idx1-ubyte.gz", np.arange(count) % 10)
    first, second = (InpaintingMNIST().load(tmp_path, "standard", seed) for seed in (0, 1))
    assert first.dataset == "mnist"
    assert [len(part) for part in (first.train, first.val, first.test)] == [80, 20, 1000]
    assert (first.test.aux["hole"].sum((1, 2)) == 14**2).all()
    # Seeds share the images and differ in the holes.
    assert torch.equal(first.test.targets, second.test.targets)
    assert not torch.equal(first.test.inputs, second.test.inputs)


@pytest.mark.parametrize("patch", [8, 4, 2, 1])
def test_published_layer_is_the_published_formula(patch):
    group = ClusterGroup(Partition.grid(8, 8, patch))
    k, labels = group.partition.num_clusters, group.partition.labels
    layer = PublishedLayer(2, 3, group)
    # Published: in * out * (k + k^2) weights and, here, one bias per cluster.
    assert sum(p.numel() for p in layer.parameters()) == 6 * (k + k**2) + 3 * k
    assert all(p.abs().max() <= 3**-0.5 for p in layer.parameters())
    own = (layer.own or layer.linear).weight_self
    raw = layer.linear.mixing.parametrizations.weight.original
    x = torch.randn(5, 64, 2)
    total = torch.zeros(5, k, 2).index_add(1, labels, x)
    mixed = torch.einsum("bsi,sito->bto", total, raw)[:, labels] / 64
    expected = torch.einsum("bni,nio->bno", x, own[labels]) + mixed + layer.linear.bias[labels]
    torch.testing.assert_close(layer(x), expected)


def test_model_has_the_symmetry_of_its_group_and_no_more(digits):
    group = digits.groups["(S_4)^16 x| S_2"]
    model = Inpainting().model(digits, "(S_4)^16 x| S_2", "quick")
    x = digits.val.inputs
    assert equivariance_error(model, group, x) < 1e-5
    assert equivariance_error(model, digits.groups["(S_16)^4"], x) > 1e-2


def test_model_fits_the_task(digits):
    task = Inpainting()
    for group in digits.groups:
        model = task.model(digits, group, "quick")
        assert model(digits.val.inputs).shape == digits.val.targets.shape
