"""Weights of the terms of a covariance, as a value that prints and draws itself."""

from __future__ import annotations

from typing import Any

from gsym._validate import optional_module


class Weights(dict[str, float]):
    """Weights by the name of the term; prints as a line of shares.

    Example:
        >>> Weights({"trivial": 0.3, "S_9": 0.6, "ridge": 0.1})
        S_9 60 %, trivial 30 %, ridge 10 %
    """

    def shares(self) -> dict[str, float]:
        """Weights over their sum: every term has the same trace, so shares of the variance."""
        total = sum(self.values())
        return {name: weight / total for name, weight in self.items()}

    def plot(self, ax: Any = None) -> Any:
        """Draw the shares, a bar for each term.

        Args:
            ax: Axes of matplotlib; new ones by default.

        Returns:
            The axes.

        Raises:
            ImportError: matplotlib is not installed.
        """
        if ax is None:
            pyplot = optional_module("matplotlib.pyplot", "matplotlib", "bench", "plot")
            _, ax = pyplot.subplots(layout="constrained")
        shares = self.shares()
        ax.barh(list(shares), [100 * share for share in shares.values()])
        ax.invert_yaxis()
        ax.set_xlabel("share of the variance (%)")
        return ax

    def __repr__(self) -> str:
        ranked = sorted(self.shares().items(), key=lambda item: -item[1])
        return ", ".join(f"{name} {100 * share:.3g} %" for name, share in ranked if share >= 5e-4)
