"""METIS and Leiden in processes of their own: answers, crashes and loops without end."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import networkx as nx
import numpy as np
import pytest
import torch
from scipy.sparse import csr_array

from gsym import automorphisms
from gsym.coarsening import _worker, coarsen
from gsym.coarsening.methods import leiden, metis
from gsym.coarsening.methods.leiden import leiden_labels
from gsym.coarsening.methods.metis import metis_labels
from gsym.errors import ClusteringError

GRID = csr_array(nx.to_numpy_array(nx.grid_2d_graph(8, 8)))


def test_clusters_are_equal_and_connected():
    pytest.importorskip("pymetis")
    four, eight = metis_labels(GRID, [4, 8], seed=0)
    for labels, k in ((four, 4), (eight, 8)):
        sizes = np.bincount(labels)
        assert sizes.size == k and sizes.max() <= 1.2 * 64 / k
    cut = (GRID.toarray() * (four[:, None] != four)).sum() / 2
    assert cut <= 20


def test_heavy_edges_are_not_cut():
    pytest.importorskip("pymetis")
    ring = np.roll(np.eye(8), 1, axis=1) * np.tile([1.0, 100.0], 4)[:, None]
    (labels,) = metis_labels(csr_array(ring + ring.T), [4], seed=0)
    assert labels[[1, 3, 5, 7]].tolist() == labels[[2, 4, 6, 0]].tolist()


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("import os; os.abort()", r"exit code -6 on 64 nodes \(it said nothing\)"),
        (
            "raise RuntimeError('input bad')",
            r"exit code 1 .*\(RuntimeError: input bad\); try fewer",
        ),
        ("", "exit code 0 .*it said nothing"),
    ],
    ids=["abort", "exception", "no answer"],
)
def test_a_crash_becomes_an_error(monkeypatch, tmp_path, script, message):
    worker = tmp_path / "worker.py"
    worker.write_text(script)
    monkeypatch.setattr(metis, "_WORKER", worker)
    monkeypatch.setattr(_worker, "find_spec", lambda name: True)
    with pytest.raises(ClusteringError, match=message):
        metis_labels(GRID, [4], seed=0)


@pytest.mark.skipif(sys.platform == "win32", reason="no timer of processor seconds")
def test_a_loop_without_end_is_ended_and_other_seeds_tried(monkeypatch, tmp_path):
    worker = tmp_path / "worker.py"
    worker.write_text(
        "import signal, sys, numpy as np\n"
        "question = np.load(sys.argv[1])\n"
        "signal.setitimer(signal.ITIMER_PROF, question['limit'] / 20)\n"
        "while question['seed'] < 7: pass\n"
        "np.save(sys.argv[2], np.full((1, 64), question['seed']))\n"
    )
    monkeypatch.setattr(leiden, "_WORKER", worker)
    monkeypatch.setattr(_worker, "find_spec", lambda name: True)
    assert (leiden_labels(GRID, [4], seed=6)[0] == 7).all()
    with pytest.raises(ClusteringError, match="networkit ended with exit code -27 on 64 nodes"):
        leiden_labels(GRID, [4], seed=0)


@pytest.mark.parametrize(
    "change",
    [
        lambda A: np.triu(A),
        lambda A: A + np.eye(64),
        lambda A: -A,
        lambda A: A * 0,
    ],
    ids=["directed", "loops", "negative", "empty"],
)
def test_matrices_that_crash_metis_never_reach_it(change, monkeypatch):
    monkeypatch.setattr(_worker.subprocess, "run", lambda *a, **k: pytest.fail("it was started"))
    monkeypatch.setattr(_worker, "find_spec", lambda name: True)
    with pytest.raises(ClusteringError, match="symmetric matrix of positive entries"):
        metis_labels(csr_array(change(GRID.toarray())), [4], seed=0)


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setattr(_worker, "find_spec", lambda name: None)
    for labels in (metis_labels, leiden_labels):
        with pytest.raises(ImportError, match=r"pip install 'gsym\[cluster\]'"):
            labels(GRID, [4], seed=0)


def test_directed_graphs_with_lone_nodes_are_made_fit():
    pytest.importorskip("pymetis")
    edge_index = torch.tensor([[0, 1, 3, 3, 4], [1, 2, 4, 3, 5]])
    h = coarsen(edge_index, 8, method="metis", levels=[2])
    assert h.levels == (8, 2, 1) and not h.nested
    assert sorted(h[2].sizes) in ([3, 5], [4, 4])


def wait_for(what, seconds=60):
    """What a function returns once it returns something."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := what():
            return found
        time.sleep(0.05)
    return what()


def is_gone(pid):
    """Whether a process has ended; one that nobody has asked about yet counts as ended."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state.rpartition(")")[2].split()[0] == "Z"


SLEEPER = "import os, sys, time\nopen({path!r}, 'w').write(str(os.getpid()))\ntime.sleep(600)\n"


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("module", [metis, leiden], ids=["metis", "leiden"])
def test_a_worker_that_hangs_is_ended(monkeypatch, tmp_path, module):
    worker = tmp_path / "worker.py"
    worker.write_text(SLEEPER.format(path=str(tmp_path / "pid")))
    monkeypatch.setattr(module, "_WORKER", worker)
    monkeypatch.setattr(_worker, "find_spec", lambda name: True)
    started = []

    class Recorded(subprocess.Popen):
        def communicate(self, *args, timeout=None, **kwargs):
            # Time runs once the worker does, however long it took to start.
            wait_for((tmp_path / "pid").exists)
            started.append(timeout)
            return super().communicate(*args, timeout=0.01, **kwargs)

    monkeypatch.setattr(subprocess, "Popen", Recorded)
    labels = metis_labels if module is metis else leiden_labels
    with pytest.raises(ClusteringError, match=r"no answer within \d+ s on 64 nodes .*fewer levels"):
        labels(GRID, [4], seed=0)
    # Once, not with three seeds in turn.
    assert len(started) == 1 and 100 < started[0] < 600
    assert is_gone(int((tmp_path / "pid").read_text()))


PARENT = """
import signal
import sys
import numpy as np
from pathlib import Path
from scipy.sparse import csr_array
from gsym.coarsening import _worker
from gsym.coarsening.methods import metis
metis._WORKER = Path(sys.argv[1])
_worker.find_spec = lambda name: True
path = np.diag(np.ones(7), 1)
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background
metis.metis_labels(csr_array(path + path.T), [2], seed=0)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGKILL"])
def test_a_worker_does_not_outlive_its_parent(tmp_path, name):
    worker, pid = tmp_path / "worker.py", tmp_path / "pid"
    worker.write_text(SLEEPER.format(path=str(pid)))
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(worker)], stderr=subprocess.DEVNULL
    )
    try:
        child = int(wait_for(lambda: pid.exists() and pid.read_text(), 120))
        assert not is_gone(child)
        parent.send_signal(getattr(signal, name))
        assert parent.wait(60) != 0
        assert wait_for(lambda: is_gone(child))
    finally:
        parent.kill()
        parent.wait()


def test_the_search_for_automorphisms_leaves_no_process(monkeypatch):
    started = []

    class Recorded(subprocess.Popen):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            started.append(self)

    monkeypatch.setattr(subprocess, "Popen", Recorded)
    edges = torch.tensor([(i, (i + 1) % 7) for i in range(7)]).T
    assert not automorphisms(edges, 7, time_budget=1e-3).exact
    assert automorphisms(edges, 7, time_budget=600).order() == 7
    assert len(started) == 2 and all(process.returncode is not None for process in started)
