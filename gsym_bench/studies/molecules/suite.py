"""Run all cells of the molecules task, keep those that are finished, and write the page."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import mean

from rich.console import Console

from gsym_bench.studies.molecules.graphs import DATASETS, FOLDS, KINDS, Graphs, load
from gsym_bench.studies.molecules.models import RATE, GraphNet, matching_width, models
from gsym_bench.studies.molecules.pairs import families
from gsym_bench.studies.molecules.separation import measure, names, theory
from gsym_bench.studies.molecules.training import BASELINES, GraphTraining, last
from gsym_bench.suite.engine import Engine, Job, check_request
from gsym_bench.suite.errors import BenchmarkError, check_names
from gsym_bench.suite.results import Value
from gsym_bench.suite.task import Schedule
from gsym_bench.suite.train import Fit, Trainer, closed_form

RESULTS = "molecules.csv"
SEPARATION, CLASSES = "separation", "classes"
# What is measured, and its unit. The note of the first holds a word for each pair: 1 if it is told
# apart, else 0, then what theory says: m that it must be, c that it cannot, - nothing.
PAIRS, NOISE, LEAST = "pairs told apart", "difference of copies", "least distance of pairs"
ACCURACY, LAST_ACCURACY = "accuracy", "accuracy of the last epochs"
MEAN_ACCURACY = "mean accuracy of all epochs"  # its note holds the accuracy of each
PARAMETERS = 60_000
BATCH = {"MUTAG": 32, "PTC": 32, "PROTEINS": 32, "IMDB-BINARY": 64}
EPOCHS = {
    "quick": {"MUTAG": 10, "PTC": 10, "PROTEINS": 3, "IMDB-BINARY": 3},
    "standard": {"MUTAG": 25, "PTC": 20, "PROTEINS": 25, "IMDB-BINARY": 15},
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
    from gsym_bench.studies.molecules.page import report

    check_request(profile, EPOCHS, seeds)
    check_names("data set", datasets, DATASETS)
    check_names("model", only, [*BASELINES, *models(KINDS)])
    if datasets and data is None:
        raise BenchmarkError(f"{', '.join(datasets)} need files; name their folder with --data DIR")
    chosen = [] if data is None else datasets or list(DATASETS)

    @cache
    def graphs(name: str) -> Graphs:
        assert data is not None
        return load(data, name)

    for name in chosen:
        graphs(name)  # a file that cannot be read is found before anything is trained
    jobs = [_job(cell, graphs) for cell in cells(profile, seeds, chosen, only)]
    Engine(out, RESULTS, console=console).run(lambda: (jobs, jobs))
    return report(out)


def _job(cell: Cell, graphs: Callable[[str], Graphs]) -> Job:
    separation = cell.task == SEPARATION
    kinds = _separation(cell) if separation else _classes(cell, lambda: graphs(cell.dataset))
    columns = {
        "key": cell.key,
        "task": cell.task,
        "dataset": cell.dataset if separation else graphs(cell.dataset).name,
        "source": "embedded" if separation else "files",
        "profile": "" if separation else cell.profile,
        "schedule": str(cell.schedule or ""),
        "model": cell.model,
        "group": "",
        "group_order_log": None,
        "commutant_dim": None,
        "seed": cell.seed,
        "fold": cell.fold,
    }
    place = "" if cell.fold is None else f", fold {cell.fold}"
    label = f"{cell.dataset}, {cell.model}{place}, seed {cell.seed}"
    return Job(label, columns, PAIRS if separation else ACCURACY, "%", *kinds)


Work = tuple[Callable[[Trainer], Fit], Callable[[Fit], list[Value]]]


def _separation(cell: Cell) -> Work:
    """Tell the pairs of a family apart."""

    def measured(fit: Fit) -> list[Value]:
        found, said = fit.model, theory(families()[cell.dataset], cell.model)
        apart = [d for d, told in zip(found.distances, found.separated, strict=True) if told]
        words = (f"{a:d}{b[:1] or '-'}" for a, b in zip(found.separated, said, strict=True))
        values = [
            Value("test", PAIRS, "%", 100 * mean(found.separated), " ".join(words)),
            Value("test", NOISE, "1", found.noise),
        ]
        return values + ([Value("test", LEAST, "1", min(apart))] if apart else [])

    return lambda _: closed_form(
        lambda: measure(families()[cell.dataset], cell.model, cell.seed)
    ), measured


def _classes(cell: Cell, graphs: Callable[[], Graphs]) -> Work:
    """Train a network on a fold, or fit a baseline."""
    fold, schedule = cell.fold, cell.schedule
    assert fold is not None
    if schedule is None:
        return (
            lambda _: closed_form(lambda: BASELINES[cell.model](graphs(), fold)),
            lambda fit: _accuracies(*fit.model, *fit.model),
        )

    def make(num_labels: int, num_classes: int) -> GraphNet:
        width = matching_width(cell.model, num_labels, num_classes, PARAMETERS)
        return models(KINDS)[cell.model](num_labels, num_classes, width)

    def train(trainer: Trainer) -> Fit:
        training = GraphTraining(make, graphs(), fold, BATCH[cell.dataset])
        return trainer.fit(training, schedule, 1000 * cell.seed + fold)

    def measured(fit: Fit) -> list[Value]:
        assert fit.best_epoch is not None
        best, history = fit.history[fit.best_epoch - 1], fit.history
        curve = [measured["test"] for measured in history]
        return [
            *_accuracies(best["val"], best["test"], last(history, "val"), last(history, "test")),
            Value("test", MEAN_ACCURACY, "%", mean(curve), " ".join(f"{v:.6g}" for v in curve)),
        ]

    return train, measured


def _accuracies(*found: float) -> list[Value]:
    """On validation and test, of the chosen epoch and then of the last ones."""
    kinds = [(split, metric) for metric in (ACCURACY, LAST_ACCURACY) for split in ("val", "test")]
    return [Value(*kind, "%", value) for kind, value in zip(kinds, found, strict=True)]
