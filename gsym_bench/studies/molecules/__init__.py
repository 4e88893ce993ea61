"""Classes of small graphs, and pairs of graphs that are hard to tell apart."""
