"""What a criterion is: how candidates are judged, and what its numbers are called."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from gsym.choosing.choice import Candidate, Words
from gsym.groups import PermutationGroup
from gsym.risk.ridge import Reps
from gsym.risk.samples import Samples

# A candidate before it is judged: a group, or representations of one on channels of x and y.
Entry = PermutationGroup | Reps


def group_of(entry: Entry) -> PermutationGroup:
    """The group of a candidate."""
    return entry[0].group if isinstance(entry, tuple) else entry


@dataclass(frozen=True)
class ChoiceData:
    """The data that candidates are judged on.

    Attributes:
        x: Inputs as they were given; with noise added where there were no targets.
        y: Targets as they were given, or the inputs without noise.
        samples: The same, checked, with missing entries and units dealt with and with the signals
            that are left out together (``samples.left_out``).
        denoising: Whether there were no targets.
        seed: Seed of what a criterion draws.
    """

    x: Any
    y: Any
    samples: Samples
    denoising: bool = False
    seed: int = 0


class Criterion(ABC):
    """How candidates are judged; :func:`gsym.choose_group` takes an object of it, or its name.

    Attributes:
        words: What its numbers are called in tables and on the page.
        reads_samples: Whether it reads ``data.samples``; one that reads ``data.x`` and ``data.y``
            instead cannot serve ``standardize``, ``mask`` and ``missing``.
        refines: Whether levels next to the best one are judged after the others.

    Example:
        >>> import torch, gsym
        >>> class FewestOrbits(Criterion):
        ...     def evaluate(self, groups, data):
        ...         errors = torch.ones(data.samples.num_signals).numpy()
        ...         return [Candidate(g, errors * g.node_orbits().num_orbits) for g in groups]
        >>> levels = [gsym.Partition.singletons(4), gsym.Partition.single(4)]
        >>> gsym.choose_group(levels, torch.randn(9, 4), criterion=FewestOrbits()).group
        ClusterGroup(S_4 on 4 nodes)
    """

    words: ClassVar[Words] = Words()
    reads_samples: ClassVar[bool] = True
    refines: ClassVar[bool] = False

    @abstractmethod
    def evaluate(self, groups: Sequence[Entry], data: ChoiceData) -> Sequence[Candidate]:
        """One candidate per group, in their order; lower scores are better.

        A group comes as a pair ``(in_rep, out_rep)`` where users gave representations.

        Standard errors, gaps and the regret bound follow from the ``errors`` of the candidates:
        one for each block of signals left out, the same blocks for all groups.
        """

    def describe(self, data: ChoiceData) -> str:
        """What the score is, in a few words."""
        del data
        return type(self).__name__


CRITERIA: dict[str, Criterion] = {}


def register_criterion(name: str) -> Callable[[type[Criterion]], type[Criterion]]:
    """Class decorator: offer a criterion by name, to ``criterion=`` and on the command line."""

    def add(kind: type[Criterion]) -> type[Criterion]:
        CRITERIA[name] = kind()
        return kind

    return add
