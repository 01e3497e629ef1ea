"""Strictness for the whole suite: silent promotion, broadcasting and warnings are errors."""

import os
import pathlib
import shutil
import tempfile

os.environ.setdefault("MPLBACKEND", "Agg")

import jax
import numpy as np
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

ROOT = pathlib.Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "tests" / "golden"
SHARED = ROOT.parent / "shared"


def pytest_addoption(parser):
    parser.addoption("--seed", type=int, default=0, help="seed of the random test data")


def pytest_configure(config):
    """What one process compiles, the others and the scripts they start need not."""
    if hasattr(config, "workerinput"):  # a worker: its environment says so already
        return
    folder = tempfile.mkdtemp(prefix="compiled-")
    config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
    for name, value in (
        ("jax_compilation_cache_dir", folder),
        ("jax_persistent_cache_min_compile_time_secs", 0.0),
    ):
        os.environ[name.upper()] = str(value)
        jax.config.update(name, value)


def pytest_report_header(config):
    return f"seed {config.getoption('--seed')}; jax {jax.__version__} on {jax.default_backend()}"


@pytest.fixture
def rng(request):
    """A NumPy generator whose seed depends on --seed and on the name of the test."""
    name = np.frombuffer(request.node.nodeid.encode(), np.uint8)
    return np.random.default_rng([request.config.getoption("--seed"), *name.tolist()])


@pytest.fixture(scope="session")
def golden():
    """Folder with answers of the real EMAN2."""
    return GOLDEN


@pytest.fixture(scope="session")
def shared_data():
    """Folder with real maps and particles beside the checkout."""
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip("no ../shared/data beside this checkout: real data are not shipped")
    return folder
