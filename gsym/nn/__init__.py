"""Layers whose weights are tied along the orbits of a group."""

from gsym.nn.egnn import EGNN, EGNNConv
from gsym.nn.gnet import GNet, GNetConv
from gsym.nn.linear import OrbitLinear
from gsym.nn.penguin import Penguin, PenguinConv

__all__ = ["EGNN", "EGNNConv", "GNet", "GNetConv", "OrbitLinear", "Penguin", "PenguinConv"]
