"""The benchmark of the kernels: equal values, honest judgement, a page made of rows."""

from __future__ import annotations

import itertools
import json
import math
import re
import sys
from dataclasses import asdict, replace
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from gsym_bench.__main__ import main
from gsym_bench.kernels import measure, suite
from gsym_bench.kernels.bars import (
    BARS,
    BEST_DENSE,
    BOTH,
    DENSE_FORMS,
    FORWARD,
    GOALS,
    HUGE,
    PLAIN,
    SETTINGS,
    Goal,
    Size,
)
from gsym_bench.kernels.cases import CASES
from gsym_bench.kernels.groups import GROUPS
from gsym_bench.kernels.measure import (
    COPY,
    GROWTH,
    PRODUCT,
    Job,
    Timed,
    Workload,
    environment,
    interleave,
    make_rows,
    prepare,
)
from gsym_bench.kernels.page import MISSING, write_page
from gsym_bench.kernels.rows import merge, read_rows, write_rows
from gsym_bench.kernels.suite import plan, run
from gsym_bench.kernels.work import COMPILED, OURS, READING, Peer
from gsym_bench.suite.errors import BenchmarkError

CPU = torch.device("cpu")
MILLION = Size(10**6, 62_500, 64)
SMALL = {
    "EGNNConv, n-body": Size(40, 10, 8, 2),
    "EGNN, n-body": Size(40, 10, 8, 2),
    "OrbitLinear": Size(12, 3, 4, 2),
    "OrbitLinear, levels": Size(12, 4, 4, 2),
    "OrbitLinear, dense": Size(16, 4, 3, 2),
    "GNet, dense": Size(16, 4, 3, 2),
    **{f"OrbitLinear, {name}": Size(group.num_nodes, 1, 4, 2) for name, group in GROUPS.items()},
}


@pytest.mark.parametrize("name", CASES)
def test_every_case_runs_and_its_peers_agree(name):
    size = SMALL.get(name, Size(48, 6, 8))
    work = CASES[name].make(size, CPU)
    assert next(iter(work.peers)) == OURS and len(work.peers) > 1 and work.moved > 0
    peers = {key: peer for key, peer in work.peers.items() if key != COMPILED}
    for mode in (FORWARD, BOTH):
        # Raises where values or gradients of a peer differ from ours.
        steps = prepare(peers, mode, Workload(name, size, (mode,), False), PLAIN)
        assert list(steps) == list(peers)
    named = {goal.peer for goal in GOALS if goal.case == name}
    assert named <= {*work.peers, COPY, BEST_DENSE, "torch-scatter", "CUDA graph"}


def test_a_peer_of_other_values_is_refused():
    x = torch.ones(3, 2, requires_grad=True)
    workload = Workload("toy", Size(3, 1, 2), (BOTH,), False)
    peers = {OURS: Peer(lambda: x * 2, (x,)), "wrong": Peer(lambda: x * 2.01, (x,))}
    with pytest.raises(BenchmarkError, match=r"wrong of toy .* differs from gsym by 0\.005"):
        prepare(peers, FORWARD, workload, PLAIN)
    # Equal values, another gradient.
    peers["wrong"] = Peer(lambda: x + x.detach(), (x,))
    prepare(peers, FORWARD, workload, PLAIN)
    with pytest.raises(BenchmarkError, match="in tensor 1"):
        prepare(peers, BOTH, workload, PLAIN)


def test_every_round_draws_the_order_of_its_turns(monkeypatch):
    order = []
    steps = {name: (lambda name=name: order.append(name)) for name in "abc"}
    monkeypatch.setattr(measure, "TURN", 0)
    times = interleave(steps, 12, CPU)
    # After one call each that sets the repeats every turn is a pair, whose first does not count.
    assert order[3::2] == order[4::2]
    rounds = ["".join(order[i : i + 6 : 2]) for i in range(3, len(order), 6)]
    assert len(rounds) == 12
    assert {"".join(sorted(names)) for names in rounds} == {"abc"}
    before = {names[i - 1] for names in rounds for i in (1, 2) if names[i] == "a"}
    assert before == {"b", "c"}
    assert {len(taken) for taken in times.values()} == {12}
    times = interleave(steps, 9, CPU, seconds=0)
    assert {len(taken) for taken in times.values()} == {3}


def test_a_short_step_is_repeated_in_its_turn(monkeypatch):
    clock = itertools.count()
    monkeypatch.setattr(measure.time, "perf_counter", lambda: next(clock) * 5e-3)
    steps = []
    times = interleave({"a": lambda: steps.append(1)}, 3, CPU)
    # Every look at the clock takes 5 ms, so four steps fill a turn; another one goes before.
    assert len(steps) == 1 + 3 * (1 + 4)
    assert times["a"] == pytest.approx([5 / 4] * 3)


def test_the_first_call_of_a_turn_does_not_count(monkeypatch):
    now, last = 0.0, ""

    def run(name, first, again):
        nonlocal now, last
        now, last = now + (again if last == name else first), name

    monkeypatch.setattr(measure.time, "perf_counter", lambda: now)
    steps = {"a": lambda: run("a", 0.8, 0.1), "b": lambda: run("b", 0.5, 0.5)}
    times = interleave(steps, 3, CPU)
    assert times["a"] == pytest.approx([100.0] * 3)
    assert times["b"] == pytest.approx([500.0] * 3)


def rows_of(times, memory=None, *, setting=PLAIN, case="segment_sum", size=MILLION, mode=FORWARD):
    """Rows of given times, one number or one per round."""
    times = {name: np.broadcast_to(np.array(t, float), 3) for name, t in times.items()}
    memory = {**dict.fromkeys(times, 1.0), **(memory or {})}
    workload = Workload(case, size, (mode,), False)
    timed = Timed(1e8, 1e9 if PRODUCT in times else 0, times, memory)
    job = Job("cpu", setting, "standard", 3, math.inf, (workload,))
    return {row.variant: row for row in make_rows(job, workload, mode, timed)}


def test_a_slow_row_misses_its_bar():
    # The buffer of 100 MB is read and written in 2 ms, twice what gsym has to move.
    rows = rows_of({OURS: 1.05, "PyG scatter": 4, "segment_reduce": 6, COPY: 2, "index_add": 9})
    assert rows[COPY].ratio == pytest.approx(0.5 * 2 / 1.05, rel=1e-3)
    expected = {COPY: ("C1", 0.9, "yes"), "PyG scatter": ("C1", 3.0, "yes")}
    expected |= {"segment_reduce": ("C1", 7.0, "no"), "index_add": ("", math.nan, "")}
    for name, (bar, least, met) in expected.items():
        row = rows[name]
        assert (row.bar, row.met) == (bar, met) and row.least == pytest.approx(least, nan_ok=True)
    slow = rows_of({OURS: 2.1, "PyG scatter": 4, COPY: 2})
    assert slow[COPY].met == "no" and slow["PyG scatter"].met == "no"
    # Another size is not judged.
    assert rows_of({OURS: 9, "PyG scatter": 1, COPY: 1}, size=Size(10, 2, 64))[COPY].met == ""


def test_the_best_dense_form_is_the_one_of_least_median():
    taken = dict(zip(DENSE_FORMS, ([3, 3, 9], [4, 4, 4], [2, 5, 5]), strict=True))
    times = {OURS: [1, 1, 3], COPY: [1, 1, 1], **taken}
    memory = {name: float(i) for i, name in enumerate(times)}
    timed = Timed(1e6, 0, {k: list(map(float, v)) for k, v in times.items()}, memory)
    workload = Workload("OrbitLinear, mirror", Size(21, 245, 64, 64), (FORWARD,), False)
    job = Job("cpu", PLAIN, "standard", 3, 1.0, (workload,))
    best = next(r for r in make_rows(job, workload, FORWARD, timed) if r.variant == BEST_DENSE)
    assert (best.median_ms, best.ratio, best.bar, best.met) == (3, 3, "C12", "yes")
    assert best.memory_mib == memory[DENSE_FORMS[0]] and best.threads == 1


def test_the_ratio_is_the_median_of_ratios():
    row = rows_of({OURS: [1, 10, 100], "PyG scatter": [3, 40, 200], COPY: 2})["PyG scatter"]
    assert (row.ratio, row.ratio_low, row.ratio_high) == (3, 2.5, 3.5)
    assert row.median_ms == 40


def test_roofline_is_the_slower_of_copy_and_product():
    rows = rows_of({OURS: 10, COPY: 2, PRODUCT: 8})
    # 1 GFLOP where 2.147 take 8 ms is 3.725 ms; moving 100 MB is 1 ms.
    assert rows[OURS].roofline == pytest.approx(0.3725, rel=1e-3)
    assert rows[PRODUCT].ratio == pytest.approx(0.3725, rel=1e-3)
    assert rows_of({OURS: 10, COPY: 2})[OURS].roofline == pytest.approx(0.1)
    # With gradients three times the arithmetic.
    assert rows_of({OURS: 10, COPY: 2, PRODUCT: 8}, mode=BOTH)[OURS].roofline > 1.1


def test_memory_and_huge_pages_belong_to_the_bar():
    size, times = Size(160_000, 10_000, 64), {OURS: 1, "plain EGNN": 3, COPY: 1}
    where = {"case": "EGNNConv in plain torch", "size": size}
    for setting, ours, met in ((PLAIN, 1, "no"), (HUGE, 1, "yes"), (HUGE, 2, "no")):
        memory = {OURS: ours, "plain EGNN": 12}
        row = rows_of(times, memory, setting=setting, **where)["plain EGNN"]
        assert (row.bar, row.met, row.least_memory) == ("C4", met, 12)
    goal = Goal("C4", "EGNNConv", size, FORWARD, "plain EGNN", 3, memory=12)
    assert goal.is_met(PLAIN, 3, 12)
    assert not goal.is_met(PLAIN, 3, math.nan) and not goal.is_met(PLAIN, math.nan, 12)


@pytest.mark.parametrize("device", SETTINGS)
@pytest.mark.parametrize("profile", ["standard", "full"])
def test_the_plan_holds_every_bar(device, profile):
    planned = {
        (job.setting, w.case, w.size, mode)
        for job in plan(profile, device)
        for w in job.workloads
        for mode in w.modes
    }
    for goal in GOALS:
        for setting in goal.settings:
            key = setting, goal.case, goal.size, goal.mode
            assert (key in planned) == (goal.device == device), goal
    swept = {(case, size.n) for _, case, size, _ in planned}
    assert {("segment_mean", 10**n) for n in range(3, 7)} <= swept
    assert (("segment_mean", 10**7) in swept) == (profile == "full" or device == "cuda")
    assert {job.rounds for job in plan(profile, device)} == {9}
    widths = {(size.channels, mode) for _, case, size, mode in planned if case == "segment_mean"}
    full = {(width, mode) for width in (32, 64, 128, 256) for mode in (FORWARD, BOTH)}
    assert widths == (full if profile == "full" else {(64, FORWARD)})


def test_what_was_measured_at_this_commit_stands(tmp_path, monkeypatch):
    monkeypatch.setattr(suite, "commit", lambda: "here")
    monkeypatch.setattr(suite, "machine", lambda _: "this")
    monkeypatch.setattr(suite, "run", run := Mock(return_value=[]))
    rows = rows_of({OURS: 1, COPY: 2}, size=Size(500, 31, 64)).values()  # what C1 is in "quick"
    stands = {"commit": "here", "profile": "quick", "machine": "this"}
    for changes, left in (
        (stands, [HUGE]),
        (stands | {"profile": "standard"}, [PLAIN, HUGE]),
        (stands | {"commit": "before"}, [PLAIN, HUGE]),
        (stands | {"machine": "another"}, [PLAIN, HUGE]),
    ):
        write_rows(tmp_path, [replace(row, **changes) for row in rows])
        run.reset_mock()
        suite.main(tmp_path, profile="quick", only=["C1"])
        jobs = [call.args[0] for call in run.call_args_list]
        assert [(job.setting, [w.size.n for w in job.workloads]) for job in jobs] == [
            (setting, [500]) for setting in left
        ]
    # Nobody knows what a changed tree was.
    monkeypatch.setattr(suite, "commit", lambda: "here+dirty")
    write_rows(tmp_path, [replace(r, **{**stands, "commit": "here+dirty"}) for r in rows])
    run.reset_mock()
    suite.main(tmp_path, profile="quick", only=["C1"])
    assert run.call_count == 2


def test_a_bar_takes_all_rounds_in_several_processes(monkeypatch):
    asked = []

    class Worker:
        def ask(self, job):
            asked.append((job.rounds, job.seconds))
            n = len(asked)
            times = {OURS: [1.0 * n] * job.rounds, COPY: [2.0 * n] * job.rounds}
            return {FORWARD: asdict(Timed(1e6, 0, times, dict.fromkeys(times, 1.0)))}

    size = Size(20, 1, 4)
    monkeypatch.setattr(suite, "GOALS", [Goal("C1", "permute_rows", size, FORWARD, COPY, 1)])
    for n, expected in ((20, [(3, math.inf)] * 3), (30, [(9, 1.0)])):
        asked.clear()
        workload = Workload("permute_rows", size._replace(n=n), (FORWARD,), False)
        rows = suite._rows(Worker(), Job("cpu", PLAIN, "standard", 9, 1.0, (workload,)))
        assert asked == expected
        assert [(row.variant, row.rounds) for row in rows] == [(OURS, 9), (COPY, 9)]
        assert rows[0].median_ms == (2 if n == 20 else 1)
    asked.clear()
    brief = Goal("C11", "permute_rows", size, FORWARD, COPY, 1, brief=True)
    monkeypatch.setattr(suite, "GOALS", [brief])
    workload = Workload("permute_rows", size, (FORWARD,), False)
    suite._rows(Worker(), Job("cpu", PLAIN, "standard", 9, 1.0, (workload,)))
    assert asked == [(3, math.inf)]


def test_the_plan_of_one_bar():
    jobs = plan("standard", "cpu", ["C4", "C7"])
    assert [job.setting for job in jobs] == [PLAIN, HUGE]
    for job in jobs:
        cases = ["EGNNConv in plain torch", "EGNNConv, n-body"]
        assert [w.case for w in job.workloads] == cases
        assert [w.modes for w in job.workloads] == [(FORWARD, BOTH), (BOTH,)]
        assert Job.from_json(json.dumps(asdict(job))) == job
    (sweep,) = (job for job in plan("standard", "cpu", ["sweep"]) if job.setting == PLAIN)
    planned = {(w.case, w.size.n, mode) for w in sweep.workloads for mode in w.modes}
    assert ("segment_sum", 10**5, FORWARD) in planned
    assert ("segment_max", 10**6, FORWARD) in planned  # C3 is about both passes
    assert ("segment_sum", 10**6, FORWARD) not in planned  # C1
    assert all(w.size.n <= 784 for job in plan("quick", "cpu") for w in job.workloads)


def test_a_setting_is_there_before_torch_starts():
    assert environment(HUGE)["THP_MEM_ALLOC_ENABLE"] == "1"
    assert environment(PLAIN)["THP_MEM_ALLOC_ENABLE"] == "0"
    fixed = {"MALLOC_MMAP_THRESHOLD_"}
    assert environment(PLAIN, peaks=True).keys() - environment(PLAIN).keys() <= fixed


def test_a_process_measures_and_a_failure_is_told():
    good = Workload("permute_rows", Size(2**14, 1, 64), (FORWARD,), False)
    bad = Workload("no such case", Size(20, 1, 4), (FORWARD,), False)
    results = run(Job("cpu", HUGE, "quick", 2, math.inf, (good, bad)))
    workload, rows = next(results)
    assert workload == good
    assert [row.variant for row in rows] == [OURS, "index_select", COPY]
    assert all(row.rounds == 2 and row.median_ms > 0 and row.setting == HUGE for row in rows)
    if sys.platform == "linux":  # elsewhere a peak does not come down
        assert all(3.5 < row.memory_mib < 4.5 for row in rows[:2])
    with pytest.raises(BenchmarkError, match=r"no such case at \(20, 1, 4, 1\).*KeyError"):
        next(results)


def some_rows():
    bars = rows_of({OURS: 1.0, "PyG scatter": 4, "segment_reduce": 6, COPY: 2})
    bars[OURS] = replace(bars[OURS], roofline=0.5)
    swept = [
        row
        for n in (32, 100, 1000)
        for row in rows_of(
            {OURS: n / 100, "scatter_reduce": n / 50, COPY: 1},
            case="segment_max",
            size=Size(n, n // 16, 64),
        ).values()
    ]
    growth = replace(bars[OURS], case=GROWTH, n=77, ratio=math.nan)
    return [*bars.values(), *swept, growth]


def test_the_page_is_made_of_the_rows(tmp_path):
    write_rows(tmp_path, some_rows())
    page = write_page(tmp_path).read_text()
    assert "C1 missed" in page and "C2 not measured" in page and "H1 not measured" in page
    line = next(s for s in page.splitlines() if s.startswith("| C1 ") and "segment_reduce" in s)
    assert f"| 7 | - | - | 6 (6 to 6) | 12 | 1 | no | {MISSING} |" in line
    assert all(f"| {bar} |" in page for bar in BARS)
    assert "- C1: To read" in page and "- C7:" not in page
    # Of a case without bars the page shows the largest size, and the picture all.
    assert "| 1000 | 62 | 64 |" in page and "| 100 | 6 | 64 |" not in page
    for name in ("kernels_time_cpu.png", "kernels_roofline_cpu.png"):
        assert f"({name})" in page
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    # Of what was not measured there is no picture.
    assert page.count(".png") == 2
    assert "## Growth" in page and f"| 77 | 62500 | {PLAIN} | gsym |" in page


def test_a_bar_is_met_when_all_its_lines_are(tmp_path):
    rows = [row for row in some_rows() if row.variant != "segment_reduce"]
    write_rows(tmp_path, rows)
    page = write_page(tmp_path).read_text()
    assert "C1 met," in page and "What holds back" not in page  # its stretch is reached, too
    short = [replace(r, ratio=0.94) if r.variant == COPY and r.bar else r for r in rows]
    write_rows(tmp_path, short)
    page = write_page(tmp_path).read_text()
    assert "C1 met," in page and "- C1: To read" in page


def test_the_page_says_where_a_bar_lies_beyond_the_limit(tmp_path):
    rows = rows_of({OURS: 1.0, READING: 0.8, "PyG scatter": 2, COPY: 2})
    write_rows(tmp_path, list(rows.values()))
    page = write_page(tmp_path).read_text()
    # Twice as long as gsym is 2.5 times as long as to read alone, and the bar is 3.
    assert "C1 missed where the limit lies below it," in page
    assert "| 2 (2 to 2) | 2.5 | 1 | no |" in page
    rows[READING] = replace(rows[READING], ratio=0.6)
    write_rows(tmp_path, list(rows.values()))
    assert "C1 missed," in write_page(tmp_path).read_text()
    # No reading stands beside, what was read was slower than the sum, or memory is missed as well.
    slow = {"case": "EGNNConv", "size": Size(1_600_000, 100_000, 64), "mode": FORWARD}
    for times, memory in (({}, 20), ({READING: 1.2}, 20), ({READING: 0.9}, 2)):
        rows = rows_of(
            {OURS: 1.0, "plain EGNN": 3, COPY: 2, **times}, {"plain EGNN": memory}, **slow
        )
        write_rows(tmp_path, list(rows.values()))
        assert "C6 missed," in write_page(tmp_path).read_text()


def test_the_page_names_the_command_of_every_run(tmp_path):
    rows = [replace(row, commit="all") for row in some_rows()]
    anew = [replace(row, commit="some") for row in rows if row.case == "segment_sum"]
    cuda = {"device": "cuda", "setting": SETTINGS["cuda"][0], "profile": "full"}
    gpu = [replace(row, commit="gpu", **cuda) for row in rows]
    write_rows(tmp_path, [*merge(rows, anew), *gpu])
    page = write_page(tmp_path).read_text()
    commands = {"all": " --only sweep", "some": " --only C1"}
    commands |= {"gpu": " --profile full --device cuda"}
    for commit, options in commands.items():
        found = re.search(rf"by `(?P<command>[^`]*)` on [^`]* at commit {commit}\b", page)
        assert found["command"] == f"gsym-bench kernels{options} --out {tmp_path}"


def test_rows_survive_the_file_and_new_ones_replace_old(tmp_path):
    rows = some_rows()
    write_rows(tmp_path, rows)
    assert repr(read_rows(tmp_path)) == repr(rows)  # NaN is not equal to itself
    new = [replace(row, commit="new") for row in rows if row.case == "segment_max" and row.n == 100]
    merged = merge(rows, new)
    assert len(merged) == len(rows) and merged[-len(new) :] == new
    assert {row.n for row in merged if row.commit == "new"} == {100}


def test_each_processor_has_its_own_rows_and_bars(tmp_path, monkeypatch):
    old = [replace(row, machine="old") for row in some_rows()]
    anew = rows_of({OURS: 1, "segment_reduce": 9, COPY: 2}).values()
    new = [replace(row, machine="new") for row in anew]
    write_rows(tmp_path, merge(old, new))
    assert [row.machine for row in read_rows(tmp_path)] == ["old"] * len(old) + ["new"] * len(new)
    page = write_page(tmp_path).read_text()
    parts = re.split(r"^## Bars on the CPU, ", page, flags=re.M)
    assert [part.partition("\n")[0] for part in parts[1:]] == ["old", "new"]
    mine = [next(s for s in part.splitlines() if "segment_reduce" in s) for part in parts[1:]]
    assert "| 6 (6 to 6) |" in mine[0] and "| 9 (9 to 9) |" in mine[1]
    # What neither has measured stands once, and the curves are those of the one with most rows.
    assert "| C2 |" in parts[1] and "| C2 |" not in parts[2].partition("##")[0]
    assert "| old | 1000 | 62 | 64 |" in page and "| new | 1000000 | 62500 | 64 |" in page
    # A run of everything leaves the rows of the other processor alone.
    monkeypatch.setattr(suite, "machine", lambda _: "new")
    monkeypatch.setattr(suite, "run", Mock(return_value=[]))
    suite.main(tmp_path, profile="quick")
    assert {row.machine for row in read_rows(tmp_path)} == {"old"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("case,n,k\nold,1,2\n", "expected the columns"),
        ("", "expected the columns"),
        (None, "has not"),
    ],
)
def test_a_damaged_file_is_one_line(tmp_path, text, message):
    write_rows(tmp_path, some_rows())
    path = tmp_path / "kernels.csv"
    path.write_text(path.read_text()[:-60] if text is None else text)
    with pytest.raises(BenchmarkError, match=message) as error:
        read_rows(tmp_path)
    assert "delete it or choose another --out" in str(error.value)


def test_no_rows_no_page(tmp_path):
    with pytest.raises(BenchmarkError, match="no rows in"):
        write_page(tmp_path)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--profile", "standart"], "unknown profile 'standart'; did you mean standard"),
        (["--only", "C4,C99"], "unknown bar 'C99'"),
        (["--only", "H1"], "H1 is a bar of --device cuda; got cpu"),
        (["--only", "C1", "--device", "cuda"], "C1 is a bar of --device cpu; got cuda"),
        (["--device", "gpu"], "unknown device 'gpu'"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(tmp_path, capsys, args, message):
    with pytest.raises(SystemExit) as stop:
        main(["kernels", *args, "--out", str(tmp_path / "out")])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_where_there_is_none_is_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["kernels", "--device", "cuda", "--out", str(tmp_path / "out")])
    assert stop.value.code == 2
    assert "torch finds no CUDA device here" in capsys.readouterr().err
