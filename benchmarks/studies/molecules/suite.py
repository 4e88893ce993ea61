"""Run all cells of the molecules task, keep those that are finished, and write the page."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from rich.console import Console

from benchmarks.studies.molecules.graphs import DATASETS, FOLDS, KINDS, Graphs, load
from benchmarks.studies.molecules.models import RATE, count_parameters, matching_width, models
from benchmarks.studies.molecules.pairs import families
from benchmarks.studies.molecules.separation import measure, names, theory
from benchmarks.studies.molecules.training import BASELINES, train
from benchmarks.suite.errors import BenchmarkError, check_names
from benchmarks.suite.folder import locked
from benchmarks.suite.memory import peak_memory
from benchmarks.suite.run import provenance
from benchmarks.suite.store import Row, Value, append_row, read_rows, recover
from benchmarks.suite.task import Schedule

RESULTS = "molecules.csv"
SEPARATION, CLASSES = "separation", "classes"
# What is measured, and its unit. The note of the first holds a word for each pair: 1 if it is told
# apart, else 0, then what theory says: m that it must be, c that it cannot, - nothing.
PAIRS, NOISE, LEAST = "pairs told apart", "difference of copies", "least distance of pairs"
ACCURACY, LAST_ACCURACY = "accuracy", "accuracy of the last epochs"
PARAMETERS = 60_000
BATCH = {"MUTAG": 32, "PTC": 32, "PROTEINS": 64, "IMDB-BINARY": 64}
EPOCHS = {
    "quick": {"MUTAG": 10, "PTC": 10, "PROTEINS": 3, "IMDB-BINARY": 3},
    "standard": {"MUTAG": 25, "PTC": 20, "PROTEINS": 15, "IMDB-BINARY": 15},
}
PROFILE_FOLDS = {"quick": 2, "standard": FOLDS}


@dataclass(frozen=True)
class Cell:
    """One row that is to be made."""

    task: str
    dataset: str
    model: str
    seed: int
    profile: str
    fold: int | None = None

    @property
    def schedule(self) -> Schedule | None:
        """How the network is trained; ``None`` for baselines and hard pairs."""
        if self.task == SEPARATION or self.model in BASELINES:
            return None
        epochs = EPOCHS[self.profile][self.dataset]
        return Schedule(epochs, batch_size=BATCH[self.dataset], lr=RATE, cosine=True)

    @property
    def key(self) -> str:
        """What the row is found by."""
        if self.task == SEPARATION:
            return f"{self.task}; {self.dataset}; {self.model}; seed {self.seed}"
        how = f"{self.schedule}; {PARAMETERS} parameters" if self.schedule else "baseline"
        place = f"fold {self.fold}; {self.profile}; seed {self.seed}"
        return f"{self.dataset}; {self.model}; {place}; {how}"


def cells(profile: str, seeds: int, datasets: Sequence[str], only: Sequence[str]) -> Iterator[Cell]:
    """All cells of a run: hard pairs, then baselines, then networks seed by seed.

    Args:
        profile: quick or standard.
        seeds: Number of seeds.
        datasets: Names of data sets.
        only: Names of models; all if empty.
    """
    for seed in range(seeds):
        for family in families():
            for name, (model, _) in names().items():
                if not only or model in only:
                    yield Cell(SEPARATION, family, name, seed, profile)
    trained = list(models(KINDS))
    for seed in range(seeds):
        for dataset in datasets:
            # Nothing is drawn in a baseline.
            for model in [*BASELINES, *trained] if seed == 0 else trained:
                if not only or model in only:
                    for fold in range(PROFILE_FOLDS[profile]):
                        yield Cell(CLASSES, dataset, model, seed, profile, fold)


def main(
    out: Path,
    *,
    profile: str,
    data: Path | None,
    datasets: Sequence[str],
    only: Sequence[str],
    seeds: int,
    console: Console,
) -> Path:
    """Run what is not finished, then write the page of all that is there.

    Args:
        out: Folder of results.
        profile: quick or standard.
        data: Folder of downloaded data; ``None`` for the hard pairs alone.
        datasets: Names of data sets; all if empty.
        only: Names of models; all if empty.
        seeds: Number of seeds.
        console: Where to tell the progress.

    Returns:
        Path of the page.

    Raises:
        BenchmarkError: An unknown name, no seeds, or results that cannot be read or written.
        DataError: Data that cannot be read.
    """
    from benchmarks.studies.molecules.page import report

    check_names("profile", [profile], EPOCHS)
    check_names("data set", datasets, DATASETS)
    check_names("model", only, [*BASELINES, *models(KINDS)])
    if seeds < 1:
        raise BenchmarkError(f"expected at least one seed; got --seeds {seeds}")
    if datasets and data is None:
        raise BenchmarkError(f"{', '.join(datasets)} need files; name their folder with --data DIR")
    chosen = [] if data is None else datasets or list(DATASETS)

    @cache
    def graphs(name: str) -> Graphs:
        assert data is not None
        return load(data, name)

    for name in chosen:
        graphs(name)  # a file that cannot be read is found before anything is trained
    with locked(out):
        torn = recover(out / RESULTS)
        if torn is not None:
            console.print(
                f"The last line of {out / RESULTS} was cut off; it was moved to {RESULTS}.torn "
                f"and its cell is run again: {torn[:60]}...",
                markup=False,
                soft_wrap=True,
            )
        finished = {row.key for row in read_rows(out, RESULTS)}
        todo = [c for c in cells(profile, seeds, chosen, only) if c.key not in finished]
        for number, cell in enumerate(todo, 1):
            row = run_cell(cell, graphs)
            append_row(out, row, RESULTS)
            said = f"test {row.test:.4g} {row.unit}" if row.test is not None else row.status
            place = "" if cell.fold is None else f", fold {cell.fold}"
            console.print(
                f"[{number}/{len(todo)}] {cell.dataset}, {cell.model}{place}, seed {cell.seed}: "
                f"{said}, {row.seconds:.1f} s",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )
        return report(out)


def run_cell(cell: Cell, graphs: Callable[[str], Graphs]) -> Row:
    """Make one row.

    Args:
        cell: Which.
        graphs: Gives a data set by name.
    """
    peak = peak_memory(torch.device("cpu"))
    start = time.perf_counter()
    if cell.task == SEPARATION:
        found = _separate(cell)
    else:
        found = _classify(cell, graphs(cell.dataset))
    return Row(
        key=cell.key,
        **provenance(),
        device="cpu",
        threads=torch.get_num_threads(),
        task=cell.task,
        source="embedded" if cell.task == SEPARATION else "files",
        profile=cell.profile if cell.task == CLASSES else "",
        schedule=str(cell.schedule or ""),
        model=cell.model,
        group="",
        group_order_log=None,
        commutant_dim=None,
        seed=cell.seed,
        fold=cell.fold,
        seconds=round(time.perf_counter() - start, 2),
        peak_memory_mib=round(peak(), 1),
        **found,
    )


def _separate(cell: Cell) -> dict[str, Any]:
    graphs = families()[cell.dataset]
    found = measure(graphs, cell.model, cell.seed)
    said = theory(graphs, cell.model)
    apart = [d for d, told in zip(found.distances, found.separated, strict=True) if told]
    words = (f"{a:d}{b[:1] or '-'}" for a, b in zip(found.separated, said, strict=True))
    values = [
        Value("test", PAIRS, "%", 100 * mean(found.separated), " ".join(words)),
        Value("test", NOISE, "1", found.noise),
    ]
    values += [Value("test", LEAST, "1", min(apart))] if apart else []
    return {
        "dataset": cell.dataset,
        "status": "ok",
        "parameters": None,
        "epochs": None,
        "best_epoch": None,
        "values": tuple(values),
    }


def _classify(cell: Cell, graphs: Graphs) -> dict[str, Any]:
    assert cell.fold is not None
    found: dict[str, Any] = {
        "dataset": graphs.name,
        "status": "ok",
        "parameters": None,
        "epochs": None,
        "best_epoch": None,
    }
    if cell.schedule is None:
        val, test = BASELINES[cell.model](graphs, cell.fold)
        return found | {"values": _accuracies(val, test, val, test)}
    torch.manual_seed(1000 * cell.seed + cell.fold)
    shape = graphs.num_labels, graphs.num_classes
    width = matching_width(cell.model, *shape, PARAMETERS)
    net = models(KINDS)[cell.model](*shape, width)
    history = train(net, graphs, cell.fold, cell.schedule)
    found |= {"parameters": count_parameters(net), "epochs": cell.schedule.epochs}
    if history is None:
        return found | {"status": "diverged", "values": _accuracies(None, None)}
    best = history.best()
    return found | {
        "best_epoch": best,
        "values": _accuracies(
            history.val[best - 1], history.chosen(), history.last("val"), history.last()
        ),
    }


def _accuracies(*found: float | None) -> tuple[Value, ...]:
    """On validation and test, of the chosen epoch and then of the last ones."""
    kinds = [(split, metric) for metric in (ACCURACY, LAST_ACCURACY) for split in ("val", "test")]
    return tuple(
        Value(split, metric, "%", value)
        for (split, metric), value in zip(kinds, found, strict=False)
    )
