"""Models of the benchmark tasks that are not part of the library."""
