"""One thread per worker, fixed examples, `--slow` for what takes minutes, `--record` for the record of the theorems."""
import os

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"): os.environ.setdefault(name, "1")

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings

torch.set_num_threads(1)
settings.register_profile("fixed", deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck), print_blob=False)
settings.register_profile("deep", settings.get_profile("fixed"), max_examples=1000)  # with --slow
settings.register_profile("fast", settings.get_profile("fixed"), max_examples=5, phases=[Phase.explicit, Phase.generate])  # for mutation testing: no search for the simplest failure
settings.load_profile("fixed")


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="also run the tests that take minutes, and ten times the examples")
    parser.addoption("--record", action="store_true", help="write nbs/theorems.json")


def pytest_configure(config):
    if config.getoption("--slow"): settings.load_profile("deep")


def pytest_collection_modifyitems(config, items):
    if config.getoption("--slow"): return
    for item in items:
        if "slow" in item.keywords: item.add_marker(pytest.mark.skip(reason="takes minutes: run with --slow"))
