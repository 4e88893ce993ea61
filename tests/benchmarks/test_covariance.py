"""Filling gaps of real signals: the masks, one cell, and the page."""

import csv

import numpy as np
import pytest
from rich.console import Console

from benchmarks.studies import covariance
from benchmarks.suite.errors import BenchmarkError


def source():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((300, 3)) @ rng.standard_normal((3, 12))
    x = (x + 0.1 * rng.standard_normal((300, 12)))[:, :, None]
    place = np.arange(12.0)[:, None]
    return covariance.Source(
        x[:150],
        x[150:],
        "RMSE",
        lambda e: float(np.sqrt((e**2).mean())),
        {"positions": place},
        lambda node: np.arange(max(0, node - 2), node + 1),
        extra=(covariance.TAUGHT, "IterativeImputer, both"),
    )


def test_masks_hide_what_was_asked_for():
    rng = np.random.default_rng(0)
    assert (covariance._masks(source(), 0.25, 5, rng).sum(1) == 9).all()
    for mask in covariance._masks(source(), "hole", 5, rng):
        hidden = np.flatnonzero(~mask)
        assert (np.diff(hidden) == 1).all()


def test_rows_make_a_page(tmp_path, monkeypatch):
    monkeypatch.setattr(covariance, "SOURCES", {"made up": lambda data: source()})
    monkeypatch.setattr(covariance, "CELLS", (("made up", 20, 0.3),))
    monkeypatch.setattr(covariance, "HELD", 10)
    page = covariance.main(tmp_path, tmp_path, 2, Console(quiet=True)).read_text()
    with (tmp_path / covariance.ROWS).open() as file:
        rows = list(csv.DictReader(file))
    assert {r["seed"] for r in rows} == {"3000", "3001"}
    errors = {}
    for r in rows:
        errors.setdefault(r["fill"], []).append(float(r["error"]))
    assert np.mean(errors[covariance.OURS]) < np.mean(errors["mean of each node"]) / 2
    assert f"{np.mean(errors['OAS']):.4g}" in page
    assert "made up" in page
    # Finished cells are kept.
    covariance.main(tmp_path, tmp_path, 2, Console(quiet=True))
    with (tmp_path / covariance.ROWS).open() as file:
        assert len(list(csv.DictReader(file))) == len(rows)


def test_the_fills_of_a_cell_are_written_at_once(tmp_path, monkeypatch):
    # A cell of which some fills were written would count as finished, and lack the others.
    monkeypatch.setattr(covariance, "SOURCES", {"made up": lambda data: source()})
    monkeypatch.setattr(covariance, "CELLS", (("made up", 20, 0.3),))
    names = [covariance.OURS, "Ledoit-Wolf", "two-level, kernel"]
    monkeypatch.setattr(covariance, "run_cell", lambda *given: dict.fromkeys(names, 1.0))
    written, write = [], covariance.write_records

    def counted(path, kind, records, digits=None):
        written.append(len(records))
        write(path, kind, records, digits)

    monkeypatch.setattr(covariance, "write_records", counted)
    covariance.main(tmp_path, tmp_path, 2, Console(quiet=True))
    assert written == [3, 6]


def test_paired_difference():
    ours, theirs = np.array([1.0, 2.0, 3.0]), np.array([2.0, 3.0, 4.0])
    assert covariance._against(ours, theirs) == "-33.3 ± 0.0"


def test_needs_data(tmp_path):
    with pytest.raises(BenchmarkError, match="--data DIR"):
        covariance.main(tmp_path, None, 1, Console(quiet=True))
