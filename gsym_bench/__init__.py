"""The benchmark suite: what each choice of group costs and gains on three kinds of signals."""
