"""The words of the page, explained where they stand."""

from __future__ import annotations

# What the first sentences say, and which entry explains it.
WORDS = {
    "interchangeable": "interchangeable",
    "group": "group",
    "weight": "weights",
    "error": "error",
    "no symmetry": "no symmetry",
    "95 % interval": "interval",
    "signals": "signal",
}
TERMS = {
    "interchangeable": "A model that treats nodes as interchangeable gives the same answer, moved "
    "along, when their signals change places. It learns one rule for all of them.",
    "group": "Nodes of one group, or cluster, may change places with each other, not with others. "
    "All such exchanges together are the symmetry group of the model.",
    "weights": "Numbers that a linear map has to learn from the signals, for each pair of "
    "channels. Fewer of them need fewer signals.",
    "error": "Mean squared error of signals that were left out of the fit, so that it counts what "
    "was learned by heart against a model.",
    "no symmetry": "A model that learns a weight of its own for every pair of nodes.",
    "signal": "The values at all nodes at one time: a row of a table of signals, or an image.",
    "interval": "If signals were drawn again and again, 95 of 100 such intervals would hold the "
    "true number.",
    "risk": "What a model is expected to err on new signals: the mean squared error of signals "
    "that were left out of the fit.",
    "score": "What the criterion gives a candidate, from signals left out of the fit. Lower is "
    "better.",
    "standard error": "How far the number would scatter if other signals of the same kind had been "
    "taken.",
    "commutant": "All linear maps that commute with the group: moving the nodes and then applying "
    "the map gives what applying the map and then moving the nodes gives.",
    "mixture": "The fits of several groups added up, each with its share. The shares have the "
    "least error on signals that were left out.",
}
