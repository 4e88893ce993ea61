"""What a list of checks found."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class CheckReport:
    """What :func:`check_layer` or :func:`check_module` tried.

    Attributes:
        passed: Names of the checks that held.
        skipped: Reason by name of the checks that do not apply.
        refused: Error by name of what the module cannot do and was expected to refuse.
        failed: Reason by name of the checks that did not hold.
        errors: Largest relative error by name, of the checks that compare with a twin.
    """

    passed: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [
            f"passed   {name}" + (f": {self.errors[name]:.0e}" if name in self.errors else "")
            for name in self.passed
        ]
        lines += [f"skipped  {name}: {reason}" for name, reason in self.skipped.items()]
        lines += [f"refused  {name}: {reason}" for name, reason in self.refused.items()]
        lines += [f"FAILED   {name}: {reason}" for name, reason in self.failed.items()]
        return "\n".join(lines)
