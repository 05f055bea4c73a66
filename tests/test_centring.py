"""The affine match: moments and matches of neurons less their means."""

import numpy as np
import pytest
import torch

from submatch_nb import (
    Moments,
    compare_activations,
    epsilon_profile,
    is_match,
    max_match_similarity,
    maximum_match,
    residuals,
)
from submatch_nb.engine.roots import Roots
from submatch_nb.engine.sums import Sums


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


def less_means(Z):
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
    assert off(view, less_means(X), less_means(Y)) <= view.squared().error < 1e-11
    assert view.dead.x.tolist() == [2, 3] and moments.dead.x.tolist() == [3]
    assert view.count == len(X) and not view.sum.any()
    for other in (view, moments):
        with pytest.raises(TypeError, match="a centred view cannot be added"):
            view + other
        with pytest.raises(TypeError, match="a centred view cannot be added"):
            other + view
    profile, exact = (
        epsilon_profile(view),
        epsilon_profile(less_means(X).astype(float), less_means(Y).astype(float)),
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
