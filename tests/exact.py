"""The profile in exact arithmetic: critical values of float64 activations.

As fractions, or to 100 digits where fractions take too long.
"""

from fractions import Fraction
from math import isqrt

import numpy as np


def integers(Z):
    "The columns as integers, each scaled by a power of two, which no relative residual notices."
    out = np.zeros(Z.shape, object)
    for j, column in enumerate(Z.T):
        parts = [Fraction(v) for v in column.tolist()]
        scale = max(p.denominator for p in parts)
        out[:, j] = [int(p * scale) for p in parts]
    return out


def residuals2(gram, own, others):
    """Squared relative residual of each of the others on the own neurons.

    By elimination without fractions (Bareiss).
    """
    M = gram[np.ix_(own, [*own, *others])]
    diagonal = gram[others, others]
    squares = diagonal.copy()
    last = 1
    k = len(own)
    for i in range(k):
        pivot = M[i, i]
        if pivot == 0:
            continue  # it depends on those before it
        row = M[i]
        squares = (squares * pivot - row[k:] ** 2) // last
        M[i + 1 :] = (M[i + 1 :] * pivot - np.outer(M[i + 1 :, i], row)) // last
        last = pivot
    return [Fraction(s, d * last) for s, d in zip(squares, diagonal, strict=True)]


def integer_gram(X, Y, center=False):
    "Second moments of the neurons of both layers, or of these less their means, up to scales."
    Z = integers(np.concatenate([X, Y], 1))
    gram = Z.T @ Z
    if not center:
        return gram
    total = Z.sum(0)
    return len(Z) * gram - np.outer(total, total)


def critical2(X, Y, center=False):
    """Critical epsilon, squared, of every neuron, the first network's first; None for a dead one.

    By peeling.
    """
    gram = integer_gram(X, Y, center)
    n_x = X.shape[1]
    critical = [None] * len(gram)
    left = [v for v in range(len(gram)) if gram[v, v]]
    level = Fraction(1)
    while left:
        x = [v for v in left if v < n_x]
        y = [v for v in left if v >= n_x]
        of_x = dict(zip(x, residuals2(gram, y, x), strict=True))
        of_y = dict(zip(y, residuals2(gram, x, y), strict=True))
        r2 = of_x | of_y
        level = min(level, max(r2.values()))
        for v in left:
            if r2[v] >= level:
                critical[v] = level
        left = [v for v in left if r2[v] < level]
    return critical


# Of the fixed-point numbers below: about 150 digits, of which a condition number of 1e12 costs
# less than 50.
BITS = 500
ONE = 1 << BITS


def inverse(A):
    "The inverse of a positive definite matrix in fixed point, by Gauss and Jordan."
    M = np.concatenate([A, np.eye(len(A), dtype=int).astype(object) * ONE], 1)
    for i in range(len(A)):
        M[i] = (M[i] << BITS) // M[i, i]
        rest = np.arange(len(A)) != i
        M[rest] -= np.outer(M[rest, i], M[i]) >> BITS
    return M[:, len(A) :]


def cosine(gram, i, j):
    "Of the angle between two neurons, in fixed point."
    square = (gram[i, j] ** 2 << 2 * BITS) // (gram[i, i] * gram[j, j])
    return isqrt(square) if gram[i, j] > 0 else -isqrt(square)


def critical2_wide(X, Y, center=False):
    """The same for larger layers of independent live neurons, to about 100 digits.

    One neuron leaves at a time, and inverses are downdated.
    """
    gram = integer_gram(X, Y, center)
    n = len(gram)
    k = X.shape[1]
    rows = []
    for i in range(n):
        rows.append([cosine(gram, i, j) for j in range(n)])
    N = np.array(rows, object)
    sides = [(np.arange(k), np.arange(k, n)), (np.arange(k, n), np.arange(k))]
    H = [inverse(N[np.ix_(own, own)]) for own, _ in sides]
    C = [h @ N[np.ix_(*side)] >> BITS for h, side in zip(H, sides, strict=True)]
    r2 = np.zeros(n, object)
    for c, (own, others) in zip(C, sides, strict=True):
        r2[others] = ONE - ((c * N[np.ix_(own, others)]).sum(0) >> BITS)
    left = np.ones(n, bool)
    critical = [None] * n
    level = ONE
    while left.any():
        v = max(left.nonzero()[0], key=lambda v: r2[v])
        left[v] = False
        level = min(level, r2[v])
        critical[v] = Fraction(level, ONE)
        side, p = (0, v) if v < k else (1, v - k)
        h, c = H[side], C[side]
        r2[sides[side][1]] += c[p] ** 2 // h[p, p]
        column = (h[:, p] << BITS) // h[p, p]
        C[side] = c - (np.outer(column, c[p]) >> BITS)
        H[side] = h - (np.outer(column, h[p]) >> BITS)
    return critical


def exact_length(M, w):
    "Of the combination w of the columns of M, from exact fractions."
    weights = [Fraction(a) for a in w.tolist()]
    total = Fraction(0)
    for row in M.tolist():
        total += sum(Fraction(a) * b for a, b in zip(row, weights, strict=True)) ** 2
    return float(total) ** 0.5


def assert_bound_holds(moments, Z, rng):
    """What `Moments` says of its R factor is so.

    For random and for nearly cancelling combinations of neurons, in exact fractions.
    """
    length = np.linalg.norm(Z, axis=0)
    scale = 1 / np.where(length > 0, length, 1)
    cancelling = np.linalg.svd(Z * scale)[2][-1]
    for w in (*rng.normal(size=(3, len(scale))), cancelling):
        w = w * scale
        true = exact_length(Z, w)
        held = exact_length(moments.root.numpy(), w)
        bound = moments.skew * held + moments.error * (np.abs(w) * length).sum()
        assert abs(true - held) <= bound * (1 + 1e-6)
