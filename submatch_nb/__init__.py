"""Do two neural networks learn the same representation? Neuron-activation subspace match (Wang et al., NeurIPS 2018)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:  # what editors and type checkers read; at run time each name is imported when it is first asked for
    from .chance import PermutationTest, bootstrap, permutation_test
    from .comparison import Comparison, Comparisons, compare, compare_activations, compare_all
    from .engine.capture import capture
    from .engine.collecting import Collected, collect, collect_all
    from .engine.distributed import collect_distributed
    from .engine.inputs import SubmatchWarning
    from .engine.moments import Moments
    from .engine.positions import Sampled
    from .engine.tops import TopSamples, top_samples
    from .exercises import check, progress
    from .explorer import explore, save_html
    from .match import Match, is_match
    from .maximum import Profile, algorithm_1, epsilon_profile, max_match_similarity, maximum_match
    from .measures import cca, cka, identify_layers, linear_regression, procrustes, pwcca, svcca
    from .networks import load_checkpoint, load_data
    from .neurons import chance_epsilon, residuals
    from .engine.results import Results
    from .engine.reproducing import reproduce
    from .simple import MinimalMatches, SimpleMatches, algorithm_2, algorithm_3, is_unique, minimal_match, minimal_matches, minimum_match, simple_matches
    from .structure import are_unique, exact_simple_matches, find_unstable, independence_angle, is_stable, necessary

_MODULES = {
    "chance": ("PermutationTest", "bootstrap", "permutation_test"),
    "comparison": ("Comparison", "Comparisons", "compare", "compare_activations", "compare_all"),
    "engine.capture": ("capture",),
    "engine.collecting": ("Collected", "collect", "collect_all"),
    "engine.distributed": ("collect_distributed",),
    "engine.results": ("Results",),
    "engine.inputs": ("SubmatchWarning",),
    "engine.moments": ("Moments",),
    "engine.positions": ("Sampled",),
    "engine.tops": ("TopSamples", "top_samples"),
    "engine.reproducing": ("reproduce",),
    "exercises": ("check", "progress"),
    "explorer": ("explore", "save_html"),
    "match": ("Match", "is_match"),
    "maximum": ("Profile", "algorithm_1", "epsilon_profile", "max_match_similarity", "maximum_match"),
    "measures": ("cca", "cka", "identify_layers", "linear_regression", "procrustes", "pwcca", "svcca"),
    "networks": ("load_checkpoint", "load_data"),
    "neurons": ("chance_epsilon", "residuals"),
    "simple": ("MinimalMatches", "SimpleMatches", "algorithm_2", "algorithm_3", "is_unique", "minimal_match", "minimal_matches", "minimum_match", "simple_matches"),
    "structure": ("are_unique", "exact_simple_matches", "find_unstable", "independence_angle", "is_stable", "necessary"),
}
_WHERE = {name: module for module, names in _MODULES.items() for name in names}

__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_WHERE[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
