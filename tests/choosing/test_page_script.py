"""The script of a page runs as printed, on files and on signals that it makes up."""

from __future__ import annotations

import itertools
import json
import re
import runpy
from html import unescape

import numpy as np
import pytest
import torch

import gsym
from gsym import __main__ as entry
from gsym._cli._forecast import load_code
from gsym._files.signals import read_latlon
from gsym.choosing.choice import Task
from gsym.choosing.page import write_page
from gsym.choosing.page.script import training_script
from gsym.errors import FileError

N = 8


def printed(page):
    text = page.read_text(encoding="utf-8")
    return unescape(re.search(r'<pre id="script"[^>]*><code>(.*?)</code>', text, re.DOTALL)[1])


def train(folder, script):
    assert "epochs = 60" in script and "#" + "GROUP" not in script and "LABELS" not in script
    path = folder / "train.py"
    path.write_text(script.replace("epochs = 60", "epochs = 2"), encoding="utf-8")
    return runpy.run_path(str(path))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    pytest.importorskip("tyro")
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    values = rng.normal(size=(60, N)).cumsum(0)
    values[3, 4] = np.nan
    names = [f"s, {i}" for i in range(N)]
    rows = [",".join(["time", *(f'"{name}"' for name in names)])]
    rows += [
        f"2020-01-{1 + t // 24:02} {t % 24:02}:00,"
        + ",".join("" if v != v else repr(v) for v in row)
        for t, row in enumerate(values.tolist())
    ]
    (tmp_path / "x.csv").write_text("\n".join(rows))
    edges = "".join(f'"{a}","{b}"\n' for a, b in itertools.pairwise(names))
    (tmp_path / "edges.csv").write_text("from,to\n" + edges)
    where = "".join(f'"{name}",{34 + i / 100},-118\n' for i, name in reversed([*enumerate(names)]))
    (tmp_path / "where.csv").write_text("sensor,latitude,longitude\n" + where)
    return tmp_path


def test_a_forecast_from_files(folder, capsys):
    args = ["choose", "--graph", "edges.csv", "--signals", "x.csv", "--lag", "3", "--horizon", "2"]
    args += ["--levels", "8", "3", "1", "--latlon", "where.csv", "--unit", "mph", "--no-swaps"]
    entry.main([*args, "--out", "page.html", "--json"])
    record = json.loads(capsys.readouterr().out)
    assert record["answer"].endswith(".") and record["soft"] is None
    page = (folder / "page.html").read_text()
    assert record["answer"].replace("'", "&#39;") in page and " mph" in page
    assert "The map" in page and "34.00° N to 34.07° N" in page and "7 edges" in page
    ran = train(folder, printed(folder / "page.html"))
    assert ran["x"].shape == (56, N, 3) and ran["y"].shape == (56, N, 2)
    assert ran["group"].partition.labels.tolist() == record["labels"]
    # Windows on either side of the cut share no step.
    assert ran["cut"] - len(ran["train"]) >= 4
    assert (folder / "model.pt").exists()
    # What the command predicted from what is what the script reads.
    series = gsym.read_inputs(signals="x.csv").x
    assert torch.equal(ran["held"].nan_to_num(), series.unfold(0, 5, 1).nan_to_num())


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--lag", "0"), "--lag is a number of steps from 1 on; got 0"),
        (("--horizon", "2", "--targets", "x.csv"), "leave --targets out"),
        (("--lag", "60"), "have 60 steps; windows of 60 + 1"),
        (("--latlon", "edges.csv"), "columns latitude and longitude; got from, to"),
        (("--latlon", "where.csv", "--positions", "where.csv"), "give one of them"),
    ],
)
def test_wrong_windows_and_maps(folder, capsys, args, message):
    with pytest.raises(SystemExit):
        entry.main(["choose", "--signals", "x.csv", *args])
    assert message in capsys.readouterr().err


def case(kind):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 6, 2))
    levels = [gsym.Partition.singletons(6), gsym.Partition.from_labels([0, 0, 0, 1, 1, 1])]
    if kind == "denoising":
        return gsym.choose_group(levels, x)
    if kind == "a number":
        return gsym.choose_group(levels, x, x[..., 0].sum(1), standardize="node")
    if kind == "signs":
        mirror = gsym.PermutationGroup.from_cycles(6, [(0, 1), (2, 3), (4, 5)])
        rep = gsym.Representation.from_signs(mirror, [[-1, 1]])
        return gsym.choose_group([(rep, rep)], x, x)
    turn = gsym.PermutationGroup.from_cycles(6, [(0, 1, 2), (3, 4, 5)])
    return gsym.choose_group([turn], x, x)


@pytest.mark.parametrize("kind", ["denoising", "a number", "signs", "a 3-cycle"])
def test_signals_made_up(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    found = case(kind)
    ran = train(tmp_path, printed(write_page(found, tmp_path / "page.html")))
    group = found.group
    assert torch.equal(ran["group"].pair_orbits().index, group.pair_orbits().index)
    with torch.no_grad():
        assert ran["predict"](ran["judged"]).shape == ran["y"][ran["judged"]].shape
    reps = {"in_rep": found.in_rep, "out_rep": found.out_rep} if kind == "signs" else {}
    error = gsym.check.equivariance_error(ran["net"], group, torch.randn(4, 6, 2), **reps)
    assert error < 1e-4


def test_the_scale_leaves_judged_signals_out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    load = "x = torch.randn(20, 6)\ny = x.clone()\ny[16:] = 1000.0\ny[:2] = float('nan')"
    shown = gsym.choose_group(
        [gsym.Partition.single(6)],
        np.random.default_rng(0).normal(size=(9, 6)),
        np.random.default_rng(1).normal(size=(9, 6)),
    )
    ran = train(tmp_path, printed(write_page(shown, tmp_path / "page.html", load=load)))
    assert 0.3 < float(ran["scale"]) < 3 and not ran["seen"][:2].any()
    assert ran["plain"] > 900


def test_marks_in_names_of_files_stay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    load = 'made = "LABELS #LAST# #GROUP# #NET#.csv"\nx = torch.randn(200, 6)\n'
    levels = [gsym.Partition.singletons(6), gsym.Partition.from_labels([0, 1, 0, 1, 2, 2])]
    found = gsym.choose_group(levels[1:], np.random.default_rng(0).normal(size=(40, 6)))
    page = write_page(found, tmp_path / "page.html", load=load)
    assert load in printed(page) and "from_labels([0, 1, 0, 1, 2, 2])" in printed(page)
    (tmp_path / "train.py").write_text(printed(page).replace("epochs = 60", "epochs = 1"))
    ran = runpy.run_path(str(tmp_path / "train.py"))
    assert ran["group"].partition == levels[1]


TURNS = [[(i, i + 1, i + 2)] for i in range(0, 24, 3)]
LARGE = {
    "labels": gsym.ClusterGroup(gsym.Partition(torch.arange(24) // 3)),
    "swaps": gsym.ClusterGroup(
        gsym.Partition(torch.arange(24) // 3),
        swaps=gsym.PermutationGroup.from_cycles(8, [(0, 1, 2)]),
    ),
    "generators": gsym.PermutationGroup.from_cycles(24, *TURNS),
}


@pytest.mark.parametrize("kind", LARGE)
def test_groups_that_are_too_large_are_read(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("gsym.choosing.page.script.MAX_NODES", 20)
    x = np.random.default_rng(0).normal(size=(30, 24))
    found = gsym.choose_group([LARGE[kind]], x, 2 * x)
    script = printed(write_page(found, tmp_path / "page.html"))
    # What the script says of its file is what makes it.
    (line,) = re.findall(r"^# (numpy\.savez\(.*\))$", script, re.MULTILINE)
    exec(line, {"numpy": np, "choice": found})
    with np.load("labels.npz") as held:
        assert kind in held.files and len(held.files) == 1 + (kind == "swaps")
    ran = train(tmp_path, script)
    assert torch.equal(ran["group"].pair_orbits().index, found.group.pair_orbits().index)


def test_a_page_of_many_nodes_has_its_labels_beside_it(folder, capsys, monkeypatch):
    monkeypatch.setattr("gsym.choosing.page.script.MAX_NODES", N - 1)
    args = [
        "choose",
        "--graph",
        "edges.csv",
        "--signals",
        "x.csv",
        "--lag",
        "1",
        "--levels",
        "8",
        "2",
    ]
    for more, name in (([], "page.labels.npz"), (["--save", "mine.npz"], "mine.npz")):
        entry.main([*args, "--out", "page.html", *more])
        assert f"The labels of the best group are in {name}" in capsys.readouterr().out
        script = printed(folder / "page.html")
        assert f"numpy.load({name!r})" in script
        group = train(folder, script)["group"]
        with np.load(name) as held:
            assert held["labels"].tolist() == [group.partition.labels.tolist()]
    assert not (folder / "labels.npz").exists()


def test_signals_that_judge_choose_no_epoch():
    script = "".join(training_script(Task(), 6, None))
    learning = script[script.index("epochs = 60") : script.index("torch.save")]
    assert "judged" not in learning and script.count("predict(judged)") == 1


def test_positions_by_names_of_all_nodes_or_an_error(folder):
    names = [f"s, {i}" for i in range(N)]
    assert read_latlon("where.csv", names, N)[:, 0].tolist() == [34 + i / 100 for i in range(N)]
    with pytest.raises(FileError, match=r"1 of 8 are missing: 'other'"):
        read_latlon("where.csv", ["other", *names[1:]], N)
    with (folder / "where.csv").open("a") as file:
        file.write('"s, 3",0,0\n')
    with pytest.raises(FileError, match=r"'s, 3' stands there twice"):
        read_latlon("where.csv", names, N)


def test_an_infinite_mark_of_missing_values_is_python():
    options = dict.fromkeys(["signals", "targets", "mask"])
    lines = load_code(options | {"signals": "x.csv"}, float("inf"), None)
    assert 'x[x == float("inf")] = float("nan")' in lines
