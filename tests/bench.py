"""What the fast paths gain over the plain ones, and that both give the same answers: `make bench`, some minutes.

The layers: two perceptrons with two hidden layers of equal width are trained by Adam on scikit-learn's digits from seeds 0 and 1 until they
fit more than 99 % of them; compared are the second hidden layers, after ReLU, on 10,000 seeded distortions of the digits (drawn with replacement,
shifted by up to a pixel each way, Gaussian noise of 0.6 added), so that the neurons have real rank and the match is neither all nor nothing.
"""
import argparse
import platform
import statistics
import sys
import time

import numpy as np
import torch
from scipy.linalg import lstsq
from scipy.ndimage import shift
from sklearn.datasets import load_digits
from torch import nn
from tqdm.auto import tqdm

from submatch_nb import maximum
from submatch_nb.match import within
from submatch_nb.maximum import algorithm_1, epsilon_profile, maximum_match
from submatch_nb.neurons import Moments
from submatch_nb.simple import algorithm_2, minimum_match

EPSILONS = (0.15, 0.2, 0.25, 0.3, 0.5)  # the paper's
LIMITS = {"algorithm_1": 4, "least squares": 12, "algorithm_2": 100}
AT = 0.25  # where v-minimum matches are timed


def train(width, seed, epochs=15):
    "A perceptron that fits the digits."
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))
    optimiser = torch.optim.Adam(net.parameters(), 1e-3)
    accuracy = 0
    while accuracy <= 0.99:
        for _ in range(epochs):
            for batch in torch.randperm(len(x)).split(64):
                optimiser.zero_grad()
                nn.functional.cross_entropy(net(x[batch]), y[batch]).backward()
                optimiser.step()
        accuracy = (net(x).argmax(1) == y).float().mean().item()
    return net[:-1]


def layers(width, count=10_000):
    "(count, width) activations of each network, float64."
    rng, images = np.random.default_rng(0), load_digits().images / 16
    pick, moves = rng.integers(len(images), size=count), rng.uniform(-1, 1, (count, 2))
    inputs = np.stack([shift(images[i], move, order=1) for i, move in zip(pick, moves)])
    inputs = torch.tensor((inputs + 0.6 * rng.normal(size=inputs.shape)).reshape(count, 64), dtype=torch.float32)
    return [train(width, seed)(inputs).detach().double().numpy() for seed in (0, 1)]


def clock(f, *args, **kwargs):
    begin = time.perf_counter()
    result = f(*args, **kwargs)
    return time.perf_counter() - begin, result


# Algorithm 1 with other solvers, all offenders removed in each round; dead neurons leave first.

def rounds_of(residual2, X, Y, epsilon):
    "(x, y) of the maximum match, with any function for the squared residuals of unit neurons on others."
    X, Y = (Z / np.where(Z.any(0), np.linalg.norm(Z, axis=0), 1) for Z in (X, Y))
    x, y = X.any(0).nonzero()[0], Y.any(0).nonzero()[0]
    while len(x) and len(y):
        ok_x, ok_y = residual2(X[:, x], Y[:, y]) <= within(epsilon) ** 2, residual2(Y[:, y], X[:, x]) <= within(epsilon) ** 2
        if ok_x.all() and ok_y.all(): return x.tolist(), y.tolist()
        x, y = x[ok_x], y[ok_y]
    return [], []


def by_least_squares(X, Y):
    "By the SVD, as the authors' code solves it."
    coefficients = lstsq(Y, X, lapack_driver="gelsd", check_finite=False)[0]
    return ((X - Y @ coefficients) ** 2).sum(0)


def by_one_product(X, Y):
    "By QR, and Pythagoras for the rest: the least work a factorisation a side can do, at half the digits."
    Q = torch.linalg.qr(torch.as_tensor(Y)).Q
    return (1 - (Q.T @ torch.as_tensor(X)).square().sum(0)).numpy()


class Counted:
    "A function that counts its calls."
    def __init__(self, f): self.f, self.calls = f, 0
    def __call__(self, *args, **kwargs):
        self.calls += 1
        return self.f(*args, **kwargs)


def profile_bench(width):
    "Rows for the whole profile against Algorithm 1 at each epsilon; profile and baselines alternate, so that both see the same machine."
    X, Y = layers(width)
    rounds = maximum.cross_residuals = Counted(maximum.cross_residuals)
    epsilon_profile(X, Y), Moments(X, Y)
    times = {name: [] for name in ("profile", "moments", "algorithm_1", "one product", "least squares")}
    print(f"Maximum match of {width} + {width} neurons on {len(X):,} samples; dead: {sum((~Z.any(0)).sum() for Z in (X, Y))}\n\n"
          "epsilon  similarity  rounds  Algorithm 1 (s)  one product (s)  least squares (s)  profile, every epsilon (s)", flush=True)
    for epsilon in EPSILONS:
        rounds.calls = 0
        for name, f, *args in (("profile", epsilon_profile, X, Y), ("moments", Moments, X, Y), ("algorithm_1", algorithm_1, X, Y, epsilon),
                               ("one product", rounds_of, by_one_product, X, Y, epsilon), ("least squares", rounds_of, by_least_squares, X, Y, epsilon)):
            seconds, result = clock(f, *args)
            times[name].append(seconds)
            if name == "profile": match = result.match(epsilon)
            if name == "algorithm_1": assert match == result == maximum_match(X, Y, epsilon), f"profile and Algorithm 1 disagree at {epsilon}"
            if name in ("one product", "least squares"): assert result == (match.x.tolist(), match.y.tolist()), f"profile and {name} disagree at {epsilon}"
        last = {name: t[-1] for name, t in times.items()}
        print(f"{epsilon:7.2f}{match.similarity:12.3f}{rounds.calls:8}{last['algorithm_1']:17.2f}{last['one product']:17.2f}{last['least squares']:19.2f}"
              f"{last['profile']:28.2f}", flush=True)
    fast = statistics.median(times["profile"])
    print(f"\nThe whole profile: {fast:.2f} s, median of {len(EPSILONS)}; forming the float64 second moments alone: {statistics.median(times['moments']):.2f} s. The answers agree.")
    return [(f"profile against {what}, sum over {len(EPSILONS)} epsilons", sum(times[name]) / fast, LIMITS.get(name))
            for name, what in (("algorithm_1", "Algorithm 1"), ("one product", "Algorithm 1 with one product a side"), ("least squares", "least squares"))]


def minimum_bench(width, count):
    "Rows for v-minimum matches of seeded neurons against Algorithm 2, each in full."
    X, Y = layers(width)
    inside = list(maximum_match(X, Y, AT))
    rounds = maximum.cross_residuals = Counted(maximum.cross_residuals)
    forming, moments = clock(Moments, X, Y)
    print(f"\nv-minimum matches of {width} + {width} neurons on {len(X):,} samples at epsilon {AT}: {len(inside)} neurons in the maximum match, {count} of them drawn\n\n"
          "neuron  size  from activations (s)  from moments (s)  Algorithm 2 (s)  its calls of Algorithm 1  its rounds", flush=True)
    times = []
    for i in np.random.default_rng(0).permutation(len(inside))[:count]:
        v, rounds.calls = inside[i], 0
        fast, match = clock(minimum_match, X, Y, v, AT)
        faster, same = clock(minimum_match, moments, v=v, epsilon=AT)
        with tqdm(desc=f"Algorithm 2 for {v[0]}{v[1]}", unit=" neurons", leave=False, disable=None) as bar:
            tried = Counted(lambda u, dropped, match: bar.update())
            plain, expected = clock(algorithm_2, X, Y, v, AT, log=tried)
        assert match == expected == same, f"minimum_match and Algorithm 2 disagree for {v}"
        times.append((fast, faster + forming / count, plain))
        print(f"{v[0]}{v[1]:<6}{len(match):5}{fast:22.3f}{faster:18.3f}{plain:17.1f}{tried.calls + 1:26}{rounds.calls:12}", flush=True)
    print(f"\nForming the moments once: {forming:.2f} s. The answers agree.")
    ratio = lambda k: statistics.median(t[2] / t[k] for t in times)
    return [(f"v-minimum match against Algorithm 2, median of {len(times)}: from moments formed once, their time shared", ratio(1), LIMITS["algorithm_2"]),
            ("the same from activations, everything anew for each neuron", ratio(0), None)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20, help="neurons whose v-minimum match is timed (default 20)")
    parser.add_argument("--width", type=int, default=512, help="hidden units of the layer that is profiled (default 512)")
    options = parser.parse_args()
    print(f"{__doc__}\nPython {platform.python_version()}, torch {torch.__version__}, {torch.get_num_threads()} threads\n", flush=True)
    results = profile_bench(options.width) + minimum_bench(128, options.count)
    print("\n  times  limit")
    for what, ratio, limit in results: print(f"{ratio:7.1f}{f'{limit:7}' if limit else '       '}  {what}{'' if not limit or ratio >= limit else '  NOT MET'}")
    sys.exit(any(limit and ratio < limit for _, ratio, limit in results))
