# %% [markdown]
# # 2 One particle: wedge, score, landscape
#
# A single particle is aligned to a reference. What does the search see, how sharp is its answer,
# and what does the missing wedge do to it?

# %%
# %matplotlib inline
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from sptjax import io, plots, resample, rotation, score, simulate, wedge
from sptjax.align import AlignmentSettings, View, align_particles
from sptjax.calibration import calibrate
from sptjax.comparators import Matched
from sptjax.console import progress
from sptjax.particles import Sampling, load_particles
from sptjax.symmetry import parse
from sptjax.uncertainty import pose_table

# %% tags=["parameters"]
BOX, APIX, COUNT = 32, 12.0, 24

# %% [markdown]
# ## Particles
#
# A tilt series from -60 to 60 degrees, three degrees apart, with contrast transfer and noise.

# %%
reference = simulate.phantom(BOX)
pose_key, noise_key = jax.random.split(jax.random.key(2))
planted = simulate.random_poses(pose_key, COUNT, max_shift_vox=2.0)
series = simulate.TiltSeries(-60, 60, 3, defocus_um=3.0, snr=1.0)
volumes = simulate.simulate(reference[None], np.zeros(COUNT, int), planted, APIX, series, noise_key)
path = pathlib.Path(tempfile.mkdtemp()) / "particles.hdf"
io.write_hdf(path, volumes, APIX)
stack = io.open_stack(path)
plots.central_slices(volumes[:2], APIX, ["particle 0", "particle 1"])

# %% [markdown]
# ## The missing wedge
#
# It need not be known: the mean power of the stack shows it. Noise fills what the tilts have
# sampled, and nothing else does.

# %%
total = None
for first in progress(range(0, COUNT, 8), "power"):
    total = wedge.accumulate_power(total, stack.read(np.arange(first, min(first + 8, COUNT))))
found = wedge.estimate(wedge.to_centred(total, BOX))
print(found.wedge.describe() if found.wedge else "no wedge")

# %%
figure = Figure(figsize=(6, 3.2), layout="constrained")
axes = figure.subplots()
axes.plot(found.angles_deg, found.power, color=plots.OKABE_ITO[0])
axes.axvspan(found.wedge.min_deg, found.wedge.max_deg, color=plots.OKABE_ITO[1], alpha=0.2)
axes.set(xlabel="angle about the tilt axis (degrees)", ylabel="mean power (relative)")
axes.set(xlim=(-90, 90), ylim=(0, None), title="Sampled (shaded) and missing directions")
figure

# %% [markdown]
# ## Alignment
#
# Particles are read once; what is kept are their Fourier coefficients, with the wedge as a weight.
# A pilot search tells how much of the power is noise and what contrast transfer the particles have
# seen; its transfer is given to the reference.

# %%
sampling = Sampling(wedge.region(BOX, found.wedge))
particles = load_particles(stack, sampling, BOX // 2 - 2, progress=progress)
symmetry = (parse("c1"),)
settings = AlignmentSettings(search_vox=4, apix=APIX, peaks=3, save_peaks=True)
pilot = calibrate(particles, reference[None], symmetry, settings, progress=progress)
particles = particles.with_noise_share(pilot.noise_share)
print(f"a particle at its pose is expected to score {pilot.expected_score:.1f} sigma")

# %% [markdown]
# Scores are those of a matched filter, in standard deviations of the noise. The search covers all
# orientations coarsely in a low band, keeps the best distinct ones, and refines them in wider and
# wider bands.

# %%
best = align_particles(
    particles,
    np.arange(COUNT),
    pilot.references,
    symmetry,
    settings,
    expected_score=pilot.expected_score,
    progress=progress,
)
error_deg = np.asarray(rotation.angle_deg(jnp.asarray(best.rotation[:, 0]), planted.rotation))
print(f"median error {np.median(error_deg):.2f} degrees, worst {error_deg.max():.1f} degrees")

# %%
assert np.median(error_deg) < 4

# %% [markdown]
# All scores: the best poses of the search, the planted ones, and random ones. A particle whose
# best score is no higher than chance would be a particle whose pose is not known.

# %%
KMAX = BOX // 2 - 2
vectors = jnp.asarray(particles.vectors, jnp.float32)
table = resample.slice_table(jnp.asarray(pilot.references[0]), KMAX)


@jax.jit
def scores_at(observation, turns, shifts):
    """Scores of one particle at many poses."""
    one = lambda r, t: score.score(table, observation, vectors, r, -r.T @ t, BOX)  # noqa: E731
    return jax.lax.map(lambda p: one(*p), (turns, shifts), batch_size=64)


def observed(index):
    """One whitened particle."""
    return particles.observations(np.array([index]), Matched())


random = simulate.random_poses(jax.random.key(5), 400, max_shift_vox=4.0)
by_chance = np.asarray(scores_at(observed(0), random.rotation, random.shift))
right = [
    float(scores_at(observed(i), planted.rotation[i : i + 1], planted.shift[i : i + 1])[0])
    for i in progress(range(COUNT), "planted poses")
]
plots.score_histogram(
    [best.score[:, 0], np.array(right), by_chance], ["search", "planted", "random poses"]
)

# %% [markdown]
# ## The landscape
#
# How does the score of one particle change as it is turned away from its pose? About each of the
# three axes of the particle, and over all pairs of turns about x and z:

# %%
INDEX = 0
turn, shift = jnp.asarray(best.rotation[INDEX, 0]), jnp.asarray(best.shift[INDEX, 0])
observation = observed(INDEX)
degrees = np.linspace(-60, 60, 61)


def turned(vectors_deg):
    """The pose turned by rotation vectors (degrees) in the particle's frame, about its centre."""
    step = rotation.exp(jnp.asarray(np.radians(vectors_deg), jnp.float32))
    turns = turn @ jnp.swapaxes(step, -1, -2)
    position = -turn.T @ shift  # of the reference's centre in the particle
    return turns, -turns @ position


figure = Figure(figsize=(10.5, 4), layout="constrained")
left, right_panel = figure.subplots(1, 2)
for axis, name in enumerate("xyz"):
    around = np.zeros((len(degrees), 3))
    around[:, axis] = degrees
    values = np.asarray(scores_at(observation, *turned(around)))
    left.plot(degrees, values, color=plots.OKABE_ITO[axis], label=f"about {name}")
left.axhline(by_chance.max(), color="0.5", linestyle=":", label="best of 400 random poses")
left.set(xlabel="turn (degrees)", ylabel="score (sigma)")
left.legend(frameon=False, fontsize=9)
wide = np.linspace(-60, 60, 41)
x, z = np.meshgrid(wide, wide)
pairs = np.stack([x.ravel(), np.zeros(x.size), z.ravel()], 1)
surface = np.asarray(scores_at(observation, *turned(pairs))).reshape(x.shape)
image = right_panel.pcolormesh(wide, wide, surface, cmap="cividis", shading="gouraud")
right_panel.contour(wide, wide, surface, levels=8, colors="white", linewidths=0.6)
right_panel.set(xlabel="turn about x (degrees)", ylabel="turn about z (degrees)", aspect="equal")
figure.colorbar(image, ax=right_panel, label="score (sigma)")
figure

# %% [markdown]
# ## Error bars
#
# Half the square of a score is a log-likelihood ratio. Its curvature at the maximum tells how far
# the noise can move the pose; its other maxima, how probable it is that another pose is right.

# %%
known = pose_table(
    View(particles, pilot.references),
    np.arange(COUNT),
    best,
    symmetry,
    settings,
    expected_score=pilot.expected_score,
    modes=3,
    progress=progress,
)
variance = np.diagonal(known.covariance[:, 0], axis1=1, axis2=2)
bar_deg = np.sqrt(variance[:, :3].sum(1))
bar_vox = np.sqrt(variance[:, 3:].sum(1))
print(f"error bars: median {np.median(bar_deg):.2f} degrees, {np.median(bar_vox):.3f} voxels")
print(f"the best pose is the right one: probability {known.probability[:, 0].min():.3f} at least")

# %% [markdown]
# Here the truth is known, and so are the errors. Most should be no larger than about twice their
# error bar.

# %%
places = [
    -np.einsum("nji,nj->ni", np.asarray(r), np.asarray(t))
    for r, t in ((known.rotation[:, 0], known.shift[:, 0]), (planted.rotation, planted.shift))
]
found_deg = np.asarray(rotation.angle_deg(jnp.asarray(known.rotation[:, 0]), planted.rotation))
found_vox = np.linalg.norm(places[0] - places[1], axis=1)
figure = Figure(figsize=(9, 4), layout="constrained")
both = zip(figure.subplots(1, 2), (bar_deg, bar_vox), (found_deg, found_vox), ("degrees", "voxels"))
for index, (axes, bar, error, unit) in enumerate(both):
    top = 1.1 * max(bar.max(), error.max())
    axes.scatter(bar, error, color=plots.OKABE_ITO[index], s=18)
    axes.plot([0, top], [0, top], color="0.6", linestyle=":", label="as large as the error bar")
    axes.set(xlabel=f"error bar ({unit})", ylabel=f"error ({unit})", xlim=(0, top), ylim=(0, top))
    axes.legend(frameon=False)
figure

# %%
assert np.mean(found_deg < 2 * bar_deg) > 0.8
