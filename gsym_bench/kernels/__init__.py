"""Speed and memory of the kernels and layers beside other code, in one run.

Absolute times drift on shared machines, so every round times all variants of a case in turn and
the result is the median over rounds of the ratio of their times. Memory is the rise of the
process's peak over one call, above what the loaded model takes.
"""
