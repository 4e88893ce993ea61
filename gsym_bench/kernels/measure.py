"""Measure cases in this process: every variant in turn, round after round.

``python -m gsym_bench.kernels.measure`` reads a `Job` as JSON from every line and prints a line for
each of its workloads: the times, or the peaks of memory. It runs in processes of its own, since
torch and the C library read some settings when they start.
"""

from __future__ import annotations

import gc
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from gsym import ClusterGroup, Partition
from gsym.nn import OrbitLinear
from gsym_bench.kernels.bars import BEST_DENSE, BOTH, DENSE_FORMS, GOALS, HUGE, KEPT, TF32, Size
from gsym_bench.kernels.cases import CASES
from gsym_bench.kernels.rows import Row
from gsym_bench.kernels.work import COMPILED, OURS, Peer, Work
from gsym_bench.suite.errors import BenchmarkError
from gsym_bench.suite.memory import keep_freed_memory, peak_memory
from gsym_bench.suite.provenance import commit, machine

THREADS = 2
COPY, PRODUCT = "copy", "matrix product"
GROWTH = "growth"

# What a slow case is repeated at least, where a job has a limit of time.
LEAST_ROUNDS = 3

# Processes that share the rounds of a bar: what memory a process finds kept, and which cores it
# runs on, may double the time of one variant in all of its rounds.
PROCESSES = 3

# A step that is shorter is repeated within its turn for so long, in ms; one that is longer than the
# other time takes what is cold at its beginning for nothing.
TURN, LONG = 20.0, 1000.0

Step = Callable[[], object]


@dataclass(frozen=True)
class Workload:
    """One case at one size.

    Attributes:
        case: Name in `CASES`, or ``GROWTH``.
        size: Its size.
        modes: ``FORWARD``, ``BOTH`` or both of them.
        compiled: Whether ``torch.compile`` takes part.
        memory: Peaks in MiB by mode and variant, from another process; measured here if ``None``.
    """

    case: str
    size: Size
    modes: tuple[str, ...]
    compiled: bool
    memory: Mapping[str, Mapping[str, float]] | None = None


@dataclass(frozen=True)
class Job:
    """What one process measures.

    Attributes:
        device: ``"cpu"`` or ``"cuda"``.
        setting: One of `bars.SETTINGS`.
        profile: What it is part of.
        rounds: Times that every variant is timed.
        seconds: After which a case is not repeated any more, but for `LEAST_ROUNDS`.
        workloads: What to measure.
        peaks: Measure memory alone.
    """

    device: str
    setting: str
    profile: str
    rounds: int
    seconds: float
    workloads: tuple[Workload, ...]
    peaks: bool = False

    @classmethod
    def from_json(cls, text: str) -> Job:
        """Undo ``json.dumps(asdict(job))``."""
        fields = json.loads(text)
        fields["workloads"] = tuple(
            Workload(**{**w, "size": Size(*w["size"]), "modes": tuple(w["modes"])})
            for w in fields["workloads"]
        )
        return cls(**fields)


def main() -> None:
    for line in sys.stdin:
        job = Job.from_json(line)
        for workload in job.workloads:
            # What an earlier case has left to the C library saves a later one its page faults, so
            # each gets a process of its own, as fresh as this one, which has run nothing.
            if hasattr(os, "fork"):
                child = os.fork()
                if child:
                    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
                    if code:
                        sys.exit(code)
                    continue
                _print(job, workload)
                os._exit(0)
            _print(job, workload)


def _print(job: Job, workload: Workload) -> None:
    found: object
    if job.peaks:
        found = measure_memory(job, workload)
    elif workload.case == GROWTH:
        with _settings(workload, job.setting):
            found = [asdict(row) for row in growth(job)]
    else:
        found = {mode: asdict(timed) for mode, timed in measure(job, workload).items()}
    sys.stdout.write(json.dumps(found) + "\n")
    sys.stdout.flush()


def environment(setting: str, *, peaks: bool = False) -> dict[str, str]:
    """What the process of a setting has to find when it starts.

    Where memory is measured the C library returns every large tensor once it is freed: which of
    the others it has kept, and can use again, is a matter of chance.
    """
    given = {"THP_MEM_ALLOC_ENABLE": "1" if setting == HUGE else "0"}
    if peaks:
        given["MALLOC_MMAP_THRESHOLD_"] = str(2**17)
    return {**os.environ, **given}


@dataclass(frozen=True)
class Timed:
    """What processes have measured of a workload in one mode.

    Attributes:
        moved: As in `Work`.
        flops: As in `Work`.
        times: Milliseconds of every round, by variant.
        memory: Peak in MiB, by variant.
    """

    moved: float
    flops: float
    times: Mapping[str, Sequence[float]]
    memory: Mapping[str, float]

    def __add__(self, other: Timed) -> Timed:
        times = {name: [*taken, *other.times[name]] for name, taken in self.times.items()}
        return replace(self, times=times)


def measure(job: Job, workload: Workload) -> dict[str, Timed]:
    """All variants of one workload by mode; nothing for a size that does not fit into memory.

    Raises:
        BenchmarkError: A variant does not give the values or gradients of gsym.
    """
    device = torch.device(job.device)
    found = {}
    with _settings(workload, job.setting):
        for mode, work, steps in _prepared(job, workload):
            known = workload.memory
            memory = peaks(steps, device) if known is None else known[mode]
            # Processes that share rounds draw other orders.
            times = interleave(steps, job.rounds, device, job.seconds, seed=os.getpid())
            found[mode] = Timed(work.moved, work.flops, times, memory)
    return found


def measure_memory(job: Job, workload: Workload) -> dict[str, dict[str, float]]:
    """Peaks in MiB, by mode and variant."""
    device = torch.device(job.device)
    with _settings(workload, job.setting):
        return {mode: peaks(steps, device) for mode, _, steps in _prepared(job, workload)}


def _threads(case: str) -> int:
    return CASES[case].threads if case in CASES else THREADS


@contextmanager
def _settings(workload: Workload, setting: str) -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(_threads(workload.case))
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if setting == TF32 else "highest")
    torch.manual_seed(0)
    if workload.compiled:
        # A function is compiled some eight times at most, then runs as it is without a word.
        torch.compiler.reset()
    gc.collect()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)


def _prepared(job: Job, workload: Workload) -> Iterator[tuple[str, Work, dict[str, Step]]]:
    """Every mode with its steps; nothing where memory does not suffice."""
    device, case = torch.device(job.device), CASES[workload.case]
    if case.bytes(workload.size) > 0.8 * _memory_of(device):
        return
    work = case.make(workload.size, device)
    for mode in workload.modes:
        peers = dict(work.peers)
        if not workload.compiled:
            peers.pop(COMPILED, None)
        peers |= _ceilings(work, device)
        yield mode, work, prepare(peers, mode, workload, job.setting)


def make_rows(job: Job, workload: Workload, mode: str, timed: Timed) -> list[Row]:
    """The rows of what was measured, judged by the goals that they belong to.

    A backward pass needs as much traffic again and twice the arithmetic of the forward one.
    """
    moved, flops = timed.moved, timed.flops
    copied = _copied(moved)
    if mode == BOTH:
        moved, flops = 2 * moved, 3 * flops
    times = {name: np.array(taken) for name, taken in timed.times.items()}
    memories = dict(timed.memory)
    if set(DENSE_FORMS) <= set(times):
        best = min(DENSE_FORMS, key=lambda form: float(np.median(times[form])))
        times[BEST_DENSE], memories[BEST_DENSE] = times[best], memories[best]
    # A copy reads and writes its buffer, so it moves twice its size.
    ceilings = {COPY: (2 * copied, 0.0), PRODUCT: (0.0, _product_flops(job.device))}
    floor = times[COPY] * moved / ceilings[COPY][0]
    if PRODUCT in times:
        floor = np.maximum(floor, times[PRODUCT] * flops / ceilings[PRODUCT][1])
    rows = []
    for name, taken in times.items():
        ratio = taken / times[OURS]
        memory_ratio = _divide(memories[name], memories[OURS])
        roofline, needs = float(np.median(floor / taken)), (moved, flops)
        if name in ceilings:
            needs, memory_ratio, roofline = ceilings[name], np.nan, np.nan
            ratio = ratio * (moved / needs[0] if name == COPY else flops / needs[1])
        numbers = {"memory_ratio": memory_ratio, "roofline": roofline, "needs": needs}
        place = job, workload.case, workload.size, mode, name
        rows.append(_row(*place, taken, ratio, memories[name], **numbers))  # type: ignore[arg-type]
    return rows


def interleave(
    steps: Mapping[str, Step],
    rounds: int,
    device: torch.device,
    seconds: float = math.inf,
    seed: int = 0,
) -> dict[str, list[float]]:
    """Run every step in every round, in an order that each round draws anew.

    In a fixed order one step would always come behind the copy, whose writing it waits for. And the
    first call of a turn never counts: after other code it finds caches and threads cold, as no loop
    does, and a virtual machine may have given memory that was free for two seconds back to its
    host, so that to take a large result from there again is dearer than to compute it.

    Args:
        steps: What to run, each of which has run before.
        rounds: How often; after `LEAST_ROUNDS` no round begins once the time is up.
        device: Where the steps run.
        seconds: The time.
        seed: Of the orders.

    Returns:
        Times of one step in ms, one per round.
    """
    names = list(steps)
    times: dict[str, list[float]] = {name: [] for name in names}

    def take(name: str, count: int) -> float:
        _synchronize(device)
        start = time.perf_counter()
        for _ in range(count):
            steps[name]()
        _synchronize(device)
        return (time.perf_counter() - start) * 1e3

    gc.collect()
    once = {name: take(name, 1) for name in names}
    repeats = {name: max(round(TURN / max(once[name], 1e-3)), 1) for name in names}
    begin = time.perf_counter()
    rng = np.random.default_rng(seed)
    for turn in range(rounds):
        if turn >= LEAST_ROUNDS and time.perf_counter() - begin > seconds:
            break
        for name in map(str, rng.permutation(names)):
            if once[name] < LONG:
                steps[name]()
            times[name].append(take(name, repeats[name]) / repeats[name])
    return times


def peaks(steps: Mapping[str, Step], device: torch.device) -> dict[str, float]:
    """How far the peak of memory rises over one call of every step, in MiB."""
    gc.collect()
    memory = {}
    for name, step in steps.items():
        peak = peak_memory(device)
        step()
        _synchronize(device)
        memory[name] = peak()
    return memory


def prepare(
    peers: Mapping[str, Peer], mode: str, workload: Workload, setting: str
) -> dict[str, Step]:
    """What to time, each run once and found equal to gsym."""
    steps: dict[str, Step] = {}
    shared: list[Tensor] = []
    expected: list[Tensor] = []
    for name, peer in peers.items():
        step = _both(peer, shared) if mode == BOTH and peer.inputs else _forward(peer)
        found = step()
        if name == OURS:
            expected = found
        elif peer.same:
            _check_equal(f"{name} of {workload.case} {mode}", found, expected, setting)
        del found
        steps[name] = step
    return steps


def _forward(peer: Peer) -> Callable[[], list[Tensor]]:
    def step() -> list[Tensor]:
        with torch.no_grad():
            return _tuple(peer.call())

    return step


def _both(peer: Peer, cotangents: list[Tensor]) -> Callable[[], list[Tensor]]:
    """Values and gradients of the inputs, those of the weights left out.

    The first call of any peer draws the cotangents of all. Gradients are kept until the next call,
    as in training, so that the rise of the peak does not count them twice.
    """
    leaves = [*peer.inputs, *peer.weights]
    kept: list[Tensor] = []

    def step() -> list[Tensor]:
        kept.clear()
        outputs = _tuple(peer.call())
        if not cotangents:
            cotangents.extend(torch.randn(y.shape, device=y.device) for y in outputs)
        given = [g.view(y.shape) for g, y in zip(cotangents, outputs, strict=True)]
        kept.extend(torch.autograd.grad(outputs, leaves, given))
        return [*(y.detach() for y in outputs), *kept[: len(peer.inputs)]]

    return step


def _tuple(outputs: Tensor | Sequence[Tensor]) -> list[Tensor]:
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)


def _check_equal(
    name: str, found: Sequence[Tensor], expected: Sequence[Tensor], setting: str
) -> None:
    tolerance = 2e-2 if setting == TF32 else 1e-3
    for place, (a, b) in enumerate(zip(found, expected, strict=True)):
        # Not the largest error: where rounding turns the sign of an entry before a ReLU, that entry
        # has another gradient, and both are right.
        a, b = a.flatten(), b.flatten()
        error = float((a - b).norm() / b.norm().clamp(min=1e-30)) if b.numel() else 0.0
        if not error <= tolerance:
            raise BenchmarkError(
                f"{name} differs from gsym by {error:.2g} in tensor {place}, more than "
                f"{tolerance:g}; a time of other values says nothing"
            )


def _ceilings(work: Work, device: torch.device) -> dict[str, Peer]:
    """What the machine does at its best: a copy of what must move, and a matrix product."""
    source = torch.ones(_copied(work.moved) // 4, device=device)
    target = torch.empty_like(source)
    ceilings = {COPY: Peer(lambda: target.copy_(source), same=False)}
    if work.flops:
        side = _product_side(device.type)
        a, b = torch.randn(2, side, side, device=device)
        out = torch.empty_like(a)
        ceilings[PRODUCT] = Peer(lambda: torch.mm(a, b, out=out), same=False)
    return ceilings


def _copied(moved: float) -> int:
    """Bytes of the buffer that is copied: those that must move, within bounds."""
    return 4 * int(min(max(moved, 2**12), 2**30) // 4)


def _product_side(device: str) -> int:
    return 4096 if device == "cuda" else 1024


def _product_flops(device: str) -> float:
    return 2.0 * _product_side(device) ** 3


def growth(job: Job) -> list[Row]:
    """OrbitLinear from one size to ten times that; the ratio is that of both times.

    A tensor of 64 MB comes from fresh pages each time, unless freed memory is kept.
    """
    if job.setting == KEPT and not keep_freed_memory():
        return []
    sizes = [Size(n, 16, 16) for n in (10**4, 10**5, 10**6)]
    steps: dict[tuple[str, Size], Step] = {}
    for size in sizes:
        labels = torch.randint(16, (size.n,), generator=torch.Generator().manual_seed(0))
        layers = {
            OURS: OrbitLinear(16, 16, ClusterGroup(Partition(labels))),
            "nn.Linear": nn.Linear(16, 16),
        }
        for name, layer in layers.items():
            steps[name, size] = _training_step(layer, torch.randn(1, size.n, 16))
    device = torch.device("cpu")
    for step in steps.values():
        step()
    names = {f"{name} {size.n}": (name, size) for name, size in steps}
    named = {key: steps[place] for key, place in names.items()}
    memory = peaks(named, device)
    taken = interleave(named, job.rounds, device)
    times = {key: np.array(values) for key, values in taken.items()}
    rows = []
    for key, (name, size) in names.items():
        tenth = times.get(f"{name} {size.n // 10}")
        ratio = np.full(1, np.nan) if tenth is None else times[key] / tenth
        rows.append(_row(job, GROWTH, size, BOTH, name, times[key], ratio, memory[key]))
    return rows


def _training_step(model: nn.Module, x: Tensor) -> Step:
    peer = Peer(lambda: model(x), (x.requires_grad_(),), tuple(model.parameters()))
    return _both(peer, [])


def _row(
    job: Job,
    case: str,
    size: Size,
    mode: str,
    variant: str,
    times: np.ndarray,
    ratio: np.ndarray,
    memory: float,
    *,
    memory_ratio: float = np.nan,
    roofline: float = np.nan,
    needs: tuple[float, float] = (np.nan, np.nan),
) -> Row:
    low, middle, high = np.quantile(ratio, [0.25, 0.5, 0.75])
    key = job.setting, case, size, mode, variant
    goal = next(
        (
            g
            for g in GOALS
            for setting in g.settings
            if g.device == job.device and (setting, g.case, g.size, g.mode, g.peer) == key
        ),
        None,
    )
    met = ""
    if goal is not None:
        met = "yes" if goal.is_met(job.setting, float(middle), memory_ratio) else "no"
    return Row(
        device=job.device,
        setting=job.setting,
        profile=job.profile,
        case=case,
        **size._asdict(),
        mode=mode,
        variant=variant,
        rounds=len(times),
        median_ms=_rounded(np.median(times)),
        memory_mib=_rounded(memory),
        gigabytes=_rounded(needs[0] / 1e9),
        gflop=_rounded(needs[1] / 1e9),
        ratio=_rounded(middle),
        ratio_low=_rounded(low),
        ratio_high=_rounded(high),
        memory_ratio=_rounded(memory_ratio),
        roofline=_rounded(roofline),
        bar="" if goal is None else goal.bar,
        least=np.nan if goal is None else _rounded(goal.least_in(job.setting)),
        stretch=np.nan if goal is None else _rounded(goal.stretch),
        least_memory=np.nan if goal is None else float(goal.memory),
        met=met,
        threads=_threads(case),
        commit=commit(),
        torch=torch.__version__,
        machine=machine(job.device),
    )


def _rounded(value: float) -> float:
    """Four digits."""
    return float(f"{value:.4g}")


def _divide(a: float, b: float) -> float:
    return a / b if b else np.nan


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _memory_of(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


if __name__ == "__main__":
    main()
