"""Likelihood-based generative models in JAX: train, evaluate, compare.

Importing `gm` is cheap: JAX is imported by the modules that compute.
"""

__version__ = "0.1.0"
