"""The inpainting task: holes, groups, baselines."""

from __future__ import annotations

import dataclasses
import gzip

import numpy as np
import pytest
import torch

from gsym.check import equivariance_error
from gsym.groups import ClusterGroup, Partition, PermutationGroup
from gsym_bench.suite.errors import BenchmarkError
from gsym_bench.suite.task import Split
from gsym_bench.tasks.filling import (
    conditional_fill,
    cut,
    draw_holes,
    every_hole,
    fill_every_hole,
    harmonic_fill,
)
from gsym_bench.tasks.flow import FlowInpainting
from gsym_bench.tasks.inpainting import (
    FILL,
    LEVELS,
    LINEAR,
    LINEAR_PUBLISHED,
    MATCHED,
    PUBLISHED,
    Inpainting,
    InpaintingFlipped,
    InpaintingMNIST,
    PublishedLayer,
    grid_edges,
    patch_groups,
)

# Keeps the fills of the last problem.
TASK = Inpainting()


@pytest.fixture(scope="module")
def digits():
    return TASK.load(None, "quick", 0)


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
    assert digits.train.inputs.shape == (80, 64, 2)
    (grey, told), hole = digits.train.inputs.unbind(-1), digits.train.aux["hole"][..., 0]
    assert (grey[hole] == 0).all()
    assert torch.equal(grey[~hole], digits.train.targets[..., 0][~hole])
    assert torch.equal(told, hole.float())
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
    task = TASK
    errors = {}
    for name, fit in task.baselines().items():
        prediction = fit(digits)(digits.test)
        hole = digits.test.aux["hole"]
        assert torch.equal(prediction[~hole], digits.test.targets[~hole])
        errors[name] = task.metrics(prediction, digits.test, digits)
    # A hole of 16 of 64 pixels holds all the error of a baseline.
    for found in errors.values():
        assert found["MSE"] == pytest.approx(found["MSE in the hole"] / 4, rel=1e-4)
    assert errors["ridge"]["MSE"] < errors["training mean"]["MSE"] < errors["copy"]["MSE"]
    assert errors["SymmetricCovariance"]["MSE"] < errors["two-level covariance"]["MSE"]


def test_what_is_known_stays_for_every_net(digits):
    task = TASK
    cells = [("", name) for name in digits.groups]
    cells += [(v, name) for v, names in task.variants(digits, "quick").items() for name in names]
    for variant, group in cells:
        seen = task.view(variant, digits, "quick")
        prediction = task.variant(variant, seen, group, "quick")(seen.val.inputs)
        assert prediction.shape == seen.val.targets.shape
        hole = seen.val.aux["hole"]
        assert torch.equal(prediction[~hole], seen.val.targets[~hole])
        assert (prediction[hole] != seen.val.inputs[..., :1][hole]).float().mean() > 0.9
    sizes = {
        name: sum(p.numel() for p in task.variant(v, digits, name, "quick").parameters())
        for v, name in (("", "(S_4)^16"), (MATCHED, "trivial"))
    }
    assert 0.8 < sizes["trivial"] / sizes["(S_4)^16"] < 1.25


def test_every_epoch_has_holes_of_its_own(digits):
    task = Inpainting()
    torch.manual_seed(0)
    first, second = (task.epoch(digits.train, "quick") for _ in range(2))
    assert not torch.equal(first.inputs, second.inputs)
    for part in (first, second):
        assert torch.equal(part.inputs, cut(digits.train.targets, part.aux["hole"]))
        assert (part.aux["hole"].sum((1, 2)) == 16).all()
    assert task.epoch(digits.train, "paper") is digits.train


def test_a_fill_in_training_has_not_seen_the_image(digits):
    class Mean:
        """Fills with the mean of what it was fitted to."""

        def __init__(self, signals):
            self.mean = signals.double().mean(0).numpy()

        def impute(self, signals, observed):
            return np.where(observed, signals, self.mean)

    signals = digits.train.targets[:12]
    filled = fill_every_hole(signals, 4, Mean)
    assert filled.shape == (12, 25, 64, 1)
    hole = every_hole(8, 4)[7]
    assert torch.equal(filled[:, 7, ~hole], signals[:, ~hole])
    # A third of the others at most is missing from the mean, the image itself always.
    moved = signals.clone()
    moved[3] += 100
    again = fill_every_hole(moved, 4, Mean)
    assert torch.equal(again[3][:, 0], filled[3][:, 0] + 100 * (~every_hole(8, 4))[:, :1])
    assert (again[3, 7, hole] - filled[3, 7, hole]).abs().max() == 0
    assert (
        sum(((again[k, 7, hole] - filled[k, 7, hole]).abs() > 1).all().item() for k in range(12))
        > 7
    )


def test_a_net_that_corrects_fills_begins_at_the_fill(digits):
    task = TASK
    seen = task.view(FILL, digits, "quick")
    assert task.view(FILL, digits, "quick") is seen
    assert seen.train.inputs.shape == (80, 64, 3)
    net = task.variant(FILL, seen, "(S_16)^4", "quick")
    predict = task.baselines()["SymmetricCovariance"](digits)
    for split in (seen.val, seen.test):
        torch.testing.assert_close(net(split.inputs), predict(split))
    torch.manual_seed(0)
    part = task.epoch(seen.train, "quick")
    place = part.inputs[..., 1] > 0
    assert torch.equal(part.inputs[..., 2][~place], part.targets[..., 0][~place])
    assert (part.inputs[..., 2][place] != 0).all()


def test_conditional_mean_of_a_gaussian():
    rng = np.random.default_rng(0)
    root = rng.standard_normal((64, 64))
    covariance, mean = root @ root.T, rng.standard_normal(64)
    values = torch.from_numpy(rng.standard_normal((3, 64, 1)))
    hole = every_hole(8, 4)[[0, 7, 0]][..., None]
    found = conditional_fill(values, hole, mean, covariance)
    for x, h, y in zip(values[..., 0].numpy(), hole[..., 0].numpy(), found[..., 0], strict=True):
        # By the precision, the other way round.
        precision = np.linalg.inv(covariance)
        step = np.linalg.solve(precision[h][:, h], precision[h][:, ~h] @ (x - mean)[~h])
        np.testing.assert_allclose(y[torch.from_numpy(h)], mean[h] - step, rtol=1e-6)
        assert (y[torch.from_numpy(~h)].numpy() == x[~h]).all()


def alike(one, other):
    """Whether two splits are the same in all that anyone sees."""
    pairs = [(one.inputs, other.inputs), (one.targets, other.targets)]
    pairs += [(one.aux[name], other.aux[name]) for name in one.aux]
    return all(torch.equal(a, b) for a, b in pairs)


def test_numbers_of_signals():
    task = Inpainting()
    few = task.load_few(None, "quick", 0, 25)
    assert [len(part) for part in (few.train, few.val, few.test)] == [25, 20, 1000]
    # The first images have one of each class, in shares that hold at every number.
    more = task.load_few(None, "quick", 0, 400)
    assert alike(more.train.batch(torch.arange(25)), few.train)
    for variant in (PUBLISHED, LINEAR_PUBLISHED):
        faulty = [task.view(variant, problem, "paper").test for problem in (few, more)]
        assert alike(*faulty) and not alike(faulty[0], few.test)
    with pytest.raises(BenchmarkError, match="takes 10 to 777 training signals on digits"):
        task.load_few(None, "quick", 0, 5)


def test_the_published_protocol(digits):
    task = Inpainting()
    paper = task.load(None, "paper", 0)
    assert paper.train.inputs.shape == (80, 64, 1)
    assert torch.equal(paper.test.targets, digits.test.targets)
    assert torch.equal(paper.test.inputs[..., 0], digits.test.inputs[..., 0])
    assert list(task.variants(paper, "paper")) == [LINEAR]
    assert list(task.variants(paper, "paper", True)) == [LINEAR, PUBLISHED, LINEAR_PUBLISHED]
    assert task.schedule("paper", None) == type(task.schedule("paper", None))(500, lr=1e-2)
    net = task.model(paper, "(S_4)^16", "paper")
    # Nothing is pasted, and 2 * 28 * (k + k^2) weights with a bias per cluster.
    assert (net(paper.val.inputs) != paper.val.inputs).all()
    assert sum(p.numel() for p in net.parameters()) == 56 * (16 + 256) + 29 * 16
    right, wrong = (task.variant(v, paper, "S_64", "paper") for v in (LINEAR, LINEAR_PUBLISHED))
    assert min(p.min() for p in wrong.parameters()) >= 0
    assert min(p.min() for p in right.parameters()) < 0
    faulty = task.view(PUBLISHED, paper, "paper")
    holes = torch.cat([s.aux["hole"] for s in (faulty.train, faulty.val, faulty.test)])
    assert not holes.view(-1, 8, 8)[:, -1].any() and not holes.view(-1, 8, 8)[:, :, -1].any()
    images = [torch.cat([p.train.targets, p.val.targets]).flatten(1) for p in (faulty, paper)]
    first, second = (torch.unique(part, dim=0) for part in images)
    assert torch.equal(first, second)
    assert not torch.equal(faulty.val.targets, paper.val.targets)


def test_every_page_says_what_methods_were_told():
    for task in (Inpainting(), FlowInpainting()):
        assert task.told("quick").startswith("Every method is told where the hole is")
    assert "nets, as published, are told neither" in Inpainting().told("paper")


def test_levels_are_a_chain(digits):
    levels = Inpainting().levels(digits)
    assert [g.partition.num_clusters for g in levels] == [64, 16, 4, 1]
    net = Inpainting().variant(LEVELS, digits, "(S_4)^16", "quick")
    assert equivariance_error(net.net, digits.groups["(S_4)^16"], digits.val.inputs) < 1e-5


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
    first, second = (InpaintingMNIST().load(tmp_path, "paper", seed) for seed in (0, 1))
    assert first.dataset == "mnist"
    assert [len(part) for part in (first.train, first.val, first.test)] == [80, 20, 1000]
    assert (first.test.aux["hole"].sum((1, 2)) == 14**2).all()
    # Seeds share the images and differ in the holes.
    assert torch.equal(first.test.targets, second.test.targets)
    # Without the ablation of the mirror no image is flipped.
    flipped = InpaintingFlipped()
    flipped.files = dataclasses.replace(flipped.files, name="mnist", mean=0.1307, std=0.3081)
    for task in (InpaintingMNIST(), flipped):
        usual, *others = (task.load_few(tmp_path, "paper", 0, k) for k in (80, 25, 200))
        for other in others:
            assert alike(other.val, usual.val) and alike(other.test, usual.test)
            least = torch.arange(min(len(other.train), 80))
            assert alike(other.train.batch(least), usual.train.batch(least))
    images, twins = (
        {tuple(x) for x in torch.cat([p.train.targets, p.val.targets]).flatten(1).tolist()}
        for p in (first, second)
    )
    assert images == twins and len(images) == 100
    twin = flipped.load(tmp_path, "paper", 0)
    assert twin.dataset == "mnist, flipped"
    seen = (twin.test.targets.view(-1, 28, 28).flip(2).flatten(1)[..., None], twin.test.targets)
    turned, same = ((x == first.test.targets).all(1)[:, 0] for x in seen)
    assert (turned ^ same).all() and 400 < turned.sum() < 600
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
    raw = layer.linear.mixing.weight
    x = torch.randn(5, 64, 2)
    total = torch.zeros(5, k, 2).index_add(1, labels, x)
    mixed = torch.einsum("bsi,sito->bto", total, raw)[:, labels] / 64
    expected = torch.einsum("bni,nio->bno", x, own[labels]) + mixed + layer.linear.bias[labels]
    torch.testing.assert_close(layer(x), expected)


def test_model_has_the_symmetry_of_its_group_and_no_more(digits):
    group = digits.groups["(S_4)^16 x| S_2"]
    x = digits.val.inputs
    for name in ("", FILL):
        seen = TASK.view(name, digits, "quick")
        model = Inpainting().variant(name, seen, "(S_4)^16 x| S_2", "quick")
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter)
        # The net adds to a fill, which moves along.
        x = seen.val.inputs
        assert equivariance_error(model, group, x) < 1e-5
        assert equivariance_error(model, digits.groups["(S_16)^4"], x) > 1e-2
        assert equivariance_error(model, PermutationGroup.from_cycles(64, [(0, 9, 2)]), x) > 1e-3


def test_nothing_but_the_hole_is_learnt(digits):
    task = Inpainting()
    split = Split(digits.val.inputs, digits.val.targets, aux=digits.val.aux)
    wrong = torch.where(split.aux["hole"], split.targets + 1, split.targets)
    assert task.loss(wrong, split) == pytest.approx(16 / 64)
    assert task.metrics(wrong, split, digits)["MSE in the hole"] == pytest.approx(100)
