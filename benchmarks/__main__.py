"""The suite under its old name: ``python -m benchmarks`` in a copy of the tree."""

from gsym_bench.__main__ import main

if __name__ == "__main__":
    main()
