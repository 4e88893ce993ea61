"""Seeds that train together: the rows of each seed alone, to rounding."""

from __future__ import annotations

import dataclasses
import itertools
import re

import pytest
import torch
from torch import nn
from toy_task import ToyTask

from gsym_bench.suite import engine, work
from gsym_bench.suite.errors import BenchmarkError
from gsym_bench.suite.report.markdown import write_report
from gsym_bench.suite.run import run
from gsym_bench.suite.task import Schedule


class Smooth(ToyTask):
    """A model that draws nothing when it is called; seeds differ in their data and batches."""

    def __init__(self, diverge: int | None = None, **options):
        super().__init__(**options)
        self.diverge = diverge

    def load(self, data, profile, seed):
        problem = super().load(data, profile, seed)
        if seed == self.diverge:
            problem.train.targets.mul_(torch.inf)
        return problem

    def schedule(self, profile, data):
        return Schedule(epochs=6, batch_size=5, lr=0.05, clip=0.5, cosine=True, eval_every=2)

    def model(self, problem, group, profile):
        self.fits += 1
        return nn.Sequential(nn.Flatten(-2), nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 4), Column())


class Column(nn.Module):
    def forward(self, x):
        return x[..., None]


@pytest.fixture
def go(tmp_path):
    def go(task, out, **options):
        options = {"seeds": 3, "groups": ("trivial",), "checkpoint_seconds": 0.0} | options
        return run([task], out=tmp_path / out, device="cpu", **options)

    return go


def comparable(rows):
    keep = [
        "model",
        "group",
        "seed",
        "checksum",
        "status",
        "epochs",
        "best_epoch",
        "parameters",
        "fold",
    ]
    return sorted(([getattr(r, k) for k in keep] for r in rows), key=str)


def values(rows):
    rows = sorted(rows, key=lambda row: (row.group, row.seed))
    measured = [v for row in rows for v in row.values if v.split != "train"]
    return [v.value for v in measured if v.value is not None]


def test_rows_are_those_of_seeds_alone(go):
    alone = go(Smooth(), "alone")
    together = go(Smooth(), "together", batched_seeds=True)
    assert comparable(together) == comparable(alone)
    assert values(together) == pytest.approx(values(alone), rel=1e-5)
    assert len({v for v in values(together)[-12:]}) == 12  # each seed has its own numbers
    key = {(row.group, row.seed): row.key for row in alone}
    assert all((key[r.group, r.seed] == r.key) == r.is_baseline for r in together)


def test_memory_says_whose_it_is(go, tmp_path, monkeypatch):
    monkeypatch.setattr(work, "peak_memory", lambda device: lambda: 33.0)
    together = go(Smooth(), "out", batched_seeds=True)
    assert [row.together for row in together] == [None, None, None, 3, 3, 3]
    page = write_report(tmp_path / "out").read_text()
    assert re.search(r"^\| \*\*trivial .* \| 33 for 3 seeds \|$", page, re.MULTILINE)
    assert re.search(r"^\| copy .* \| 33 \|$", page, re.MULTILINE)
    assert "Memory “for” several seeds is what all of those took" in page
    alone = go(Smooth(), "alone")
    assert {row.together for row in alone} == {None}
    assert "Memory “for”" not in write_report(tmp_path / "alone").read_text()


def test_one_seed_that_diverges_leaves_the_others_alone(go, tmp_path):
    alone = go(Smooth(diverge=1), "alone")
    together = go(Smooth(diverge=1), "together", batched_seeds=True)
    assert comparable(together) == comparable(alone)
    assert [r.status for r in together if r.group] == ["ok", "diverged", "ok"]
    assert values(together) == pytest.approx(values(alone), rel=1e-5)
    (path,) = (tmp_path / "together" / "diverged").iterdir()
    assert torch.load(path, weights_only=True)["seed"] == 1


def test_a_killed_training_goes_on_bit_for_bit(go, tmp_path):
    whole = go(Smooth(), "whole", batched_seeds=True)
    with pytest.raises(KeyboardInterrupt):
        go(Smooth(fail_at=14, error=KeyboardInterrupt()), "killed", batched_seeds=True)
    assert len(list((tmp_path / "killed" / "checkpoints").iterdir())) == 1
    after = Smooth()
    again = go(after, "killed", batched_seeds=True)
    assert after.steps == 3 * 18 - 9  # three seeds of three steps an epoch; one epoch was kept
    assert values(again) == values(whole)
    assert not list((tmp_path / "killed" / "checkpoints").iterdir())


def test_seeds_that_began_together_end_together(go, tmp_path, monkeypatch):
    whole = go(Smooth(), "whole", batched_seeds=True)
    append, count = engine.append_row, itertools.count()

    def die(out, row, name):
        if row.group and next(count) == 1:  # the first of three has its row
            raise KeyboardInterrupt
        append(out, row, name)

    with monkeypatch.context() as patch:
        patch.setattr(engine, "append_row", die)
        with pytest.raises(KeyboardInterrupt):
            go(Smooth(), "killed", batched_seeds=True)
    after = Smooth()
    again = go(after, "killed", batched_seeds=True)
    assert after.steps == 0 and values(again) == values(whole)
    assert not list((tmp_path / "killed" / "checkpoints").iterdir())


def test_models_that_draw_train_one_by_one_and_it_is_said(go):
    alone = go(ToyTask(), "alone")
    with pytest.warns(UserWarning, match="its seeds train one by one: .*random"):
        together = go(ToyTask(), "together", batched_seeds=True)
    assert [row.together for row in together if row.group] == [1, 1, 1]
    assert values(together) == values(alone)


def test_seeds_with_fewer_samples_train_one_by_one(go):
    class Fewer(Smooth):
        def load(self, data, profile, seed):
            problem = super().load(data, profile, seed)
            train = problem.train.batch(torch.arange(12 - seed))
            return dataclasses.replace(problem, train=train)

    alone = go(Fewer(), "alone", seeds=2)
    with pytest.warns(UserWarning, match="one by one: their batches have other shapes"):
        together = go(Fewer(), "together", seeds=2, batched_seeds=True)
    assert values(together) == values(alone)


class Tied(nn.Module):
    """Weights of one size whatever the group: the nodes that exchange are a table, no state."""

    def __init__(self, cycle):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))  # silent at first
        perm = torch.arange(4)
        perm[cycle] = torch.tensor(cycle[1:] + cycle[:1])
        self.register_buffer("perm", perm, persistent=False)
        self.cycle = perm.tolist()

    def forward(self, x):
        return self.weight[0] * x + self.weight[1] * x[:, self.cycle]


def test_seeds_with_other_groups_train_one_by_one(go):
    class Other(Smooth):
        def load(self, data, profile, seed):
            return dataclasses.replace(
                super().load(data, profile, seed), extra={"seed": torch.tensor(seed)}
            )

        def model(self, problem, group, profile):
            self.fits += 1
            return Tied([0, 1, 2] if int(problem.extra["seed"]) == 0 else [1, 2, 3])

    alone = go(Other(), "alone", seeds=2)
    with pytest.warns(UserWarning, match="one by one: they differ in more than their weights"):
        together = go(Other(), "together", seeds=2, batched_seeds=True)
    assert values(together) == values(alone)


def test_quoted_rows_stand_beside_batched_seeds(go):
    class Quoted(Smooth):
        def load(self, data, profile, seed):
            problem = super().load(data, profile, seed)
            return dataclasses.replace(problem, published={"theirs": {self.metric: 1.0}})

    alone = go(Quoted(), "alone")
    together = go(Quoted(), "together", batched_seeds=True)
    assert comparable(together) == comparable(alone)
    assert [row.seed for row in together if row.model == "theirs, as published"] == [0]
    assert sorted(row.seed for row in together if row.group) == [0, 1, 2]


def test_faults_are_added_to_the_published_protocol_alone(go):
    with pytest.raises(BenchmarkError, match="got --profile quick"):
        go(Smooth(), "out", as_published=True)
