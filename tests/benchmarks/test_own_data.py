"""One command from a table of signals and a graph to a report."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch

from gsym_bench.__main__ import main
from gsym_bench.own_data import OwnForecast, OwnGaps, read_own
from gsym_bench.suite.results import read_rows

N = 12


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Two rings of six sensors each, whose common ups and downs are read with noise."""
    monkeypatch.delenv("GSYM_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    steps = np.arange(240)
    common = np.stack([np.sin(steps / 9), np.cos(steps / 5)], axis=1) * 10 + 50
    x = common[:, np.arange(N) // 6] + rng.standard_normal((240, N))
    head = ",".join(["time", *(f"s{i}" for i in range(N))])
    start = np.datetime64("2024-01-01T00:00")
    stamps = start + steps * np.timedelta64(5, "m")
    lines = [f"{t},{','.join(f'{v:.3f}' for v in row)}" for t, row in zip(stamps, x, strict=True)]
    (tmp_path / "speeds.csv").write_text("\n".join([head, *lines]) + "\n")
    edges = [(6 * r + i, 6 * r + (i + 1) % 6) for r in range(2) for i in range(6)] + [(0, 6)]
    text = "\n".join(f"s{a},s{b}" for a, b in edges)
    (tmp_path / "roads.csv").write_text(f"source,target\n{text}\n")
    (tmp_path / "rings.txt").write_text(",".join(str(i // 6) for i in range(N)) + "\n")
    return tmp_path


FILES = ["--graph", "roads.csv", "--signals", "speeds.csv"]
PAGE = Path(__file__).parents[2] / "docs" / "pages" / "own_task.md"


def printed_command(name):
    """The words of a command as the page prints it."""
    (line,) = re.findall(rf"^gsym-bench ({name} .*)$", PAGE.read_text(), re.MULTILINE)
    return shlex.split(line)


def test_reconstruct(files, capsys):
    main([*printed_command("reconstruct"), "--partitions", "rings.txt", "--seeds", "2"])
    printed = capsys.readouterr().out
    rows = read_rows(files / "results")
    assert {"S_12", "2 clusters", "trivial", "mixture", "Ledoit-Wolf"} < {row.name for row in rows}
    assert {row.status for row in rows} == {"ok"} and rows[0].unit == "mph"
    error = {row.name: row.test for row in rows}
    assert error["mixture"] < 0.5 * error["mean of each node"]
    assert error["2 clusters"] < error["S_12"]
    assert "Validation selects " in printed
    page = (files / "results" / "report.md").read_text()
    assert "## Filling gaps: speeds (" in page and "![an example]" in page
    (again,) = set(re.findall(r"Made with `gsym-bench (.*)`\.", page))
    assert "--unit mph --partitions rings.txt --seeds 2" in again
    main(shlex.split(again))
    assert read_rows(files / "results") == rows


def test_forecast(files, capsys):
    main([*printed_command("forecast"), "--partitions", "rings.txt", "--seeds", "1"])
    rows = read_rows(files / "results")
    assert {"S_12", "2 clusters", "trivial", "soft chain", "last value"} < {r.name for r in rows}
    assert {row.metrics for row in rows} == {("MAE", "RMSE")}
    page = (files / "results" / "report.md").read_text()
    (again,) = set(re.findall(r"Made with `gsym-bench (.*)`\.", page))
    assert again.startswith("forecast ") and "--history 12 --horizon 3 --seeds 1" in again
    main(shlex.split(again))
    assert read_rows(files / "results") == rows
    assert "Validation selects " in capsys.readouterr().out


def test_what_is_read(files):
    own = read_own("roads.csv", "speeds.csv")
    assert own.x.shape == (240, N, 1) and own.is_series
    assert next(iter(own.groups)) == "S_12" and list(own.groups)[-1] == "trivial"
    assert 2 < len(own.groups) <= 6
    gaps = OwnGaps(own, "mph")
    source = gaps.source(None)
    assert len(source.train) == 168 and source.train[0, 0, 0] == own.x[0, 0, 0]
    hidden = set(source.hole(3))
    # A quarter of the nodes and a little more, along the ring.
    assert len(hidden) == 4 and 3 in hidden and hidden <= set(range(6))
    series = OwnForecast(own, "mph", 3, 2).series(None)
    assert series.time_of_day[12] == pytest.approx(1 / 24) and series.day[0] == 0
    # Other numbers are other data, whatever the file is called.
    text = (files / "speeds.csv").read_text()
    (files / "speeds.csv").write_text(text[:-3] + "9\n")
    assert read_own("roads.csv", "speeds.csv").name != own.name


@pytest.mark.parametrize(
    ("change", "args", "message"),
    [
        (("rings.txt", "0,0,1\n"), ["--partitions", "rings.txt"], ("12 nodes", "[1, 3]")),
        (("speeds.csv", "a,b\n1,2\n3,4\n"), [], ("2", "s0")),
        (("roads.csv", None), [], ("roads.csv",)),
        (("speeds.csv", "head"), [], ("expected 20 or more",)),
    ],
)
@pytest.mark.parametrize("command", ["reconstruct", "forecast"])
def test_what_does_not_fit_is_one_line(files, capsys, command, change, args, message):
    name, content = change
    if content is None:
        (files / name).unlink()
    elif content == "head":
        if command == "forecast":
            args, message = ["--horizon", "300"], ("240 steps", "--horizon 300")
        else:
            lines = (files / name).read_text().splitlines()[:11]
            (files / name).write_text("\n".join(lines) + "\n")
    else:
        (files / name).write_text(content)
    with pytest.raises(SystemExit) as stop:
        main([command, *FILES, *args])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert all(words in error for words in message)
    assert error.startswith("error: ") and error.count("\n") == 1
    assert not (files / "results").exists()


def test_all_that_is_read_is_in_the_name(files):
    def name(edges, **options):
        (files / "weighted.csv").write_text(f"source,target,weight\n{edges}\n")
        return read_own("weighted.csv", "speeds.csv", **options).name

    edges = [(6 * r + i, 6 * r + (i + 1) % 6) for r in range(2) for i in range(6)] + [(0, 6)]
    one, two = ("\n".join(f"s{a},s{b},{w + a}" for a, b in edges) for w in (1, 2))
    (files / "thirds.txt").write_text(",".join(str(i // 4) for i in range(N)) + "\n")
    places = [np.stack([np.arange(N), k * np.arange(N)], axis=1) for k in (1, 2)]
    for k, place in enumerate(places):
        np.save(files / f"place{k}.npy", place.astype(float))
    names = [
        name(one, partitions=["rings.txt"]),
        name(two, partitions=["rings.txt"]),
        name(one, partitions=["thirds.txt"]),
        name(one, partitions=["rings.txt"], positions="place0.npy"),
        name(one, partitions=["rings.txt"], positions="place1.npy"),
    ]
    assert len(set(names)) == 5
    assert name(one, partitions=["rings.txt"]) == names[0]


def test_partitions_of_as_many_clusters_are_all_kept(files):
    # They differ by a 3-cycle of nodes 4, 5 and 6.
    other = [0, 0, 0, 0, 0, 1, 0, 1, 1, 1, 1, 1]
    (files / "other.txt").write_text(",".join(map(str, other)) + "\n")
    own = read_own("roads.csv", "speeds.csv", ["rings.txt", "other.txt", "rings.txt"])
    assert list(own.groups) == ["S_12", "2 clusters", "2 clusters (2)", "trivial"]
    assert own.groups["2 clusters (2)"].partition.labels.tolist() == other


def test_no_reading_is_in_two_parts(files):
    own = read_own("roads.csv", "speeds.csv")
    task = OwnForecast(own, "mph", 7, 5)
    rows = own.x[..., 0].float().tolist()

    def steps(split):
        seen = torch.cat([split.aux["history"], split.targets], dim=1).flatten(0, 1)
        return {rows.index(one) for one in seen.tolist()}

    problem = task.load(None, "quick", 0)
    train, val, test = (steps(part) for part in (problem.train, problem.val, problem.test))
    assert max(train) < min(val) and max(val) < min(test) and max(test) == 239
    assert len(problem.val) > 10 and len(problem.test) > 30
