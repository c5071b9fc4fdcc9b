"""Inner networks, and the flat parameter vector through which the inner loop sees them.

A network is built once per run. A fresh one is a fresh vector: ``FlatNetwork.init`` draws all
parameters of a new random network with one call, from an explicit generator.
"""

from framework.networks.flat import FlatNetwork
from framework.networks.layers import ACTIVATIONS, NORMS, POOLS
from framework.networks.registry import ARCHITECTURES, activation_floats, build

__all__ = ["ACTIVATIONS", "ARCHITECTURES", "NORMS", "POOLS", "FlatNetwork", "activation_floats", "build"]
