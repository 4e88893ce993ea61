"""How long a run takes: the arithmetic of the forecast, and what is said of it."""

from __future__ import annotations

import csv
import math

import psutil
import pytest
import torch
from threadpoolctl import threadpool_info
from toy_task import ToyTask

from gsym_bench.suite import cores, costing, forecast
from gsym_bench.suite.cores import share_cores, use_threads
from gsym_bench.suite.forecast import LEAST, MOST, Forecast, in_words, kind_of
from gsym_bench.suite.loaded import Loaded
from gsym_bench.suite.run import Cells, run
from gsym_bench.suite.task import Schedule
from gsym_bench.tasks import TASKS


def middle(span):
    """What a span says without its margins."""
    assert span is not None
    return span[0] / LEAST, span[1] / MOST


def test_cells_are_shared_by_workers():
    four = Forecast(dict.fromkeys("abcd", 10.0), workers=2, seconds=3.0)
    # Twenty pieces of work each; at worst one worker begins the last cell when the other ends.
    assert middle(four.left(0.0)) == pytest.approx((60.0, 75.0))
    assert middle(Forecast({"a": 10.0}, 1, 3.0).left(0.0)) == pytest.approx((30.0, 30.0))


def test_no_run_ends_before_its_longest_cell():
    cells = Forecast({"long": 100.0, "a": 2.0, "b": 2.0}, workers=2, seconds=1.0)
    assert middle(cells.left(0.0)) == pytest.approx((100.0, 102.0))


def test_what_is_seen_outweighs_what_was_measured():
    cells = Forecast(dict.fromkeys(range(100), 1.0), workers=1, seconds=1.0)
    for cell in range(50):
        cells.finish(cell)
    # A tenth of the run is trusted to the measured speed: (150 + 10 * 1) / (50 + 10) per piece.
    assert middle(cells.left(150.0)) == pytest.approx((50 * 160 / 60,) * 2)
    for cell in range(50, 100):
        cells.finish(cell)
    assert cells.left(300.0) == (0.0, 0.0)


def test_finished_cells_tell_no_speed():
    cells = Forecast({"old": 50.0, "new": 10.0, "next": 10.0}, workers=1, seconds=None)
    assert cells.left(5.0) is None
    cells.finish("old", ran=False)
    assert cells.left(5.0) is None
    cells.finish("new")
    assert middle(cells.left(30.0)) == pytest.approx((30.0, 30.0))


def test_cells_of_unknown_cost_are_like_the_others():
    cells = Forecast({"a": 10.0, "b": 30.0, "c": None}, workers=1, seconds=1.0)
    assert cells.unknown == 1
    assert middle(cells.left(0.0)) == pytest.approx((60.0, 60.0))


def test_a_span_is_told_in_minutes():
    assert in_words((3.0, 20.0)) == "about 1 min"
    assert in_words((200.0, 310.0)) == "3 to 5 min"


@pytest.mark.parametrize(
    ("asked", "variable", "workers", "threads"),
    [(None, "", 6, 1), (None, "2", 3, 2), (2, "", 2, 3), (2, "1", 2, 1), (9, "", 9, 1)],
)
def test_workers_share_the_cores(monkeypatch, asked, variable, workers, threads):
    monkeypatch.setattr(cores, "usable_cores", lambda: 6)
    monkeypatch.setattr(cores, "_LARGEST_CELL", 1)
    monkeypatch.setenv("OMP_NUM_THREADS", variable)
    torch.set_num_threads(int(variable or 5))
    assert share_cores(asked) == workers
    assert torch.get_num_threads() == threads


def test_threads_are_those_of_every_library():
    """BLAS pools have a thread for each core of their own, which workers would all wait for."""
    for number in (2, 1):
        use_threads(number)
        assert torch.get_num_threads() == number
        assert {pool["num_threads"] for pool in threadpool_info()} == {number}


def test_memory_bounds_the_workers(monkeypatch):
    monkeypatch.setattr(cores, "usable_cores", lambda: 6)
    monkeypatch.setattr(cores, "_LARGEST_CELL", psutil.virtual_memory().total)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert share_cores(None) == 1


@pytest.fixture
def told(monkeypatch, tmp_path, capsys):
    """Run a toy whose cells cost so much, on a machine of so many seconds per piece of work."""

    def told(costs, task=None, **options):
        monkeypatch.setattr(forecast, "known_costs", lambda: costs)
        run([task or ToyTask()], out=tmp_path, device="cpu", **options)
        return capsys.readouterr().out

    monkeypatch.setattr(forecast, "seconds_of_work", lambda workers, threads: 60.0 * workers)
    return told


def toy(model, group=""):
    return "toy", "noise", "quick", model, group


def test_what_is_planned_is_said_before_it_begins(told):
    costs = {toy("copy"): 1.0, toy("dense", "trivial"): 5.0}
    first = told(costs, groups=("trivial",), seeds=2).splitlines()[0]
    # 2 (1 + 5) pieces of work, a minute each.
    assert first.startswith("[0/4] 4 cells to run by one worker will take 10 to 16 min")
    more = told(costs, groups=("trivial",), seeds=3).splitlines()[0]
    assert more.startswith("[0/6] 2 cells to run by one worker will take 5 to 8 min")
    assert "will take" not in told(costs, groups=("trivial",), seeds=3)


def test_cells_whose_cost_is_not_known_are_counted(told):
    said = told({toy("copy"): 10.0}, seeds=1)
    assert "4 cells to run by one worker will take 32 to 52 min, if the 3 of unknown" in said


def test_without_costs_nothing_is_promised(told):
    said = told({}, seeds=1)
    assert "will take" not in said and "about 1 min left" in said


def test_few_steps_are_scaled_up():
    # 2 s to set up, 3 s a step.
    assert costing.scaled(first=5.0, some=11.0, count=3, steps=100) == pytest.approx(302.0)
    assert costing.scaled(first=5.0, some=4.9, count=3, steps=100) == 5.0


class Long(ToyTask):
    def schedule(self, profile, data):
        return Schedule(epochs=1000, batch_size=5, lr=0.05, eval_every=2)


def test_costs_are_measured_on_a_few_steps(monkeypatch, tmp_path):
    clock = Clock()
    task = Long()
    monkeypatch.setattr(costing.time, "process_time", clock)
    loss = ToyTask.loss

    def slow(self, prediction, batch):
        clock.now += 1.0
        return loss(self, prediction, batch)

    monkeypatch.setattr(ToyTask, "loss", slow)
    metrics = ToyTask.metrics

    def slow_too(self, prediction, split, problem):
        clock.now += 10.0
        return metrics(self, prediction, split, problem)

    monkeypatch.setattr(ToyTask, "metrics", slow_too)
    cells = Cells(task, Loaded(task, None, "quick", 0))
    found = dict(costing.of_jobs([cells.group("trivial"), cells.baseline("copy")]))
    # One step, then the three of an epoch; 500 looks at validation, and one each at the end.
    assert task.steps == 4
    assert found[toy("dense", "trivial")] == pytest.approx(3000.0 + 500 * 10.0 + 20.0)
    assert found[toy("copy")] == pytest.approx(20.0)


class Clock:
    """Seconds that pass only when they are told to."""

    now = 0.0

    def __call__(self):
        return self.now


def test_costs_take_the_place_of_older_ones(tmp_path):
    path = tmp_path / "costs.csv"
    one, two = toy("ridge, reflected"), toy("dense", "S_4")
    costing.write_costs(path, [(one, 3.0), (two, 4.0)])
    costing.write_costs(path, [(one, 5.0)])
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {kind_of(row): float(row["work"]) for row in rows} == {one: 5.0, two: 4.0}


# Seconds of a piece of work on the two cores that budgets are meant for, one process on each.
SECONDS_OF_WORK = 0.07


def test_the_quick_profile_fits_into_six_minutes():
    works = 0.0
    for (task, _, profile, _, _), work in forecast.known_costs().items():
        if profile == "quick":
            # The horizons of motion are no tasks; the Makefile says how many seeds they have.
            works += work * (TASKS[task].seeds[profile] if task in TASKS else 3)
    minutes = works * SECONDS_OF_WORK / 2 / 60
    assert 1 < minutes <= 0.8 * 6


def test_every_cell_of_the_quick_profile_has_a_known_cost():
    known = forecast.known_costs()
    for task in TASKS.values():
        if not task.needs_data:
            jobs = Cells(task, Loaded(task, None, "quick", 0)).jobs(())
            unknown = [job.label for job in jobs if kind_of(job.columns) not in known]
            assert not unknown
            assert math.isfinite(sum(known[kind_of(job.columns)] for job in jobs))
