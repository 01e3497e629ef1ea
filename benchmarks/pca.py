"""Classes of aligned particles by PCA: accuracy against noise, wedge-aware and wedge-blind.

python benchmarks/pca.py --out=pca.json
python benchmarks/pca.py --n=16 --snr=0.2 --pairs=50S --box=24

Pairs of maps in one frame: 50S assembly intermediates D and E, 70S against 50S, and, as the hard
case, 70S with and without its tRNA. CTF-realistic particles of both in equal parts lie at their
planted poses, perhaps with an error. Blind: what a particle has not seen counts as zero.
Mixture: the classes of refinemulti. Accuracy is that of the better of the two namings.
"""

import dataclasses
import time

import jax
import jax.numpy as jnp
import numpy as np
from _common import SEED, Planted, data_file, load_map, plant, read_atoms, splat
from _report import launch, numbers, report
from absl import flags
from scipy.spatial.transform import Rotation

from sptjax import classify, fourier, masks, pca
from sptjax._errors import InputError

_N = flags.DEFINE_integer("n", 200, "particles, half of each class", lower_bound=4)
_PAIRS = flags.DEFINE_list("pairs", ["50S", "70S", "tRNA"], "50S, 70S, tRNA")
_SNR = flags.DEFINE_string("snr", "0.2,0.1,0.05,0.02", "per projection")
_BOX = flags.DEFINE_integer("box", 32, "voxels")
_TURN = flags.DEFINE_float("turn", 3.0, "standard deviation of the poses about each axis, degrees")
_NBASIS = flags.DEFINE_integer("nbasis", 3, "components", lower_bound=1)

SMALL_SUBUNIT = "5 B D F A H J C S O K M I L N R T G Q E P".split()  # chains of 7p6z
TRNA = ["7"]


def pair(name: str) -> tuple[np.ndarray, float]:
    """Two maps ``[2, n, n, n]`` and their voxel size."""
    if name == "50S":
        return np.stack([load_map(f"50S_{x}", _BOX.value, 13.1) for x in "DE"]), 13.1
    if name not in ("70S", "tRNA"):
        raise InputError(f"--pairs={name}: known are 50S, 70S and tRNA")
    apix = 12.0 * 32 / _BOX.value
    chains, xyz, electrons = read_atoms(data_file("models/7p6z.cif.gz"))
    xyz = xyz - (xyz.min(0) + xyz.max(0)) / 2
    left = ~np.isin(chains, SMALL_SUBUNIT if name == "70S" else TRNA)
    if left.all():
        raise InputError(f"--pairs={name}: the model has none of the chains to leave out")
    whole = splat(xyz, electrons, _BOX.value, apix, normalise=False)
    part = splat(xyz[left], electrons[left], _BOX.value, apix, normalise=False)
    return np.stack([whole, part]) / whole.std(), apix


def posed(planted: Planted) -> classify.AlignedBand:
    """The particles in the frame of the maps, up to an error of the poses."""
    n = len(planted.classes)
    error = np.random.default_rng(SEED.value).normal(0, np.radians(_TURN.value), (n, 3))
    turn = Rotation.from_rotvec(error).as_matrix()
    rotation = (turn @ planted.truth.rotation[:, 0]).astype(np.float32)
    shift = np.einsum("nij,nj->ni", turn, planted.truth.shift[:, 0]).astype(np.float32)
    kmax = _BOX.value // 2 - 2
    return classify.align_band(planted.stack, planted.sampling, np.arange(n), rotation, shift, kmax)


def measure(name: str, maps: np.ndarray, apix: float, snr: float) -> dict:
    """One row."""
    planted = plant(maps, _N.value, snr, 1.5, apix=apix, seed=SEED.value)
    band, key = posed(planted), jax.random.key(SEED.value)
    kmax = _BOX.value // 2 - 2
    mean = fourier.from_ball(
        band.data.mean(0)[None], jnp.asarray(fourier.half_ball(kmax)), _BOX.value
    )
    space = pca.MaskedSpace(masks.automask(np.asarray(mean)[0]), kmax)
    blind = dataclasses.replace(band, weight=jnp.ones_like(band.weight))
    row: dict = {"pair": name, "snr": snr}

    def right(classes: np.ndarray) -> float:
        share = np.mean(classes == planted.classes)
        return max(share, 1 - share)

    for title, data, own in (
        ("aware_masked", band, space),
        ("aware", band, None),
        ("blind_masked", blind, space),
        ("blind", blind, None),
    ):
        begun = time.perf_counter()
        found = pca.fit(data, _NBASIS.value, key=key, space=own)
        row[title] = right(pca.kmeans(found.coordinates, 2, seed=SEED.value))
        row[f"{title}_s"] = time.perf_counter() - begun
    row["mixture"] = right(classify.split(band, 2, key=key).classes)
    return row


def main() -> None:
    """All pairs at all noise levels."""
    rows = []
    for name in _PAIRS.value:
        maps, apix = pair(name)
        rows += [measure(name, maps, apix, snr) for snr in numbers(_SNR.value)]
    report({"accuracy": rows})


if __name__ == "__main__":
    launch(main)
