"""Scripts that download and convert the data of the benchmarks."""
