"""The molecules task: folds, protocols, networks, hard pairs, resuming, and wrong input."""

from __future__ import annotations

import dataclasses
import math
import os
from itertools import combinations, pairwise
from pathlib import Path

import networkx as nx
import numpy as np
import pytest
import torch
from lightning.fabric import Fabric
from scipy import stats
from torch_geometric.data import Batch
from toy_task import make_row

from gsym_bench.__main__ import main
from gsym_bench.data import DataError
from gsym_bench.studies.molecules import graphs as loading
from gsym_bench.studies.molecules import page, suite, training
from gsym_bench.studies.molecules.graphs import FOLDS, KINDS, load
from gsym_bench.studies.molecules.models import count_parameters, matching_width, models
from gsym_bench.studies.molecules.pairs import families, pair_refinement, refinement
from gsym_bench.studies.molecules.separation import measure, names, theory
from gsym_bench.studies.molecules.training import GraphTraining, count_labels, last, majority
from gsym_bench.suite.results import Row, Value, read_rows
from gsym_bench.suite.task import Schedule
from gsym_bench.suite.train import Trainer
from gsym_bench.suite.work import Worker

EVERY = list(models(KINDS))


def arrays(count: int = 42, labels: int = 3) -> dict[str, np.ndarray]:
    """Rings of 3 to 6 nodes and paths; a ring is of class 1, a path of class -1."""
    rng = np.random.default_rng(0)
    ptr, ends, label, y = [0], [], [], []
    for number in range(count):
        n = 3 + number % 4
        graph = nx.cycle_graph(n) if number % 3 else nx.path_graph(n)
        edges = np.array(graph.edges).T + ptr[-1]
        ends += [edges, edges[::-1]]
        label += rng.integers(labels, size=n).tolist()
        y.append(1 if number % 3 else -1)
        ptr.append(ptr[-1] + n)
    fold = np.arange(count) % FOLDS
    fold[-2:] = -1
    return {
        "graph_ptr": np.array(ptr, np.int32),
        "edge_index": np.concatenate(ends, axis=1).astype(np.int32),
        "node_label": np.array(label, np.int16),
        "graph_label": np.array(y, np.int8),
        "test_fold": fold.astype(np.int8),
    }


def folder(root: Path, **changes: np.ndarray) -> Path:
    (root / "tudataset").mkdir(parents=True, exist_ok=True)
    for name in ("MUTAG", "PTC", "PROTEINS", "IMDBBINARY"):
        np.savez(root / "tudataset" / f"{name}.npz", **arrays() | changes)
    return root


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return folder(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def toy(data):
    return load(data, "MUTAG")


class TestFolds:
    def test_parts_follow_the_file(self, toy):
        given = torch.from_numpy(arrays()["test_fold"]).long()
        for fold in range(FOLDS):
            parts = toy.parts(fold)
            assert torch.cat(parts).sort().values.tolist() == list(range(42))
            assert (given[parts[2]] == fold).all() and (given[parts[1]] != fold).all()
            assert set(given[parts[1]].tolist()) == {(fold + 1) % FOLDS}
            assert (given[parts[0]] == -1).sum() == 2

    def test_graphs_are_those_of_the_file(self, toy):
        z = arrays()
        for number in (0, 1, 41):
            g, first = toy.graphs[number], int(z["graph_ptr"][number])
            assert g.num_nodes == 3 + number % 4
            ring = number % 3 > 0
            assert g.edge_index.size(1) == 2 * (g.num_nodes - (not ring))
            assert g.x.argmax(1).tolist() == z["node_label"][first : first + g.num_nodes].tolist()
            assert int(g.y) == ring
            assert torch.bincount(g.n_sub_batch).max() == 3  # one hop on rings and paths
        common = np.bincount(z["node_label"]).argmax()
        every = torch.cat([g.label for g in toy.graphs])
        assert (every == torch.from_numpy(z["node_label"] != common)).all()

    def test_graphs_without_labels_are_labelled_by_degree(self, tmp_path):
        plain = load(folder(tmp_path, node_label=np.zeros_like(arrays()["node_label"])), "PTC")
        # Degrees are 1 and 2, whose logarithms are 0 and 1.
        for g in plain.graphs:
            degree = torch.bincount(g.edge_index[0])
            assert torch.equal(g.x.argmax(1), degree - 1)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"test_fold": np.zeros(42, np.int8)}, "each fold at least once"),
            ({"test_fold": np.arange(41) % 10}, "42 folds"),
            ({"edge_index": np.array([[0, 1], [1, 999]])}, "nodes from 0 to"),
            ({"edge_index": np.array([[0, 5], [5, 0]])}, "joins two graphs"),
            ({"graph_ptr": np.arange(5)}, "graph_ptr"),
        ],
    )
    def test_damaged_files_are_named(self, tmp_path, changes, message):
        with pytest.raises(DataError, match=rf"MUTAG\.npz: .*{message}"):
            load(folder(tmp_path, **changes), "MUTAG")

    def test_without_files_pyg_is_asked_and_its_failure_told(self, tmp_path, monkeypatch):
        with pytest.raises(DataError, match=r"no folder .*tudataset"):
            load(tmp_path, "PTC")
        (tmp_path / "tudataset").mkdir()
        asked = []

        def nothing(root, name):
            asked.append(name)
            raise OSError("no network")

        monkeypatch.setattr(loading, "TUDataset", nothing)
        with pytest.raises(DataError, match=r"TUDataset PTC_MR cannot be had .OSError: no network"):
            load(tmp_path, "PTC")
        assert asked == ["PTC_MR"]

    def test_folds_of_pyg_are_stratified_and_disjoint(self, tmp_path, monkeypatch, toy):
        (tmp_path / "tudataset").mkdir()
        monkeypatch.setattr(loading, "TUDataset", lambda *_: toy.graphs)
        found = load(tmp_path, "PTC")
        assert found.name == "PTC_MR" and torch.equal(found.y, toy.y)
        rings = [int(found.y[found.fold == fold].sum()) for fold in range(FOLDS)]
        assert sum(rings) == int(toy.y.sum()) and max(rings) - min(rings) <= 1

    @pytest.mark.skipif("GSYM_DATA" not in os.environ, reason="needs $GSYM_DATA")
    def test_real_counts(self):
        found = load(Path(os.environ["GSYM_DATA"]), "MUTAG")
        assert found.y.bincount().tolist() == [63, 125] and found.num_labels == 7
        assert int((found.fold == -1).sum()) == 8


def fit(out, graphs, name, fold, schedule, every=math.inf):
    def make(num_labels, num_classes):
        return models(KINDS)[name](num_labels, num_classes, 4)

    training = GraphTraining(make, graphs, fold, 16)
    trainer = Trainer(Fabric(accelerator="cpu"), out / "checkpoint", out / "diverged", every)
    return trainer.fit(training, schedule, 0)


class TestProtocols:
    def test_both_are_read_off_one_history(self, toy):
        val = [50.0, 80.0, 70.0, 80.0, *[60.0] * 9]
        loss = [1.0, 0.6, 0.1, 0.5, *[2.0] * 9]
        test = [90.0, 20.0, 30.0, 40.0, *[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0]]
        columns = zip(val, loss, test, strict=True)
        history = [{"val": v, "loss": x, "test": t} for v, x, t in columns]
        best = min(history, key=GraphTraining(None, toy, 0, 16).rank)
        assert best is history[3]  # the tie goes to less loss
        assert last(history, "test") == pytest.approx((40 + 45) / 10)
        assert last(history, "val") == pytest.approx(62.0)

    def test_the_first_of_equal_epochs_is_taken_whatever_the_test_says(
        self, toy, tmp_path, monkeypatch
    ):
        found = iter([(50.0, 1.0), (1.0, 9.0), (50.0, 1.0), (99.0, 9.0)])
        monkeypatch.setattr(training, "_evaluate", lambda *_: next(found))
        assert fit(tmp_path, toy, "GIN", 0, Schedule(2, batch_size=16)).best_epoch == 1

    def test_training_does_not_see_the_classes_of_the_test_graphs(self, toy, tmp_path):
        flipped = dataclasses.replace(toy, graphs=[g.clone() for g in toy.graphs])
        for i in toy.parts(3)[2].tolist():
            flipped.graphs[i].y = 1 - flipped.graphs[i].y
        schedule = Schedule(4, batch_size=16)
        honest, other = (fit(tmp_path, g, "GIN", 3, schedule).history for g in (toy, flipped))
        for column in ("val", "loss"):
            assert [m[column] for m in honest] == [m[column] for m in other]
        assert [100 - m["test"] for m in honest] == pytest.approx([m["test"] for m in other])

    def test_rings_are_learnt(self, toy, tmp_path):
        found = fit(tmp_path, toy, "SPEN by size", 0, Schedule(12, batch_size=16, lr=0.02))
        assert found.history[found.best_epoch - 1]["val"] == 100.0 and len(found.history) == 12
        assert majority(toy, 0) == (75.0, 50.0)  # 28 of 42 are rings
        assert count_labels(toy, 0)[0] == 100.0  # a ring has as many edges as nodes

    def test_a_killed_training_resumes_bitwise(self, toy, tmp_path, monkeypatch):
        schedule = Schedule(4, batch_size=16, lr=0.02, cosine=True)
        whole = fit(tmp_path, toy, "GIN", 0, schedule)
        real, steps = GraphTraining.loss, []

        def stop(self, model, batch):
            steps.append(batch)
            if len(steps) == 8:
                raise KeyboardInterrupt
            return real(self, model, batch)

        monkeypatch.setattr(GraphTraining, "loss", stop)
        with pytest.raises(KeyboardInterrupt):
            fit(tmp_path, toy, "GIN", 0, schedule, every=0.0)
        resumed = fit(tmp_path, toy, "GIN", 0, schedule, every=0.0)
        # Three batches make an epoch: two epochs were kept.
        # Whoever keeps the row deletes the checkpoint.
        assert len(steps) == 8 + 6 and (tmp_path / "checkpoint").exists()
        assert resumed.history == whole.history and len(whole.history) == 4
        for name, value in whole.model.state_dict().items():
            assert torch.equal(value, resumed.model.state_dict()[name]), name

    def test_a_loss_that_is_no_number_ends_the_training(self, toy, tmp_path, monkeypatch):
        monkeypatch.setattr(training.F, "cross_entropy", lambda *_: torch.tensor(math.nan))
        assert fit(tmp_path, toy, "GIN", 0, Schedule(2, batch_size=16)).status == "diverged"
        saved = torch.load(tmp_path / "diverged", weights_only=True)
        assert saved["x"].size(0) == saved["batch"].numel() and saved["epoch"] == 0


@pytest.mark.parametrize("name", EVERY)
class TestNetworks:
    def test_a_batch_equals_graphs_alone(self, toy, name):
        torch.manual_seed(0)
        net = models(KINDS)[name](3, 2, 4).double().eval()
        own = [g.clone() for g in toy.graphs[:5]]
        for g in own:
            g.x = g.x.double()

        def output(some):
            batch = Batch.from_data_list(some)
            return net(batch, net.prepare(batch))

        whole = output(own)
        torch.testing.assert_close(whole, torch.cat([output([g]) for g in own]))
        assert (whole[0] - whole[1]).abs().max() > 1e-6

    def test_parameters_are_matched(self, name):
        for labels in (3, 19):
            width = matching_width(name, labels, 2, suite.PARAMETERS)
            near = [models(KINDS)[name](labels, 2, width + i) for i in (-1, 0, 1)]
            off = [abs(count_parameters(net) / suite.PARAMETERS - 1) for net in near]
            assert off[1] == min(off) < 0.15


class TestHardPairs:
    CHEAP = tuple(families())[:5]

    @pytest.mark.parametrize("family", CHEAP)
    def test_refinement_tells_none_apart(self, family):
        own = families()[family]
        assert len(set(refinement(own))) == 1
        assert len(set(pair_refinement(own))) == (1 if "rook" in family else len(own))
        assert not any(nx.is_isomorphic(*pair) for pair in pairwise(own))

    def test_refinement_tells_a_path_from_a_star(self):
        assert len(set(refinement([nx.path_graph(4), nx.star_graph(3)]))) == 2

    def test_known_families(self):
        known = families()
        assert [nx.is_strongly_regular(g) for g in known["Chang (28, 12, 6, 4)"]] == [True] * 4
        for name, graphs in known.items():
            assert len({(g.number_of_nodes(), g.number_of_edges()) for g in graphs}) == 1, name
        twins = known["CFI of K33"]
        # Where the base has a cycle, the twist shows in closed walks around it only all together.
        assert len(set(pair_refinement(twins))) == 1 and nx.is_connected(twins[0])

    @pytest.mark.parametrize("name", names())
    @pytest.mark.parametrize(
        "family", ["two triangles, hexagon", "decalin, bicyclopentyl", CHEAP[4]]
    )
    def test_networks_do_what_theory_says(self, family, name):
        own = families()[family]
        said = theory(own, name)
        found = measure(own, name, 0)
        for told, word in zip(found.separated, said, strict=True):
            assert told if word == "must" else not told if word == "cannot" else True
        assert found.noise < 1e-10

    def test_what_is_known_of_some_pairs(self):
        wanted = {
            ("rook, Shrikhande (16, 6, 2, 2)", "SPEN by size, 2 hops"): "cannot",
            ("rook, Shrikhande (16, 6, 2, 2)", "SPEN, root coloured, 1 hop"): "cannot",
            ("rook, Shrikhande (16, 6, 2, 2)", "SPEN by automorphism, 1 hop"): "must",
            ("decalin, bicyclopentyl", "SPEN by size, 1 hop"): "",
            ("decalin, bicyclopentyl", "SPEN by size, 2 hops"): "must",
            ("two triangles, hexagon", "SPEN by size, 1 hop"): "must",
            ("two triangles, hexagon", "order 2, whole graph"): "cannot",
        }
        for (family, name), word in wanted.items():
            assert theory(families()[family], name) == [word], (family, name)

    def test_skip_links(self):
        # Only the skip of 2 makes triangles.
        own = families()["circular skip links, 41 nodes"]
        said = theory(own, "SPEN by size, 1 hop")
        places = list(combinations(range(10), 2))
        assert [0 in place for place in places] == [word == "must" for word in said]
        assert measure(own, "GIN", 0).separated == (False,) * 45


def row(fold: int, seed: int, test: float, model: str = "GIN", **changes: object) -> Row:
    values = (Value("test", suite.ACCURACY, "%", test),)
    return make_row(fold=fold, seed=seed, model=model, values=values, **changes)


class TestPage:
    def test_spread_over_folds_and_seeds(self):
        rows = [row(f, s, 10.0 * f + s) for f in range(3) for s in range(2)]
        found = page.score(rows, suite.ACCURACY)
        assert found.mean == pytest.approx(10.5)
        assert found.folds == pytest.approx(10.0) and found.seeds == pytest.approx(0.5**0.5)
        assert page.score([*rows, row(0, 2, 99.0)], suite.ACCURACY).seeds == pytest.approx(0.5**0.5)
        assert page.score([row(0, 0, 1.0, status="diverged")], suite.ACCURACY) is None

    def test_the_published_reading_takes_one_epoch_for_all_folds(self):
        curves = {0: ([50.0, 90.0, 70.0], [80.0, 40.0, 74.0]), 1: ([60.0, 61.0, 0.0],) * 2}
        rows = []
        for seed, own in curves.items():
            for fold, curve in enumerate(own):
                note = " ".join(map(str, curve))
                value = Value("test", suite.MEAN_ACCURACY, "%", 0.0, note)
                plain = row(fold, seed, 1.0)
                rows.append(dataclasses.replace(plain, values=(*plain.values, value)))
        found = page.best_of_mean(rows)
        # Seed 0 has the means 65, 65, 72 and seed 1 has 60, 61, 0; folds apart would give 85.
        assert found.mean == pytest.approx((72 + 61) / 2)
        assert found.folds == pytest.approx(np.std([(70 + 61) / 2, (74 + 61) / 2], ddof=1))
        assert found.seeds == pytest.approx(np.std([72, 61], ddof=1))
        # A seed that lacks a fold, and rows without curves, have no part.
        assert page.best_of_mean(rows[:3]).mean == pytest.approx(72)
        assert page.best_of_mean([row(0, 0, 1.0), row(1, 0, 1.0)]) is None

    def test_differences_are_paired_by_fold(self):
        theirs = [row(f, s, 50.0 + f) for f in range(4) for s in range(2)]
        gains = [1.0, 2.0, 4.0, 5.0]
        ours = [row(f, s, 50.0 + f + gains[f], "SPEN") for f in range(4) for s in range(2)]
        found = page.against(ours, theirs)
        assert found.mean == pytest.approx(3.0)
        reach = stats.t.ppf(0.975, 3) * np.std(gains, ddof=1) * math.sqrt(1 / 4 + 1 / 8)
        assert found.high - found.mean == pytest.approx(reach)
        assert page.against(ours[:2], theirs) is None
        once = [row(f, 0, 50.0, "counts of labels") for f in range(4)]
        assert page.against(once, theirs).mean == pytest.approx(-1.5)


def test_a_run_goes_on_where_it_stopped(data, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    few = {name: own for name, own in families().items() if "hexagon" in name}
    monkeypatch.setattr(suite, "families", lambda: few)
    monkeypatch.setattr(page, "families", lambda: few)
    monkeypatch.setitem(suite.EPOCHS["quick"], "MUTAG", 2)
    words = ["molecules", "MUTAG", "--models", "GIN", "SPEN by size", "most frequent class"]
    words += ["--seeds", "1", "--data", str(data), "--out", str(out)]
    done = []
    original = Worker.run

    def stopping(self, job, *rest):
        if len(done) == 6:
            raise KeyboardInterrupt
        done.append(job)
        return original(self, job, *rest)

    monkeypatch.setattr(Worker, "run", stopping)
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 130
    first = read_rows(out, suite.RESULTS)
    assert len(first) == 6
    monkeypatch.setattr(Worker, "run", original)
    main(words)
    rows = read_rows(out, suite.RESULTS)
    assert rows[:6] == first
    # Three networks on the hard pair, by hops, then two folds of three models.
    assert len(rows) == 3 + 6 and len({r.key for r in rows}) == 9
    assert [r.values[0].note for r in rows[:3]] == ["0c", "1m", "1m"]
    text = (out / page.PAGE).read_text()
    for word in ("### MUTAG, quick", "counts of labels", "SPEN by size, 2 hops", "--data DIR"):
        assert word in text
    assert "Not run, or not to the end: counts of labels; rooted subgraphs" in text
    monkeypatch.setattr(Worker, "run", None)
    main(words)
    assert (out / page.PAGE).read_text() == text


def test_a_run_may_tell_nothing_apart(tmp_path, monkeypatch):
    few = {name: own for name, own in families().items() if "hexagon" in name}
    monkeypatch.setattr(suite, "families", lambda: few)
    monkeypatch.setattr(page, "families", lambda: few)
    main(["molecules", "--models", "GIN", "--seeds", "1", "--out", str(tmp_path)])
    assert "of the output.\n" in (tmp_path / page.PAGE).read_text()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["MUTAK", "--data", "."], "unknown data set 'MUTAK'; did you mean MUTAG"),
        (["--models", "GINN"], "unknown model 'GINN'; did you mean GIN"),
        (["--seeds", "0"], "at least one seed"),
        (["MUTAG"], "MUTAG need files; name their folder with --data DIR"),
        (["MUTAG", "--data", "."], "no folder tudataset"),
    ],
)
def test_wrong_input_is_one_line(tmp_path, monkeypatch, capsys, args, message):
    monkeypatch.delenv("GSYM_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(["molecules", *args, "--out", str(tmp_path / "out")])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()
