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
from benchmarks.suite.folder import locked
from benchmarks.suite.memory import peak_memory
from benchmarks.suite.run import provenance
from benchmarks.suite.store import BenchmarkError, Row, append_row, read_table, recover
from benchmarks.suite.task import Schedule
from benchmarks.tasks import check_names

RESULTS = "molecules.csv"
SEPARATION, CLASSES = "separation", "classes"
WORDS = [told + said for told in "01" for said in "mc-"]
PARAMETERS = 60_000
BATCH = {"MUTAG": 32, "PTC": 32, "PROTEINS": 64, "IMDB-BINARY": 64}
EPOCHS = {
    "quick": {"MUTAG": 10, "PTC": 10, "PROTEINS": 3, "IMDB-BINARY": 3},
    "standard": {"MUTAG": 25, "PTC": 20, "PROTEINS": 15, "IMDB-BINARY": 15},
}
PROFILE_FOLDS = {"quick": 2, "standard": FOLDS}


@dataclass(frozen=True)
class FoldRow(Row):
    """A results row with its fold; here the metric is an accuracy, and higher is better.

    For graph classes, ``val`` and ``test`` are accuracies at the epoch that validation chooses,
    ``val_2`` and ``test_2`` means over the last epochs. For hard pairs, ``test`` is the share of
    pairs told apart, ``test_2`` the least distance of such a pair and ``val_2`` what relabelled
    copies differ by.

    Attributes:
        fold: The fold that tests; empty for hard pairs.
        detail: For hard pairs, a word for each: 1 if it is told apart, else 0, then what theory
            says: ``m`` that it must be, ``c`` that it cannot, ``-`` nothing.
    """

    fold: int | None
    detail: str

    def __post_init__(self) -> None:
        if any(word not in WORDS for word in self.words):
            raise ValueError(f"the line of key {self.key} has the detail {self.detail!r}")

    @property
    def words(self) -> list[str]:
        """The words of the detail, one for each pair."""
        return self.detail.split()


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
    from benchmarks.studies.molecules.page import write_page

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
        finished = {row.key for row in read_table(out / RESULTS, FoldRow)}
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
        return write_page(out)


def run_cell(cell: Cell, graphs: Callable[[str], Graphs]) -> FoldRow:
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
    return FoldRow(
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
        unit="%",
        **found,
    )


def _separate(cell: Cell) -> dict[str, Any]:
    graphs = families()[cell.dataset]
    found = measure(graphs, cell.model, cell.seed)
    said = theory(graphs, cell.model)
    apart = [d for d, told in zip(found.distances, found.separated, strict=True) if told]
    share = 100 * mean(found.separated)
    return {
        "dataset": cell.dataset,
        "status": "ok",
        "parameters": None,
        "epochs": None,
        "best_epoch": None,
        "metric": "pairs told apart",
        "val": share,
        "test": share,
        "metric_2": "relative distance",
        "val_2": found.noise,
        "test_2": min(apart, default=None),
        "detail": " ".join(
            f"{told:d}{word[:1] or '-'}" for told, word in zip(found.separated, said, strict=True)
        ),
    }


def _classify(cell: Cell, graphs: Graphs) -> dict[str, Any]:
    assert cell.fold is not None
    found: dict[str, Any] = {
        "dataset": graphs.name,
        "status": "ok",
        "parameters": None,
        "epochs": None,
        "best_epoch": None,
        "metric": "accuracy",
        "metric_2": "accuracy of the last epochs",
        "detail": "",
    }
    if cell.schedule is None:
        val, test = BASELINES[cell.model](graphs, cell.fold)
        return found | {"val": val, "test": test, "val_2": val, "test_2": test}
    torch.manual_seed(1000 * cell.seed + cell.fold)
    shape = graphs.num_labels, graphs.num_classes
    width = matching_width(cell.model, *shape, PARAMETERS)
    net = models(KINDS)[cell.model](*shape, width)
    history = train(net, graphs, cell.fold, cell.schedule)
    found |= {"parameters": count_parameters(net), "epochs": cell.schedule.epochs}
    if history is None:
        nothing = dict.fromkeys(("val", "test", "val_2", "test_2"))
        return found | nothing | {"status": "diverged"}
    best = history.best()
    return found | {
        "best_epoch": best,
        "val": history.val[best - 1],
        "test": history.chosen(),
        "val_2": history.last("val"),
        "test_2": history.last(),
    }
