"""What was read: a line of facts for people, a record for programs, and notes on the doubtful."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Summary:
    """What a file was taken for.

    Attributes:
        path: The file.
        facts: Counts and choices by name: nodes, edges, samples, missing, header, weights.
        notes: What a reader of the file may not expect. Each is also a warning.
    """

    path: Path
    facts: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        """Keep a note and warn of it."""
        self.notes.append(text)
        warnings.warn(f"{self.path}: {text}", UserWarning, stacklevel=4)

    def record(self) -> dict[str, Any]:
        """The same for JSON."""
        return {"file": str(self.path), **self.facts, "notes": self.notes}

    def __str__(self) -> str:
        counts, choices = [], []
        for name, value in self.facts.items():
            if isinstance(value, int) and not isinstance(value, bool):
                counts.append(f"{value:,} {name}")
            elif value is not None:
                choices.append(f"{name}: {value}")
        return f"{self.path}: " + "; ".join([", ".join(counts), *choices])
