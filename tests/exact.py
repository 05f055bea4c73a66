"""The profile in exact arithmetic: critical values of float64 activations as fractions, or to 100 digits where fractions take too long."""

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
    "Squared relative residual of each of the others on the own neurons, by elimination without fractions (Bareiss)."
    M, diagonal = gram[np.ix_(own, [*own, *others])], gram[others, others]
    squares, last, k = diagonal.copy(), 1, len(own)
    for i in range(k):
        pivot = M[i, i]
        if pivot == 0:
            continue  # it depends on those before it
        row = M[i]
        squares = (squares * pivot - row[k:] ** 2) // last
        M[i + 1 :] = (M[i + 1 :] * pivot - np.outer(M[i + 1 :, i], row)) // last
        last = pivot
    return [Fraction(s, d * last) for s, d in zip(squares, diagonal)]


def critical2(X, Y):
    "Critical epsilon, squared, of every neuron, the first network's first; None for a dead one. By peeling."
    Z = integers(np.concatenate([X, Y], 1))
    gram, n_x = Z.T @ Z, X.shape[1]
    critical, left, level = (
        [None] * Z.shape[1],
        [v for v in range(Z.shape[1]) if gram[v, v]],
        Fraction(1),
    )
    while left:
        x, y = [v for v in left if v < n_x], [v for v in left if v >= n_x]
        r2 = dict(zip(x + y, residuals2(gram, y, x) + residuals2(gram, x, y)))
        level = min(level, max(r2.values()))
        for v in left:
            if r2[v] >= level:
                critical[v] = level
        left = [v for v in left if r2[v] < level]
    return critical


BITS = 500  # of the fixed-point numbers below: about 150 digits, of which a condition number of 1e12 costs less than 50


def inverse(A):
    "The inverse of a positive definite matrix in fixed point, by Gauss and Jordan."
    M = np.concatenate(
        [A, np.array([[(i == j) << BITS for j in range(len(A))] for i in range(len(A))], object)], 1
    )
    for i in range(len(A)):
        M[i] = (M[i] << BITS) // M[i, i]
        rest = np.arange(len(A)) != i
        M[rest] -= np.outer(M[rest, i], M[i]) >> BITS
    return M[:, len(A) :]


def critical2_wide(X, Y):
    "The same for larger layers of independent live neurons, to about 100 digits: one neuron leaves at a time, and inverses are downdated."
    Z = integers(np.concatenate([X, Y], 1))
    gram, n, k = Z.T @ Z, Z.shape[1], X.shape[1]
    N = np.array(
        [
            [
                (1 if gram[i, j] > 0 else -1)
                * isqrt((gram[i, j] ** 2 << 2 * BITS) // (gram[i, i] * gram[j, j]))
                for j in range(n)
            ]
            for i in range(n)
        ],
        object,
    )
    sides = [(np.arange(k), np.arange(k, n)), (np.arange(k, n), np.arange(k))]
    H = [inverse(N[np.ix_(own, own)]) for own, _ in sides]
    C = [h @ N[np.ix_(own, others)] >> BITS for h, (own, others) in zip(H, sides)]
    r2, left, critical, level = np.zeros(n, object), np.ones(n, bool), [None] * n, 1 << BITS
    for c, (own, others) in zip(C, sides):
        r2[others] = (1 << BITS) - ((c * N[np.ix_(own, others)]).sum(0) >> BITS)
    while left.any():
        v = max(left.nonzero()[0], key=lambda v: r2[v])
        level, left[v] = min(level, r2[v]), False
        critical[v] = Fraction(level, 1 << BITS)
        side, p = (0, v) if v < k else (1, v - k)
        h, c, others = H[side], C[side], sides[side][1]
        r2[others] += c[p] ** 2 // h[p, p]
        column = (h[:, p] << BITS) // h[p, p]
        C[side], H[side] = (
            c - (np.outer(column, c[p]) >> BITS),
            h - (np.outer(column, h[p]) >> BITS),
        )
    return critical


def assert_bound_holds(moments, Z, rng):
    "What `Moments` says of its R factor is so, for random and for nearly cancelling combinations of neurons, in exact fractions."
    length = np.linalg.norm(Z, axis=0)
    scale = 1 / np.where(length > 0, length, 1)
    square = lambda M, w: float(
        sum(
            sum(Fraction(a) * Fraction(b) for a, b in zip(row, w.tolist())) ** 2
            for row in M.tolist()
        )
    )
    for w in (*(rng.normal(size=(3, len(scale))) * scale), np.linalg.svd(Z * scale)[2][-1] * scale):
        true, held = (square(M, w) ** 0.5 for M in (Z, moments.root.numpy()))
        assert abs(true - held) <= (
            moments.skew * held + moments.error * (np.abs(w) * length).sum()
        ) * (1 + 1e-6)
