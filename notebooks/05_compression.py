# %% [markdown]
# # 5 Compression
#
# Images from an electron microscope are mostly noise, and noise does not need 32 bits. How many it
# does need, and what the others cost, can be measured.

# %%
# %matplotlib inline
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np

from sptjax import fidelity, io, plots, resolution, simulate, wedge
from sptjax.averaging import Assigned, Averaging, average_classes
from sptjax.console import progress
from sptjax.particles import Sampling
from sptjax.symmetry import parse

# %% tags=["parameters"]
BOX, APIX, COUNT = 32, 12.0, 24

# %%
folder = pathlib.Path(tempfile.mkdtemp())

# %% [markdown]
# ## Sub-tomograms

# %%
truth = simulate.phantom(BOX)
pose_key, noise_key = jax.random.split(jax.random.key(5))
poses = simulate.random_poses(pose_key, COUNT, max_shift_vox=1.0)
series = simulate.TiltSeries(-60, 60, 3, defocus_um=3.0, snr=0.3)
volumes = simulate.simulate(truth[None], np.zeros(COUNT, int), poses, APIX, series, noise_key)
io.write_hdf(folder / "particles.hdf", volumes, APIX)

# %% [markdown]
# ## What a bit costs
#
# Every image is mapped onto integers of so many bits, which are then deflated. The error is that of
# rounding: half a step at most. Every further bit halves it, and adds almost a bit to every voxel.

# %%
BITS = list(range(2, 13))
images = list(volumes[:8])
costs = list(fidelity.tradeoffs(images, progress(BITS, "bits")))
for cost in costs[:5]:
    print(
        f"{cost.bits:2d} bits: {cost.ratio:5.1f} times smaller, error {cost.rms_sigma:.3f} sigma"
        f" (worst {cost.worst_sigma:.2f})"
    )

# %% [markdown]
# ## A file of five bits

# %%
settings = io.Compression(bits=5, no_outliers=True)
outcome = io.compress_file(
    folder / "particles.hdf", folder / "compressed.hdf", settings, verify=True, measure=True
)
restored = io.open_stack(folder / "compressed.hdf").read(np.arange(COUNT))
print(
    f"{outcome.bytes_in} bytes became {outcome.bytes_out}, {outcome.outside} of"
    f" {outcome.values} values were cut off, error {outcome.rms_sigma:.3f} sigma"
)
plots.compression(
    BITS,
    [cost.ratio for cost in costs],
    {
        "worst error": [cost.worst_sigma for cost in costs],
        "root mean square": [cost.rms_sigma for cost in costs],
    },
    fidelity.correlation(list(volumes), list(restored)),
    chosen=5,
)

# %% [markdown]
# By eye there is no difference. The third row is the difference itself, with grey values stretched
# to its own range: noise, without a trace of the particle.

# %%
plots.central_slices(
    np.stack([volumes[0], restored[0], restored[0] - volumes[0]]),
    APIX,
    ["32 bits", "5 bits", "difference"],
)

# %% [markdown]
# ## What it does to an average
#
# The rounding of one particle has nothing to do with that of another: it averages out like noise,
# of which there is far more. Here the particles are averaged at the poses that were planted, from
# files of fewer and fewer bits.

# %%
sampling = Sampling(wedge.region(BOX, wedge.Wedge(-60, 60)))
assigned = Assigned(
    np.arange(COUNT),
    np.asarray(poses.rotation),
    np.asarray(poses.shift),
    np.zeros(COUNT, int),
    np.ones(COUNT, np.float32),
)


def averaged(path):
    """The average of a file, and the FSC of its even and odd particles."""
    stack, symmetry = io.open_stack(path), (parse("c1"),)
    made = average_classes(stack, sampling, assigned, symmetry, Averaging(), APIX)
    even, odd = made.halves()[0]
    return np.asarray(made.merged()[0]), np.asarray(resolution.fsc(even, odd))


averages, curves = {}, {}
for bits in progress([32, 5, 3, 2], "files"):
    name, label = folder / f"bits{bits}.hdf", f"{bits} bits"
    kept = io.Compression(bits=-1 if bits == 32 else bits, no_outliers=bits != 32)
    io.compress_file(folder / "particles.hdf", name, kept)
    averages[label], curves[label] = averaged(name)
plots.central_slices(np.stack(list(averages.values())), APIX, list(averages))

# %% [markdown]
# Even against odd particles: five bits are as good as thirty-two, three almost. With two, every
# shell loses.

# %%
frequency = np.arange(BOX // 2 + 1) / (BOX * APIX)
plots.fsc_curves(
    frequency[1:],
    {name: curve[1:] for name, curve in curves.items()},
    {name: resolution.resolution_angstrom(curve, APIX) for name, curve in curves.items()},
)

# %%
same = resolution.fsc(jnp.asarray(averages["32 bits"]), jnp.asarray(averages["5 bits"]))
assert np.asarray(same)[1:-1].min() > 0.98
