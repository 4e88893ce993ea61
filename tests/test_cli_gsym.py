"""``python -m gsym``: files in, a choice out; wrong input is one line and exit code 2."""

from __future__ import annotations

import itertools
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import networkx as nx
import numpy as np
import pytest
import torch

import gsym
from gsym import __main__ as entry
from gsym.choosing import CRITERIA
from gsym.choosing.choose import spread_levels
from gsym.coarsening import METHODS

pytest.importorskip("tyro")
pytest.importorskip("rich")

N = 12


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A path of twelve nodes whose targets depend on the means of four runs of three."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    labels = np.arange(N) // 3
    x = rng.normal(size=(80, N))
    mixing = np.array([[0, 2, 0, 0], [0, 0, -2, 0], [0, 0, 0, 2], [2, 0, 0, 0.0]])
    means = np.stack([x[:, labels == c].mean(axis=1) for c in range(4)], axis=1)
    y = 0.5 * x + (means @ mixing.T)[:, labels] + 0.3 * rng.normal(size=x.shape)
    ends = np.stack([np.arange(N - 1), np.arange(1, N)])
    np.savetxt("graph.csv", ends.T, fmt="%d", delimiter=",")
    np.savez("graph.npz", edge_index=np.hstack([ends, ends[::-1]]), num_nodes=N)
    np.savez("x.npz", x=x)
    np.savez("y.npz", y=y)
    np.savez("total.npz", y=x.sum(axis=1))
    np.savez("truth.npz", labels=np.stack([np.arange(N), labels, np.zeros(N, dtype=int)]))
    np.savetxt("pos.csv", np.column_stack([np.arange(N), np.zeros(N)]), delimiter=",")
    (tmp_path / "names.txt").write_text("".join(f"stop <{i}>\n" for i in range(N)))
    return tmp_path


def run(capsys, *args):
    entry.main(list(args))
    return capsys.readouterr()


CHOOSE = ("choose", "--graph", "graph.csv", "--signals", "x.npz", "--targets", "y.npz")


def test_choose_writes_the_page(folder, capsys):
    args = (
        "--method",
        "risk",
        "--out",
        "report.html",
        "--save",
        "best.npz",
        "--names",
        "names.txt",
    )
    out = run(capsys, *CHOOSE, *args, "--positions", "pos.csv", "--title", "Stops").out
    assert "best" in out and "The page is in report.html" in out
    page = (folder / "report.html").read_text()
    assert "<title>Stops</title>" in page and "stop &lt;11&gt;" in page
    assert "Treat the nodes of " in page and "When a finer group pays" in page
    with np.load("best.npz") as saved:
        labels = saved["labels"]
    assert labels.shape == (1, N)
    found = gsym.Partition.from_labels(labels[0], relabel=True)
    truth = gsym.Partition.from_labels(np.arange(N) // 3)
    assert found.refines(truth) or truth.refines(found)


def test_choose_prints_json_and_nothing_else(folder, capsys):
    captured = run(capsys, *CHOOSE, "--partitions", "truth.npz", "--no-swaps", "--json")
    answer = json.loads(captured.out, parse_constant=lambda name: pytest.fail(f"{name} in JSON"))
    assert [c["num_clusters"] for c in answer["candidates"]] == [12, 4, 1]
    assert answer["best"] == 1 and answer["labels"] == (np.arange(N) // 3).tolist()
    scores = [c["score"] for c in answer["candidates"]]
    assert scores[1] == min(scores) and answer["candidates"][1]["gap"] == 0
    assert captured.out.count("\n") == 1


def test_swaps_keep_the_weights_of_the_graph(folder, capsys):
    ends = np.stack([np.arange(N - 1), np.arange(1, N)])
    groups = {}
    for name, heavy in (("even", 1), ("uneven", 50)):
        weight = np.where(np.arange(N - 1) < N // 2, 1, heavy)
        np.savetxt(f"{name}.csv", np.vstack([ends, weight]).T, delimiter=",")
        args = ("--graph", f"{name}.csv", "--partitions", "truth.npz", "--json")
        out = run(capsys, "choose", *args, "--signals", "x.npz", "--targets", "y.npz").out
        groups[name] = len(json.loads(out)["candidates"])
    assert groups["uneven"] == 3 < groups["even"]


@pytest.mark.parametrize(
    "extra",
    [
        ("--signals", "x.npz"),
        ("--signals", "x.npz", "--targets", "y.npz", "--graph", "graph.npz", "--use", "both"),
        ("--signals", "x.npz", "--method", "grid", "--height", "3", "--width", "4"),
        (
            "--signals",
            "x.npz",
            "--targets",
            "total.npz",
            "--graph",
            "graph.npz",
            "--levels",
            "3",
            "6",
        ),
    ],
)
def test_other_ways_to_choose(folder, capsys, extra):
    out = run(capsys, "choose", *extra, "--no-swaps", "--out", "report.html").out
    assert "trivial" in out and f"S_{N}" in out
    assert (folder / "report.html").stat().st_size > 20_000


@pytest.fixture
def mirrored(folder):
    """Two arms at a spine; the first channel of x and of y changes its sign with their exchange."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(80, 6, 2))
    side = np.array([1, -1, 2, -2, 0, 0.0])[:, None]
    up = (x[..., 1:] + x[..., :1] ** 2) * np.array([1, 1, 3, 3, -1, 2.0])[:, None]
    y = side * x[..., ::-1] + np.concatenate([0 * up, up], -1) + 0.1 * rng.normal(size=x.shape)
    edges = np.array([(0, 2), (1, 3), (2, 4), (3, 4), (4, 5)])
    np.savetxt("arms.csv", edges, fmt="%d", delimiter=",")
    np.savez("poses.npz", x=x)
    np.savez("lifted.npz", y=y)
    return ("choose", "--graph", "arms.csv", "--signals", "poses.npz", "--targets", "lifted.npz")


SENTENCE = "Nodes 0 and 1, 2 and 3 are interchangeable if channel 0 of x and 0 of y change sign."


def test_signs_are_found_or_given(mirrored, capsys):
    found = json.loads(run(capsys, *mirrored, "--signs", "auto", "--json").out)
    assert found["signs"]["sentence"] == SENTENCE
    given = run(capsys, *mirrored, "--signs", "x0:-1", "y0:-1", "--json").out
    by_name = {c["sentence"]: c for c in json.loads(given)["candidates"]}
    pair = by_name[SENTENCE]
    rep = gsym.Representation.from_dict(pair["in_rep"])
    assert rep.signs.tolist() == [[-1, 1]]
    wrong = json.loads(run(capsys, *mirrored, "--signs", "x1:-1", "y1:-1", "--json").out)
    best = min(c["score"] for c in wrong["candidates"] if c["in_rep"])
    assert pair["score"] < best
    run(capsys, *mirrored, "--signs", "auto", "--out", "page.html")
    assert SENTENCE in Path("page.html").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["x:1"], "--signs takes auto, or words such as x:-1, x0:-1 and y2:-1; got 'x:1'"),
        (["x2:-1"], "--signs x2:-1: signals have 2 channels, counted from 0"),
        (["y:-1", "auto"], "--signs takes auto, or words"),
    ],
)
def test_wrong_signs_are_one_line(mirrored, capsys, words, message):
    with pytest.raises(SystemExit) as stopped:
        run(capsys, *mirrored, "--signs", *words)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_signs_of_targets_that_have_none_are_refused(mirrored, capsys):
    for args, said in (
        (mirrored[:5], "without --targets they are the signals"),
        ((*mirrored[:5], "--targets", "total.npz"), "one number per sample stays as it is"),
    ):
        with pytest.raises(SystemExit):
            run(capsys, *args, "--signs", "x0:-1", "y:-1")
        assert said in capsys.readouterr().err


def test_pixels_are_drawn_as_a_grid(folder, capsys, monkeypatch):
    drawn = {}
    monkeypatch.setattr(
        "gsym.choosing.page.write_page", lambda *args, **options: drawn.update(options)
    )
    args = ("--method", "grid", "--height", "3", "--width", "4", "--out", "report.html")
    run(capsys, "choose", "--signals", "x.npz", *args)
    rows = [[(column, -row) for column in range(4)] for row in range(3)]
    np.testing.assert_array_equal(drawn["positions"], np.concatenate(rows))


def test_coarsen(folder, capsys):
    args = ("coarsen", "--graph", "graph.csv", "--levels", "4", "2")
    out = run(capsys, *args, "--out", "clusters.npz").out
    assert "cost" in out and "Written to clusters.npz" in out
    with np.load("clusters.npz") as saved:
        assert [len(np.unique(row)) for row in saved["labels"]] == [4, 2]
        assert saved["merges"].shape == (N - 1, 2) and saved["heights"].shape == (N - 1,)
    answer = json.loads(run(capsys, *args, "--json").out)
    assert [level["clusters"] for level in answer["levels"]] == [4, 2] and answer["nested"]
    run(capsys, *args, "--out", "tree.nwk", "--names", "names.txt")
    assert "stop" in (folder / "tree.nwk").read_text()
    best = run(capsys, *CHOOSE, "--partitions", "clusters.npz", "truth.npz", "--json").out
    assert len(json.loads(best)["candidates"]) >= 4


def test_coarsen_shows_some_of_many_levels(folder, capsys):
    np.savetxt("long.csv", np.column_stack([np.arange(99), np.arange(1, 100)]), fmt="%d")
    answer = json.loads(run(capsys, "coarsen", "--graph", "long.csv", "--json").out)
    assert [level["clusters"] for level in answer["levels"]] == spread_levels(range(1, 101), 24)


@pytest.mark.parametrize("both", [False, True])
def test_risk_keeps_to_edges_only_if_told_to(folder, capsys, both):
    args = ["coarsen", *CHOOSE[1:], "--method", "risk", "--json", *["--use", "both"] * both]
    answer = json.loads(run(capsys, *args).out)
    runs = [1 + np.count_nonzero(np.diff(level["labels"])) for level in answer["levels"]]
    assert (runs == [level["clusters"] for level in answer["levels"]]) == both


def test_symmetries(folder, capsys):
    out = run(capsys, "symmetries", "--graph", "graph.csv", "--out", "orbits.npz").out
    assert "2 permutations; 6 orbits of 12 nodes" in out
    with np.load("orbits.npz") as saved:
        assert (saved["labels"][0] == saved["labels"][0][::-1]).all()
    answer = json.loads(run(capsys, "symmetries", "--graph", "graph.csv", "--json").out)
    assert answer["exact"] and answer["num_orbits"] == 6
    assert answer["log10_order"] == pytest.approx(np.log10(2))
    directed = run(capsys, "symmetries", "--graph", "graph.csv", "--directed", "--json").out
    assert json.loads(directed)["num_orbits"] == N
    np.savetxt(
        "cube.txt", np.array(nx.convert_node_labels_to_integers(nx.hypercube_graph(3)).edges)
    )
    assert "48 permutations; 1 orbits" in run(capsys, "symmetries", "--graph", "cube.txt").out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("choose", "--signals", "nowhere.npz"), "no file nowhere.npz; check the name"),
        ((*CHOOSE, "--method", "wrad"), "unknown method 'wrad'; did you mean ward"),
        ((*CHOOSE, "--out", "no/report.html"), "make it first"),
        (
            (*CHOOSE, "--out", "r.pdf"),
            "got r.pdf; open the page in a browser and print it to a PDF",
        ),
        ((*CHOOSE, "--save", "x.npz"), "would overwrite a file of this command"),
        (("symmetries", "--graph", "graph.csv", "--out", "a.csv"), "must end in .npz"),
        (("choose", "--graph", "graph.csv", "--signals", "turned.npz"), "transpose the signals"),
        ((*CHOOSE, "--save", "."), "is a folder; name a file"),
        ((*CHOOSE, "--levels", "99"), "99"),
        ((*CHOOSE, "--method", "louvain", "--use", "signals"), "does not look at signals"),
        ((*CHOOSE, "--partitions", "truth.npz", "--use", "graph"), "takes the place of a method"),
        ((*CHOOSE, "--partitions", "bad_labels.npz"), "belongs to another graph"),
        ((*CHOOSE, "--names", "short.txt"), "2 names for 12 nodes"),
        (("choose", "--signals", "x.npz", "--method", "metis"), "give --graph"),
        (("choose", "--signals", "nan.npz"), "fill the gaps"),
        (("choose", "--signals", "one.npz"), "got 1 signal"),
        (("choose", "--signals", "flat.npz"), "constant"),
        (("choose", "--signals", "small.npz", "--graph", "graph.csv"), "names node 11, but"),
        (("choose", "--signals", "small.npz", "--graph", "graph.npz"), "must have 12 nodes"),
        (("choose", "--signals", "x.npz", "--targets", "one.npz"), "1 samples, but x.npz has 80"),
        (("choose", "--signals", "x.npz", "--targets", "small.npz"), "targets must have 12 nodes"),
        (("coarsen",), "give --graph or --signals"),
        (("coarsen", "--graph", "graph.csv", "--method", "risk"), "give --signals"),
        (("coarsen", "--graph", "graph.csv", "--out", "a.txt"), "must end in .npz or .nwk"),
        (("coarsen", "--graph", "damaged.npz"), "damaged.npz: cannot be read"),
        (("coarsen", "--graph", "empty.csv"), "is empty"),
        (("coarsen", "--graph", "negative.csv"), "not negative"),
        (
            ("symmetries", "--graph", "graph.csv", "--time-budget", "-1"),
            "positive number of seconds",
        ),
        (
            ("symmetries", "--graph", "graph.csv", "--solver", "magic"),
            "--solver must be one of auto",
        ),
        (
            ("choose", "--signals", "x.npz", "--criterion", "magic"),
            "--criterion must be one of ridge",
        ),
        (("symmetries", "--graph", "nothing.npz"), "at least one node"),
        (("symmetries", "--graph", "graph.csv", "--time-budget", "1e300"), "at most 1e6"),
        (("symmetries", "--graph", "half.npz"), "num_nodes must be one whole number"),
        (("symmetries", "--graph", "many.npz"), "num_nodes must be one whole number"),
        (("choose", "--signals", "sparse.pt"), "holds a sparse tensor"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(folder, capsys, args, message):
    np.savez("bad_labels.npz", labels=np.zeros(N + 1, dtype=int))
    values = np.ones((5, N)) * np.arange(N)
    values[2, 3] = np.nan
    np.savez("nan.npz", x=values)
    np.savez("one.npz", x=np.arange(N)[None] * 1.0)
    np.savez("turned.npz", x=np.random.default_rng(0).normal(size=(N, 80)))
    np.savez("flat.npz", x=np.ones((5, N)))
    np.savez("small.npz", x=np.random.default_rng(0).normal(size=(80, N - 1)))
    edge = np.array([[0], [1]])
    np.savez("half.npz", edge_index=edge, num_nodes=2.5)
    np.savez("many.npz", edge_index=edge, num_nodes=np.array([2, 3]))
    torch.save(torch.eye(3).to_sparse(), "sparse.pt")
    np.savez("nothing.npz", edge_index=np.empty((2, 0), dtype=int), num_nodes=0)
    (folder / "damaged.npz").write_bytes((folder / "x.npz").read_bytes()[:200])
    (folder / "short.txt").write_text("a\nb\n")
    (folder / "empty.csv").write_text("")
    (folder / "negative.csv").write_text("0,1,1\n1,2,-1\n2,3,1\n3,0,1\n")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(SystemExit) as stop:
        entry.main(list(args))
    captured = capsys.readouterr()
    assert stop.value.code == 2
    errors = [
        line for line in captured.err.splitlines() if not line.startswith(("note: ", "read: "))
    ]
    assert len(errors) == 1 and errors[0].startswith("error: "), captured.err
    assert message in errors[0]
    assert captured.out == ""
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_what_was_read_comes_first_and_in_json(folder, capsys):
    ids = [f"sensor {i}" for i in range(N)]
    with np.load("x.npz") as held:
        rows = [",".join(["", *ids])]
        rows += [f"{i}," + ",".join(map(repr, row.tolist())) for i, row in enumerate(held["x"])]
    (folder / "x.csv").write_text("\n".join(rows))
    edges = "".join(f"{a},{b}\n" for a, b in itertools.pairwise(ids))
    (folder / "named.csv").write_text("from,to\n" + edges)
    args = ("choose", "--graph", "named.csv", "--signals", "x.csv", "--levels", "4")
    captured = run(capsys, *args, "--save", "best.npz")
    lines = [line for line in captured.err.splitlines() if line.startswith("read: ")]
    assert lines[0].startswith("read: named.csv: 12 nodes, 22 edges; ")
    assert lines[1].startswith("read: x.csv: 80 samples, 12 nodes, 0 missing; header: row 1; index")
    with np.load("best.npz") as saved:
        assert saved["names"].tolist() == ids
    answer = json.loads(run(capsys, *args, "--json").out)
    assert answer["names"] == ids
    assert [(r["file"], r["nodes"]) for r in answer["read"]] == [("named.csv", N), ("x.csv", N)]
    for command in ("coarsen", "symmetries"):
        answer = json.loads(run(capsys, command, "--graph", "named.csv", "--json").out)
        # Without signals the nodes stand in the order of their names.
        assert answer["names"] == sorted(ids) and answer["read"][0]["edges"] == 22
    run(capsys, "coarsen", "--graph", "named.csv", "--levels", "4", "--out", "clusters.npz")
    # Labels follow the names of their nodes into the order of the signals.
    choice = json.loads(run(capsys, *args[:5], "--partitions", "clusters.npz", "--json").out)
    with np.load("clusters.npz") as saved:
        label = dict(zip(saved["names"].tolist(), saved["labels"][0].tolist(), strict=True))
    assert [label[name] for name in ids] == choice["labels"]


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_nothing_and_returns_130(folder, sent):
    # A search that takes long, in a worker of its own.
    graph = nx.random_regular_graph(3, 3000, seed=0)
    np.savez("long.npz", edge_index=np.array([*graph.edges, *[e[::-1] for e in graph.edges]]).T)
    command = [sys.executable, "-m", "gsym", "symmetries", "--graph", "long.npz"]
    command += ["--solver", "networkx", "--time-budget", "600", "--out", "orbits.npz"]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell in the background has its children ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    for line in process.stderr:
        if line.startswith("read: "):
            break
    deadline = time.monotonic() + 60
    while not children(process.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    workers = children(process.pid)
    assert workers
    process.send_signal(sent)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.splitlines()[-1].startswith("interrupted: nothing half-written is left; run the")
    assert "Traceback" not in err and not (folder / "orbits.npz").exists()
    assert not list(folder.glob("*.tmp"))
    while any(alive(worker) for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(alive(worker) for worker in workers)


def children(pid):
    path = Path(f"/proc/{pid}/task/{pid}/children")
    if not path.exists():
        pytest.skip("this system does not tell the children of a process")
    return [int(child) for child in path.read_text().split()]


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_help_teaches_with_an_example(capsys):
    for command in ("choose", "coarsen", "symmetries"):
        with pytest.raises(SystemExit) as stop:
            entry.main([command, "--help"])
        assert stop.value.code == 0
        text = capsys.readouterr().out
        assert f"gsym {command} --" in text
        listed = (*METHODS, *CRITERIA) if command == "choose" else METHODS
        assert command == "symmetries" or [name for name in listed if name not in text] == []


def test_a_missing_package_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tyro", None)
    monkeypatch.delitem(sys.modules, "gsym._cli", raising=False)
    with pytest.raises(SystemExit) as stop:
        entry.main(["choose"])
    assert stop.value.code == 2
    assert "pip install 'gsym[cli]'" in capsys.readouterr().err


def test_as_a_program(folder):
    command = [sys.executable, "-m", "gsym", "symmetries", "--graph", "nowhere.csv"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.splitlines()[-1] == "error: no file nowhere.csv; check the name"
    assert "Traceback" not in done.stderr


def test_what_choose_leaves_out_and_takes_for_missing(folder, capsys, monkeypatch):
    told = {}
    choose_group = gsym.choose_group

    def spy(*args, **options):
        told.update(options, x=args[1], y=args[2])
        return choose_group(*args, **options)

    monkeypatch.setattr("gsym._cli.choosing.choose_group", spy)
    with np.load("x.npz") as held:
        x = held["x"]
    times = np.datetime64("2012-03-01T00:00") + np.arange(len(x)) * np.timedelta64(5, "m")
    x[3, 4] = np.nan
    rows = [",".join(["time", *(f"n{i}" for i in range(N))])]
    rows += [
        f"{moment}," + ",".join("" if np.isnan(value) else repr(value) for value in row.tolist())
        for moment, row in zip(times, x, strict=True)
    ]
    (folder / "series.csv").write_text("\n".join(rows[:1] + rows[:0:-1]))
    seen = np.random.default_rng(0).random(x.shape) < 0.9
    np.save("seen.npy", seen[::-1])
    args = ("choose", "--graph", "graph.csv", "--signals", "series.csv", "--levels", "4")
    err = run(capsys, *args, "--mask", "seen.npy", "--json").err
    assert told["block"] == "auto" and np.isnan(told["missing"])
    np.testing.assert_array_equal(told["x"][..., 0].numpy(), x)
    np.testing.assert_array_equal(told["mask"].numpy().reshape(x.shape), seen)
    assert "1 value is missing, at 1 node (4)" in err and "put in the order of times" in err
    run(capsys, *args, "--block", "2", "--gap", "1", "--missing", "0", "--standardize", "node")
    assert (told["block"], told["gap"], told["missing"]) == (2, 1, 0)
    assert told["standardize"] == "node"
    run(capsys, *CHOOSE, "--levels", "4")
    assert told["block"] == "auto" and told["missing"] is None and told["mask"] is None
    run(capsys, *CHOOSE, "--levels", "4", "--block", "1")
    assert told["block"] == 1
    for mask, message in ((seen[:, :5], "must have 12 nodes"), (seen * 2, "holds 1 where a value")):
        np.save("seen.npy", mask)
        with pytest.raises(SystemExit):
            run(capsys, *args, "--mask", "seen.npy")
        assert message in capsys.readouterr().err
