"""Inner networks, and the flat parameter vector through which the inner loop sees them.

A network is built once per run. A fresh one is a fresh vector: ``FlatNetwork.init`` draws all
parameters of a new random network with one call, from an explicit generator.
"""
