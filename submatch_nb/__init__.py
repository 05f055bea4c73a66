"""Do two neural networks learn the same representation? Neuron-activation subspace match (Wang et al., NeurIPS 2018)."""

__version__ = "0.1.0"
