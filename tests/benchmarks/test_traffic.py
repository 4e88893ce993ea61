"""The traffic task: what it splits, scales, masks, measures and proposes."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from gsym_bench.data import DataError
from gsym_bench.suite.task import Problem, Split
from gsym_bench.tasks import traffic
from gsym_bench.tasks.traffic import Traffic

ROOT = Path(__file__).resolve().parents[2]
TASK = Traffic()
STEPS, SENSORS = 400, 40


@pytest.fixture(scope="module")
def problem():
    return TASK.load(None, "quick", 0)


@pytest.fixture
def recording():
    """Arrays in the form of METR-LA; speeds grow with time, so they tell when they were taken."""
    rng = np.random.default_rng(0)
    place = rng.uniform(0, 0.2, size=(SENSORS, 2))
    apart = np.linalg.norm(place[:, None] - place, axis=-1)
    adjacency = np.exp(-((apart / 0.05) ** 2)) * (rng.random((SENSORS, SENSORS)) < 0.7)
    adjacency[adjacency < 0.1] = 0
    np.fill_diagonal(adjacency, 1)
    speed = 10 + 0.1 * np.arange(STEPS)[:, None] + np.zeros(SENSORS)
    return {
        "speed": speed.astype(np.float32),
        "time_unix": 1_330_560_000 + 300 * np.arange(STEPS),
        "adj": adjacency.astype(np.float32),
        "latlon": place + np.array([34.1, -118.3]),
    }


@pytest.fixture
def load(recording, tmp_path):
    """Load a problem from a file with some arrays replaced."""

    def load(profile="standard", seed=0, **changes):
        folder = tmp_path / "traffic"
        folder.mkdir(exist_ok=True)
        np.savez(folder / "metr_la.npz", **{**recording, **changes})
        traffic.metr_la.cache_clear()
        return TASK.load(tmp_path, profile, seed)

    return load


def with_gaps(speed):
    """One reading of six missing at random, and one sensor silent in the training part."""
    holes = np.random.default_rng(1).random(speed.shape) < 1 / 6
    holes[: int(0.7 * STEPS), 3] = True
    return np.where(holes, 0, speed).astype(np.float32)


def test_a_missing_file_is_named_with_the_way_to_get_it(tmp_path):
    with pytest.raises(DataError, match=r"traffic.metr_la\.npz.*data_scripts\.fetch metr-la --out"):
        TASK.load(tmp_path, "quick", 0)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("adj", np.eye(7, dtype=np.float32), r"adj must have shape \(40, 40\).*got \(7, 7\)"),
        ("time_unix", np.arange(9), r"time_unix must have shape \(400,\).*got \(9,\)"),
        ("latlon", np.zeros((40, 3)), r"latlon must have shape \(40, 2\).*got \(40, 3\)"),
        ("speed", np.full((400, 40), np.nan, np.float32), "speed must be in mph"),
        ("speed", np.full((400, 40), -1, np.float32), "speed must be in mph"),
    ],
)
def test_a_bad_file_is_refused(load, key, value, message):
    with pytest.raises(DataError, match=message):
        load(**{key: value})


def test_splits_do_not_overlap_in_time(load):
    problem = load()
    spans = []
    for split in (problem.train, problem.val, problem.test):
        seen = torch.cat([split.aux["history"].flatten(), split.targets.flatten()])
        spans.append((float(seen.min()), float(seen.max())))
    for (_, last), (first, _) in pairwise(spans):
        assert last < first
    assert spans[0][0] == pytest.approx(10)
    assert spans[-1][1] == pytest.approx(10 + 0.1 * (STEPS - 1))


def test_windows_are_six_steps_in_a_row(load):
    problem = load()
    for split in (problem.train, problem.val, problem.test):
        window = torch.cat([split.aux["history"], split.targets], dim=1)
        torch.testing.assert_close(window.diff(dim=1), torch.full_like(window[:, 1:], 0.1))
    assert len(problem.train) == int(0.7 * STEPS) - 5


def test_test_windows_are_views(problem):
    size = problem.test.inputs.untyped_storage().nbytes()
    assert size < problem.test.inputs.numel() * 4 / 2


def test_scaler_sees_observed_training_values_only(load, recording):
    speed = with_gaps(recording["speed"])
    problem = load(speed=speed)
    train = torch.from_numpy(speed[: int(0.7 * STEPS)])
    mean, std = train[train > 0].mean(), train[train > 0].std()
    torch.testing.assert_close(problem.extra["mean"], mean)
    torch.testing.assert_close(problem.extra["std"], std)
    for split in (problem.train, problem.val, problem.test):
        history = split.aux["history"]
        expected = torch.where(history > 0, (history - mean) / std, 0)
        torch.testing.assert_close(split.inputs[..., 0], expected)


def test_second_input_is_the_time_of_day(load):
    inputs = load().test.inputs
    step = torch.arange(int(0.8 * STEPS), STEPS - 5)[:, None] + torch.arange(3)
    expected = (step % 288 / 288)[..., None].expand(-1, -1, SENSORS)
    torch.testing.assert_close(inputs[..., 1], expected)


def test_slots_are_quarters_of_an_hour(load):
    slot = load().test.aux["slot"]
    step = torch.arange(int(0.8 * STEPS) + 3, STEPS - 2)[:, None] + torch.arange(3)
    assert torch.equal(slot, step % 288 // 3)


def test_missing_values_never_count(load, recording):
    problem = load(speed=with_gaps(recording["speed"]))
    for split in (problem.train, problem.val, problem.test):
        assert torch.equal(split.mask, split.targets > 0)
        assert not split.mask.all()
    split = problem.test
    right = torch.where(split.mask, split.targets + 2, 0)
    wrong = torch.where(split.mask, split.targets + 2, 1e6)
    expected = {"masked MAE": pytest.approx(2, 1e-4), "masked RMSE": pytest.approx(2, 1e-4)}
    assert TASK.metrics(right, split, problem) == expected
    assert TASK.metrics(wrong, split, problem) == expected
    wrong.requires_grad_()
    TASK.loss(wrong, split).backward()
    assert (wrong.grad[~split.mask] == 0).all()
    assert (wrong.grad[split.mask] != 0).all()


def test_metrics_by_hand(problem):
    targets = torch.tensor([[[60.0, 0.0], [50.0, 40.0]]])
    prediction = torch.tensor([[[57.0, 9.0], [54.0, 40.0]]])
    split = Split(prediction, targets, targets > 0)
    metrics = TASK.metrics(prediction, split, problem)
    assert next(iter(metrics)) == TASK.metric
    assert metrics["masked MAE"] == pytest.approx(7 / 3)
    assert metrics["masked RMSE"] == pytest.approx((25 / 3) ** 0.5)
    assert float(TASK.loss(prediction, split)) == pytest.approx(7 / 3)


def test_a_batch_without_observations_moves_nothing():
    prediction = torch.ones(2, 3, 4, requires_grad=True)
    targets = torch.zeros(2, 3, 4)
    loss = TASK.loss(prediction, Split(targets, targets, targets > 0))
    loss.backward()
    assert loss.item() == 0
    assert (prediction.grad == 0).all()


def test_the_seed_draws_training_windows_only(problem):
    again, other = TASK.load(None, "quick", 0), TASK.load(None, "quick", 1)
    assert torch.equal(problem.train.inputs, again.train.inputs)
    assert not torch.equal(problem.train.inputs, other.train.inputs)
    for name in ("val", "test"):
        assert torch.equal(getattr(problem, name).targets, getattr(other, name).targets)


def assert_nested(groups, n):
    partitions = [group.partition for group in groups.values()]
    assert len(partitions) >= 5
    assert partitions[0].num_clusters == 1
    assert partitions[-1].num_clusters == n
    for coarse, fine in pairwise(partitions):
        assert fine.refines(coarse)
        assert fine.num_clusters > coarse.num_clusters


def test_candidates_of_the_freeway(problem):
    assert_nested(problem.groups, 48)
    assert problem.truth == "12 stations"
    truth = problem.groups[problem.truth]
    assert truth.order() == 24**12
    kept = [g.preserves(problem.edge_index, problem.edge_weight) for g in problem.groups.values()]
    assert kept == [False, False, False, True, True]


def test_candidates_of_files(load):
    problem = load()
    assert list(problem.groups) == ["S_40", "2 clusters", "9 clusters", "32 clusters", "trivial"]
    assert_nested(problem.groups, SENSORS)
    assert problem.truth is None
    assert not (problem.edge_index[0] == problem.edge_index[1]).any()


def test_pairs_face_each_other_on_one_road():
    # Eastbound 0 to 3, westbound 4 to 7 in driving order, a northbound road 8 to 10 across.
    east = [(float(i), 0.0) for i in range(4)]
    west = [(3.02 - i, 0.03) for i in range(4)]
    north = [(1.01, i - 0.99) for i in range(3)]
    lone = [(2.0, 0.01)]
    positions = np.array([*east, *west, *north, *lone])
    adjacency = np.zeros((12, 12))
    for road in (range(4), range(4, 8), range(8, 11)):
        for start, end in pairwise(road):
            adjacency[start, end] = 0.5
    pairs = [(0, 7), (1, 6), (2, 5), (3, 4)]
    assert traffic.opposite_pairs(adjacency, positions) == pairs
    group = traffic.exchanging(pairs, 12)
    assert group.order() == 2**4 and group.contains([7, 1, 2, 3, 4, 5, 6, 0, *range(8, 12)])
    # A way round at the next exit changes nothing.
    adjacency[[2, 5], [5, 2]] = 0.6, 0.4
    assert traffic.opposite_pairs(adjacency, positions) == pairs
    # Two roads of one direction are no pair, nor are directions that lie apart.
    assert traffic.opposite_pairs(adjacency, 4 * positions) == []
    assert traffic.opposite_pairs(np.zeros((12, 12)), positions) == []
    adjacency[4:8, 4:8] = adjacency[4:8, 4:8].T
    assert traffic.opposite_pairs(adjacency, positions) == []


def test_candidates_do_not_look_at_speeds(load, recording):
    other = np.random.default_rng(2).permuted(recording["speed"], axis=0)
    for group, same in zip(load().groups.values(), load(speed=other).groups.values(), strict=True):
        assert group.partition == same.partition


@pytest.mark.parametrize("name", ["S_48", "12 stations", "trivial"])
def test_model_predicts_mph_and_respects_its_group(problem, name):
    torch.manual_seed(0)
    model = TASK.model(problem, name, "quick")
    inputs = problem.val.inputs[:8]
    with torch.no_grad():
        prediction = model(inputs)
        assert prediction.shape == problem.val.targets[:8].shape
        assert (prediction - problem.extra["mean"]).abs().max() < 5 * problem.extra["std"]
        lanes = torch.arange(48)
        lanes[[4, 7]] = lanes[[7, 4]]
        error = (model(inputs[:, :, lanes]) - prediction[:, :, lanes]).abs().max()
    # the graph is preserved by an exchange of lanes; weights of their own are not
    assert (error > 1e-2) == (name == "trivial")


def test_schedule_knows_every_profile():
    for profile in ("quick", "standard"):
        for data in (None, Path("data")):
            schedule = TASK.schedule(profile, data)
            assert (schedule.lr, schedule.clip) == (1e-2, 5.0)


@pytest.fixture
def tiny():
    """Two sensors; the second never reports while the first is measured."""
    history = torch.tensor(
        [[[50.0, 0.0], [52.0, 0.0], [0.0, 0.0]], [[0.0, 30.0], [0.0, 0.0], [0.0, 0.0]]]
    )
    targets = torch.tensor([[[60.0, 0.0]] * 3, [[40.0, 0.0]] * 3])
    inputs = torch.stack([history, torch.zeros_like(history)], dim=-1)
    slot = torch.tensor([[5, 5, 6], [5, 5, 6]])
    split = Split(inputs, targets, targets > 0, {"history": history, "slot": slot})
    edge_index = torch.tensor([[0, 1], [1, 0]])
    extra = {"mean": torch.tensor(45.0), "std": torch.tensor(10.0)}
    return Problem("tiny", split, split, split, edge_index, torch.zeros(2, 2), {}, extra=extra)


def test_last_value_by_hand(tiny):
    prediction = TASK.baselines()["last value"](tiny)(tiny.test)
    # sensor 0 of the second window falls back on its mean of 60 and 40
    torch.testing.assert_close(prediction, torch.tensor([[[52.0, 45.0]] * 3, [[50.0, 30.0]] * 3]))


def test_time_of_day_by_hand(tiny):
    first = tiny.train.batch(torch.tensor([0]))
    moved = replace(first, aux={**first.aux, "slot": torch.tensor([[5, 6, 7]])})
    prediction = TASK.baselines()["time of day"](tiny)(moved)
    # slot 7 was never seen, nor was sensor 1
    torch.testing.assert_close(prediction, torch.tensor([[[50.0, 45.0]] * 3]))
    targets = tiny.train.targets.clone()
    targets[:, 2, 0] = 30
    changed = replace(tiny, train=replace(tiny.train, targets=targets))
    prediction = TASK.baselines()["time of day"](changed)(moved)
    torch.testing.assert_close(prediction[0, :, 0], torch.tensor([50.0, 30.0, 260 / 6]))


def test_ridge_fits_each_sensor(load):
    rng = np.random.default_rng(3)
    speed = 40 + 10 * np.sin(np.arange(STEPS)[:, None] / 9 + np.arange(SENSORS))
    speed += rng.normal(0, 0.1, size=speed.shape)
    speed[: int(0.7 * STEPS), 3] = 0
    problem = load(speed=speed.astype(np.float32))
    ridge, last = (
        TASK.baselines()[name](problem)(problem.test) for name in ("ridge", "last value")
    )
    # a sensor that was silent in training gets the mean of all
    torch.testing.assert_close(ridge[..., 3], problem.extra["mean"].expand(len(ridge), 3))
    known = torch.arange(SENSORS) != 3
    ridge_error, last_error = (
        (prediction - problem.test.targets)[..., known].abs().mean() for prediction in (ridge, last)
    )
    assert ridge_error < last_error / 4


def test_a_short_training_beats_the_last_value(problem):
    torch.manual_seed(0)
    model = TASK.model(problem, "12 stations", "quick")
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(20):
        for index in torch.randperm(len(problem.train)).split(16):
            batch = problem.train.batch(index)
            optimizer.zero_grad()
            TASK.loss(model(batch.inputs), batch).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
    with torch.no_grad():
        learned = TASK.metrics(model(problem.val.inputs), problem.val, problem)
    last = TASK.baselines()["last value"](problem)(problem.val)
    assert learned["masked MAE"] < TASK.metrics(last, problem.val, problem)["masked MAE"] - 0.2


@pytest.fixture(scope="module")
def metr_la():
    data = ROOT.parent / "shared" / "data"
    if not (data / "traffic" / "metr_la.npz").is_file():
        pytest.skip(f"no METR-LA in {data}; see data_scripts/fetch.py")
    return TASK.load(data, "standard", 0)


def test_metr_la(metr_la):
    assert metr_la.edge_index.shape == (2, 1515)
    directions = metr_la.groups["(S_2)^55, directions"].partition
    assert sorted(directions.sizes) == [1] * 97 + [2] * 55
    edges = {frozenset(edge) for edge in metr_la.edge_index.T.tolist()}
    pairs = [frozenset(np.flatnonzero(directions.labels == c)) for c in range(152)]
    assert sum(pair in edges for pair in pairs if len(pair) == 2) == 49
    nested = {name: g for name, g in metr_la.groups.items() if "directions" not in name}
    assert_nested(nested, 207)
    # most roads do not cross the border between the two clusters
    labels = metr_la.groups["2 clusters"].partition.labels
    start, end = labels[metr_la.edge_index]
    assert (start != end).float().mean() < 0.1
    assert min(metr_la.groups["2 clusters"].partition.sizes) > 50
    assert len(metr_la.test) == 34_272 - int(0.8 * 34_272) - 5
    last = TASK.baselines()["last value"](metr_la)(metr_la.test)
    assert TASK.metrics(last, metr_la.test, metr_la)["masked MAE"] == pytest.approx(3.17, abs=0.01)
