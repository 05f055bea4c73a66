"""The affine match: moments and matches of neurons less their means."""

import warnings
from fractions import Fraction

import numpy as np
import pytest
import torch
from exact import critical2, integer_gram
from test_brackets import check, hostile, share_undecided

from submatch_nb import (
    Moments,
    compare_activations,
    epsilon_profile,
    is_match,
    max_match_similarity,
    maximum_match,
    residuals,
)
from submatch_nb.engine.factors import CHUNK, Gram, Root, rounding
from submatch_nb.engine.inputs import SubmatchWarning, less_mean
from submatch_nb.engine.roots import Roots
from submatch_nb.engine.shifts import MomentParts, about, less_means, measured, unshifted
from submatch_nb.engine.shifts import added as added_parts
from submatch_nb.engine.sums import Sums
from submatch_nb.neurons import digits_layers, unit


def layers(seed=0, d=600, mean=1e6):
    "Large means, a constant, a dead neuron, and two neurons that differ by a constant."
    rng = np.random.default_rng(seed)
    common = rng.normal(size=(d, 3))
    X = common @ rng.normal(size=(3, 7)) + 0.1 * rng.normal(size=(d, 7)) + mean
    Y = common @ rng.normal(size=(3, 6)) + 0.1 * rng.normal(size=(d, 6))
    X[:, 2] = 0.1
    X[:, 3] = 0
    Y[:, 4] = Y[:, 1] + 8
    return X, Y


def less_means_of(Z):
    "In extended precision; exactly 0 where a neuron is constant."
    Z = Z.astype(np.longdouble)
    return np.where((Z[0] == Z).all(0), 0, Z - Z.mean(0))


def off(moments, X, Y):
    "How far the gram is off, relative to the lengths of two neurons, at most."
    Z = np.c_[X, Y]
    exact = Z.T @ Z
    length = np.sqrt(exact.diagonal())
    length[length == 0] = 1
    return float(np.abs((moments.gram.numpy() - exact) / length / length[:, None]).max())


def streamed(X, Y, root, batch=50):
    sums = (
        Roots(X.shape[1], Y.shape[1], "cpu")
        if root
        else Sums([X.shape[1], Y.shape[1]], [(0, 1)], "cpu")
    )
    for i in range(0, len(X), batch):
        sums.add([torch.as_tensor(Z[i : i + batch])[:, :, None] for Z in (X, Y)])
    return sums.moments() if root else sums.moments(0, 1)


def added(X, Y, root, batch=50):
    parts = [Moments(X[i : i + batch], Y[i : i + batch], root) for i in range(0, len(X), batch)]
    return sum(parts[1:], parts[0])


@pytest.mark.parametrize("root", [False, True])
@pytest.mark.parametrize("made", [Moments, streamed, added])
@pytest.mark.parametrize("mean", [0, 3, 1e6])
def test_a_centred_view_is_within_its_bound(root, made, mean):
    X, Y = layers(mean=mean)
    moments = made(X, Y, root)
    view = moments.centered()
    assert off(moments, X.astype(np.longdouble), Y) <= max(moments.squared().error, 1e-15) < 1e-11
    assert off(view, less_means_of(X), less_means_of(Y)) <= view.squared().error < 1e-11
    assert view.dead.x.tolist() == [2, 3] and moments.dead.x.tolist() == [3]
    assert view.count == len(X) and not view.sum.any()
    for other in (view, moments):
        with pytest.raises(TypeError, match="a centred view cannot be added"):
            view + other
        with pytest.raises(TypeError, match="a centred view cannot be added"):
            other + view
    profile, exact = (
        epsilon_profile(view),
        epsilon_profile(less_means_of(X).astype(float), less_means_of(Y).astype(float)),
    )
    np.testing.assert_allclose(profile.x, exact.x, atol=1e-5)
    np.testing.assert_allclose(epsilon_profile(X, Y, center=True).y, exact.y, atol=1e-5)


def test_every_function_centres():
    X, Y = layers()
    view = Moments(X, Y).centered()
    for epsilon in (0.3, 0.5):
        match = maximum_match(X, Y, epsilon, center=True)
        assert match == maximum_match(view, epsilon=epsilon)
        assert match == maximum_match(Moments(X, Y), epsilon=epsilon, center=True)
        assert is_match(X, Y, epsilon, match.x, match.y, center=True)
        similarity = max_match_similarity(X, Y, epsilon, center=True)
        assert 0 < similarity == match.similarity
    r = residuals(X, Y, center=True)
    assert np.isnan(r[[2, 3]]).all() and np.nanmin(r) > 0.01 > np.nanmax(residuals(X, Y + 9))


@pytest.mark.parametrize("root", [False, True])
@pytest.mark.parametrize("made", [Moments, streamed, added])
def test_a_file_holds_what_centring_needs(tmp_path, root, made):
    X, Y = layers()
    moments = made(X, Y, root)
    moments.save(tmp_path / "m")
    again = Moments.load(tmp_path / "m")
    assert torch.equal(again.gram, moments.gram) and torch.equal(again.sum, moments.sum)
    view, its = moments.centered(), again.centered()
    assert torch.equal(view.gram, its.gram) and view.error == its.error
    with pytest.raises(TypeError, match="a centred view is not saved"):
        view.save(tmp_path / "view")


def test_a_file_without_a_shift_names_the_neuron_that_cannot_be_centred():
    X, Y = layers()
    old = Moments.from_parts(
        torch.as_tensor(np.r_[X.sum(0), Y.sum(0)]),
        len(X),
        X.shape[1],
        1e-13,
        gram=torch.as_tensor(np.c_[X, Y].T @ np.c_[X, Y]),
    )
    with pytest.raises(ValueError, match="neuron 2 of X differs from a fixed number by no more"):
        old.centered()
    moments = Moments(*layers(mean=1))
    rooted = Moments(*layers(mean=1), root=True)
    for held in ({"gram": moments.gram}, {"root": rooted.root}):
        varies = [0, 1, 4, 5, 6, *range(7, 13)]
        kept = {name: tensor[..., varies] for name, tensor in held.items()}
        if "gram" in kept:
            kept["gram"] = kept["gram"][varies]
        old = Moments.from_parts(moments.sum[varies], 600, 5, 1e-13, **kept)
        view = moments.centered()
        torch.testing.assert_close(old.centered().gram, view.gram[varies][:, varies])


def test_lists_of_numbers_are_float64():
    "They went through float32: a proven upper bound of 1.3e-13 stood where 1e-9 is true."
    rng = np.random.default_rng(0)
    X = rng.normal(size=(50, 3))
    Y = X @ rng.normal(size=(3, 3)) + 1e-9 * rng.normal(size=(50, 3))
    wanted = epsilon_profile(X, Y)
    assert wanted.lower.x.min() > 1e-10
    assert np.array_equal(epsilon_profile(X.tolist(), Y.tolist()).x, wanted.x)
    compared = compare_activations(
        {"a": X.tolist()}, {"a": Y.tolist()}, progress=False, precision="exact"
    )
    profile = compared["a"].profile
    assert (profile.lower.x <= wanted.upper.x).all() and (wanted.lower.x <= profile.upper.x).all()
    assert profile.lower.x.min() > 1e-10


# Brackets, plain and centred, against exact arithmetic


def apart(X, Y, rng):
    """The same with large means in some neurons, a constant one, and copies a constant apart.

    The first rows of some neurons are like none that follow.
    """
    sides = []
    for Z in (X, Y):
        Z = Z.copy()
        for j in range(Z.shape[1]):
            size = np.abs(Z[:, j]).max() or 1
            if rng.random() < 0.4:
                Z[:, j] += size * 10.0 ** rng.integers(0, 9)
            if rng.random() < 0.2:
                Z[: rng.integers(1, len(Z)), j] += size * 10.0 ** rng.integers(0, 7)
        if rng.random() < 0.4:
            Z[:, rng.integers(Z.shape[1])] = rng.choice([0.1, -7, 1e6])
        if rng.random() < 0.4:
            j, k = rng.integers(0, Z.shape[1], 2)
            Z[:, j] = Z[:, k] + rng.choice([1, 1e3])
        sides.append(Z)
    return sides


def elsewhere(X, Y, root, rng):
    "About shifts far from the neurons' values."
    parts = measured(torch.as_tensor(X), torch.as_tensor(Y), root)
    size = np.abs(np.c_[X, Y]).max(0)
    away = size * 10.0 ** rng.uniform(-2, 4, len(size)) * rng.choice([-1, 0, 0, 1], len(size))
    return Moments(parts=about(parts, parts.shift + torch.as_tensor(away)))


def ways(X, Y, rng):
    "Moments by either route: at once, streamed, in parts that are added, and far from the values."
    batch = int(rng.integers(1, len(X) + 1))
    for root in (False, True):
        yield Moments(X, Y, root)
        yield streamed(X, Y, root, batch)
        yield added(X, Y, root, batch)
        yield elsewhere(X, Y, root, rng)
    yield added(X, Y, False, batch) + added(X, Y, True, batch)


def check_views(seeds):
    """The brackets of every way, plain and centred, hold what is exact; returns how many there are.

    And how many ways are refused: neurons that vary by no more than rounding.
    """
    checked = refused = 0
    for seed in seeds:
        rng = np.random.default_rng(seed)
        X, Y = apart(*hostile(seed, most=8), rng)
        plain = []
        centred = []
        for moments in ways(X, Y, rng):
            plain.append((moments,))
            try:
                centred.append((moments.centered(),))
            except ValueError as error:
                assert "no more than rounding" in str(error)
                refused += 1
        check(X, Y, critical2(X, Y), seed, plain)
        exact2 = critical2(X, Y, center=True)
        check(X, Y, exact2, seed, centred)
        check(X, Y, exact2, seed, [(X, Y)], center=True)
        checked += len(centred)
    return checked, refused


@pytest.mark.parametrize("part", range(4))
def test_no_decided_membership_is_wrong_plain_or_centred(part):
    checked, refused = check_views(range(part * 5, part * 5 + 5))
    assert refused < checked


@pytest.mark.long
@pytest.mark.parametrize("part", range(40))
def test_no_decided_membership_is_wrong_plain_or_centred_in_2_000(part):
    check_views(range(max(part * 50, 20), part * 50 + 50))


@pytest.mark.parametrize("mean", [0, 1e6])
@pytest.mark.parametrize("root", [False, True])
@pytest.mark.parametrize("made", [Moments, streamed, added])
def test_brackets_of_centred_trained_layers_are_narrow(made, root, mean):
    "However large the means: the shift costs no digits."
    X, Y = (Z + mean * (np.arange(32) % 3 == 0) for Z in digits_layers(32))
    profile = epsilon_profile(made(X, Y, root, *[100] * (made is not Moments)), center=True)
    lower, upper = (np.concatenate(sides) for sides in (profile.lower, profile.upper))
    live = np.isfinite(lower)
    assert share_undecided(profile) < 1e-3 and (upper[live] - lower[live]).max() < 1e-6
    plain = epsilon_profile(X, Y, center=True)
    np.testing.assert_allclose(profile.x, plain.x, atol=1e-7)
    assert 0.3 < profile.area < epsilon_profile(X, Y).area


# Errors made on purpose, as large as they may be


def with_errors(rng, root, size=1e-7):
    """Neurons, and `MomentParts` of them whose numbers are off by as much as they say.

    About some shift, in random directions, and relative to lengths that are a little too large.
    """
    n, d = 5, 40
    Z = rng.normal(size=(d, n)) * 10.0 ** rng.integers(-1, 2, n)
    shift = 10.0 ** rng.uniform(-1, 1, n) * rng.choice([-1, 1], n)
    moved = rng.random(n) * rng.integers(0, 2, n)
    length = np.linalg.norm(Z, axis=0) + moved
    signs = rng.choice([-1, 1], n)
    sums = Z.sum(0) + size * d**0.5 * length * rng.choice([-1, 1], n)
    ones = None
    if root:
        matrix = np.linalg.qr(np.c_[Z, np.ones(d)])[1]
        direction = rng.normal(size=n + 1)
        off = np.r_[length, d**0.5] * size * np.r_[signs, 1]
        matrix = matrix + np.outer(direction / np.linalg.norm(direction), off)
        matrix, ones = torch.as_tensor(matrix[:, :n]), torch.as_tensor(matrix[:, n])
        held = Root(matrix, size * 1.001, 0.0)
    else:
        matrix = Z.T @ Z + size * np.outer(signs * length, signs * length)
        held = Gram(torch.as_tensor(matrix), size * 1.001)
    parts = MomentParts(
        held,
        sum=torch.as_tensor(sums),
        count=d,
        n_x=2,
        alike=torch.arange(n),
        shift=torch.as_tensor(shift),
        moved=torch.as_tensor(moved),
        constant=torch.full((n,), torch.nan, dtype=torch.float64),
        sum_error=size * 1.001,
        ones=ones,
    )
    return Z + shift, parts


def assert_within(held, Z, length):
    "What is held of Z is off by no more than its error, relative to lengths."
    if isinstance(held, Gram):
        assert (
            np.abs(held.matrix.numpy() - Z.T @ Z) <= held.error * np.outer(length, length)
        ).all()
        return
    for w in (*np.random.default_rng(0).normal(size=(50, len(length))), *np.eye(len(length))):
        off = np.linalg.norm(Z @ w) - np.linalg.norm(held.matrix.numpy() @ w)
        assert abs(off) <= held.error * (np.abs(w) @ length)


@pytest.mark.parametrize("root", [False, True])
@pytest.mark.parametrize("seed", range(30))
def test_errors_are_carried_on(root, seed):
    "Through other shifts, sums, and centring."
    rng = np.random.default_rng(seed)
    Z, parts = with_errors(rng, root)
    X, other = with_errors(rng, root)
    n = Z.shape[1]
    assert_within(unshifted(parts), Z, np.linalg.norm(Z, axis=0))
    less = Z - Z.mean(0)
    assert_within(less_means(parts).held, less, np.linalg.norm(less, axis=0))
    shift = torch.as_tensor(rng.normal(size=n) * 3)
    both = about(parts, shift), added_parts(parts, other), added_parts(about(other, shift), parts)
    for made, all_ in zip(both, (Z, np.r_[Z, X], np.r_[Z, X]), strict=True):
        about_it = all_ - made.shift.numpy()
        length = np.linalg.norm(about_it, axis=0) + made.moved.numpy()
        assert_within(made.held, about_it, length)
        off = np.abs(made.sum.numpy() - about_it.sum(0))
        assert (off <= made.sum_error * len(all_) ** 0.5 * length).all()
        assert (made.reach().numpy() >= length).all()
        assert_within(unshifted(made), all_, np.linalg.norm(all_, axis=0))
        less = all_ - all_.mean(0)
        assert_within(less_means(made).held, less, np.linalg.norm(less, axis=0))


@pytest.mark.parametrize("root", [False, True])
def test_few_samples_like_no_others_cost_little(root):
    "Whether they come first or last: the shift is that of the many."
    rng = np.random.default_rng(0)
    few, many = 1e5 + rng.normal(size=(5, 4)), rng.normal(size=(2000, 4))
    few, many = (Moments(Z[:, :2], Z[:, 2:], root) for Z in (few, many))
    assert few.shift.all() and not many.shift.any()
    for moments in (few + many, many + few):
        assert not moments.shift.any() and moments.error < 1e-11
        assert moments.centered().error < 1e-11


def test_constants_that_are_identical_are_alike_until_they_are_centred():
    X = np.random.default_rng(0).normal(size=(30, 4))
    X[:, 1:3] = 0.1
    moments = Moments(X, X)
    assert moments.alike.tolist() == [0, 1, 1, 3, 4, 5, 5, 7]
    assert moments.centered().alike.tolist() == list(range(8))
    assert moments.constant[1] == 0.1 and moments.constant[[0, 3]].isnan().all()
    values = np.random.default_rng(1).random(50)
    Z = np.broadcast_to(values, (1001, 50))
    assert (Z.mean(0) != values).any(), "an instance that tells nothing"
    for made in (Moments, streamed, added):
        for root in (False, True):
            # less its only value a constant is exactly 0, in sums and in what is factored
            assert made(Z, Z, root).shift.tolist() == [*values, *values]


def test_a_centred_span_fills_one_dimension_less():
    X, Y = np.random.default_rng(0).normal(size=(2, 7, 6))
    with pytest.warns(SubmatchWarning, match="the neurons of X span all of R.6"):
        epsilon_profile(X, Y, center=True)
    with pytest.warns(SubmatchWarning, match="the neurons of Y span all of R.6"):
        residuals(X, Y, center=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        epsilon_profile(X, Y)
        epsilon_profile(X[:, :5], Y[:, :5], center=True)


def test_taking_off_a_shift_is_two_roundings_more():
    X, Y = layers(d=3000)
    for made in (Moments, streamed):
        error = made(X, Y, False).parts()[1]["error"]
        assert error == rounding(CHUNK + (2 if made is Moments else 59) + 2)
    error = streamed(*layers(mean=0, d=300), False).parts()[1]["error"]
    assert error in (rounding(300 + 5), rounding(300 + 7))


def test_means_are_taken_off_to_the_last_digit():
    rng = np.random.default_rng(0)
    for d in (3, 7, 600, 1001):
        Z = torch.as_tensor(np.c_[rng.normal(size=(d, 9)) + 10.0 ** np.arange(9), np.ones((d, 3))])
        Z[:, 9:] *= torch.tensor([0.1, 1 / 3, 1e9 / 7])
        less = less_mean(Z)
        assert not less[:, 9:].any()
        for column, its in zip(Z.T[:9].tolist(), less.T[:9].tolist(), strict=True):
            mean = sum(map(Fraction, column)) / d
            off = max(
                abs(Fraction(a) - mean - Fraction(b)) for a, b in zip(column, its, strict=True)
            )
            assert off < 1e-15 * max(map(abs, its))


@pytest.mark.parametrize("mean", [0, 1e6])
def test_a_long_stream_is_substituted_less_its_shift(mean, monkeypatch):
    monkeypatch.setattr("submatch_nb.engine.roots.CHUNK_NUMBERS", 1)
    X, Y = layers(d=5000, mean=mean)
    moments = streamed(X, Y, True, batch=300)
    assert off(moments, X.astype(np.longdouble), Y) <= moments.squared().error < 1e-10
    view = moments.centered()
    assert off(view, less_means_of(X), less_means_of(Y)) <= view.squared().error < 1e-10


# Neurons that differ by the rounding of a scale or shift alone are not identical: what rounding
# left is a direction of its own


def equal_when_rounded(copy, made, rng):
    "A neuron that is not a multiple of its copy, where what is made of both is equal."
    while True:
        x = rng.normal(size=(7, 1)) * 10 ** rng.uniform(-4, 4, (7, 1)) * (rng.random((7, 1)) < 0.6)
        z = torch.as_tensor(np.column_stack([x, copy(x)]))
        one, two = made(z).T
        if x.any() and (one == two).all() and (z[:, :1] != z[:, 1:]).any():
            gram = integer_gram(z.numpy(), z.numpy()[:, :0], made is less_mean)
            if gram[0, 0] * gram[1, 1] != gram[0, 1] ** 2:
                return z.numpy()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    "copy, made",
    [
        (lambda x: x * 3, unit),
        (lambda x: x / 7, unit),
        (lambda x: x + 1, less_mean),
        (lambda x: x - 12.3, less_mean),
    ],
)
def test_neurons_that_are_equal_but_for_rounding_are_two(copy, made, seed):
    rng = np.random.default_rng(seed)
    center = made is less_mean
    twins = equal_when_rounded(copy, made, rng)
    X = np.column_stack([twins, rng.normal(size=(7, 2))])
    Y = rng.normal(size=(7, 3))
    check(X, Y, critical2(X, Y, center=center), seed, [(X, Y)], center=center)
