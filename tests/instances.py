"""Instances that are hard on purpose, and an oracle that knows nothing of submatch: it tries every pair of subsets."""

import functools
import math
from fractions import Fraction
from itertools import chain, combinations

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

# Hostile instances: each function makes (X, Y) from a random generator; sizes are small enough for hundreds of Algorithm 1 calls.


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
        parts.append(
            (
                B @ rng.normal(size=(k, k)),
                B @ rng.normal(size=(k, k)) + noise * rng.normal(size=(50, k)),
            )
        )
    return tuple(rng.permutation(np.concatenate(side, 1), axis=1) for side in zip(*parts))


def relu_features(rng):
    "ReLU of features that both networks share in part."
    F = rng.normal(size=(60, 8))
    return tuple(
        np.maximum(
            F @ rng.normal(size=(8, n)) + 0.3 * rng.normal(size=(60, n)) + rng.normal(size=n), 0
        )
        for n in rng.integers(6, 13, 2)
    )


def duplicates(rng):
    "Copies, negative copies and sums of neurons on one side, copies across."
    X, Y = shared_subspace(rng)
    X = np.concatenate(
        [X, X[:, rng.integers(0, 9, 3)] * [1, -2, 0.5], X[:, :2].sum(1, keepdims=True)], 1
    )
    return rng.permutation(X, axis=1), np.concatenate([Y, Y[:, :2], X[:, :2]], 1)


def dead(rng):
    X, Y = planted_groups(rng)
    X[:, rng.integers(0, X.shape[1], 2)] = 0
    Y[:, rng.integers(0, Y.shape[1])] = 0
    return X, Y


def unequal_widths(rng):
    B = rng.normal(size=(40, 3))
    return B @ rng.normal(size=(3, 14)) + 0.3 * rng.normal(size=(40, 14)), B[
        :, :2
    ] + 0.1 * rng.normal(size=(40, 2))


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
    near = lambda Z: Z + 10 ** rng.uniform(-9, -3) * rng.normal(size=Z.shape)
    return np.concatenate([X, near(X[:, :2])], 1), np.concatenate(
        [Y, near(Y[:, :2]), near(X[:, :1])], 1
    )


def dependent_near_duplicates(rng):
    "Low rank with coefficients from 1 to 1e-9: a spare neuron can take another's place only just."

    def side(n, B):
        return B @ (rng.normal(size=(B.shape[1], n)) * 10 ** rng.uniform(-9, 0, (B.shape[1], n)))

    B = rng.normal(size=(30, 5))
    return side(9, B), side(8, B + 0.2 * rng.normal(size=B.shape))


def nearly_parallel_spares(rng):
    "Independent directions, and neurons 1e-5 to 1e-9 from one of them in the plane of two: removing one lets another barely take its place."
    r = rng.integers(2, 5)
    B = np.linalg.qr(rng.normal(size=(12, r + 3)))[0]

    def side(n):
        near = [
            B[:, rng.integers(r)] + 10 ** rng.uniform(-9, -5) * B[:, rng.integers(r)]
            for _ in range(n)
        ]
        return np.stack([*B[:, :r].T, *near], 1)

    X, Y = side(rng.integers(1, 4)), side(rng.integers(1, 4))
    return X, Y + rng.normal(size=(12, 12)) * rng.choice([0.1, 0.5, 1]) @ Y * rng.choice([0.1, 0.5])


def few_samples(rng):
    "As many samples as neurons, or fewer: spans that fill the space."
    d = int(rng.integers(2, 7))
    return rng.normal(size=(d, rng.integers(d, d + 4))), rng.normal(
        size=(d, rng.integers(1, d + 4))
    )


def one_neuron(rng):
    x = rng.normal(size=(20, 1))
    return x, rng.choice([1, -3, 0]) * x + rng.choice([0, 0.3, 1]) * rng.normal(size=(20, 1))


def integer_ties(rng):
    "Small integers: residuals as 3/5 and 4/5, many of them equal."
    return tuple(
        rng.choice([-4, -3, 0, 0, 0, 3, 4], size=(7, n)).astype(float)
        for n in rng.integers(1, 7, 2)
    )


def all_dead_side(rng):
    X, Y = planted_groups(rng)
    return X, Y * 0


def constant_channels(rng):
    X, Y = relu_features(rng)
    X[:, 0], Y[:, -2:] = 5, [1, 7]
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

# How closely a critical epsilon can be known in float64 where the spans themselves are (nearly) ill-defined.
CLOSENESS = {
    "ill_conditioned": 1e-4,
    "near_duplicates": 1e-5,
    "dependent_near_duplicates": 1e-5,
    "nearly_parallel_spares": 1e-5,
}

# Squaring the condition number must cost nothing visible here: where moments say the same as activations.
MILD = [kind for kind in KINDS if kind not in CLOSENESS]


# Enough kinds to notice a mutant.
FEW = ("shared_subspace", "duplicates", "dead", "ill_conditioned", "few_samples")


def marked(kinds, few=FEW):
    "Kinds for `parametrize`, of which mutants are tried on a few."
    return [pytest.param(kind, marks=pytest.mark.mutate) if kind in few else kind for kind in kinds]


def make(kind, seed):
    return KINDS[kind](np.random.default_rng(seed))


def between(breakpoints, closeness):
    "Epsilons just after, midway and just before each breakpoint, none closer to any than `closeness`."
    edges = np.concatenate([[0], breakpoints[breakpoints < 1], [1]])
    for low, high in zip(edges, edges[1:]):
        if high - low > 3 * closeness:
            yield from (low + closeness, (low + high) / 2, high - closeness)


@st.composite
def integer_layers(draw, most):
    "Up to `most` neurons a side, of small integers, the second side seeded with copies and sums of the first."
    d, n_x, n_y = draw(st.integers(1, 5)), draw(st.integers(1, most)), draw(st.integers(1, most))
    X = draw(arrays(np.int64, (d, n_x), elements=st.integers(-2, 2)))
    Y = draw(arrays(np.int64, (d, n_y), elements=st.integers(-2, 2)))
    mix = draw(arrays(np.int64, (n_x, n_y), elements=st.sampled_from([0, 0, 0, 1, -1])))
    return X, Y * draw(st.integers(0, 1)) + X @ mix


# The oracle. A neuron is ("x", i) or ("y", j); a match is a frozenset of neurons.


def subsets(items):
    items = list(items)
    return [
        frozenset(s)
        for s in chain.from_iterable(combinations(items, k) for k in range(len(items) + 1))
    ]


def dot(a, b):
    return sum(p * q for p, q in zip(a, b))


@functools.lru_cache(2**16)
def orthogonal(span):
    "Orthogonal integer vectors with the span of some integer vectors, in exact arithmetic."
    if not span:
        return ()
    basis, z = orthogonal(span[:-1]), span[-1]
    scale = math.lcm(*(dot(q, q) for q in basis))
    shares = [scale // dot(q, q) * dot(z, q) for q in basis]
    rest = [scale * e - dot(shares, column) for e, *column in zip(z, *basis)]
    return (*basis, tuple(e // math.gcd(*rest) for e in rest)) if any(rest) else basis


def span_of_integers(Z):
    return orthogonal(tuple(map(tuple, Z.T.tolist())))


def exact_residual2(z, span):
    "Squared relative residual of an integer vector on integer vectors, as a fraction; 0 for a dead one."
    return (
        1 - sum(Fraction(dot(z, q) ** 2, dot(q, q) * dot(z, z)) for q in orthogonal(tuple(span)))
        if any(z)
        else Fraction(0)
    )


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


def smallest_angle(Z):
    "Smallest angle between the spans of any two disjoint non-empty blocks of integer columns; pi/2 where there is only one, 0 where they are dependent."
    n = Z.shape[1]
    if len(span_of_integers(Z)) < n:
        return 0.0
    span = {
        S: np.linalg.qr(Z[:, sorted(S)] / np.linalg.norm(Z[:, sorted(S)], axis=0))[0]
        for S in subsets(range(n))
        if S
    }
    sines = lambda A, B: np.linalg.svd(A - B @ (B.T @ A), compute_uv=False)
    cosines = lambda A, B: np.linalg.svd(B.T @ A, compute_uv=False)
    return min(
        (
            np.arctan2(sines(span[S], span[T])[-1], cosines(span[S], span[T])[0])
            for S in span
            for T in span
            if not S & T and min(S) < min(T)
        ),
        default=np.pi / 2,
    )


class Oracle:
    "Every pair of subsets of a small instance, with its largest squared residual; dead neurons are in no match, or literally in any."

    def __init__(self, X, Y, residual2, dead="exclude"):
        self.layers = X, Y
        self.columns = columns = {
            (s, i): tuple(z.tolist()) if residual2 is exact_residual2 else z
            for s, Z in zip("xy", (X, Y))
            for i, z in enumerate(Z.T)
        }
        use = [v for v, z in columns.items() if np.any(z) or dead == "literal"]
        self.neurons = list(columns)
        sides = [subsets(v for v in use if v[0] == s) for s in "xy"]
        self.r2 = r2 = {
            (v, S): residual2(columns[v], [columns[u] for u in sorted(S)])
            for v in use
            for S in sides[v[0] == "x"]
        }
        self.level = {
            A | B: max([r2[v, B] for v in A] + [r2[v, A] for v in B], default=0)
            for A in sides[0]
            for B in sides[1]
        }

    def matches(self, epsilon2):
        return [M for M, r2 in self.level.items() if r2 <= epsilon2]

    def maximum(self, epsilon2):
        return frozenset().union(*self.matches(epsilon2))

    def critical2(self, v):
        return min((r2 for M, r2 in self.level.items() if v in M), default=None)

    def breakpoints2(self):
        return sorted({c for v in self.neurons if (c := self.critical2(v)) is not None and c < 1})

    def minimal(self, v, epsilon2):
        "All v-minimum matches."
        having = [M for M in self.matches(epsilon2) if v in M]
        return {M for M in having if not any(N < M for N in having)}

    def simple(self, epsilon2):
        "All simple matches, by their own definition: not the union of the matches strictly inside."
        matches = [M for M in self.matches(epsilon2) if M]
        return {M for M in matches if frozenset().union(*(N for N in matches if N < M)) != M}


def split(M):
    return [[i for s, i in sorted(M) if s == side] for side in "xy"]


def neurons(match):
    return frozenset(match)
