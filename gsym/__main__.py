"""Command line: ``gsym --help`` teaches it."""

from __future__ import annotations

import sys

from gsym._validate import optional_module


def main(args: list[str] | None = None) -> None:
    """Run one command; wrong input ends with one line and exit code 2."""
    try:
        cli = optional_module("gsym._cli", "tyro and rich", "cli", "python -m gsym")
    except ImportError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted: nothing was done", file=sys.stderr)
        sys.exit(130)
    cli.main(args)


if __name__ == "__main__":
    main()
