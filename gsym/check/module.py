"""Is it an ordinary PyTorch module? Treats it as training scripts do and compares with a twin."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import nn
from torch.random import fork_rng

from gsym.check.report import CheckReport
from gsym.check.subject import Comparison, Skip, Subject, compare
from gsym.check.treatments import SLOW, TREATMENTS, Treatment


def check_module(
    make_module: Callable[[], nn.Module],
    *args: Any,
    other_args: tuple[Any, ...] | None = None,
    treatments: str | Iterable[str] = "quick",
    refuses: Mapping[str, str] | None = None,
) -> CheckReport:
    """Put a module through what training scripts, servers and compilers do to modules.

    Each treatment gets a fresh module with random weights, in ``eval`` mode, and holds values and
    gradients against a twin: a fresh module in float64 with the same weights that was never
    treated. :data:`gsym.check.TREATMENTS` lists them by name; the docstring of each says what it
    does.

    Args:
        make_module: Builds the module, the same but for its weights in each call.
        *args: Arguments of ``forward``: small tensors ``[b, n, c]``, graphs, options. All
            floating-point ones with as many axes as the first and the same size of axis 0 are
            batched.
        other_args: Other arguments of the same shapes, among them another graph. Without them,
            treatments that need two graphs are skipped.
        treatments: ``"all"``, ``"quick"`` for all but those that call a C++ compiler, or names.
        refuses: What the module cannot do: a pattern of its error by the name of the treatment.
            It must then fail by an exception with such a message, not by a wrong value.

    Returns:
        The report, if nothing failed; ``errors`` holds the largest relative error by treatment.

    Raises:
        AssertionError: One line for each treatment that failed, and why.
        ValueError: An unknown treatment.

    Cost:
        One to two minutes for a small module.

    Example:
        >>> x = torch.randn(2, 4, 3)
        >>> report = check_module(lambda: torch.nn.Linear(3, 2), x, treatments=["EMA", "pickle"])
        >>> report.passed
        ['EMA', 'pickle']
    """
    __tracebackhide__ = True
    report = CheckReport()
    treat_all(make_module, args, other_args, treatments, refuses or {}, report)
    if report.failed:
        raise AssertionError(f"the module fails {len(report.failed)} treatments\n{report}")
    return report


def treat_all(
    make_module: Callable[[], nn.Module],
    args: tuple[Any, ...],
    other_args: tuple[Any, ...] | None,
    treatments: str | Iterable[str],
    refuses: Mapping[str, str],
    report: CheckReport,
) -> None:
    """Run the treatments and write down what came of them."""
    names = _chosen(treatments)
    for name in refuses:
        _known(name)
    with fork_rng(devices=[]):
        subject = Subject(make_module, args, other_args)
    for name in names:
        with fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            treat(name, TREATMENTS[name], subject, report, refuses.get(name))


def treat(
    name: str, treatment: Treatment, subject: Subject, report: CheckReport, refusal: str | None
) -> None:
    """Run one treatment and write down what came of it."""
    what, worst = "before the first comparison", 0.0
    try:
        for comparison in treatment(subject):
            what = comparison[0]
            worst = max(worst, _judge(comparison))
    except Skip as skip:
        report.skipped[name] = str(skip)
    except AssertionError as error:
        report.failed[name] = _line(error)
    except Exception as error:  # a treatment may fail in any way; all are reported together
        text = f"{type(error).__name__}: {_line(error)}"
        if refusal is not None and re.search(refusal, f"{type(error).__name__}: {error}"):
            report.refused[name] = text
        else:
            report.failed[name] = f"after {what}: {text}"
    else:
        if refusal is None:
            report.passed.append(name)
            report.errors[name] = worst
        else:
            report.failed[name] = f"works, although it was to be refused by {refusal!r}"


def _judge(comparison: Comparison) -> float:
    what, got, want = comparison
    try:
        return compare(got, want)
    except AssertionError as error:
        raise AssertionError(f"{what}: {error}") from error


def _line(error: Exception) -> str:
    return f"{error}".strip().split("\n")[0] or type(error).__name__


def _chosen(treatments: str | Iterable[str]) -> list[str]:
    if treatments == "all":
        return list(TREATMENTS)
    if treatments == "quick":
        return [name for name in TREATMENTS if name not in SLOW]
    names = [treatments] if isinstance(treatments, str) else list(treatments)
    for name in names:
        _known(name)
    return names


def _known(name: str) -> None:
    if name not in TREATMENTS:
        raise ValueError(
            f"unknown treatment {name!r}; it must be 'all', 'quick' or among "
            f"{', '.join(TREATMENTS)}"
        )
