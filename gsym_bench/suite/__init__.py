"""The engine of the benchmarks: tasks, cells, training, results and reports."""
