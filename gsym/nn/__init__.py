"""Layers whose weights are tied along the orbits of a group."""

from gsym.nn.gnet import GNet, GNetConv
from gsym.nn.linear import OrbitLinear

__all__ = ["GNet", "GNetConv", "OrbitLinear"]
