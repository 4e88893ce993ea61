"""When a finer group pays: where curves cross, one source, and the page."""

import csv
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from gsym import Partition
from gsym_bench.studies import overtaking as study
from gsym_bench.suite.errors import BenchmarkError


def points(curves):
    return [
        study.Point("x", clusters, size, error, 1, "c")
        for clusters, errors in curves.items()
        for size, error in zip((10, 100, 1000), errors, strict=True)
    ]


def test_where_curves_cross():
    known = points({1: (3.0, 2.0, 2.0), 4: (4.0, 1.0, 0.5), 9: (5.0, 4.0, 3.0)})
    # Gaps 1 and -1 at 10 and 100 vanish half-way in the logarithm.
    assert study.cross(known, 1, 4) == pytest.approx(10**1.5)
    assert study.cross(known, 4, 9) == np.inf
    assert study.cross(known, 9, 4) == 10
    assert study.overtaken(known, 1) == pytest.approx(10**1.5)
    assert study.overtaken(known, 9) == np.inf


def test_a_truth_has_a_part_in_every_level():
    source = study.truth(0)
    assert [level.num_clusters for level in source.levels] == [48, 24, 12, 4, 1]
    assert all(a.refines(b) for a, b in zip(source.levels, source.levels[1:], strict=False))
    x, y = source.draw(7, np.random.default_rng(0))
    assert x.shape == y.shape == (7, 48)


def small():
    rng = np.random.default_rng(0)
    W = np.full((8, 8), 0.3) + 0.1 * rng.standard_normal((8, 8))

    def draw(count, rng):
        x = rng.standard_normal((count, 8))
        return x, x @ W.T + rng.standard_normal((count, 8))

    levels = [Partition.singletons(8), Partition([0, 0, 0, 0, 1, 1, 1, 1]), Partition.single(8)]
    return study.Source(levels, draw, draw(500, rng), (12, 40, 160), 2, (12, 40))


def test_rows_make_a_page(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "JOINT_COUNTS", (6,))
    monkeypatch.setattr(study, "sources", lambda data: {"map 0": small, "other": small})
    page = study.main(tmp_path, tmp_path, 2, Console(quiet=True)).read_text()
    assert page.count("| made-up maps |") == 4
    assert page.count("| other |") == 4
    with (tmp_path / study.SCORES).open() as file:
        rows = list(csv.DictReader(file))
    # The mixture, three levels, and the chosen one again, in 2 x 2 x 2 cells.
    assert len(rows) == 5 * 8
    before = (tmp_path / study.SCORES).read_bytes()
    study.main(tmp_path, tmp_path, 2, Console(quiet=True))
    assert (tmp_path / study.SCORES).read_bytes() == before
    # A cell that was stopped between its two files is run again, and counts once.
    claims = (tmp_path / study.CLAIMS).read_text().splitlines()
    last = [f"{rows[-1][key]}" for key in ("data", "signals", "seed")]
    kept = [line for line in before.decode().splitlines() if line.split(",")[:3] != last]
    (tmp_path / study.SCORES).write_text("\n".join(kept) + "\n")
    study.main(tmp_path, tmp_path, 2, Console(quiet=True))
    assert sorted((tmp_path / study.CLAIMS).read_text().splitlines()) == sorted(claims)


def test_the_table_says_what_was_found():
    claim = study.Claim("map 0", 50, 0, 1, 4, 200.0, 100.0, 300.0, 100.0, "c")
    row = study._claim_row([claim, replace(claim, found=400.0), replace(claim, found=10.0)])
    # Found before the signals at hand counts as at hand: 200 over 100, 400 and 50.
    assert row[3].startswith("2.00 (1.25 to 3.00)")
    assert row[4].startswith("33 %")
    never = replace(claim, after=0, predicted=np.inf, low=np.inf, high=np.inf)
    assert study._claim_row([never, replace(never, found=np.inf)])[5] == "1 of 2"


def test_without_results(tmp_path):
    with pytest.raises(BenchmarkError, match="gsym-bench overtaking"):
        study.report(tmp_path)
