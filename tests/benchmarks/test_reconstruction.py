"""Filling gaps as a task: what is drawn, hidden, fitted and measured."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gsym_bench.suite.errors import BenchmarkError
from gsym_bench.suite.task import Split
from gsym_bench.tasks import TASKS
from gsym_bench.tasks.reconstruction import COVERAGE, LIMBS, MIXTURE, TEST, VALIDATION
from gsym_bench.tasks.skeleton import REFLECTION

SENSORS, BODIES = TASKS["reconstruction"], TASKS["reconstruction-poses"]


@pytest.fixture(scope="module")
def roads():
    return SENSORS.load_few(None, "quick", 0, 25)


@pytest.fixture(scope="module")
def bodies():
    return BODIES.load_few(None, "quick", 0, 40)


def test_every_other_signal_lacks_a_block(roads, bodies):
    for problem, at_random, block in ((roads, round(0.4 * 48), round(0.3 * 48)), (bodies, 6, 3)):
        sizes = (len(problem.train), VALIDATION, TEST)
        for part, size in zip((problem.train, problem.val, problem.test), sizes, strict=True):
            assert len(part) == size
            hidden = part.aux["hole"][..., 0]
            assert (hidden[::2].sum(1) == at_random).all()
            assert (hidden[1::2].sum(1) == block).all()
            assert (part.inputs[..., -1] == ~hidden).all()
            assert (part.inputs[..., :-1][hidden] == 0).all()
            kept = part.targets * ~hidden[..., None]
            assert torch.equal(part.inputs[..., :-1], kept)
        assert (problem.extra["patterns"].sum(1) < problem.positions.size(0)).all()
    lost = {tuple(np.flatnonzero(row)) for row in bodies.test.aux["hole"][1::2, :, 0]}
    assert lost == set(LIMBS)


def test_training_signals_are_whole_and_none_is_filled(roads):
    assert (roads.train.targets > 0).all()
    seen = {signal.numpy().tobytes() for signal in roads.train.targets}
    assert len(seen) == 25
    for part in (roads.val, roads.test):
        assert not seen & {signal.numpy().tobytes() for signal in part.targets}


def test_fewer_signals_are_among_the_more(roads):
    more = SENSORS.load_few(None, "quick", 0, 60)
    assert torch.equal(more.train.targets[:25], roads.train.targets)
    assert torch.equal(more.test.inputs, roads.test.inputs)
    other = SENSORS.load_few(None, "quick", 1, 25)
    assert not torch.equal(other.train.targets, roads.train.targets)
    assert not torch.equal(other.test.inputs, roads.test.inputs)


@pytest.mark.parametrize("signals", [3, 10**7])
def test_too_few_or_too_many_signals_are_refused(signals):
    with pytest.raises(BenchmarkError, match=rf"from 4 to .* signals; got --signals {signals}"):
        SENSORS.load_few(None, "quick", 0, signals)


def test_metrics_by_hand():
    hidden = torch.tensor([[True, False], [False, True]])[..., None]
    targets = torch.tensor([[[1.0], [5.0]], [[2.0], [3.0]]])
    split = Split(targets, targets, aux={"hole": hidden})
    # Wrong by 1 and by 4 where it counts, and by far where it does not.
    filled = torch.tensor([[[2.0], [99.0]], [[-50.0], [7.0]]])
    found = SENSORS.metrics(filled, split, None)
    assert found == {"MAE": 2.5, "MAE, at random": 1.0, "MAE, blocked": 4.0}
    with_variance = torch.cat([filled, torch.ones_like(filled)], dim=-1)
    assert SENSORS.metrics(with_variance, split, None)[COVERAGE] == 0.5
    body = torch.zeros(2, 1, 3)
    split = Split(body, body, aux={"hole": torch.ones(2, 1, 1, dtype=torch.bool)})
    moved = torch.tensor([[[0.003, 0.0, 0.004]], [[0.0, 0.0, 0.001]]])
    assert BODIES.metrics(moved, split, None)["joint error"] == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("group", "moves"), [("(S_3)^4 x| (S_2)^2", False), (REFLECTION, False), ("trivial", True)]
)
def test_models_respect_their_group_and_no_more(bodies, group, moves):
    """Around the mean of each node, which the group does not move."""
    model, test = BODIES.model(bodies, group, "quick"), bodies.test
    mean, seen = bodies.train.targets.mean(0), test.inputs[..., 3:]
    sign = torch.ones(3)
    if group == REFLECTION:
        perm, sign = bodies.groups[group].generators[0], torch.tensor([-1.0, 1, 1])
    else:
        # A cycle of the joints of one leg: a swap would hide a reversed convention.
        perm = torch.arange(16)
        perm[[1, 2, 3]] = torch.tensor([2, 3, 1])

    def act(x):
        moved = torch.empty_like(x)
        moved[:, perm] = x
        return moved

    def fill(errors, seen):
        return model(torch.cat([(mean + errors) * seen, seen], dim=-1))[..., :3] - mean

    errors = test.targets - mean
    apart = fill(act(errors * sign), act(seen)) - act(fill(errors, seen) * sign)
    assert (apart.abs().max() > 0.05) if moves else (apart.abs().max() < 1e-4)


def test_what_is_seen_stays_and_the_rest_is_learnt(roads):
    def error(name, problem=roads):
        if name in problem.groups:
            filled = SENSORS.model(problem, name, "quick")(problem.test.inputs)
        else:
            filled = SENSORS.baselines()[name](problem)(problem.test)
        seen = ~problem.test.aux["hole"].expand_as(problem.test.targets)
        torch.testing.assert_close(filled[..., :1][seen], problem.test.targets[seen])
        return SENSORS.metrics(filled, problem.test, problem)["MAE"]

    errors = {name: error(name) for name in (*roads.groups, *SENSORS.baselines())}
    assert errors[MIXTURE] < 0.6 * errors["mean of each node"]
    assert errors[MIXTURE] < errors["trivial"]
    assert errors["12 stations"] < errors["S_48"]


def test_examples(roads, bodies):
    day = SENSORS.example(roads).axes[0]
    assert {text.get_text() for text in day.get_legend().get_texts()} >= {"truth", "Ledoit-Wolf"}
    figure = BODIES.example(bodies)
    assert len(figure.axes) == 4
    # An ellipse larger than a body would say nothing.
    sizes = [patch.width for axes in figure.axes for patch in axes.patches]
    assert len(sizes) == 12 and max(sizes) < 1.0
