"""What the fast paths gain over the plain ones, and that both give the same answers: `make bench`,
about half an hour, most of it the plain ones.

The layers: two perceptrons with two hidden layers of equal width are trained by Adam on
scikit-learn's digits from seeds 0 and 1 until they
fit more than 99 % of them; compared are the second hidden layers, after ReLU, on 10,000 seeded
distortions of the digits (drawn with replacement,
shifted by up to a pixel each way, Gaussian noise of 0.6 added), so that the neurons have real rank
and the match is neither all nor nothing.

Wider layers, where only moments are needed, are ReLU of shared random features plus noise, a
hundredth to ten times as large from the first neuron to the last,
so that neurons leave a few at a time. `--large` adds 4,096 + 4,096 of them (20 GB of memory, some
minutes).
Where there is a CUDA device, a few more rows time the same calls on it against its matrix rate.
`--record` writes the tables for the notebooks.
"""

import argparse
import functools
import json
import platform
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch
from scipy.linalg import lstsq
from scipy.ndimage import shift
from sklearn.datasets import load_digits
from torch import nn
from tqdm.auto import tqdm

from submatch_nb import maximum
from submatch_nb.engine.canonical import Canonical
from submatch_nb.engine.inputs import within
from submatch_nb.engine.moments import Moments
from submatch_nb.engine.writing import write_whole
from submatch_nb.maximum import algorithm_1, epsilon_profile, maximum_match
from submatch_nb.measures import MEASURES
from submatch_nb.neurons import digits_layers
from submatch_nb.simple import (
    algorithm_2,
    algorithm_3,
    minimal_match,
    minimal_matches,
    simple_matches,
)

EPSILONS = (0.15, 0.2, 0.25, 0.3, 0.5)  # the paper's
AT = 0.25  # where v-minimal matches are timed


def train(width, seed, epochs=15):
    "A perceptron that fits the digits."
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)
    )
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
    inputs = torch.tensor(
        (inputs + 0.6 * rng.normal(size=inputs.shape)).reshape(count, 64), dtype=torch.float32
    )
    return [train(width, seed)(inputs).detach().double().numpy() for seed in (0, 1)]


def clock(f, *args, **kwargs):
    "Seconds and the result, whatever the device still has to do included."
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    wait()
    # the threads of NumPy's and of torch's BLAS go on spinning for a while, in each other's way
    time.sleep(0.1)
    begin = time.perf_counter()
    result = f(*args, **kwargs)
    wait()
    return time.perf_counter() - begin, result


# Algorithm 1 with other solvers, all offenders removed in each round; dead neurons leave first.


def rounds_of(residual2, X, Y, epsilon):
    """(x, y) of the maximum match, with any function for the squared residuals of unit neurons on
    others.
    """
    X, Y = (Z / np.where(Z.any(0), np.linalg.norm(Z, axis=0), 1) for Z in (X, Y))
    x, y = X.any(0).nonzero()[0], Y.any(0).nonzero()[0]
    while len(x) and len(y):
        ok_x, ok_y = (
            residual2(X[:, x], Y[:, y]) <= within(epsilon) ** 2,
            residual2(Y[:, y], X[:, x]) <= within(epsilon) ** 2,
        )
        if ok_x.all() and ok_y.all():
            return x.tolist(), y.tolist()
        x, y = x[ok_x], y[ok_y]
    return [], []


def by_least_squares(X, Y):
    "By the SVD, as the authors' code solves it."
    coefficients = lstsq(Y, X, lapack_driver="gelsd", check_finite=False)[0]
    return ((X - Y @ coefficients) ** 2).sum(0)


def by_one_product(X, Y):
    """By QR, and Pythagoras for the rest: the least work a factorisation a side can do, at half the
    digits.
    """
    Q = torch.linalg.qr(torch.as_tensor(Y)).Q
    return (1 - (Q.T @ torch.as_tensor(X)).square().sum(0)).numpy()


def features(n, counts, device="cpu", seed=0):
    """Yields for each count X and Y of n neurons: ReLU of shared random features plus noise of its
    own size for each pair of neurons.
    """
    rng = torch.Generator(device).manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=rng, dtype=torch.float64, device=device)

    mix, noise = normal(n, n) / n**0.5, torch.logspace(-2, 1, n, dtype=torch.float64, device=device)
    for count in counts:
        shared = normal(count, n) @ mix
        yield tuple((shared + noise * normal(count, n)).clamp(min=0) for _ in "xy")


def synthetic(n, device="cpu"):
    "Moments of n + n neurons on 4 n samples."
    return sum_of(Moments(X, Y) for X, Y in features(n, [1024] * (n // 256), device))


def sum_of(parts):
    return functools.reduce(lambda a, b: a + b, parts)


# A row of the table at the end: what, seconds of ours and of the plain one, and their ratio with
# its limit.


class Row:
    def __init__(self, work, ours, plain, ratio, least=None, most=None):
        self.work, self.ours, self.plain, self.ratio, self.least, self.most = (
            work,
            ours,
            plain,
            ratio,
            least,
            most,
        )

    def distance(self):
        "How many times better than the limit; below 1 it is not met."
        return (
            self.ratio / self.least if self.least else self.most / self.ratio if self.most else None
        )

    def __str__(self):
        limit = f"at most {self.most}" if self.most else ""
        if self.least:
            limit = f"at least {self.least}"
        missed = "  NOT MET" if self.distance() and self.distance() < 1 else ""
        columns = (short(self.ours, 10), short(self.plain, 10), short(self.ratio, 9))
        rest = f"{limit:>14}{short(self.distance(), 10)}{missed}"
        return f"{self.work:86}{''.join(columns)}{rest}"


def short(value, width):
    "A number with three digits, right in so many columns; nothing for None."
    if value is None:
        return " " * width
    text = f"{value:.3g}" if value < 100 else f"{value:.0f}"
    return text.rjust(width)


class Counted:
    "A function that counts its calls."

    def __init__(self, f):
        self.f, self.calls = f, 0

    def __call__(self, *args, **kwargs):
        self.calls += 1
        return self.f(*args, **kwargs)


def profile_bench(width):
    """Rows for the whole profile against Algorithm 1 at each epsilon; profile and baselines
    alternate, so that both see the same machine.
    """
    X, Y = layers(width)
    rounds = maximum.cross_residuals = Counted(maximum.cross_residuals)
    epsilon_profile(X, Y), Moments(X, Y)
    times = {
        name: [] for name in ("profile", "moments", "algorithm_1", "one product", "least squares")
    }
    print(
        f"Maximum match of {width} + {width} neurons on {len(X):,} samples; dead:"
        f" {sum((~Z.any(0)).sum() for Z in (X, Y))}\n\nepsilon  similarity  rounds  Algorithm 1 (s)"
        "  one product (s)  least squares (s)  profile, every epsilon (s)",
        flush=True,
    )
    for epsilon in EPSILONS:
        rounds.calls = 0
        for name, f, *args in (
            ("profile", epsilon_profile, X, Y),
            ("moments", Moments, X, Y),
            ("algorithm_1", algorithm_1, X, Y, epsilon),
            ("one product", rounds_of, by_one_product, X, Y, epsilon),
            ("least squares", rounds_of, by_least_squares, X, Y, epsilon),
        ):
            seconds, result = clock(f, *args)
            times[name].append(seconds)
            if name == "profile":
                match = result.match(epsilon)
            if name == "algorithm_1":
                assert match == result == maximum_match(X, Y, epsilon), (
                    f"profile and Algorithm 1 disagree at {epsilon}"
                )
            if name in ("one product", "least squares"):
                assert result == (
                    match.x.tolist(),
                    match.y.tolist(),
                ), f"profile and {name} disagree at {epsilon}"
        last = {name: t[-1] for name, t in times.items()}
        print(
            f"{epsilon:7.2f}{match.similarity:12.3f}{rounds.calls:8}{last['algorithm_1']:17.2f}"
            f"{last['one product']:17.2f}{last['least squares']:19.2f}{last['profile']:28.2f}",
            flush=True,
        )
    fast, forming = statistics.median(times["profile"]), statistics.median(times["moments"])
    print("The answers agree.", flush=True)

    def against(name, what, **limit):
        return Row(
            f"profile from activations, {width} + {width}, against {what}",
            fast,
            sum(times[name]),
            sum(times[name]) / fast,
            **limit,
        )

    return [
        against("algorithm_1", "Algorithm 1 at five epsilons", least=10),
        against("one product", "the same with one product a side"),
        against("least squares", "its least-squares form", least=40),
        Row(
            "    times merely forming the float64 second moments",
            fast,
            forming,
            fast / forming,
            most=4,
        ),
    ]


def resident(name):
    "Bytes, from Linux's account of this process."
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(name))


def peak(f):
    "Bytes that a call needs at most, and its result. Linux only."
    with open("/proc/self/clear_refs", "w") as reset:
        reset.write("5")
    before, result = resident("VmRSS"), f()
    return resident("VmHWM") - before, result


def moments_bench(name, moments, most, memory=None):
    """Rows for the profile from moments against one Cholesky factorisation of the joint matrix, and
    its memory, in which the moments count too.
    """
    live = moments.gram.diagonal() > 0
    gram = moments.gram[live][:, live]
    ours, plain = [], []
    for _ in range(1 if len(gram) > 5000 else 3 if len(gram) > 2000 else 9):
        plain.append(clock(torch.linalg.cholesky, gram)[0])
        seconds, profile = clock(epsilon_profile, moments)
        ours.append(seconds)
    steps = profile.breakpoints[profile.breakpoints < 1]
    print(
        f"{name}: {len(gram)} live neurons, {len(steps)} breakpoints, half of the layer matches at"
        f" epsilon {np.median(np.r_[profile.x, profile.y]):.2f}",
        flush=True,
    )
    ours, plain = statistics.median(ours), statistics.median(plain)
    rows = [
        Row(
            f"profile from moments, {name}, times one joint Cholesky factorisation",
            ours,
            plain,
            ours / plain,
            most=most,
        )
    ]
    del gram
    if memory and sys.platform == "linux":
        extra, _ = peak(lambda: epsilon_profile(moments))
        rows.append(
            Row(
                "    peak memory, the moments included, times the joint matrix",
                None,
                None,
                1 + extra / (moments.gram.nelement() * 8),
                most=memory,
            )
        )
    return rows


def measures_bench(name, moments):
    """A row for all six measures of chapter 09 against the profile, from the same moments; both
    alternate.
    """

    def all_six():
        layers = Canonical(moments)
        return [measure(layers) for measure in MEASURES.values()]

    ours, profile = [], []
    for _ in range(9):
        profile.append(clock(epsilon_profile, moments)[0])
        ours.append(clock(all_six)[0])
    ours, profile = statistics.median(ours), statistics.median(profile)
    work = f"six measures from moments, {name}, times the profile"
    return [Row(work, ours, profile, ours / profile, most=1)]


def growth_bench():
    """Exponents of the growth in n, from moments, and in d, from activations, by least squares on
    logarithms.
    """

    def exponent(sizes, work):
        times = [min(clock(work, made)[0] for _ in range(3)) for made in sizes.values()]
        print(
            "  ".join(f"{size:,}: {seconds:.3f} s" for size, seconds in zip(sizes, times)),
            flush=True,
        )
        return times[-1], np.polyfit(np.log([*sizes]), np.log(times), 1)[0]

    print(
        "\nProfile from moments of n + n neurons, and from activations of 256 + 256 neurons on d"
        " samples"
    )
    by_n = exponent({n: synthetic(n) for n in (256, 512, 1024, 2048)}, epsilon_profile)
    X, Y = layers(256)
    by_d = exponent(
        {
            d: (np.tile(X, (d // len(X), 1)), np.tile(Y, (d // len(Y), 1)))
            for d in (10_000, 20_000, 40_000, 80_000)
        },
        lambda Z: epsilon_profile(*Z),
    )
    return [
        Row(
            "growth exponent of the profile in n, from moments of 256 + 256 to 2,048 + 2,048",
            by_n[0],
            None,
            by_n[1],
        ),
        Row(
            "growth exponent of the profile in d, from 10,000 to 80,000 samples of 256 + 256",
            by_d[0],
            None,
            by_d[1],
        ),
    ]


def minimal_bench(width, count):
    "Rows for v-minimal matches of seeded neurons against Algorithm 2, each in full."
    X, Y = layers(width)
    inside = list(maximum_match(X, Y, AT))
    rounds = maximum.cross_residuals = Counted(maximum.cross_residuals)
    forming, moments = clock(Moments, X, Y)
    print(
        f"\nv-minimal matches of {width} + {width} neurons on {len(X):,} samples at epsilon {AT}:"
        f" {len(inside)} neurons in the maximum match, {count} of them drawn\n\nneuron  size  from"
        " activations (s)  from moments (s)  Algorithm 2 (s)  its calls of Algorithm 1  its"
        " rounds",
        flush=True,
    )
    times, answers = [], {}
    for i in np.random.default_rng(0).permutation(len(inside))[:count]:
        v, rounds.calls = inside[i], 0
        fast, match = clock(minimal_match, X, Y, v, AT)
        faster, same = clock(minimal_match, moments, v=v, epsilon=AT)
        with tqdm(
            desc=f"Algorithm 2 for {v[0]}{v[1]}", unit=" neurons", leave=False, disable=None
        ) as bar:
            tried = Counted(lambda u, dropped, match: bar.update())
            plain, expected = clock(algorithm_2, X, Y, v, AT, log=tried)
        assert match == expected == same, f"minimal_match and Algorithm 2 disagree for {v}"
        times.append((fast, faster + forming / count, plain))
        answers[v] = match
        print(
            f"{v[0]}{v[1]:<6}{len(match):5}{fast:22.3f}{faster:18.3f}{plain:17.1f}"
            f"{tried.calls + 1:26}{rounds.calls:12}",
            flush=True,
        )
    ratios = sorted(plain / from_moments for _, from_moments, plain in times)
    ours, slow = (statistics.median(t[k] for t in times) for k in (1, 2))
    seconds, every = clock(simple_matches, moments, epsilon=AT)
    assert all(every.of(v) == [match] for v, match in answers.items()), (
        "simple_matches and Algorithm 2 disagree"
    )
    three = sum(t[2] for t in times[:3])
    print(f"Forming the moments once: {forming:.2f} s. {every}. The answers agree.", flush=True)
    return [
        Row(
            f"v-minimal match, {width} + {width}, median of {count}, against Algorithm 2, from"
            " moments formed once",
            ours,
            slow,
            statistics.median(ratios),
            least=200,
        ),
        Row("    the worst of them", None, None, ratios[0], least=80),
        Row(
            "    the median from activations, everything anew for each neuron",
            statistics.median(t[0] for t in times),
            slow,
            statistics.median(t[2] / t[0] for t in times),
        ),
        Row(
            f"v-minimal matches of all {len(inside)} neurons, share of the time of Algorithm 2 for"
            " the first three drawn",
            seconds + forming,
            three,
            (seconds + forming) / three,
            most=1,
        ),
    ]


def every_bench(width, moments):
    "A row for the v-minimal matches of a whole layer."
    seconds, every = clock(simple_matches, moments, epsilon=AT)
    print(f"\n{width} + {width} neurons: {every}", flush=True)
    return [
        Row(
            f"v-minimal matches of all {len(every.neurons)} neurons, {width} + {width}, in minutes",
            seconds,
            None,
            seconds / 60,
            most=10,
        )
    ]


def enumeration_bench(v=("x", 4), epsilon=0.1325):
    """Rows for all v-minimal matches of a neuron of the digits layers against Algorithm 3, which
    begins a run of Algorithm 2 for each choice.
    """
    X, Y = digits_layers()
    choices = Counted(lambda deleted, match: None)
    plain, expected = clock(algorithm_3, X, Y, v, epsilon, log=choices)
    ours, found = clock(minimal_matches, X, Y, v, epsilon)
    assert found.complete and set(found) == set(expected), "Algorithm 3 finds others"
    print(f"\n{found}; Algorithm 3 makes {choices.calls:,} choices.", flush=True)
    matched = len(maximum_match(X, Y, epsilon))
    return [
        Row(
            f"all {len(found)} v-minimal matches of a neuron, {matched} matched, against"
            " Algorithm 3",
            ours,
            plain,
            plain / ours,
            least=100,
        ),
        Row(
            "    its runs of Algorithm 2, begun or made, for each of ours",
            None,
            None,
            choices.calls / found.shrinks,
        ),
    ]


def matrix_rate(device, n):
    "Multiplications a second in one product of float64 matrices."
    A = torch.randn(n, n, dtype=torch.float64, device=device)
    A @ A
    return n**3 / min(clock(torch.matmul, A, A)[0] for _ in range(3))


def device_bench(device, n=4096, m=2048, samples=1_000_000, batch=50_000, size=8192):
    """Rows for the same calls on a device: each against the time that its multiplications take at
    the rate of one large matrix product.
    """
    rate = matrix_rate(device, size)
    name = torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else device
    print(
        f"\n{name}: {rate / 1e12:.2f} million million multiplications a second in float64",
        flush=True,
    )
    moments = synthetic(n, device)
    on_cpu = Moments.from_parts(
        moments.sum.cpu(),
        moments.count,
        moments.n_x,
        moments.error,
        gram=moments.gram.cpu(),
        alike=moments.alike.cpu(),
    )
    epsilon_profile(moments)
    seconds, profile = clock(epsilon_profile, moments)
    plain, expected = clock(epsilon_profile, on_cpu)
    for side in "xy":
        assert np.allclose(getattr(profile, side), getattr(expected, side), atol=1e-6), (
            "the device and the CPU disagree"
        )
    cubed = 4 / 3 * (2 * n) ** 3  # as chapter Maximum match counts them, with the brackets left out
    rows = [
        Row(
            f"profile from moments, {n} + {n}, on the device, times its multiplications at the"
            " matrix rate",
            seconds,
            cubed / rate,
            seconds / (cubed / rate),
        ),
        Row("    against the CPU", seconds, plain, plain / seconds),
    ]
    del moments, on_cpu
    ((X, Y),) = features(m, [batch], device)
    Moments(X, Y)
    seconds, moments = clock(lambda: sum_of(Moments(X, Y) for _ in range(samples // batch)))
    assert moments.count == samples and torch.allclose(
        moments.gram[:m, m:], samples // batch * (X.T @ Y), rtol=1e-9
    ), "the moments are wrong"
    products = samples * (2 * m) ** 2 / 2
    return rows + [
        Row(
            f"moments of {samples:,} x ({m} + {m}) on the device, times its multiplications at the"
            " matrix rate",
            seconds,
            products / rate,
            seconds / (products / rate),
        )
    ]


RECORD = Path(__file__).parent.parent / "nbs" / "bench.json"


def record(tables, machine):
    "Write the tables for the notebooks, with where they come from."

    def digits(value):
        return value and float(f"{value:.3g}")

    tables = {
        name: [
            {
                "work": row.work.strip(),
                "ours (s)": digits(row.ours),
                "plain (s)": digits(row.plain),
                "ratio": digits(row.ratio),
                "at least": row.least,
                "at most": row.most,
            }
            for row in rows
        ]
        for name, rows in tables.items()
    }
    write_whole(
        RECORD,
        lambda part: part.write_text(json.dumps({"machine": machine} | tables, indent=1) + "\n"),
    )


def processor():
    "What Linux calls the processor."
    if sys.platform != "linux":
        return platform.processor()
    with open("/proc/cpuinfo") as info:
        return next(
            line.partition(":")[2].strip() for line in info if line.startswith("model name")
        )


def here():
    "Where and when this is measured."
    return (
        f"{processor()}, {torch.get_num_threads()} threads; Python {platform.python_version()},"
        f" torch {torch.__version__}; {time.strftime('%Y-%m-%d')}"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--count", type=int, default=20, help="neurons whose v-minimal match is timed (default 20)"
    )
    parser.add_argument(
        "--width",
        type=int,
        default=512,
        help="hidden units of the layer that is profiled (default 512)",
    )
    parser.add_argument(
        "--large", action="store_true", help="also profile 4,096 + 4,096 neurons from moments"
    )
    parser.add_argument("--record", action="store_true", help="write the tables to nbs/bench.json")
    options = parser.parse_args()
    machine = here()
    print(f"{__doc__}\n{machine}\n", flush=True)
    profiles = profile_bench(options.width)
    wide = Moments(*layers(options.width))
    profiles += moments_bench(f"{options.width} + {options.width}, trained", wide, 30)
    for n in (512, 2048) + (4096,) * options.large:
        profiles += moments_bench(
            f"{n} + {n}, synthetic", synthetic(n), 30 if n == 512 else 20, 4 if n > 512 else None
        )
    tables = {
        "profile": profiles + growth_bench(),
        "simple": (
            minimal_bench(128, options.count)
            + every_bench(options.width, wide)
            + enumeration_bench()
        ),
        "measures": measures_bench(f"{options.width} + {options.width}, trained", wide)
        + measures_bench("512 + 512, synthetic", synthetic(512)),
    }
    if torch.cuda.is_available():
        tables["device"] = device_bench("cuda")
    print(
        f"\n{'work':86}{'ours (s)':>10}{'plain (s)':>10}{'ratio':>9}{'limit':>14}{'distance':>10}"
    )
    rows = sum(tables.values(), [])
    for row in rows:
        print(row)
    print("distance: how many times better than the limit")
    if options.record:
        record(tables, machine)
    sys.exit(any(row.distance() and row.distance() < 1 for row in rows))
