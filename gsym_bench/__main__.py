"""Command line of the benchmark suite; ``gsym-bench --help`` teaches it."""

from __future__ import annotations

import errno
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from gsym_bench.extras import missing

try:
    import tyro
    from rich.console import Console

    from gsym.errors import FileError, GraphError, PartitionError
    from gsym_bench.data import DataError
    from gsym_bench.suite.errors import BenchmarkError
    from gsym_bench.suite.interrupt import interruptible
except ImportError as error:
    if (told := missing(error)) is None:
        raise
    print(f"error: {told}", file=sys.stderr)
    sys.exit(2)

if TYPE_CHECKING:
    from gsym_bench.suite.task import Task

OUT = Path("results")

Numbers = Annotated[
    tuple[int, ...],
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="N,N,...",
        instance_from_str=lambda words: tuple(int(word) for word in words[0].split(",") if word),
        is_instance=lambda value: isinstance(value, tuple),
        str_from_instance=lambda value: [",".join(map(str, value))],
    ),
]
"""Whole numbers with commas between."""

app = tyro.extras.SubcommandApp()


@app.command
def run(
    tasks: tyro.conf.Positional[tuple[str, ...]] = (),
    /,
    *,
    task: Path | None = None,
    profile: str = "quick",
    data: Path | None = None,
    groups: tuple[str, ...] = (),
    seeds: int | None = None,
    signals: Numbers = (),
    as_published: bool = False,
    device: str = "auto",
    workers: int | None = None,
    engine: Literal["local", "ray"] = "local",
    address: str | None = None,
    devices: int = 1,
    batched_seeds: bool = False,
    out: Path = OUT,
) -> None:
    """Train every group and baseline of the tasks, then write the report.

    Finished cells are kept, and an interrupted run goes on where it stopped, so the same command
    may be given again at any time. How long it takes is said before it begins, from what cells cost
    and from the speed of the machine at the moment. Examples:

      gsym-bench run

      gsym-bench run inpainting --data DIR --profile standard

      gsym-bench run skeleton --groups trivial --seeds 1 --device cpu

      gsym-bench run skeleton --signals 25,100,400

      gsym-bench run --task my_task.py

      gsym-bench run --workers 1

      gsym-bench run --engine ray --address 10.0.0.1:6379

    Args:
        tasks: Names of tasks, see `list`; if none is given, all that have embedded data too.
        task: Python file that registers a task of yours; it alone runs if no task is named.
        profile: quick (minutes), standard, or paper (the published protocol, where a task has it).
        data: Folder of downloaded data; by default $GSYM_DATA, and embedded data without it.
        groups: Names of groups, see `list`; all if none is given.
        seeds: Number of seeds; by default more where cells are cheap, and at least 5 in standard.
        signals: Numbers of training signals, with commas between: every cell is run with each, and
            the report draws error against the number of signals.
        as_published: Add faulty models and data as they were published, beside the correct ones.
        device: auto, cpu or cuda.
        workers: Processes of this machine that run cells at the same time; by default one per
            core, with one thread each. OMP_NUM_THREADS sets the threads of each.
        engine: local, or ray for a Ray cluster that is running; needs the extra ray. Every node
            needs gsym and, in the same place, the data.
        address: Of the head of the cluster, host:port; one on this machine is found by itself.
        devices: Devices, or processes on the CPU, that share each batch of a model; also under
            torchrun.
        batched_seeds: Train the seeds of a cell together, as one model of stacked weights; rows
            agree with those of seeds alone to rounding. Pays for tiny models, whose
            time goes into calls; on a CPU, larger ones gain little, as compiled kernels rest.
        out: Folder of results.
    """
    from gsym_bench.suite import run as running
    from gsym_bench.suite.cores import share_cores
    from gsym_bench.suite.processes import leads
    from gsym_bench.suite.report.markdown import write_report
    from gsym_bench.suite.report.tables import rich_tables
    from gsym_bench.suite.work import on_gpu
    from gsym_bench.tasks import get_tasks, load_task_file

    data = _folder(data)
    console = Console()
    own = [] if task is None else load_task_file(task)
    alone = engine == "ray" or devices > 1 or on_gpu(device)
    workers = 1 if alone and workers is None else share_cores(workers)
    rows = running.run(
        own if own and not tasks else get_tasks(tasks),
        out=out,
        profile=profile,
        data=data,
        groups=groups,
        seeds=seeds,
        signals=signals,
        as_published=as_published,
        device=device,
        console=console,
        workers=workers,
        engine=engine,
        address=address,
        devices=devices,
        batched_seeds=batched_seeds,
    )
    if not leads():
        return
    page = write_report(out)
    for table in rich_tables(rows):
        console.print(table)
    console.print(f"The whole report is in {page}", soft_wrap=True)


@app.command
def report(*, out: Path = OUT, embed: Path | None = None) -> None:
    """Write the page and its pictures again from the results file.

    For example:

      gsym-bench report --out results --embed README.md

    Args:
        out: Folder of results.
        embed: Markdown file whose table between the results marks is replaced, and where there are
            lead marks, the sentences between them on where a group wins and where it does not.
    """
    from gsym_bench.studies.poses import highlights
    from gsym_bench.suite.report.lead import write_lead
    from gsym_bench.suite.report.markdown import write_report

    page = write_report(out, embed, highlights(out))
    if embed is not None:
        write_lead(out, embed)
    print(f"The report is in {page}")


@app.command(name="list")
def list_tasks(
    *, task: Path | None = None, data: Path | None = None, profile: str = "quick"
) -> None:
    """Show tasks, data sets, units, groups and baselines.

    Args:
        task: Python file that registers a task of yours, to be shown alone.
        data: Folder of downloaded data; by default $GSYM_DATA, and embedded data without it.
        profile: Profile whose groups to show.
    """
    from gsym_bench.suite.errors import check_names
    from gsym_bench.suite.run import PROFILES
    from gsym_bench.tasks import TASKS, load_task_file

    check_names("profile", [profile], PROFILES)
    data = _folder(data)
    for one in TASKS.values() if task is None else load_task_file(task):
        print(f"{one.name}: {one.title}, {one.metric} ({one.unit}), model {one.model_name}")
        if one.needs_data and data is None:
            print("  needs files: --data DIR")
            continue
        if profile not in one.profiles:
            print(f"  profiles   {', '.join(one.profiles)}")
            continue
        problem = one.load(data, profile, 0)
        print(f"  data set   {problem.dataset}")
        print(f"  groups     {', '.join(map(repr, problem.groups))}")
        print(f"  baselines  {', '.join(one.baselines())}")


@app.command
def costs(
    tasks: tyro.conf.Positional[tuple[str, ...]] = (),
    /,
    *,
    profile: str = "quick",
    data: Path | None = None,
    out: Path | None = None,
) -> None:
    """Measure what cells cost on one processor, for the forecast of a run; minutes.

    For example:

      gsym-bench costs inpainting motion --data DIR --profile standard

    Args:
        tasks: Names of tasks, motion and poses among them; if none is given, all tasks that have
            the profile and need no files.
        profile: quick, standard or paper.
        data: Folder of downloaded data; by default $GSYM_DATA, and embedded data without it.
        out: Table to put the costs into; that of the suite by default.
    """
    from itertools import chain

    from gsym_bench.studies import bodies, motion, poses
    from gsym_bench.suite import costing
    from gsym_bench.suite.errors import check_names
    from gsym_bench.suite.forecast import TABLE
    from gsym_bench.suite.run import PROFILES
    from gsym_bench.tasks import get_tasks

    check_names("profile", [profile], PROFILES)
    data = _folder(data)
    names = [name for name in tasks if name not in ("motion", "poses")]
    chosen = get_tasks(names) if names or not tasks else []
    found = [costing.of_tasks([t for t in chosen if profile in t.profiles], profile, data)]
    if "motion" in tasks:
        jobs = motion.jobs(bodies.settings(profile, data), profile, 1)
        found.append(costing.of_jobs(jobs))
    if "poses" in tasks:
        few = map(poses.FewPoses, poses.STEPS)
        found.append(costing.of_tasks(few, "standard", data, poses.GROUPS))
    costing.main(chain(*found), out or TABLE, Console())


@app.command
def kernels(
    *, profile: str = "standard", only: str = "", device: str = "cpu", out: Path = OUT
) -> None:
    """Measure speed and memory of kernels and layers beside other code.

    Rows go to kernels.csv, and kernels.md with its pictures is made of them. Let nothing else run
    meanwhile. Examples:

      gsym-bench kernels

      gsym-bench kernels --only C4,C6

      gsym-bench kernels --device cuda --profile full

    Args:
        profile: quick (seconds, judges nothing), standard (all bars, minutes) or full (hours).
        only: Names of bars with commas between, and sweep for all else; everything if empty.
        device: cpu or cuda.
        out: Folder of results.
    """
    from gsym_bench.kernels.suite import main as measure

    bars = [name.strip() for name in only.split(",") if name.strip()]
    measure(out, profile=profile, device=device, only=bars)


@app.command
def coarsening(*, methods: bool = False, data: Path | None = None, out: Path = OUT) -> None:
    """Measure the way from a graph of a million nodes to a tied layer, or compare methods.

    Needs scikit-network, networkit and pymetis: pip install 'gsym[cluster]'.

    Args:
        methods: Compare the methods of `coarsen` on real graphs instead.
        data: Folder of downloaded data, for more real graphs.
        out: Folder of results.
    """
    from gsym_bench.studies.coarsening import main as measure
    from gsym_bench.studies.coarsening_methods import main as compare
    from gsym_bench.suite.folder import locked

    with locked(out):
        if methods:
            compare(out, _folder(data))
        else:
            measure(out)


@app.command
def choosing(
    *,
    trials: int = 60,
    data: Path | None = None,
    out: Path = OUT,
    only: Literal["levels", "partitions", "conditions", "real"] | None = None,
) -> None:
    """Measure how well the choice of a group finds the right one.

    Args:
        trials: Trials per cell of the table on made-up data.
        data: Folder of downloaded data, to compare with what the suite trained on it.
        out: Folder of results.
        only: One section of the page; the rows of the others stay.
    """
    from gsym_bench.studies.choosing.suite import main as measure
    from gsym_bench.suite.folder import locked

    data = _folder(data)
    with locked(out):
        print(f"The page is {measure(out, trials, data, only=only)}")


@app.command
def page(*, out: Path = Path("docs/pages/images")) -> None:
    """Take the pictures of the page that shows a choice of group; needs Chromium.

    Args:
        out: Folder of the pictures.
    """
    from gsym_bench.studies.page import main as take

    take(out)
    print(f"The pictures are in {out}")


@app.command
def nbody(
    *, out: Path = OUT, profile: str = "quick", gravity: bool = False, seeds: int = 3
) -> None:
    """Train EGNN, PEnGUiN and baselines on charged particles; finished cells are kept.

    For example:

      OMP_NUM_THREADS=1 gsym-bench nbody --profile standard

    Args:
        out: Folder of results.
        profile: quick (500 training systems) or standard (3,000).
        gravity: Switch on gravity, and add the models that can tell where down is.
        seeds: Number of seeds.
    """
    from gsym_bench.studies import nbody as bodies

    page = bodies.main(out, profile, gravity, seeds, Console())
    print(f"The page is in {page}")


@app.command
def motion(
    *,
    out: Path = OUT,
    profile: str = "quick",
    data: Path | None = None,
    seeds: int = 3,
    workers: int | None = None,
) -> None:
    """Forecast where the joints of a body go, 80 to 1,000 ms ahead; finished cells are kept.

    For example:

      OMP_NUM_THREADS=1 gsym-bench motion --data DIR --profile standard

    Args:
        out: Folder of results.
        profile: quick (300 training windows) or standard (1,000).
        data: Folder of downloaded data; by default $GSYM_DATA, and simulated walks without it.
        seeds: Number of seeds.
        workers: Processes that run cells; by default one per core, with one thread each.
    """
    from gsym_bench.studies import bodies
    from gsym_bench.suite.cores import share_cores

    workers = share_cores(workers)
    page = bodies.main(out, profile, _folder(data), seeds, Console(), workers)
    print(f"The page is in {page}")


@app.command
def penguin(*, out: Path = OUT, seeds: int = 5) -> None:
    """Let PEnGUiN find the broken symmetry of four small worlds; finished cells are kept.

    Args:
        out: Folder of results.
        seeds: Number of seeds.
    """
    from gsym_bench.studies import penguin as worlds

    print(f"The page is in {worlds.main(out, seeds, Console())}")


@app.command
def subgraphs(*, out: Path = OUT, data: Path | None = None) -> None:
    """Time the ego-networks of large graphs and, with data, an epoch of SPEN beside GIN.

    Args:
        out: Folder of results.
        data: Folder of downloaded data; by default $GSYM_DATA.
    """
    from gsym_bench.studies import subgraphs as measuring

    print(f"The page is in {measuring.main(out, _folder(data), Console())}")


@app.command
def molecules(
    datasets: tyro.conf.Positional[tuple[str, ...]] = (),
    /,
    *,
    models: tuple[str, ...] = (),
    out: Path = OUT,
    profile: str = "quick",
    data: Path | None = None,
    seeds: int = 3,
) -> None:
    """Tell hard pairs of graphs apart and, with data, classify small graphs by SPEN and others.

    Finished cells are kept. For example:

      gsym-bench molecules

      OMP_NUM_THREADS=1 gsym-bench molecules MUTAG PTC --data DIR --profile standard

    Args:
        datasets: Any of MUTAG, PTC, PROTEINS and IMDB-BINARY; all if none is given.
        models: Names of models, as the page has them; all if none is given.
        out: Folder of results.
        profile: quick (two folds, few epochs) or standard.
        data: Folder of downloaded data; by default $GSYM_DATA, and only hard pairs without it.
        seeds: Number of seeds.
    """
    from gsym_bench.studies.molecules import suite

    page = suite.main(
        out,
        profile=profile,
        data=_folder(data),
        datasets=datasets,
        only=models,
        seeds=seeds,
        console=Console(),
    )
    print(f"The page is in {page}")


@app.command
def signs(*, out: Path = OUT, data: Path | None = None, draws: int = 40, truths: int = 200) -> None:
    """Count how often the signs that belong to a permutation of nodes are found.

    Finished cells are kept. For example:

      OMP_NUM_THREADS=1 gsym-bench signs --data DIR

    Args:
        out: Folder of results.
        data: Folder of downloaded data; by default $GSYM_DATA, and simulated walks without it.
        draws: Draws of poses at each number of poses.
        truths: Made-up truths at each number of signals, with signs and without symmetry each.
    """
    from gsym_bench.studies import signs as study

    page = study.main(out, _folder(data), draws, truths, Console())
    print(f"The page is in {page}")


@app.command
def softlayers(
    tasks: tyro.conf.Positional[tuple[str, ...]] = (),
    /,
    *,
    out: Path = OUT,
    data: Path | None = None,
    seeds: int = 5,
) -> None:
    """Train nets with levels beside one level and beside published ways to soften a symmetry.

    Finished cells are kept. For example:

      OMP_NUM_THREADS=1 gsym-bench softlayers --data DIR

    Args:
        tasks: inpainting, traffic; both if none is given.
        out: Folder of results.
        data: Folder of downloaded data; by default $GSYM_DATA, embedded and simulated without it.
        seeds: Number of seeds.
    """
    from gsym_bench.studies import softlayers as study

    print(f"The page is in {study.main(out, _folder(data), tasks, seeds, Console())}")


@app.command
def poses(
    counts: tyro.conf.Positional[tuple[int, ...]] = (),
    /,
    *,
    out: Path = OUT,
    data: Path | None = None,
    seeds: int = 5,
    workers: int | None = None,
) -> None:
    """Lift poses from few examples, with and without the mirror of the body.

    Finished cells are kept. For example:

      OMP_NUM_THREADS=1 gsym-bench poses 50 100 400 --data DIR

    Args:
        counts: Numbers of training poses; 50, 100, 200, 400, 1600 and 0, all of them, if none
            is given.
        out: Folder of results.
        data: Folder of downloaded data; by default $GSYM_DATA, and simulated walks without it.
        seeds: Number of seeds.
        workers: Processes that run cells; by default one per core, with one thread each.
    """
    from gsym_bench.studies import poses as study
    from gsym_bench.suite.cores import share_cores

    workers, counts = share_cores(workers), counts or tuple(study.STEPS)
    page = study.main(out, _folder(data), counts, seeds, Console(), workers)
    print(f"The page is in {page}")


@app.command
def covariance(
    only: tyro.conf.Positional[tuple[str, ...]] = (),
    /,
    *,
    out: Path = OUT,
    data: Path | None = None,
    seeds: int = 10,
    minutes: float | None = None,
    rules: bool = False,
) -> None:
    """Fill gaps of real signals by SymmetricCovariance and by others; finished fills are kept.

    A few fills first tell how long all will take. Then cheap fills of every cell come first, slow
    ones last. For example:

      OMP_NUM_THREADS=1 gsym-bench covariance METR-LA --data DIR --minutes 60

    Args:
        only: Names of data sets, as the page has them; all if none is given.
        out: Folder of results.
        data: Folder of downloaded data; by default $GSYM_DATA.
        seeds: Number of draws.
        minutes: After which no further fill is begun; no limit by default.
        rules: Compare how its weights are chosen instead; needs no data.
    """
    from gsym_bench.studies.covariance import rules as choosing_weights
    from gsym_bench.studies.covariance import suite as study

    if rules:
        print(f"The page is in {choosing_weights.main(out, Console())}")
    else:
        page = study.main(out, _folder(data), seeds, Console(), minutes, only)
        print(f"The page is in {page}")


@app.command
def soft(*, out: Path = OUT, data: Path | None = None) -> None:
    """Time fits of SymmetricCovariance beside estimators of scikit-learn, up to a million nodes.

    Args:
        out: Folder of results.
        data: Folder of downloaded data; by default $GSYM_DATA, and made-up signals without it.
    """
    from gsym_bench.studies.covariance import speed

    print(f"The page is in {speed.main(out, _folder(data), Console())}")


@app.command
def overtaking(*, out: Path = OUT, data: Path | None = None, seeds: int = 4) -> None:
    """Check when a finer group pays, and what a mixture gains; finished cells are kept.

    For example:

      OMP_NUM_THREADS=1 gsym-bench overtaking --data DIR

    Args:
        out: Folder of results.
        data: Folder of downloaded data; by default $GSYM_DATA, and made-up maps without it.
        seeds: Number of draws.
    """
    from gsym_bench.studies import overtaking as study

    print(f"The page is in {study.main(out, _folder(data), seeds, Console())}")


@app.command
def reconstruct(
    *,
    graph: str,
    signals: str,
    partitions: tuple[str, ...] = (),
    positions: str | None = None,
    unit: str = "unit of the file",
    directed: bool = False,
    seeds: int = 5,
    out: Path = OUT,
) -> None:
    """Fill gaps in signals of yours: which group, or mixture of groups, errs least.

    Gaps are made in signals that have none, which tells the errors. For example:

      gsym-bench reconstruct --graph roads.csv --signals speeds.csv --unit mph

    Args:
        graph: The graph, in any form that `gsym choose` reads.
        signals: A table with one row per signal and one column per node, or an array; rows in which
            a value is missing are left out.
        partitions: Candidate groups, as `gsym coarsen` writes them; by default from the graph.
        positions: Where the nodes are, [nodes, 2].
        unit: Of the signals.
        directed: Take an edge list in one direction only.
        seeds: Number of draws.
        out: Folder of results.
    """
    from gsym_bench.own_data import OwnGaps, read_own

    own = read_own(graph, signals, partitions, positions, directed)
    words = _words("reconstruct", graph, signals, partitions, positions, unit, directed)
    _run_own(OwnGaps(own, unit), words, seeds, out)


@app.command
def forecast(
    *,
    graph: str,
    signals: str,
    partitions: tuple[str, ...] = (),
    positions: str | None = None,
    unit: str = "unit of the file",
    directed: bool = False,
    history: int = 12,
    horizon: int = 12,
    seeds: int = 3,
    out: Path = OUT,
) -> None:
    """Forecast series of yours: which group, or chain of groups, embeddings of nodes share.

    For example:

      gsym-bench forecast --graph roads.csv --signals speeds.csv --unit mph --horizon 3

    Args:
        graph: The graph, in any form that `gsym choose` reads.
        signals: A table with one row per step of time and one column per node, or an array; values
            may be missing.
        partitions: Candidate groups, as `gsym coarsen` writes them; by default from the graph.
        positions: Where to draw the nodes, [nodes, 2].
        unit: Of the signals.
        directed: Take an edge list in one direction only.
        history: Steps that are seen.
        horizon: Steps that are forecast.
        seeds: Number of seeds.
        out: Folder of results.
    """
    from gsym_bench.own_data import OwnForecast, read_own

    own = read_own(graph, signals, partitions, positions, directed)
    words = _words("forecast", graph, signals, partitions, positions, unit, directed)
    words += ["--history", str(history), "--horizon", str(horizon)]
    _run_own(OwnForecast(own, unit, history, horizon), words, seeds, out)


def _words(
    command: str,
    graph: str,
    signals: str,
    partitions: tuple[str, ...],
    positions: str | None,
    unit: str,
    directed: bool,
) -> list[str]:
    """A command on data of the user's, as it has to be typed again."""
    words = ["gsym-bench", command, "--graph", graph, "--signals", signals, "--unit", unit]
    words += ["--partitions", *partitions] if partitions else []
    words += ["--positions", positions] if positions is not None else []
    return words + ["--directed"] * directed


def _run_own(task: Task, words: list[str], seeds: int, out: Path) -> None:
    """Run a task on data of the user's, and say what won."""
    from gsym_bench.suite import run as running
    from gsym_bench.suite.report.markdown import write_report
    from gsym_bench.suite.report.tables import rich_tables, select, tabulate

    console = Console()
    task.command = shlex.join(words)
    rows = running.run([task], out=out, seeds=seeds, device="cpu", console=console)
    page = write_report(out)
    for table in rich_tables(rows):
        console.print(table)
    for found in tabulate(rows):
        chosen = select(found)
        if chosen is not None:
            console.print(f"Validation selects {chosen.name}", highlight=False)
    console.print(f"The whole report is in {page}", soft_wrap=True)


def _folder(data: Path | None) -> Path | None:
    """The data folder that was named, on the command line or in the environment."""
    if data is None and os.environ.get("GSYM_DATA"):
        data = Path(os.environ["GSYM_DATA"])
    if data is not None and not data.is_dir():
        raise BenchmarkError(f"--data {data} is not a folder; name one that exists")
    return data


def main(args: list[str] | None = None) -> None:
    """Run one command; wrong input and a full disk end with one line and exit code 2."""
    words = shlex.join(["gsym-bench", *(sys.argv[1:] if args is None else args)])
    try:
        with interruptible():
            app.cli(prog="gsym-bench", args=args, description=__doc__)
    except (BenchmarkError, DataError, FileError, GraphError, PartitionError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except ImportError as error:
        if (told := missing(error)) is None:
            raise
        print(f"error: {told}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG):
            raise
        print(
            f"error: {error}; finished cells are kept: make room, then go on with {words}",
            file=sys.stderr,
        )
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"interrupted; finished cells are kept: go on with {words}", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
