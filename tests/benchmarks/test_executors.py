"""Cells in other processes: the rows of one process, whatever is killed on the way."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from toy_task import ToyTask

from gsym_bench.suite.errors import BenchmarkError
from gsym_bench.suite.results import read_rows
from gsym_bench.suite.run import run

NOISY = {"seconds", "peak_memory_mib"}


class KilledTask(ToyTask):
    """Its process kills itself in the middle of a training, as often as there are files to take."""

    def __init__(self, folder: Path, deaths: int):
        super().__init__()
        self.folder = folder
        for number in range(deaths):
            (folder / f"death-{number}").touch()

    def loss(self, prediction, batch):
        loss = super().loss(prediction, batch)
        if self.steps == 8:
            for path in self.folder.glob("death-*"):
                path.unlink()
                os.kill(os.getpid(), signal.SIGKILL)
        return loss


def comparable(rows):
    cells = [{k: v for k, v in vars(row).items() if k not in NOISY} for row in rows]
    return sorted(cells, key=lambda cell: cell["key"])


@pytest.fixture
def go(tmp_path):
    def go(task, out, **options):
        return run([task], out=tmp_path / out, seeds=1, device="cpu", **options)

    return go


def test_killed_workers_change_no_row(go, tmp_path):
    whole = go(ToyTask(), "here")
    rows = go(KilledTask(tmp_path, 1), "there", workers=2, checkpoint_seconds=0.0)
    assert not list(tmp_path.glob("death-*"))
    assert [row.key for row in rows] == [row.key for row in whole]
    assert comparable(rows) == comparable(whole) == comparable(read_rows(tmp_path / "there"))
    assert not list((tmp_path / "there" / "checkpoints").iterdir())


def test_a_cell_that_kills_every_worker_is_named(go, tmp_path):
    task = KilledTask(tmp_path, 9)
    with pytest.raises(
        BenchmarkError, match=r"toy, noise, trivial, .* killed 3 times .*fewer --workers"
    ):
        go(task, "out", workers=2, groups=("trivial",))
    assert [row.model for row in read_rows(tmp_path / "out")] == ["copy"]


def test_errors_of_workers_are_not_swallowed(go):
    with pytest.raises(RuntimeError, match="shapes") as caught:
        go(ToyTask(fail_at=1, error=RuntimeError("shapes")), "out", workers=2)
    assert "toy_task.py" in caught.value.__notes__[0]


class OtherDataTask(ToyTask):
    """Has other data in other processes."""

    def load(self, data, profile, seed):
        problem = super().load(data, profile, seed)
        problem.train.targets.add_(os.getpid())
        return problem


def test_a_worker_with_other_data_is_refused(go):
    message = r"toy, seed 0: expected data of checksum \w{16}, got \w{16} on .*same data"
    with pytest.raises(BenchmarkError, match=message):
        go(OtherDataTask(), "out", workers=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": 0}, "at least one worker; got --workers 0"),
        ({"engine": "dask"}, "unknown engine 'dask'; did you mean"),
        ({"engine": "ray", "workers": 2}, "leave it out with ray"),
        ({"address": "auto"}, "add --engine ray"),
        ({"engine": "ray", "address": "nowhere"}, r"expected --address host:port .*'nowhere'"),
        ({"engine": "ray", "address": "127.0.0.1:1"}, r"no Ray cluster answers at 127.0.0.1:1 \("),
        ({"engine": "ray", "address": "no-such-host.invalid:6379"}, "no Ray cluster answers at"),
    ],
)
def test_bad_means_are_refused_before_any_work(go, options, message):
    if options.get("address", "auto") != "auto":
        pytest.importorskip("ray")
    task = ToyTask()
    with pytest.raises(BenchmarkError, match=message):
        go(task, "out", **options)
    assert task.fits == 0


class WaitingTask(ToyTask):
    """Its first training on a node but the first waits until that node has been killed."""

    def __init__(self, folder: Path, head: str):
        super().__init__()
        self.folder, self.head = folder, head

    def loss(self, prediction, batch):
        import time

        import ray

        node = ray.get_runtime_context().get_node_id()
        begun = self.folder / f"begun-{node}"
        if node != self.head and self.steps == 8 and not begun.exists():
            begun.touch()
            time.sleep(600)
        return super().loss(prediction, batch)


def test_a_node_that_is_killed_changes_no_row(go, tmp_path):
    pytest.importorskip("ray", reason="needs the extra ray")
    import threading
    import time

    from ray.cluster_utils import Cluster

    whole = go(ToyTask(), "here")
    small = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=small)
    try:
        other = cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20)

        def kill():
            until = time.monotonic() + 120
            while not list(tmp_path.glob("begun-*")) and time.monotonic() < until:
                time.sleep(0.1)
            cluster.remove_node(other, allow_graceful=False)

        thread = threading.Thread(target=kill)
        thread.start()
        head = cluster.head_node.node_id
        rows = go(WaitingTask(tmp_path, head), "there", engine="ray", address=cluster.address)
        thread.join()
        assert [path.name for path in tmp_path.glob("begun-*")] == [f"begun-{other.node_id}"]
        assert comparable(rows) == comparable(whole) == comparable(read_rows(tmp_path / "there"))
    finally:
        cluster.shutdown()
