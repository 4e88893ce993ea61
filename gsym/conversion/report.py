"""What a conversion did: which parts became what, at which loss, and which were left alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gsym.groups import PermutationGroup
from gsym.groups.levels import level_name


@dataclass(frozen=True)
class Replaced:
    """A part of a model that is tied now.

    Attributes:
        name: Name of the module, parameter or buffer; empty for the model itself.
        was: What it was.
        became: What it is.
        weights_before: Numbers that it learnt from.
        weights_after: Numbers that it learns from now.
        loss: What the projection lost: the Frobenius norm of the difference between the linear
            map or table before and after, over that before. 0 keeps every output.
    """

    name: str
    was: str
    became: str
    weights_before: int
    weights_after: int
    loss: float


@dataclass(frozen=True)
class LeftAlone:
    """A part of a model that is as it was.

    Attributes:
        name: Name of the module, parameter or buffer; empty for the model itself.
        kind: What it is.
        reason: Why it was left alone.
        may_break: Whether it may break the symmetry.
    """

    name: str
    kind: str
    reason: str
    may_break: bool


@dataclass(frozen=True)
class Conversion:
    """What :func:`gsym.convert` did to a model; prints as a table.

    Attributes:
        levels: The groups that its parts are tied along.
        replaced: Parts that are tied now.
        left: Parts with weights that were left alone.
        weights_before: Numbers that the model learnt from.
        weights_after: Numbers that it learns from now.
    """

    levels: tuple[PermutationGroup, ...]
    replaced: tuple[Replaced, ...]
    left: tuple[LeftAlone, ...]
    weights_before: int
    weights_after: int

    @property
    def may_break(self) -> tuple[LeftAlone, ...]:
        """Parts that were left alone and may break the symmetry."""
        return tuple(part for part in self.left if part.may_break)

    def __str__(self) -> str:
        along = ", ".join(map(level_name, self.levels))
        rows = [(f"tied along {along}", "was", "is", "weights", "loss")]
        for part in self.replaced:
            count = f"{part.weights_before:,} to {part.weights_after:,}"
            row = (part.name or "(model)", part.was, part.became, count, _short(part.loss))
            rows.append(row)
        rows.append(("in all", "", "", f"{self.weights_before:,} to {self.weights_after:,}", ""))
        lines = _table(rows)
        if self.left:
            lines.append("left alone")
            lines += _table(
                [
                    (f"  {p.name or '(model)'}", p.kind, p.reason, "MAY BREAK IT" * p.may_break)
                    for p in self.left
                ]
            )
        return "\n".join(lines)


def _table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _short(loss: float) -> str:
    return "0" if loss == 0 else f"{loss:.3f}" if loss >= 1e-3 else f"{loss:.0e}"
