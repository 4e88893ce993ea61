"""Forecasts an hour ahead: split, scale, masks, metrics, ties of the embedding."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from gsym_bench.suite.task import Split
from gsym_bench.tasks import TASKS
from gsym_bench.tasks.forecasting import MISSING, PUBLISHED, SOFT, _of_freeway

TASK = TASKS["traffic-hour"]


@pytest.fixture(scope="module")
def problem():
    return TASK.load(None, "quick", 0)


def test_windows_are_two_hours_in_a_row(problem, monkeypatch):
    series = _of_freeway()
    steps = torch.arange(len(series.values)).float()
    plain = replace(series, values=steps[:, None].expand_as(series.values) + 1)
    monkeypatch.setattr(type(TASK), "series", lambda self, data: plain)
    found = TASK.load(None, "quick", 0)
    count = len(steps) - 23
    assert len(found.test) == round(0.2 * count)
    for part in (found.train, found.val, found.test):
        start = part.aux["history"][:, 0, 0]
        expected = start[:, None] + torch.arange(12)
        assert torch.equal(part.aux["history"][:, :, 3], expected)
        assert torch.equal(part.targets[:, :, 3], expected + 12)
        assert torch.equal(part.inputs[:, :, 0, 1], series.time_of_day[(expected - 1).long()])
    assert found.train.targets.max() < found.val.targets.min() + 24
    assert found.test.targets.max() == steps[-1] + 1


def test_scale_is_that_of_readings_of_the_training_part(problem):
    series = _of_freeway()
    end = round(0.7 * (len(series.values) - 23)) + 11
    seen = series.values[:end]
    seen = seen[~seen.isnan()]
    assert problem.extra["mean"] == seen.mean() and problem.extra["std"] == seen.std()
    reading, past = problem.test.inputs[..., 0], problem.test.aux["history"]
    assert (reading[past.isnan()] == MISSING).all() and past.isnan().any()
    whole = ~past.isnan()
    back = reading[whole] * problem.extra["std"] + problem.extra["mean"]
    torch.testing.assert_close(back, past[whole])


def test_metrics_by_hand_and_missing_readings_never_count():
    targets = torch.full((2, 12, 3), 50.0)
    mask = torch.ones(2, 12, 3, dtype=torch.bool)
    mask[0, 2, 0] = False
    targets[0, 2, 0] = 0.0
    prediction = targets.clone()
    prediction[0, 2] = torch.tensor([1e6, 60.0, 50.0])
    prediction[1, 11, 1] = 44.0
    found = TASK.metrics(prediction, Split(targets, targets, mask), None)
    assert next(iter(found)) == TASK.metric
    assert found["MAE, 30 min"] == 0
    assert found["MAE, 15 min"] == pytest.approx(10 / 5)
    assert found["RMSE, 15 min"] == pytest.approx((100 / 5) ** 0.5)
    assert found["MAPE, 15 min"] == pytest.approx(20 / 5)
    assert found["MAE, 60 min"] == pytest.approx(6 / 6)
    assert TASK.loss(prediction, Split(targets, targets, mask)) == pytest.approx(16 / 71)


@pytest.mark.parametrize("name", ["traffic-hour", "traffic"])
def test_an_error_where_nothing_was_read_is_no_number(name):
    task, x = TASKS[name], torch.ones(2, 12, 3)
    split = Split(x, x, torch.zeros(2, 12, 3, dtype=torch.bool))
    assert all(value != value for value in task.metrics(x, split, None).values())
    assert task.loss(x, split) == 0


@pytest.mark.parametrize("name", ["S_48", "12 stations", "trivial", SOFT])
def test_only_the_embedding_tells_nodes_apart(problem, name):
    torch.manual_seed(0)
    model = TASK.model(problem, name, "quick").eval()
    x = problem.test.inputs[:4]
    assert model(x).shape == (4, 12, 48)
    # A cycle of three lanes of a station, and one of three stations.
    for cycle, is_symmetry in (([0, 1, 2], name in ("S_48", "12 stations")), ([0, 4, 8], False)):
        perm = torch.arange(48)
        perm[cycle] = torch.tensor([*cycle[1:], cycle[0]])
        moved, expected = torch.empty_like(x), torch.empty(4, 12, 48)
        moved[:, :, perm] = x
        expected[..., perm] = model(x)
        error = (model(moved) - expected).abs().max()
        assert (error < 1e-3) == (is_symmetry or name == "S_48")


def test_baselines_by_hand(problem):
    test = problem.test
    last = TASK.baselines()["last value"](problem)(test)
    past = test.aux["history"]
    known = ~past[:, -1].isnan()
    assert torch.equal(last[:, 5][known], past[:, -1][known]) and not last.isnan().any()
    table = TASK.baselines()["time of day"](problem)(test)
    slot, node = int(problem.train.aux["slot"][0, 0]), 5
    where = problem.train.aux["slot"] == slot
    own = problem.train.targets[..., node][where & problem.train.mask[..., node]]
    place = (test.aux["slot"] == slot).nonzero()[0]
    assert table[place[0], place[1], node] == pytest.approx(own.mean().item(), rel=1e-5)


def test_published_numbers_belong_to_metr_la(problem):
    assert not problem.published and not TASK.published("freeway (simulated)")
    quoted = TASK.published("metr-la")
    assert quoted["STID"] == {"MAE, 15 min": 2.82, "MAE, 30 min": 3.19, "MAE, 60 min": 3.55}
    assert {next(iter(numbers)) for numbers in quoted.values()} == {TASK.metric}
    assert quoted.keys() == PUBLISHED.keys()
