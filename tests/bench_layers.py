"""What collecting costs: all ReLU layers of the paper's VGG-16 for CIFAR-10, at full width, in two
networks with random weights.

Time is that of two bare forward passes over the same images in batches of 128; bare passes and
collecting alternate, and the median of the ratios counts. Collecting is the default, with one
shuffle and 20 groups of images; beside it the same without these. The bare passes with the matrix
products that second moments are made of, in float64 on a chunk that is there already, are what
collecting cannot go below; a shuffle adds the products of one network with the other. Memory is the
largest that a process of its own needs, for 10,000 images against 1,000; they are drawn as they are
needed, and the networks have a quarter of the width. `--record` writes the table for the notebooks.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import torch
from bench import here

from submatch_nb.engine.factors import CHUNK, add_products
from submatch_nb.engine.sums import PRODUCT_STRIP
from submatch_nb.engine.writing import write_whole
from submatch_nb.layers import collect, evaluating
from submatch_nb.networks import build

BATCH = 128


def images(count):
    "Batches of random images, the same each time."
    rng = torch.Generator().manual_seed(0)
    for start in range(0, count, BATCH):
        yield torch.randn(min(BATCH, count - start), 3, 32, 32, generator=rng)


def clock(f):
    time.sleep(0.5)  # for the threads of what ran before to go to sleep
    begin = time.perf_counter()
    f()
    return time.perf_counter() - begin


def products(sizes, null):
    """The products of chunks of as many samples as were collected, for each layer: (neurons of the
    networks, samples). With `null`, those of one network with the other, shuffled, too.
    """
    for n_x, n_y, samples in sizes:
        n = n_x + n_y
        Z, sums = torch.ones(n, CHUNK, dtype=torch.float64), torch.zeros(n, n, dtype=torch.float64)
        shuffled = torch.ones(n_y, CHUNK, dtype=torch.float64)
        for _ in range(samples // CHUNK):
            add_products(sums, Z, PRODUCT_STRIP)
            if null:
                sums[:n_x, n_x:] += Z[:n_x] @ shuffled.T


def cost(count, rounds):
    "What was done -> for each round its seconds and those of two bare passes just before."
    nets, batches, sizes = [build("vgg16", seed=seed) for seed in (0, 1)], list(images(count)), []

    def bare():
        with evaluating(*nets):
            for batch in batches:
                [net(batch) for net in nets]

    def collecting(**options):
        sizes[:] = [
            (m.n_x, m.n_y, m.count)
            for m in collect(*nets, batches, progress=False, **options).values()
        ]

    def least(null):
        bare(), products(sizes, null)

    runs = {
        "collecting": collecting,
        "collecting, null=0, groups=0": partial(collecting, null=0, groups=0),
        'collecting, precision="exact"': partial(collecting, precision="exact"),
        "the bare passes and the products of collecting alone": partial(least, 1),
        "the bare passes and the products of null=0 alone": partial(least, 0),
    }
    times = {what: [] for what in runs}
    bare()
    for number in range(rounds):
        for what, run in runs.items():
            plain, ours = clock(bare), clock(run)
            times[what].append((ours, plain))
            print(
                f"round {number + 1}: two bare passes over {count:,} images {plain:.1f} s, {what}"
                f" {ours:.1f} s",
                flush=True,
            )
    return times


def only_collect(count):
    "For a process of its own: prints the largest memory that it needed."
    collect(
        *(build("vgg16", seed=seed, width=0.25) for seed in (0, 1)), images(count), progress=False
    )
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def peak(count):
    "What `only_collect` prints."
    return int(
        subprocess.run(
            [sys.executable, __file__, "--memory", str(count)],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--count", type=int, default=1024, help="images whose time is taken (default 1024)"
    )
    parser.add_argument("--rounds", type=int, default=3, help="(default 3)")
    parser.add_argument(
        "--record", action="store_true", help="write the table to nbs/bench_layers.json"
    )
    parser.add_argument("--memory", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory:
        sys.exit(only_collect(options.memory))
    machine = f"{here()}; {options.count:,} images"
    print(f"{__doc__}\n{machine}\n", flush=True)
    rows, limits = [], (1.7, 1.5, 3, None, None)
    for (what, times), limit in zip(cost(options.count, options.rounds).items(), limits):
        ours, plain = map(statistics.median, zip(*times))
        rows.append(
            {
                "work": what,
                "ours (s)": round(ours, 1),
                "two bare passes (s)": round(plain, 1),
                "ratio": round(statistics.median(o / p for o, p in times), 2),
                "at most": limit,
            }
        )
    rows.append(
        {
            "work": "peak memory for 10,000 images, against that for 1,000",
            "ratio": round(peak(10_000) / peak(1_000), 2),
            "at most": 1.05,
        }
    )
    print(f"\n{'work':56}{'ratio':>8}{'limit':>8}")
    for row in rows:
        most = row["at most"]
        missed = "  NOT MET" if most and row["ratio"] > most else ""
        print(f"{row['work']:56}{row['ratio']:8.2f}{most or '':>8}{missed}")
    if options.record:
        write_whole(
            Path(__file__).parent.parent / "nbs" / "bench_layers.json",
            lambda part: part.write_text(
                json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n"
            ),
        )
    sys.exit(any(row["ratio"] > (row["at most"] or row["ratio"]) for row in rows))
