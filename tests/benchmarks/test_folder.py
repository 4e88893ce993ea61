"""A folder of results: who writes to it, whether there is room, and rows that are cut off."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections import namedtuple

import pytest
from toy_task import ToyTask, make_row

from gsym_bench.studies import motion
from gsym_bench.suite import results
from gsym_bench.suite.errors import BenchmarkError
from gsym_bench.suite.folder import HOLDER, check_writable, locked
from gsym_bench.suite.report.markdown import write_report as report
from gsym_bench.suite.results import RESULTS, append_row, read_rows, recover
from gsym_bench.suite.run import run

OLDER = ["metric", "unit", "val", "test", "metric_2", "val_2", "test_2"]
HOLD = """
import sys
from pathlib import Path
from gsym_bench.suite.folder import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the folder."""
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as it:
        assert it.stdout.readline() == "held\n"
        yield it
        it.kill()


def test_the_holder_is_named(holder, tmp_path):
    who = rf"process {holder.pid} on {socket.gethostname()}, since 2.*-c .*--out"
    with pytest.raises(BenchmarkError, match=who), locked(tmp_path):
        pass
    task = ToyTask()
    with pytest.raises(BenchmarkError, match=who):
        run([task], out=tmp_path, device="cpu")
    with pytest.raises(BenchmarkError, match=who):
        motion.run([], out=tmp_path, name="a.csv", profile="quick", seeds=1, console=None)
    assert task.fits == 0


def test_a_dead_process_holds_nothing(holder, tmp_path):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert str(holder.pid) in (tmp_path / HOLDER).read_text()
    with locked(tmp_path):
        assert str(os.getpid()) in (tmp_path / HOLDER).read_text()
    assert not (tmp_path / HOLDER).exists()


def test_a_holder_that_says_nothing_holds_too(holder, tmp_path):
    for content in ("", "[]", '{"pid": 1}'):
        (tmp_path / HOLDER).write_text(content)
        with pytest.raises(BenchmarkError, match="another process writes to"), locked(tmp_path):
            pass


def test_the_lock_is_given_back_after_an_error(tmp_path):
    with pytest.raises(KeyboardInterrupt), locked(tmp_path):
        raise KeyboardInterrupt
    with locked(tmp_path):
        pass


# Room


def test_a_full_disk_is_named_before_training(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")(10**9, 10**9 - 2**20, 2**20)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    task = ToyTask()
    with pytest.raises(BenchmarkError, match=r"expected 64 MiB free on its disk, got 1\.0; make"):
        run([task], out=tmp_path, device="cpu")
    assert task.fits == 0


def test_a_disk_that_takes_no_byte_is_named(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(BenchmarkError, match=r"cannot write to .*No space left"):
        check_writable(tmp_path)


@pytest.mark.parametrize("name", [RESULTS, "nbody.csv"])
def test_results_that_cannot_be_written_to_are_named(tmp_path, monkeypatch, name):
    # Root may write to any file, so the system's answer is put in its place.
    append_row(tmp_path, make_row(), name)
    opened = results.Path.open

    def refuse(path, mode="r", *arguments, **options):
        if "a" in mode and path.name == name:
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, mode, *arguments, **options)

    monkeypatch.setattr("pathlib.Path.open", refuse)
    with pytest.raises(BenchmarkError, match=rf"cannot write to .*{name} \(Permission denied\)"):
        check_writable(tmp_path)


def test_a_file_in_the_place_of_a_folder_is_named(tmp_path):
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(BenchmarkError, match=r"cannot make the folder .*checkpoints"):
        run([ToyTask()], out=tmp_path, device="cpu")


# Rows


def test_a_row_that_is_cut_off_anywhere_is_moved_aside(tmp_path):
    path, torn = tmp_path / RESULTS, tmp_path / f"{RESULTS}.torn"
    append_row(tmp_path, make_row())
    first = path.read_bytes()
    append_row(tmp_path, make_row(key="other", unit='a "quoted",\u00b5 unit'))
    second = path.read_bytes()[len(first) :]
    assert recover(path) is None and path.read_bytes() == first + second
    ends = [place for place in range(len(second)) if second[place : place + 1] == b"\n"]
    assert len(ends) == 4  # one line per value
    for cut in sorted({*range(1, len(second), 7), *ends, *(end + 1 for end in ends[:-1])}):
        path.write_bytes(first + second[:cut])
        with pytest.raises(BenchmarkError, match=r"last line is cut off: `run` moves that aside"):
            read_rows(tmp_path)
        with pytest.raises(BenchmarkError, match=r"last line is cut off: `run` moves that aside"):
            append_row(tmp_path, make_row(key="third"))
        with pytest.raises(BenchmarkError, match="cut off"):
            report(tmp_path)
        assert recover(path) is not None
        assert path.read_bytes() == first
        assert torn.read_bytes() == second[:cut].rstrip(b"\n") + b"\n"
        torn.unlink()
    assert read_rows(tmp_path) == [make_row()]


def test_a_run_mends_a_row_that_is_cut_off_and_says_so(tmp_path, capsys):
    rows = run([ToyTask()], out=tmp_path, seeds=1, device="cpu")
    path = tmp_path / RESULTS
    path.write_bytes(path.read_bytes()[:-20])
    task = ToyTask()
    again = run([task], out=tmp_path, seeds=1, device="cpu")
    assert "cut off; it was moved to results.csv.torn" in capsys.readouterr().out
    assert task.fits == 1
    assert [row.key for row in read_rows(tmp_path)] == [row.key for row in rows]
    assert (again[-1].val, again[-1].test) == (rows[-1].val, rows[-1].test)


def test_rows_are_flushed_one_by_one(tmp_path, monkeypatch):
    append_row(tmp_path, make_row())
    before, sizes, fsync = (tmp_path / RESULTS).stat().st_ino, [], os.fsync

    def watch(descriptor):
        sizes.append(os.fstat(descriptor).st_size)
        fsync(descriptor)

    monkeypatch.setattr("os.fsync", watch)
    append_row(tmp_path, make_row(key="other"))
    # The whole file is on the disk when the row is, and it is the same file.
    assert sizes == [(tmp_path / RESULTS).stat().st_size]
    assert (tmp_path / RESULTS).stat().st_ino == before


def test_keys_that_stand_twice_are_named(tmp_path):
    append_row(tmp_path, make_row(key="once"))
    for key in ("a", "b", "a", "b", "b"):
        append_row(tmp_path, make_row(key=key, seed=3))
    message = (
        r"2 keys stand in it more than once: a \(toy, S_4, seed 3\), b \(toy, S_4, seed 3\); keep"
    )
    for read in (read_rows, report, lambda out: run([ToyTask()], out=out, device="cpu")):
        with pytest.raises(BenchmarkError, match=message):
            read(tmp_path)
    assert not (tmp_path / "report.md").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda names: names[:-1], r"lacks the columns \['note'\]"),
        (lambda names: [*names, "more"], r"it has the columns \['more'\]"),
        (lambda names: ["id", *names[1:]], r"lacks the columns \['key'\] and has .*\['id'\]"),
        (lambda names: names[::-1], "it has another order"),
        # One line per cell, as results once were.
        (lambda names: [*names[:-6], *OLDER], r"lacks .*'value'.*has .*'metric_2'.*run again"),
    ],
)
def test_a_file_of_other_columns_is_refused_by_name(tmp_path, change, message):
    append_row(tmp_path, make_row())
    path = tmp_path / RESULTS
    head, *lines = path.read_text().splitlines(keepends=True)
    path.write_text(",".join(change(head.strip().split(","))) + "\n" + "".join(lines))
    before, task = path.read_bytes(), ToyTask()
    for use in (
        read_rows,
        lambda out: append_row(out, make_row(key="other")),
        lambda out: run([task], out=out, device="cpu"),
    ):
        with pytest.raises(BenchmarkError, match=f"written by other code: .*{message}"):
            use(tmp_path)
    assert path.read_bytes() == before and task.fits == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: [lines[0], lines[2], lines[1], *lines[3:]], r"out of place: '3/4'"),
        (lambda lines: [*lines[:2], *lines[3:], *lines[3:]], r"out of place: '4/4'"),
        (lambda lines: [lines[0], lines[1].replace(",S_4,", ",S_3,"), *lines[2:]], "disagree"),
    ],
)
def test_lines_of_a_cell_that_do_not_fit_are_named(tmp_path, change, message):
    append_row(tmp_path, make_row())
    path = tmp_path / RESULTS
    head, *lines = path.read_text().splitlines(keepends=True)
    assert len(lines) == 4
    path.write_text(head + "".join(change(lines)))
    with pytest.raises(BenchmarkError, match=f"cannot read .*key k .*{message}"):
        read_rows(tmp_path)


# Checkpoints


def test_a_checkpoint_that_cannot_be_read_is_named(tmp_path):
    options = {"out": tmp_path, "device": "cpu", "groups": ("trivial",), "seeds": 1}
    with pytest.raises(KeyboardInterrupt):
        run(
            [ToyTask(fail_at=8, error=KeyboardInterrupt())],
            checkpoint_seconds=0.0,
            **options,
        )
    (path,) = (tmp_path / "checkpoints").iterdir()
    whole = path.read_bytes()
    for content in (b"", whole[:100], whole[: len(whole) // 2], b"nonsense" * 100):
        path.write_bytes(content)
        with pytest.raises(BenchmarkError, match=rf"cannot go on from .*{path.name}.*delete it"):
            run([ToyTask()], **options)
    path.write_bytes(whole)
    assert run([ToyTask()], **options)[-1].status == "ok"


# Older files


def as_older(path):
    """Write a results file as it was before rows named their data and groups."""
    text = path.read_text()
    assert text.count("abc0,") == text.count("def0,") > 0
    head, rest = text.split("\n", 1)
    head = head.replace("checksum,", "").replace("fingerprint,", "")
    path.write_text(head + "\n" + rest.replace("abc0,", "").replace("def0,", ""))


def test_rows_of_an_older_file_are_read_and_kept(tmp_path):
    row = make_row(checksum="abc0", fingerprint="def0")
    path = tmp_path / RESULTS
    append_row(tmp_path, row)
    as_older(path)
    older = make_row()
    assert (older.checksum, older.fingerprint) == ("", "")
    assert read_rows(tmp_path) == [older]
    before = path.read_bytes()
    path.write_bytes(before[:-20])
    with pytest.raises(BenchmarkError, match="cut off"):
        append_row(tmp_path, make_row(key="other"))
    assert recover(path) is not None and read_rows(tmp_path) == []
    path.write_bytes(before)
    new = make_row(key="other", checksum="abc1")
    append_row(tmp_path, new)
    assert read_rows(tmp_path) == [older, new]
    assert path.read_text().startswith("key,commit,") and "abc1" in path.read_text()
