"""What collecting costs: all ReLU layers of the paper's VGG-16 for CIFAR-10, at full width, in two networks with random weights.

Time is that of two bare forward passes over the same images in batches of 128; bare passes and collecting alternate, and the median of the ratios counts. Memory is the largest
that a process of its own needs, for 10,000 images against 1,000; they are drawn as they are needed, and the networks have a quarter of the width.
"""
import argparse
import platform
import resource
import statistics
import subprocess
import sys
import time

import torch

from submatch_nb.layers import collect, evaluating
from submatch_nb.networks import build

BATCH = 128


def images(count):
    "Batches of random images, the same each time."
    rng = torch.Generator().manual_seed(0)
    for start in range(0, count, BATCH): yield torch.randn(min(BATCH, count - start), 3, 32, 32, generator=rng)


def clock(f):
    begin = time.perf_counter()
    f()
    return time.perf_counter() - begin


def cost(count, rounds):
    "Precision -> times as long as two bare passes."
    nets, batches = [build("vgg16", seed=seed) for seed in (0, 1)], list(images(count))
    def bare():
        with evaluating(*nets):
            for batch in batches: [net(batch) for net in nets]
    bare()
    ratios = {"auto": [], "exact": []}
    for number in range(rounds):
        for precision in ratios:
            plain, ours = clock(bare), clock(lambda: collect(*nets, batches, progress=False, precision=precision))
            ratios[precision].append(ours / plain)
            print(f"round {number + 1}: two bare passes over {count:,} images {plain:.1f} s, collecting ({precision}) {ours:.1f} s", flush=True)
    return {precision: statistics.median(r) for precision, r in ratios.items()}


def only_collect(count):
    "For a process of its own: prints the largest memory that it needed."
    collect(*(build("vgg16", seed=seed, width=0.25) for seed in (0, 1)), images(count), progress=False)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def peak(count):
    "What `only_collect` prints."
    return int(subprocess.run([sys.executable, __file__, "--memory", str(count)], check=True, capture_output=True, text=True).stdout)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1024, help="images whose time is taken (default 1024)")
    parser.add_argument("--rounds", type=int, default=3, help="(default 3)")
    parser.add_argument("--memory", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory: sys.exit(only_collect(options.memory))
    print(f"{__doc__}\nPython {platform.python_version()}, torch {torch.__version__}, {torch.get_num_threads()} threads\n", flush=True)
    ratios, memory = cost(options.count, options.rounds), peak(10_000) / peak(1_000)
    rows = [("collecting, times two bare forward passes", ratios["auto"], 1.5), ('    with precision="exact"', ratios["exact"], 3), ("peak memory for 10,000 images, times that for 1,000", memory, 1.05)]
    print(f"\n{'work':56}{'ratio':>8}{'limit':>8}")
    for work, ratio, most in rows: print(f"{work:56}{ratio:8.2f}{most:8.2f}{'' if ratio <= most else '  NOT MET'}")
    sys.exit(any(ratio > most for _, ratio, most in rows))
