"""Strictness for the whole suite: silent promotion, broadcasting and warnings are errors."""

import os
import pathlib
import shutil
import tempfile

os.environ.setdefault("MPLBACKEND", "Agg")
_FIRST = "PYTEST_XDIST_WORKER" not in os.environ  # of the processes of this run
if _FIRST:  # what one process compiles, the others and the scripts they start need not
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="compiled-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"

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


def pytest_unconfigure():
    if _FIRST:
        shutil.rmtree(os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)


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
