"""Instances that are hard on purpose, and an oracle that tries every pair of subsets.

The oracle shares no code with submatch.
"""

import functools
import math
from fractions import Fraction
from itertools import chain, combinations, pairwise

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

SEEDS = st.integers(0, 10**6)

# Hostile instances: each function makes (X, Y) from a random generator; sizes are small enough for
# hundreds of calls of Algorithm 1.


def gaussian(rng):
    d = int(rng.integers(15, 40))
    return rng.normal(size=(d, rng.integers(1, 13))), rng.normal(size=(d, rng.integers(1, 13)))


def shared_subspace(rng):
    "Some neurons of each side lie in one subspace, exactly or nearly."
    X, Y = rng.normal(size=(40, 9)), rng.normal(size=(40, 8))
    B, k = rng.normal(size=(40, 4)), rng.integers(3, 7)
    X[:, :k] = B @ rng.normal(size=(4, k))
    Y[:, -k:] = B @ rng.normal(size=(4, k)) + rng.choice([0, 1e-4, 0.3]) * rng.normal(size=(40, k))
    return X, Y


def planted_groups(rng):
    "Groups that match one another at rising noise, in shuffled order."
    parts = []
    for noise in (0, 0.05, 0.2, 0.5):
        k = rng.integers(1, 4)
        B = rng.normal(size=(50, k))
        x = B @ rng.normal(size=(k, k))
        y = B @ rng.normal(size=(k, k)) + noise * rng.normal(size=(50, k))
        parts.append((x, y))
    sides = zip(*parts, strict=True)
    return tuple(rng.permutation(np.concatenate(side, 1), axis=1) for side in sides)


def relu_features(rng):
    "ReLU of features that both networks share in part."
    F = rng.normal(size=(60, 8))
    sides = []
    for n in rng.integers(6, 13, 2):
        Z = F @ rng.normal(size=(8, n)) + 0.3 * rng.normal(size=(60, n)) + rng.normal(size=n)
        sides.append(np.maximum(Z, 0))
    return tuple(sides)


def duplicates(rng):
    "Copies, negative copies and sums of neurons on one side, copies across."
    X, Y = shared_subspace(rng)
    copies = X[:, rng.integers(0, 9, 3)] * [1, -2, 0.5]
    X = np.concatenate([X, copies, X[:, :2].sum(1, keepdims=True)], 1)
    return rng.permutation(X, axis=1), np.concatenate([Y, Y[:, :2], X[:, :2]], 1)


def dead(rng):
    X, Y = planted_groups(rng)
    X[:, rng.integers(0, X.shape[1], 2)] = 0
    Y[:, rng.integers(0, Y.shape[1])] = 0
    return X, Y


def unequal_widths(rng):
    B = rng.normal(size=(40, 3))
    X = B @ rng.normal(size=(3, 14)) + 0.3 * rng.normal(size=(40, 14))
    return X, B[:, :2] + 0.1 * rng.normal(size=(40, 2))


def scales(rng):
    "Any of the above, each neuron on its own scale from 1e-8 to 1e8."
    return tuple(
        Z * 10 ** rng.uniform(-8, 8, Z.shape[1])
        for Z in rng.choice([shared_subspace, planted_groups, relu_features])(rng)
    )


def ill_conditioned(rng):
    "Singular values from 1 to 1e-10 on both sides, in part of one subspace."

    def side(n, B):
        U = np.linalg.qr(np.concatenate([B, rng.normal(size=(40, n))], 1))[0][:, :n]
        return U * np.logspace(0, -10, n) @ np.linalg.qr(rng.normal(size=(n, n)))[0]

    B = rng.normal(size=(40, 3))
    return side(7, B), side(8, B)


def near_duplicates(rng):
    "Pairs of neurons 1e-3 to 1e-9 apart, within a side and across."
    X, Y = planted_groups(rng)

    def near(Z):
        return Z + 10 ** rng.uniform(-9, -3) * rng.normal(size=Z.shape)

    more_x = np.concatenate([X, near(X[:, :2])], 1)
    return more_x, np.concatenate([Y, near(Y[:, :2]), near(X[:, :1])], 1)


def dependent_near_duplicates(rng):
    "Low rank with coefficients from 1 to 1e-9: a spare neuron can take another's place only just."

    def side(n, B):
        return B @ (rng.normal(size=(B.shape[1], n)) * 10 ** rng.uniform(-9, 0, (B.shape[1], n)))

    B = rng.normal(size=(30, 5))
    return side(9, B), side(8, B + 0.2 * rng.normal(size=B.shape))


def nearly_parallel_spares(rng):
    """Independent directions, and neurons 1e-5 to 1e-9 from one of them in the plane of two.

    Removing one lets another barely take its place.
    """
    r = rng.integers(2, 5)
    B = np.linalg.qr(rng.normal(size=(12, r + 3)))[0]

    def side(n):
        near = []
        for _ in range(n):
            one = B[:, rng.integers(r)]
            near.append(one + 10 ** rng.uniform(-9, -5) * B[:, rng.integers(r)])
        return np.stack([*B[:, :r].T, *near], 1)

    X, Y = side(rng.integers(1, 4)), side(rng.integers(1, 4))
    return X, Y + rng.normal(size=(12, 12)) * rng.choice([0.1, 0.5, 1]) @ Y * rng.choice([0.1, 0.5])


def few_samples(rng):
    "As many samples as neurons, or fewer: spans that fill the space."
    d = int(rng.integers(2, 7))
    X = rng.normal(size=(d, rng.integers(d, d + 4)))
    return X, rng.normal(size=(d, rng.integers(1, d + 4)))


def one_neuron(rng):
    x = rng.normal(size=(20, 1))
    return x, rng.choice([1, -3, 0]) * x + rng.choice([0, 0.3, 1]) * rng.normal(size=(20, 1))


def integer_ties(rng):
    "Small integers: residuals as 3/5 and 4/5, many of them equal."
    sides = rng.integers(1, 7, 2)
    values = [-4, -3, 0, 0, 0, 3, 4]
    return tuple(rng.choice(values, size=(7, n)).astype(float) for n in sides)


def all_dead_side(rng):
    X, Y = planted_groups(rng)
    return X, Y * 0


def constant_channels(rng):
    X, Y = relu_features(rng)
    X[:, 0] = 5
    Y[:, -2:] = [1, 7]
    return X, Y


KINDS = {
    f.__name__: f
    for f in (
        gaussian,
        shared_subspace,
        planted_groups,
        relu_features,
        duplicates,
        dead,
        unequal_widths,
        scales,
        ill_conditioned,
        near_duplicates,
        dependent_near_duplicates,
        nearly_parallel_spares,
        few_samples,
        one_neuron,
        integer_ties,
        all_dead_side,
        constant_channels,
    )
}

# Layers that have nothing in common with another one drawn so


def noise(rng, d, n, kind):
    "A layer that has nothing in common with another one."
    Z = rng.normal(size=(d, n))
    if kind == "ReLU, large means":
        return np.maximum(Z + 3, 0)
    if kind == "ReLU":
        return np.maximum(Z, 0)
    if kind == "means of any size":
        return Z + 10.0 ** rng.uniform(-2, 5, n)
    if kind == "scales of any size":
        return Z * 10.0 ** rng.uniform(-4, 4, n)
    if kind == "low rank":
        return Z[:, :5] @ rng.normal(size=(5, n))
    if kind == "low rank and a mean":
        return np.maximum(Z[:, :5] @ rng.normal(size=(5, n)) + 1, 0)
    if kind == "dead neurons":
        return np.maximum(Z + 1, 0) * (np.arange(n) % 3 > 0)
    if kind == "constant neurons":
        return np.where(np.arange(n) % 3 > 0, Z, 0.1)
    if kind == "twins":
        return np.repeat(Z[:, : n // 2] + 1, 2, axis=1)
    if kind == "sparse":
        return np.maximum(Z - 1.5, 0)
    if kind == "heavy tails":
        return rng.standard_t(2, size=(d, n))
    if kind == "signs":
        return np.sign(Z)
    if kind == "one direction":
        return 3 * rng.normal(size=(d, 1)) * rng.normal(size=n) + Z
    if kind == "drift":
        return np.cumsum(Z, axis=0)[rng.permutation(d)]
    return Z


NOISES = [
    "Gaussian",
    "ReLU, large means",
    "ReLU",
    "means of any size",
    "scales of any size",
    "low rank",
    "low rank and a mean",
    "dead neurons",
    "constant neurons",
    "twins",
    "sparse",
    "heavy tails",
    "signs",
    "one direction",
    "drift",
]


def positions_alike(rng, images, positions, n, mean, spread):
    "Rows of images whose positions are alike."
    own = np.repeat(rng.normal(mean, 1, (images, n)), positions, axis=0)
    return np.maximum(own + spread * rng.normal(size=own.shape), 0)


# How closely a critical epsilon can be known in float64 where the spans themselves are (nearly)
# ill-defined.
CLOSENESS = {
    "ill_conditioned": 1e-4,
    "near_duplicates": 1e-5,
    "dependent_near_duplicates": 1e-5,
    "nearly_parallel_spares": 1e-5,
}

# Squaring the condition number must cost nothing visible here: where moments say the same as
# activations.
MILD = [kind for kind in KINDS if kind not in CLOSENESS]

# Enough kinds to notice a mutant.
FEW = ("shared_subspace", "duplicates", "dead", "ill_conditioned", "few_samples")


def marked(kinds, few=FEW):
    "Kinds for `parametrize`, of which mutants are tried on a few."
    return [pytest.param(kind, marks=pytest.mark.mutate) if kind in few else kind for kind in kinds]


def make(kind, seed):
    return KINDS[kind](np.random.default_rng(seed))


def between(breakpoints, closeness):
    "Epsilons just after, midway and just before each breakpoint, none closer than `closeness`."
    edges = np.concatenate([[0], breakpoints[breakpoints < 1], [1]])
    for low, high in pairwise(edges):
        if high - low > 3 * closeness:
            yield from (low + closeness, (low + high) / 2, high - closeness)


@st.composite
def integer_layers(draw, most):
    """Up to `most` neurons a side, of small integers.

    The second side is seeded with copies and sums of the first.
    """
    d = draw(st.integers(1, 5))
    n_x, n_y = draw(st.integers(1, most)), draw(st.integers(1, most))
    X = draw(arrays(np.int64, (d, n_x), elements=st.integers(-2, 2)))
    Y = draw(arrays(np.int64, (d, n_y), elements=st.integers(-2, 2)))
    mix = draw(arrays(np.int64, (n_x, n_y), elements=st.sampled_from([0, 0, 0, 1, -1])))
    return X, Y * draw(st.integers(0, 1)) + X @ mix


# The oracle. A neuron is ("x", i) or ("y", j); a match is a frozenset of neurons.


def subsets(items):
    items = list(items)
    chosen = (combinations(items, k) for k in range(len(items) + 1))
    return [frozenset(s) for s in chain.from_iterable(chosen)]


def dot(a, b):
    return sum(p * q for p, q in zip(a, b, strict=True))


@functools.lru_cache(2**16)
def orthogonal(span):
    "Orthogonal integer vectors with the span of some integer vectors, in exact arithmetic."
    if not span:
        return ()
    basis, z = orthogonal(span[:-1]), span[-1]
    scale = math.lcm(*(dot(q, q) for q in basis))
    shares = [scale // dot(q, q) * dot(z, q) for q in basis]
    rest = [scale * e - dot(shares, column) for e, *column in zip(z, *basis, strict=True)]
    return (*basis, tuple(e // math.gcd(*rest) for e in rest)) if any(rest) else basis


def span_of_integers(Z):
    return orthogonal(tuple(map(tuple, Z.T.tolist())))


def exact_residual2(z, span):
    """Squared relative residual of an integer vector on integer vectors, as a fraction.

    0 for a dead one.
    """
    if not any(z):
        return Fraction(0)
    square = dot(z, z)
    basis = orthogonal(tuple(span))
    return 1 - sum(Fraction(dot(z, q) ** 2, dot(q, q) * square) for q in basis)


def float_residual2(z, span):
    "The same in floating point, by the singular value decomposition."
    if not z.any():
        return 0.0
    z = z / np.linalg.norm(z)
    live = [b / np.linalg.norm(b) for b in span if b.any()]
    if not live:
        return 1.0
    U, s, _ = np.linalg.svd(np.stack(live, 1), full_matrices=False)
    U = U[:, s > 1e-11]
    rest = z - U @ (U.T @ z)
    return float(((rest - U @ (U.T @ rest)) ** 2).sum())


def sine(A, B):
    "Of the smallest angle between the spans of orthonormal columns."
    return np.linalg.svd(A - B @ (B.T @ A), compute_uv=False)[-1]


def cosine(A, B):
    "Of the smallest angle between the spans of orthonormal columns."
    return np.linalg.svd(B.T @ A, compute_uv=False)[0]


def smallest_angle(Z):
    """Smallest angle between the spans of any two disjoint non-empty blocks of integer columns.

    pi/2 where there is only one column, 0 where they are dependent.
    """
    n = Z.shape[1]
    if len(span_of_integers(Z)) < n:
        return 0.0
    span = {}
    for S in subsets(range(n)):
        if S:
            block = Z[:, sorted(S)]
            span[S] = np.linalg.qr(block / np.linalg.norm(block, axis=0))[0]
    angles = [np.pi / 2]
    for S, T in combinations(span, 2):
        if not S & T:
            A, B = (span[S], span[T]) if min(S) < min(T) else (span[T], span[S])
            angles.append(np.arctan2(sine(A, B), cosine(A, B)))
    return min(angles)


class Oracle:
    """Every pair of subsets of a small instance, with its largest squared residual.

    Dead neurons are in no match, or literally in any.
    """

    def __init__(self, X, Y, residual2, dead="exclude"):
        self.layers = X, Y
        self.columns = {}
        for side, Z in zip("xy", (X, Y), strict=True):
            for i, z in enumerate(Z.T):
                exact = residual2 is exact_residual2
                self.columns[side, i] = tuple(z.tolist()) if exact else z
        self.neurons = list(self.columns)
        use = [v for v, z in self.columns.items() if np.any(z) or dead == "literal"]
        of_x, of_y = (subsets(v for v in use if v[0] == side) for side in "xy")
        self.r2 = {}
        for v in use:
            for S in of_y if v[0] == "x" else of_x:
                span = [self.columns[u] for u in sorted(S)]
                self.r2[v, S] = residual2(self.columns[v], span)
        self.level = {}
        for A in of_x:
            for B in of_y:
                residuals = [self.r2[v, B] for v in A] + [self.r2[v, A] for v in B]
                self.level[A | B] = max(residuals, default=0)

    def matches(self, epsilon2):
        return [M for M, r2 in self.level.items() if r2 <= epsilon2]

    def maximum(self, epsilon2):
        return frozenset().union(*self.matches(epsilon2))

    def critical2(self, v):
        return min((r2 for M, r2 in self.level.items() if v in M), default=None)

    def breakpoints2(self):
        critical = {self.critical2(v) for v in self.neurons} - {None}
        return sorted(c for c in critical if c < 1)

    def minimal(self, v, epsilon2):
        "All v-minimal matches."
        having = [M for M in self.matches(epsilon2) if v in M]
        return {M for M in having if not any(N < M for N in having)}

    def simple(self, epsilon2):
        "All simple matches, by their own definition: not the union of the matches strictly inside."
        matches = [M for M in self.matches(epsilon2) if M]
        simple = set()
        for M in matches:
            smaller = [N for N in matches if N < M]
            if frozenset().union(*smaller) != M:
                simple.add(M)
        return simple


def split(M):
    "The indices of the neurons of either side."
    x = [i for side, i in sorted(M) if side == "x"]
    y = [i for side, i in sorted(M) if side == "y"]
    return x, y


def neurons(match):
    return frozenset(match)
