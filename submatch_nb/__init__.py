"""Do two neural networks learn the same representation? Neuron-activation subspace match (Wang et al., NeurIPS 2018)."""

__version__ = "0.1.0"

from .comparison import Comparison, Comparisons, compare, compare_activations, compare_all
from .explorer import explore, save_html
from .layers import Collected, Sampled, capture, collect, collect_all, collect_distributed
from .match import Match, is_match
from .maximum import Profile, algorithm_1, epsilon_profile, max_match_similarity, maximum_match
from .neurons import Moments, SubmatchWarning, chance_epsilon, residuals
from .paper import Results, reproduce
from .simple import SimpleMatches, algorithm_2, is_unique, minimum_match, simple_matches
from .structure import are_unique, exact_simple_matches, independence_angle, necessary

__all__ = [
    "Collected", "Comparison", "Comparisons", "Match", "Moments", "Profile", "Results", "Sampled", "SimpleMatches", "SubmatchWarning", "algorithm_1",
    "algorithm_2", "are_unique", "capture", "chance_epsilon", "collect", "collect_all", "collect_distributed", "compare", "compare_activations",
    "compare_all", "epsilon_profile", "exact_simple_matches", "explore", "independence_angle", "is_match", "is_unique", "max_match_similarity",
    "maximum_match", "minimum_match", "necessary", "reproduce", "residuals", "save_html", "simple_matches",
]
