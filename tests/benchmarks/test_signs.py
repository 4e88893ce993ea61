"""The study of signs: its cells, resuming, and a page that tells right from wrong."""

from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from gsym_bench.studies import signs
from gsym_bench.suite.errors import BenchmarkError
from gsym_bench.suite.results import Value, read_rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("signs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(signs, "COUNTS", (40,))
        patch.setattr(signs, "SIGNALS", (80,))
        patch.setattr(signs, "TEST_POSES", 64)
        signs.main(out, None, 1, 2, Console(quiet=True))
    return out


def test_cells_are_kept_and_the_page_counts_them(folder, monkeypatch):
    rows = read_rows(folder, signs.RESULTS)
    assert [row.task for row in rows] == ["poses"] + ["truths"] * 4
    assert all(row.value("test", signs.FOUND) == 1.0 for row in rows if row.task == "truths")
    monkeypatch.setattr(signs, "_row", None)  # nothing is left to be made
    monkeypatch.setattr(signs, "COUNTS", (40,))
    monkeypatch.setattr(signs, "SIGNALS", (80,))
    page = signs.main(folder, None, 1, 2, Console(quiet=True)).read_text()
    assert "| 80 | a pattern of signs | 2 | 100 % (16 to 100) |" in page
    assert "--draws 1 --truths 2` at commit" in page


def test_the_test_error_is_that_of_the_pattern():
    poses = signs._Poses(None)
    x, y = (part[:60] for part in poses.train)
    found = signs.sign_patterns(x, y, poses.mirror, signs.LeftOut(60, 1))[:2]
    for pattern, error in zip(found, poses._test_errors(x, y, found), strict=True):
        fit = signs.MonomialRidge(x, y, pattern.in_rep, pattern.out_rep, signs.LeftOut(60, 1))
        wrong = (fit.predict(poses.test[0]) - poses.test[1]).reshape(len(poses.test[0]), -1)
        assert error == pytest.approx(np.sqrt((wrong**2).mean(1)).mean())


def test_wrong_ones_are_counted(folder, tmp_path):
    rows = read_rows(folder, signs.RESULTS)
    wrong = replace(rows[1], key="wrong", seed=7, values=(Value("test", signs.FOUND, "", 0.0),))
    signs.append_row(tmp_path, rows[1], signs.RESULTS)
    signs.append_row(tmp_path, wrong, signs.RESULTS)
    text = signs.write(tmp_path).read_text()
    assert "| 80 | a pattern of signs | 2 | 50 % (1 to 99) |" in text


def test_no_rows_are_refused(tmp_path):
    with pytest.raises(BenchmarkError, match="run gsym-bench signs"):
        signs.write(tmp_path)
