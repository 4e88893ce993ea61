"""Leave-one-out error of ridge regression in the commutant: nothing is trained."""

from __future__ import annotations

from collections.abc import Sequence

from gsym.choosing.choice import Candidate, Words
from gsym.choosing.criteria._criterion import (
    ChoiceData,
    Criterion,
    Entry,
    group_of,
    register_criterion,
)
from gsym.risk.ridge import as_clusters, fit_group

# Fitted maps between clusters are kept for candidates of up to this many.
MAX_MATRIX = 512


@register_criterion("ridge")
class RidgeCriterion(Criterion):
    """Risk of the best linear equivariant predictor, by :func:`gsym.risk.commutant_ridge`."""

    words = Words(
        score="risk",
        parts=(
            (
                "bias",
                "Equivariance error of the data",
                "bias: what its best map misses more than that of the lowest risk",
            ),
            ("variance", "Cost of estimation", "variance: what too few signals add"),
        ),
        squared=True,
    )
    refines = True

    def evaluate(self, groups: Sequence[Entry], data: ChoiceData) -> list[Candidate]:
        """Fit each group in closed form."""
        return [_evaluate(group, data) for group in groups]

    def describe(self, data: ChoiceData) -> str:
        """What the score is."""
        what = "leave-one-out squared error of ridge in the commutant"
        what += ", denoising" if data.denoising else ""
        return what + ("" if data.samples.standardize is None else ", standardized")


def _evaluate(entry: Entry, data: ChoiceData) -> Candidate:
    group, reps = group_of(entry), entry if isinstance(entry, tuple) else None
    fit = fit_group(data.samples, group, reps=reps)
    small = as_clusters(group).partition.num_clusters <= MAX_MATRIX
    in_rep, out_rep = reps or (None, None)
    return Candidate(
        group,
        fit.errors,
        score=fit.risk,
        jackknife=fit.jackknife,
        residual_variance=fit.residual_variance,
        matrix=fit.matrix if small and not data.samples.invariant else None,
        in_rep=in_rep,
        out_rep=out_rep,
    )
