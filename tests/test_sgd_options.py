"""References by --refgenmethod=sgd from the scripts."""

import numpy as np
import option_runs
import pytest

from sptjax import io
from sptjax._errors import InputError


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return option_runs.Bench(tmp_path_factory.mktemp("sgd"))


FEW = {"sgdsteps": 4, "sgdbatch": 8, "sgdseeds": 1, "search": 1, "seed": 3}


@pytest.mark.slow
def test_all_classes_get_a_map(bench):
    """Written as references, in one frame, made from all particles; the run starts from them."""
    run = bench.run(ref=None, refgenmethod="sgd", **FEW)
    maps = [io.read_hdf(run.folder / f"ref{r}.hdf")[0] for r in (0, 1)]
    assert all(np.ptp(volume) > 0 for volume in maps)
    assert not np.allclose(maps[0], maps[1])
    line = next(line for line in run.said if line.startswith("references: sgd"))
    assert "one seed cannot tell" in line


def test_maps_of_different_symmetries_are_refused(bench):
    with pytest.raises(InputError, match="all maps must have one symmetry"):
        bench.run(ref=None, refgenmethod="sgd", syms="c1,c2", **FEW)
