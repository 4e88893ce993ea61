"""Layers whose weights are tied along the orbits of a group."""

from gsym.kernels.subgraphs import Subgraphs
from gsym.nn._ego import EgoTables
from gsym.nn.egnn import EGNN, EGNNConv
from gsym.nn.embedding import OrbitEmbedding
from gsym.nn.gnet import GNet, GNetConv
from gsym.nn.linear import OrbitLinear
from gsym.nn.penguin import Penguin, PenguinConv
from gsym.nn.spen import SPEN, SubgraphConv
from gsym.nn.subgraph import EquivariantTensorLinear

__all__ = [
    "EGNN",
    "SPEN",
    "EGNNConv",
    "EgoTables",
    "EquivariantTensorLinear",
    "GNet",
    "GNetConv",
    "OrbitEmbedding",
    "OrbitLinear",
    "Penguin",
    "PenguinConv",
    "SubgraphConv",
    "Subgraphs",
]
