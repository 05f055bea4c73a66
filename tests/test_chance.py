"""What chance gives, how sure a number is: shuffles, nulls from moments, p values, intervals."""

import itertools
import json
import math
import warnings
from base64 import b64decode
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ks_2samp, kstest

from submatch_nb import compare, compare_activations
from submatch_nb.chance import bootstrap, permutation_test
from submatch_nb.engine import analysis
from submatch_nb.engine.analysis import DRAWN
from submatch_nb.engine.canonical import canonical
from submatch_nb.engine.capture import as_matrix, capture
from submatch_nb.engine.chance import (
    ENOUGH,
    calibrated,
    frame_block,
    holm,
    joint_moments,
    null_from_moments,
    p_at_any,
    p_value,
    rows_of_images,
    shuffled_moments,
    void_reasons,
)
from submatch_nb.engine.feeding import evaluating
from submatch_nb.engine.images import load_data
from submatch_nb.engine.inputs import SubmatchWarning
from submatch_nb.engine.intervals import (
    critical_values,
    jackknife,
    leave_one_out,
    network_interval,
    quantile,
    similarity_interval,
)
from submatch_nb.engine.layer import Layer
from submatch_nb.engine.moments import Moments
from submatch_nb.engine.pair import trained_pair, untrained_pair
from submatch_nb.engine.results import Results
from submatch_nb.engine.several import Comparisons
from submatch_nb.explorer import pack_chance
from submatch_nb.maximum import Profile, epsilon_profile
from submatch_nb.measures import MEASURES
from submatch_nb.neurons import digits_layers

pytestmark = pytest.mark.filterwarnings("ignore::submatch_nb.SubmatchWarning")
SEEDS = st.integers(0, 10**6)


def half(profile):
    critical = np.sort(critical_values(profile))
    return critical[(len(critical) - 1) // 2]


def halves(several):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SubmatchWarning)
        return np.array([half(epsilon_profile(moments)) for moments in several])


def relu_layers(rng, d, n_x, n_y, mean=1.0):
    "Two layers that have nothing in common but a mean."
    return (np.maximum(rng.normal(mean, 1, (d, n)), 0) for n in (n_x, n_y))


# Shuffles


@given(SEEDS)
def test_a_shuffle_moves_whole_images_position_by_position(seed):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 4, rng.integers(6, 12))
    ids = np.repeat(rng.permutation(len(lengths)), lengths)
    ids = ids[rng.permutation(len(ids))] if seed % 2 else ids
    try:
        rows = rows_of_images(ids, len(ids))
    except ValueError:
        assert len(set(lengths.tolist())) == len(lengths)
        return
    beside = rows.shuffled(rng).numpy()
    assert rows.images == len(lengths)
    assert sorted(beside) == list(range(len(ids)))
    for name in set(ids):
        own = np.flatnonzero(ids == name)
        (other,) = set(ids[beside[own]])
        assert np.array_equal(beside[own], np.flatnonzero(ids == other))


def test_shuffles_are_uniform_and_have_fixed_points():
    rng = np.random.default_rng(0)
    rows = rows_of_images(["a", "b", "c"], 3)
    drawn = [tuple(rows.shuffled(rng).tolist()) for _ in range(6000)]
    counts = [drawn.count(order) for order in itertools.permutations(range(3))]
    assert sum((c - 1000) ** 2 / 1000 for c in counts) < 20.5  # chi squared, 5 degrees, 0.1 %


@pytest.mark.parametrize(
    ("images", "count", "message"),
    [
        ([0, 1, 2], 4, r"images has shape \(3,\).*4 rows"),
        ([[0], [1], [2]], 3, r"images has shape \(3, 1\)"),
        ([0, 0, 1, 1], 4, "2 images: chance"),
        (None, 2, "2 images: chance"),
        ([0, 1, 1, 2, 2, 2], 6, "no two images have the same number of rows"),
    ],
)
def test_images_that_cannot_be_shuffled_are_refused(images, count, message):
    with pytest.raises(ValueError, match=message):
        rows_of_images(images, count)


@given(SEEDS)
def test_shuffled_moments_are_those_of_shuffled_activations(seed):
    rng = np.random.default_rng(seed)
    images = np.repeat(np.arange(700), 3)
    scales = 10.0 ** rng.integers(-6, 6, 5)
    X, Y = relu_layers(rng, len(images), 5, 4)
    X[:, 1] = 0  # dead
    X[:, 2] = 0.1  # constant
    for center in (False, True):
        sides, moments = joint_moments(X * scales, Y, center)
        rows = rows_of_images(images, len(images))
        (found,) = shuffled_moments(sides, moments, rows, shuffles=1, seed=seed)
        beside = rows.shuffled(np.random.default_rng(seed)).numpy()
        other = Y[beside]
        plain = [X - X.mean(0), other - other.mean(0)] if center else [X, other]
        Z = np.concatenate(plain, 1)
        silent = [1, 2] if center else [1]
        Z[:, silent] = 0
        length = np.linalg.norm(Z, axis=0)
        Z = Z / np.where(length > 0, length, 1)
        assert np.abs(found.gram.numpy() - Z.T @ Z).max() < 1e-12
        assert (found.square == 0).nonzero()[:, 0].tolist() == silent
        assert np.array_equal(found.gram[:5, :5], moments.gram[:5, :5])


# From moments


def test_a_block_of_a_frame_has_the_law_of_one():
    rng = np.random.default_rng(0)
    for rows, columns, d in ((3, 5, 9), (3, 5, 8), (2, 2, 60)):
        made = np.array([frame_block(rows, columns, d, rng) for _ in range(1500)])
        plain = []
        for _ in range(1500):
            Q, R = np.linalg.qr(rng.standard_normal((d, columns)))
            plain.append((Q * np.sign(R.diagonal()))[:rows])
        for of in (lambda b: b[:, 0, 0], lambda b: np.linalg.norm(b, ord=2, axis=(1, 2))):
            assert ks_2samp(of(made), of(np.array(plain))).pvalue > 0.001


def test_draws_agree_with_shuffles_where_layers_nearly_fill_the_samples():
    # the simpler A^(1/2) W B^(1/2) / sqrt(d - 1) is off by 0.011 here
    rng = np.random.default_rng(0)
    X, Y = relu_layers(rng, 250, 100, 100)
    sides, moments = joint_moments(X, Y)
    rows = rows_of_images(None, 250)
    real = halves(shuffled_moments(sides, moments, rows, shuffles=12, seed=1))
    drawn = halves(null_from_moments(moments, draws=12, seed=2))
    assert abs(real.mean() - drawn.mean()) < 0.0035
    assert 0.5 < real.std() / drawn.std() < 2


def unit_layers():
    "Name -> both networks' outputs, of every layer of units of the packaged networks."
    images = torch.stack([image for image, _ in load_data("digits", "all")])
    for name, pair in (("trained", trained_pair()), ("untrained", untrained_pair())):
        for layer in ("fc1.relu", "fc2.relu"):
            sides = []
            for net in pair:
                with evaluating(net.model), capture(net.model, [layer]) as outputs:
                    net.model(images)
                sides.append(as_matrix(outputs[layer])[0])
            yield f"{name} {layer}", sides


@pytest.mark.parametrize("center", [False, pytest.param(True, marks=pytest.mark.long)])
def test_draws_agree_with_shuffles_on_the_packaged_pairs(center):
    for name, (X, Y) in unit_layers():
        sides, moments = joint_moments(X, Y, center)
        rows = rows_of_images(None, len(X))
        real = halves(shuffled_moments(sides, moments, rows, shuffles=20, seed=3))
        drawn = halves(null_from_moments(moments, draws=20, seed=4))
        apart = abs(real.mean() - drawn.mean())
        assert apart < 0.0015 and apart < 2 * real.std(), name
        (observed,) = halves([moments])
        assert p_value(observed, real, small=True) == p_value(observed, drawn, small=True)


def test_draws_keep_what_a_shuffle_keeps():
    rng = np.random.default_rng(0)
    X, Y = relu_layers(rng, 300, 6, 5)
    X[:, 3] = 0
    Y[:, 1] = Y[:, 0]
    moments = Moments(X, Y)
    mean = torch.outer(moments.sum[:6], moments.sum[6:]) / 300
    draws = list(null_from_moments(moments, draws=400, seed=0))
    for drawn in draws:
        assert torch.equal(drawn.gram[:6, :6], moments.gram[:6, :6])
        assert torch.equal(drawn.gram[6:, 6:], moments.gram[6:, 6:])
        assert torch.equal(drawn.alike, moments.alike) and drawn.count == 300
        assert not drawn.gram[3].any()
        assert torch.allclose(drawn.gram[:, 6], drawn.gram[:, 7], rtol=1e-9)
        assert torch.linalg.eigvalsh(drawn.gram).min() > -1e-9 * drawn.gram.trace()
    cross = torch.stack([drawn.gram[:6, 6:] for drawn in draws])
    spread = cross.std(0).where(mean > 0, 1)
    assert ((cross.mean(0) - mean).abs() < 4.5 * spread / 20).all()
    again = next(iter(null_from_moments(moments, draws=1, seed=0)))
    other = next(iter(null_from_moments(moments, draws=1, seed=1)))
    assert torch.equal(again.gram, draws[0].gram) and not torch.equal(other.gram, again.gram)


def test_draws_need_more_samples_than_dimensions():
    rng = np.random.default_rng(0)
    X, Y = rng.normal(size=(12, 6)), rng.normal(size=(12, 6))
    with pytest.raises(ValueError, match=r"12 samples: .* 6 \+ 6 dimensions, .* 13 samples"):
        null_from_moments(Moments(X, Y))
    X[:, 5] = X[:, 0] - X[:, 1]  # one dimension less
    assert len(list(null_from_moments(Moments(X, Y), draws=2))) == 2


# p values


def test_the_p_value_counts_ties_and_the_observed_itself():
    null = [0.1, 0.2, 0.2, 0.4]
    assert p_value(0.2, null) == 0.8
    assert p_value(0.2 + 1e-13, null) == 0.8  # rounding decides nothing
    assert p_value(0.2 - 1e-13, null, small=True) == 0.8
    assert p_value(0.21, null) == 0.4
    assert p_value(0.0, null, small=True) == 0.2
    assert p_value(1.0, []) == 1


def plain_holm(p):
    "Step down: the smallest is multiplied by how many there are."
    tested = sorted((value, i) for i, value in enumerate(p) if not math.isnan(value))
    found = [math.nan] * len(p)
    least = 0.0
    for rank, (value, i) in enumerate(tested):
        least = max(least, min(1.0, (len(tested) - rank) * value))
        found[i] = least
    return found


@given(st.lists(st.one_of(st.floats(0, 1), st.just(math.nan)), max_size=8))
def test_holm(p):
    np.testing.assert_array_equal(holm(p), plain_holm(p))


def test_holm_keeps_the_error_over_all_layers():
    p = np.random.default_rng(0).random((4000, 6))
    wrong = np.mean([(holm(row) <= 0.05).any() for row in p])
    assert 0.04 < wrong < 0.06
    assert np.mean((p <= 0.05).any(1)) > 0.2  # without it


def test_the_calibrated_score():
    scores = calibrated([0.5, 1.0, 0.2, 1.0], [0.5, 0.3, 0.6, 1.0])
    np.testing.assert_allclose(scores, [0, 1, -1, np.nan])


def stepped(rng, n=20):
    "A profile of chance: a step at about 0.7, which moves."
    return Profile(*rng.normal(0.7 + 0.02 * rng.normal(), 0.02, (2, n)), 100)


def test_p_at_any_epsilon_keeps_the_error_over_all():
    rng = np.random.default_rng(0)
    grid = np.linspace(0.5, 0.95, 46)
    least = []
    for _ in range(400):
        observed, *null = (stepped(rng) for _ in range(20))
        least.append(min(p_at_any(observed, null, epsilon) for epsilon in grid))
    assert 0.01 < np.mean(np.array(least) <= 0.05) < 0.05 + 3 * (0.05 * 0.95 / 400) ** 0.5


def test_p_at_any_epsilon_finds_what_half_epsilon_does_not():
    rng = np.random.default_rng(1)
    null = [stepped(rng) for _ in range(39)]
    level = stepped(rng)
    shared = np.arange(20) < 5
    profile = Profile(*(np.where(shared, 0.1, side) for side in (level.x, level.y)), 100)
    assert p_value(profile.half, [one.half for one in null], small=True) > 0.05
    for epsilon, p in ((0.05, 1), (0.1, 1 / 40), (0.4, 1 / 40), (0.9, 1)):
        assert p_at_any(profile, null, epsilon) == p
    assert p_at_any(Profile([0.2], [np.inf], 9), [Profile([0.3], [np.inf], 9)] * 19, 0.99) == 1


# Void

KNOWN = {"images": 1797, "neurons": 32}


@pytest.mark.parametrize(
    ("about", "reasons"),
    [
        ({"observed": 0.3}, []),
        ({"images": 32}, ["images ≤ neurons (32 ≤ 32)"]),
        ({"images": 33}, []),
        ({"images": None}, []),
        ({"images": None, "samples": 33}, []),
        ({"images": None, "samples": 32}, ["samples ≤ neurons (32 ≤ 32)"]),
        ({"trivial": "trivial: why", "observed": 1, "null": [0]}, ["trivial: why"]),
        ({"observed": 0.3, "null": [0.24]}, []),
        ({"observed": 0.3, "null": [0.26]}, ["no more than chance (null 0.26)"]),
        ({"observed": 0.3, "null": [0.2, 0.32]}, ["no more than chance (null 0.26)"]),
        ({"observed": 0.3, "null": [0.2] * 18}, []),
        ({"observed": 0.3, "null": [0.28] * ENOUGH}, []),
        ({"observed": 0.3, "null": [*[0.1] * 18, 0.3]}, ["p > 0.05"]),
        ({"observed": 0.3, "null": [0.1] * ENOUGH, "p": 0.06}, ["p > 0.05"]),
        ({"observed": 0.3, "null": [0.9] * ENOUGH, "p": 0.05}, []),
        ({"observed": 0.3, "null": [0.0], "near": 0.24}, []),
        (
            {"observed": 0.3, "null": [0.0], "near": 0.26},
            ["no more than chance (null 0.26 at an ε 0.05 larger)"],
        ),
        ({"observed": 0.6, "null": [0.64], "small": True}, ["no more than chance (null 0.64)"]),
        ({"observed": 0.6, "null": [0.66], "small": True}, []),
        ({"observed": 0.6, "null": [0.61] * ENOUGH, "small": True}, []),
        ({"observed": 0.6, "null": [0.59] * ENOUGH, "small": True}, ["p > 0.05"]),
        (
            {"images": 9, "trivial": "trivial: why", "observed": 0, "null": [0]},
            ["images ≤ neurons (9 ≤ 32)", "trivial: why", "no more than chance (null 0.00)"],
        ),
    ],
)
def test_void(about, reasons):
    assert void_reasons(**KNOWN | about) == reasons


# Intervals


@pytest.mark.parametrize("root", [False, True])
@pytest.mark.parametrize("count", [2, 3, 7])
def test_what_is_left_without_each_group(count, root):
    rng = np.random.default_rng(count)
    sizes = rng.integers(20, 40, count)
    parts = [relu_layers(rng, size, 4, 5) for size in sizes]
    parts = [tuple(part) for part in parts]
    groups = [Moments(*part, root=root) for part in parts]
    left_out = list(leave_one_out(groups))
    assert len(left_out) == count
    for k, rest in enumerate(left_out):
        X, Y = (np.concatenate(z) for z in zip(*parts[:k], *parts[k + 1 :], strict=True))
        direct = Moments(X, Y, root=root)
        assert rest.route == direct.route and rest.count == direct.count
        assert torch.allclose(rest.gram, direct.gram, rtol=1e-12)
        assert torch.allclose(rest.sum, direct.sum, rtol=1e-12)
    with pytest.raises(ValueError, match="1 group of images"):
        leave_one_out(groups[:1])


@given(SEEDS)
def test_the_jackknife_of_a_mean_is_the_interval_of_every_textbook(seed):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=rng.integers(2, 30))
    means = [np.delete(values, k).mean() for k in range(len(values))]
    found = jackknife(values.mean(), means, level=0.9)
    reach = quantile(len(values), 0.9) * values.std(ddof=1) / len(values) ** 0.5
    np.testing.assert_allclose(found, [values.mean(), values.mean() - reach, values.mean() + reach])


def test_intervals_are_cut_at_their_limits_and_refuse_what_they_cannot_be_of():
    assert jackknife(0.9, [0.5, 0.9, 1.0], limits=(0, 1)).high == 1
    with pytest.raises(ValueError, match="two groups or more"):
        jackknife(0.9, [0.5])
    for level in (0, 1, 95):
        with pytest.raises(ValueError, match=f"level is {level}"):
            jackknife(0.9, [0.5, 0.6], level=level)
    with pytest.raises(TypeError, match="level is '95 %', not a number"):
        jackknife(0.9, [0.5, 0.6], level="95 %")


def test_the_interval_of_a_similarity_counts_critical_values():
    # two neurons a side: sure at 0.2, at 0.5 give or take, never, dead
    profile = Profile([0.2, 1.0], [0.5, np.inf], 100)
    left_out = [Profile([0.2, 1.0], [e, np.inf], 80) for e in (0.49, 0.5, 0.5, 0.5, 0.51)]
    reach = quantile(5, 0.95) * (0.8 * 2 * 0.01**2) ** 0.5
    for epsilon, low, high in (
        (0.1, 0, 0.125),
        (0.2, 0.125, 0.375),
        (0.5 - 1.01 * reach, 0.125, 0.375),
        (0.5 - 0.99 * reach, 0.125, 0.625),
        (0.5, 0.125, 0.625),
        (0.5 + 1.01 * reach, 0.375, 0.625),
        (0.99, 0.375, 0.625),
    ):
        found = similarity_interval(profile, left_out, epsilon)
        assert found == (profile.similarity(epsilon), low, high)


def test_a_neuron_that_only_one_group_wakes_is_unsure():
    profile = Profile([0.2], [0.2], 100)
    left_out = [Profile([0.2], [0.2], 80)] * 4 + [Profile([np.inf], [np.inf], 80)]
    assert similarity_interval(profile, left_out, 0.3) == (1, 0, 1)


def test_networks_are_the_unit():
    rng = np.random.default_rng(0)
    brings = rng.normal(size=6)
    pairs = {(a, b): brings[a] + brings[b] for a, b in itertools.combinations(range(6), 2)}
    found = network_interval(pairs)
    reach = 2 * quantile(6, 0.95) * brings.std(ddof=1) / 6**0.5
    np.testing.assert_allclose(found.high - found.value, reach)
    np.testing.assert_allclose(found.value, 2 * brings.mean())
    with pytest.raises(ValueError, match="of 2 networks"):
        network_interval({("a", "b"): 0.3})
    with pytest.raises(ValueError, match="every pair has network 'a'"):
        network_interval({("a", "b"): 0.3, ("a", "c"): 0.4})


@pytest.mark.parametrize("count", [3, 5, 10])
def test_the_interval_over_networks_holds_the_mean_over_all_networks(count):
    rng = np.random.default_rng(count)
    held = []
    for _ in range(2000):
        brings = rng.normal(size=count)
        noise = rng.normal(0, 0.5, (count, count))
        pairs = {
            (a, b): brings[a] + brings[b] + noise[a, b]
            for a, b in itertools.combinations(range(count), 2)
        }
        found = network_interval(pairs)
        held.append(found.low <= 0 <= found.high)
    assert 0.93 <= np.mean(held) <= 0.995


# The test


def alike_layers(rng, images=60, positions=1):
    "Two layers of 12 neurons that have nothing in common; positions of an image are alike."
    layers = []
    for _ in "ab":
        image = np.repeat(rng.normal(0.5, 1, (images, 12)), positions, axis=0)
        layers.append(np.maximum(image + 0.3 * rng.normal(size=image.shape), 0))
    return layers


def p_values(draws, make, options, **settings):
    "One for each draw, each with 19 shuffles."
    found = []
    for seed in range(draws):
        arguments = make(np.random.default_rng(seed))
        test = permutation_test(*arguments, **settings, **options, shuffles=19, seed=seed + 10**6)
        found.append(test.p)
    return np.array(found)


def independent(rng):
    return alike_layers(rng, images=100)


def with_positions(rng):
    return alike_layers(rng, positions=4)


def as_moments(rng):
    return (Moments(*alike_layers(rng, images=100)),)


OF_ROW = np.repeat(np.arange(60), 4)
IMAGES = {
    "independent": (independent, {}),
    "centred": (independent, {"center": True}),
    "positions": (with_positions, {"images": OF_ROW}),
    "positions, centred": (with_positions, {"images": OF_ROW, "center": True}),
    "from moments": (as_moments, {}),
}


def uniform(p, shuffles=19):
    "Kolmogorov and Smirnov's p that p values are uniform on their steps."
    inside = np.random.default_rng(0).random(len(p)) / (shuffles + 1)
    return kstest(p - inside, "uniform").pvalue


@pytest.mark.long
@pytest.mark.parametrize("kind", IMAGES)
def test_p_is_uniform_for_half_epsilon(kind):
    p = p_values(500, *IMAGES[kind])
    assert uniform(p) > 0.01
    for level in (0.05, 0.1, 0.2):
        assert np.mean(p <= level + 1e-9) <= level + 3 * (level * (1 - level) / 500) ** 0.5


@pytest.mark.long
@pytest.mark.parametrize(("kind", "epsilon"), [("independent", 0.75), ("positions", 0.72)])
def test_p_is_super_uniform_for_the_similarity_at_an_epsilon(kind, epsilon):
    make, options = IMAGES[kind]
    p = p_values(500, make, options, epsilon=epsilon)
    assert np.mean(p < 1) > 0.05  # not all are ties
    for level in (0.05, 0.1, 0.2):
        assert np.mean(p <= level + 1e-9) <= level + 3 * (level * (1 - level) / 500) ** 0.5


@pytest.mark.parametrize("kind", ["independent", "positions"])
def test_p_is_uniform_in_short(kind):
    p = p_values(40, *IMAGES[kind])
    assert uniform(p) > 0.001


def test_who_shuffles_positions_finds_what_is_not_there():
    p = p_values(30, with_positions, {})
    assert np.mean(p <= 0.05) > 0.5
    assert uniform(p) < 1e-6


def test_a_shuffle_within_batches_of_ordered_classes_is_no_null():
    # the same wrong null as a statement about p: nothing but the class is shared
    rng = np.random.default_rng(0)
    classes = np.repeat(np.arange(4), 40)
    means = rng.normal(size=(2, 4, 12)) * 2
    X, Y = (mean[classes] + rng.normal(size=(160, 12)) for mean in means)
    assert permutation_test(X, Y, shuffles=19).p == 0.05
    within = permutation_test(
        *(side[classes == 1] for side in (X, Y)), shuffles=99
    )  # inside a class there is nothing
    assert within.p > 0.05


def test_it_finds_what_is_shared_on_digits():
    for name, (X, Y) in unit_layers():
        test = permutation_test(X, Y, shuffles=19)
        assert test.p == 0.05, name
        assert test.observed < test.null.min()
        at = permutation_test(X, Y, 0.7, shuffles=19, center=True)
        assert at.p == 0.05 or at.observed == at.null.max() == 0, name


def test_it_is_the_loop_that_shuffles_rows():
    rng = np.random.default_rng(3)
    X, Y = relu_layers(rng, 120, 9, 7)
    X[:, 4] = 0
    Y[:, 2] = Y[:, 3]
    for center in (False, True):
        for epsilon in (None, 0.6):
            test = permutation_test(X, Y, epsilon, center=center, shuffles=5, seed=8)
            again = np.random.default_rng(8)
            profiles = [
                epsilon_profile(X, Y[again.permutation(120)], center=center) for _ in range(5)
            ]
            profiles.insert(0, epsilon_profile(X, Y, center=center))
            plain = [p.half if epsilon is None else p.similarity(epsilon) for p in profiles]
            np.testing.assert_allclose([test.observed, *test.null], plain, rtol=1e-7)
            assert test.p == p_value(plain[0], plain[1:], small=epsilon is None)


def test_from_moments_it_agrees_with_the_shuffles():
    rng = np.random.default_rng(4)
    shared = rng.normal(size=(400, 12))
    X, Y = (shared + s * rng.normal(size=shared.shape) for s in (1.5, 1.5))
    for center in (False, True):
        rows = permutation_test(X, Y, center=center, shuffles=99)
        sums = permutation_test(Moments(X, Y), center=center, shuffles=99)
        assert abs(rows.observed - sums.observed) < 1e-9
        assert abs(rows.null.mean() - sums.null.mean()) < rows.null.std()
        assert rows.p == sums.p == 0.01


def test_the_same_seed_gives_the_same_test():
    X, Y = relu_layers(np.random.default_rng(0), 80, 6, 6)
    one, same, other = (permutation_test(X, Y, shuffles=9, seed=s) for s in (1, 1, 2))
    assert np.array_equal(one.null, same.null) and not np.array_equal(one.null, other.null)
    tensors = permutation_test(torch.tensor(X), torch.tensor(Y), shuffles=9, seed=1)
    assert np.array_equal(tensors.null, one.null)
    assert "p=" in repr(one) and "9 shuffles" in repr(one)


def test_it_says_what_is_wrong():
    X, Y = relu_layers(np.random.default_rng(0), 30, 4, 4)
    moments = Moments(X, Y)
    for error, message, arguments, options in (
        (TypeError, "Y is missing", (X,), {}),
        (TypeError, "Y is left out", (moments, Y), {}),
        (TypeError, "images could name", (moments,), {"images": np.arange(30)}),
        (ValueError, "shuffles is 0", (X, Y), {"shuffles": 0}),
        (TypeError, "shuffles is 2.5", (X, Y), {"shuffles": 2.5}),
        (ValueError, "seed is -1", (X, Y), {"seed": -1}),
        (ValueError, "outside", (X, Y, 1.0), {}),
        (ValueError, "2 images: chance", (X, Y), {"images": np.arange(30) // 15}),
        (ValueError, "Y has 29", (X, Y[1:]), {}),
        (ValueError, "shape", (X, Y), {"images": np.arange(29)}),
    ):
        with pytest.raises(error, match=message):
            permutation_test(*arguments, **options)


# Coverage: intervals hold the expected value at this number of images

COVERAGE = Path(__file__).parent.parent / "nbs" / "coverage.json"
MIX = np.random.default_rng(7).normal(size=(2, 20, 20)) / 20**0.5


def half_shared(rng, noise=0.2):
    "Ten neurons a side with a feature in common, ten without."
    shared = rng.normal(size=(1000, 10))
    return [
        np.column_stack(
            [shared + noise * rng.normal(size=shared.shape), rng.normal(size=shared.shape)]
        )
        for _ in "ab"
    ]


def graded(rng):
    "Mixtures of twenty features, under noise from 0.05 to 2."
    shared = rng.normal(size=(1000, 20))
    noise = np.linspace(0.05, 2, 20)
    return [shared @ mix + noise * rng.normal(size=shared.shape) for mix in MIX]


def relu_mixtures(rng):
    "Mixtures of twenty features, a little noise, a mean, and a ReLU."
    shared = rng.normal(size=(1000, 20))
    return [np.maximum(shared @ mix + 0.5 + 0.4 * rng.normal(size=shared.shape), 0) for mix in MIX]


def five_positions(rng):
    "200 images of five positions that are alike, in noise from 0.1 to 1 and in features."

    def spread():
        return np.repeat(rng.normal(size=(200, 10)), 5, axis=0)

    shared = spread() + 0.5 * rng.normal(size=(1000, 10))
    noise = np.linspace(0.1, 1, 10)
    return [
        np.column_stack([shared + noise * spread(), spread() + 0.3 * rng.normal(size=shared.shape)])
        for _ in "ab"
    ]


PLANTED = {
    "half shared": half_shared,
    "graded": graded,
    "ReLU": relu_mixtures,
    "5 positions": five_positions,
}


class Estimates(NamedTuple):
    "What a draw gives: Interval for each quantity, and the plain jackknife of similarities."

    intervals: dict
    plain: dict


def twenty_groups(X, Y):
    "Moments of all, and without each of 20 groups of consecutive rows."
    groups = [Moments(X[rows], Y[rows]) for rows in np.split(np.arange(len(X)), 20)]
    return sum(groups[1:], groups[0]), list(leave_one_out(groups))


def estimates(X, Y, epsilons):
    "All quantities of a draw, and of its difference to a noisier layer on the same images."
    moments, rests = twenty_groups(X, Y)
    profile = epsilon_profile(moments)
    left_out = [epsilon_profile(rest) for rest in rests]
    intervals, plain = {}, {}
    for epsilon in epsilons:
        name = f"ε = {epsilon}"
        intervals[name] = similarity_interval(profile, left_out, epsilon)
        similarities = [p.similarity(epsilon) for p in left_out]
        plain[name] = jackknife(profile.similarity(epsilon), similarities)
    intervals["half-ε"] = jackknife(profile.half, [p.half for p in left_out])
    intervals["area"] = jackknife(profile.area, [p.area for p in left_out])
    whole, *parts = map(canonical, [moments, *rests])
    for name, measure in MEASURES.items():
        intervals[name] = jackknife(measure(whole), [measure(part) for part in parts])
    other, others = twenty_groups(X, X[:, ::-1] + Y)
    less = [epsilon_profile(rest).area for rest in others]
    values = [p.area - b for p, b in zip(left_out, less, strict=True)]
    intervals["difference of area"] = jackknife(profile.area - epsilon_profile(other).area, values)
    return Estimates(intervals, plain)


def covered(found):
    "How often intervals hold the mean of all values, the mean itself, and how wide they are."
    values, low, high = np.array(found).T
    target = values.mean()
    inside = (low <= target + 1e-12) & (target - 1e-12 <= high)
    return {
        "expected": target,
        "deviation": values.std(),
        "width": (high - low).mean(),
        "covered": inside.mean(),
    }


def coverage(make, draws):
    "Quantity -> what `covered` says."
    epsilons = (0.2, 0.3, 0.5, 0.7, 0.9)
    drawn = [estimates(*make(np.random.default_rng(seed)), epsilons) for seed in range(draws)]
    table = {}
    for quantity in drawn[0].intervals:
        table[quantity] = covered([draw.intervals[quantity] for draw in drawn])
        if quantity in drawn[0].plain:
            plain = covered([draw.plain[quantity] for draw in drawn])
            table[quantity]["covered by the plain jackknife"] = plain["covered"]
    return table


@pytest.mark.long
@pytest.mark.parametrize("kind", PLANTED)
def test_intervals_hold_the_expected_value(kind, request):
    draws = 500
    table = coverage(PLANTED[kind], draws)
    if request.config.getoption("--record"):
        with FileLock(f"{COVERAGE}.lock"):
            known = json.loads(COVERAGE.read_text()) if COVERAGE.exists() else {}
            known["draws"] = draws
            known.setdefault("layers", {})[kind] = {
                "about": PLANTED[kind].__doc__,
                "quantities": {
                    name: {key: round(value, 4) for key, value in row.items()}
                    for name, row in table.items()
                },
            }
            COVERAGE.write_text(json.dumps(known, indent=1, ensure_ascii=False) + "\n")
        Path(f"{COVERAGE}.lock").unlink(missing_ok=True)
    below = {name: row["covered"] for name, row in table.items() if row["covered"] < 0.93}
    assert not below


def test_intervals_hold_the_expected_value_in_short():
    table = coverage(half_shared, 12)
    assert all(row["covered"] >= 0.75 for row in table.values())


# Intervals of a comparison


def test_bootstrap_gives_every_number_its_interval():
    data = load_data("digits", "all")
    trained, untrained = (
        compare(*(net.model for net in pair), data, "fc2.relu", groups=8, progress=False)
        for pair in (trained_pair(), untrained_pair())
    )
    options = {"epsilon": (0.25, 0.5), "measures": ["cka", "procrustes"]}
    table = bootstrap(trained, **options).loc["fc2.relu"]
    layer = trained["fc2.relu"]
    assert list(table.index) == ["ε=0.25", "ε=0.5", "half", "area", "cka", "procrustes"]
    assert table.loc["ε=0.25", "value"] == trained.similarity("fc2.relu", 0.25)
    assert table.loc["half", "value"] == layer.profile.half
    assert table.loc["half", "null"] == layer.null[0].half
    assert table.loc["cka", "value"] == MEASURES["cka"](layer.moments)
    assert ((table.low <= table.value) & (table.value <= table.high)).all()
    half_width = (table.high - table.low) / 2
    expected = jackknife(layer.profile.half, [p.half for p in layer.left_out])
    np.testing.assert_allclose(half_width["half"], expected.high - expected.value)
    less = bootstrap(untrained, **options).loc["fc2.relu"]
    change = bootstrap(trained, baseline=untrained, **options).loc["fc2.relu"]
    np.testing.assert_allclose(change.value, table.value - less.value)
    assert change.loc["half", "high"] < 0
    wider = bootstrap(trained, level=0.99, epsilon=()).loc["fc2.relu"]
    assert (wider.high - wider.low)["half"] > 2 * half_width["half"]
    with pytest.raises(ValueError, match="measures is 'ccca'"):
        bootstrap(trained, measures=["ccca"])
    none = compare(
        *(net.model for net in trained_pair()), data, "fc2.relu", groups=0, progress=False
    )
    with pytest.raises(ValueError, match="has no groups of images.*groups=20"):
        bootstrap(none)
    with pytest.raises(ValueError, match="an interval over networks takes three or more"):
        bootstrap(Comparisons({("a", "b"): trained}))
    with pytest.raises(TypeError, match="a comparison is needed, not Layer"):
        bootstrap(trained["fc2.relu"])


@pytest.mark.parametrize("shuffles", [1, 3, 19])
def test_one_name_one_null(shuffles):
    "In table, intervals, results, report and explorer the null is the mean over the shuffles."
    X, Y = digits_layers()
    options = {"null": shuffles, "groups": 4}
    plain, twin = (
        compare_activations({"fc": X[:300]}, {"fc": Y[:300]}, center=center, **options)
        for center in (False, True)
    )
    layer = plain["fc"]
    at, half = [one.similarity(0.65) for one in layer.null], [one.half for one in layer.null]
    if shuffles > 1:
        assert np.std(at) > 0 and np.std(half) > 0, "an instance that tells nothing"
    table = plain.table(0.65, measures=["cka"]).loc["fc"]
    rows = bootstrap(plain, epsilon=0.65, measures=["cka"]).loc["fc", "null"]
    nulls = table[["null ε=0.65", "half null", "cka null"]].tolist()
    np.testing.assert_allclose(nulls[:2], [np.mean(at), np.mean(half)])
    np.testing.assert_allclose(nulls, rows[["ε=0.65", "half", "cka"]].tolist(), rtol=1e-12)
    results = Results(Path(__file__).parent.parent / "nbs" / "results" / "laptop")
    results.config = replace(results.config, epsilon=(0.65,))
    key = ("mlp", "trained", ("a", "b"))
    vars(results).update(comparisons={key: plain}, centred={key: twin})
    found = pd.concat([results.similarities.iloc[0], results.chance.iloc[0]])
    centred = twin.table(0.65).loc["fc"]
    assert found["null"] == table["null ε=0.65"]
    assert found["half null"] == table["half null"]
    assert found["centred null"] == centred["null ε=0.65"]
    assert found["half centred null"] == centred["half null"]
    packed = pack_chance(layer)
    levels = np.frombuffer(b64decode(packed["null"]))
    assert packed["nullHalf"] == table["half null"]
    assert np.mean(levels <= 0.65) == pytest.approx(table["null ε=0.65"])


def test_a_level_of_few_shuffles_is_their_mean():
    "Beside a level of a few shuffles a number is void by their mean, as the table shows it."

    def layer_of(*halves: float) -> Layer:
        own, *null = (Profile([h] * 10, [h] * 10, 50) for h in halves)
        return Layer("conv", ("conv", "conv"), "channel", images=50, profile=own, null=null)

    assert not layer_of(0.5, 0.9, 0.4).void()  # 0.65
    assert layer_of(0.5, 0.6, 0.4).void()  # the first alone is beyond the margin
    assert not layer_of(0.5, 0.4, 0.9, 0.9).void(0.5)  # a third
    assert layer_of(0.5, 0.9, 0.51).void_reasons(0.6) == []
    assert layer_of(0.5, 0.9, 0.4).null_mean(lambda one: one.half) == 0.65


def test_means_over_pairs_have_intervals_over_networks():
    "The table of several networks has the numbers of `bootstrap`; of two networks it has none."
    X, Y = digits_layers()
    sides = {"p": X, "q": Y, "r": X[:, ::-1] + Y}
    pairs = list(itertools.combinations(sides, 2))
    found = {
        (a, b): compare_activations({"fc": sides[a]}, {"fc": sides[b]}, null=2, groups=0)
        for a, b in pairs
    }
    measures = ["cka", "procrustes"]
    several = Comparisons(found)
    row = several.table(0.25, measures=measures).loc["fc"]
    rows = bootstrap(several, epsilon=0.25, measures=measures).loc["fc"]
    named = {
        "ε=0.25": "{} ε=0.25",
        "half": "half {}",
        "cka": "cka {}",
        "procrustes": "procrustes {}",
    }
    for quantity, name in named.items():
        columns = [quantity, *(name.format(what) for what in ("low", "high", "null"))]
        np.testing.assert_allclose(row[columns].tolist(), rows.loc[quantity].tolist(), rtol=1e-12)
        assert row[name.format("low")] < row[quantity] < row[name.format("high")]
    for some in (pairs[:1], pairs[:2]):  # one pair; two that have a network in common
        row = Comparisons({pair: found[pair] for pair in some}).table(0.25, measures=measures)
        ends = [name.format(what) for name in named.values() for what in ("low", "high")]
        assert row[ends].isna().all(axis=None) and row[[*named]].notna().all(axis=None)
    each = several.table(0.25, pairs=True, measures=measures)
    expected = MEASURES["cka"](Moments(X, Y))
    assert each.loc[("p", "q", "fc"), "cka"] == pytest.approx(expected)


def test_shuffles_of_narrow_layers_are_analysed_in_one_thread(monkeypatch):
    "The profiles, and so p, are those of any number of threads, which is as before afterwards."
    X, Y = digits_layers()
    layer = compare_activations({"fc": X[:300]}, {"fc": Y[:300]}, null=1, groups=0)["fc"]
    draws = itertools.islice(null_from_moments(layer.moments, DRAWN), 20)
    before, threads = torch.get_num_threads(), []

    def seen(moments: Moments) -> Profile:
        threads.append(torch.get_num_threads())
        return epsilon_profile(moments)

    monkeypatch.setattr(analysis, "epsilon_profile", seen)
    torch.set_num_threads(2)
    try:
        plain = [epsilon_profile(one) for one in draws]
        drawn = layer.null_drawn[:20]
        assert threads == [1] * 20 and torch.get_num_threads() == 2
        monkeypatch.setattr(analysis, "NARROW", 63)
        analysis.silent_profile(layer.moments)
        assert threads[-1] == 2
    finally:
        torch.set_num_threads(before)
    for one, other in zip(plain, drawn, strict=True):
        np.testing.assert_allclose(critical_values(one), critical_values(other), atol=1e-12)
    halves = [[one.half for one in some] for some in (plain, drawn)]
    for observed in (*halves[0], layer.profile.half, 0.9):
        assert p_value(observed, halves[0], small=True) == p_value(observed, halves[1], small=True)
