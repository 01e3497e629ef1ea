# %% [markdown]
# # 4 References from nothing
#
# No map to start from. Two ways to a first one: a binary tree of pairs, and gradient descent from
# random poses. And the question that matters more: can it be trusted?

# %%
# %matplotlib inline
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from sptjax import generate, io, plots, resample, resolution, rotation, simulate, wedge
from sptjax._types import Pose
from sptjax.console import progress
from sptjax.particles import Sampling

# %% tags=["parameters"]
BOX, APIX, COUNT = 24, 16.0, 32

# %% [markdown]
# ## Particles

# %%
truth = simulate.phantom(BOX)
pose_key, noise_key = jax.random.split(jax.random.key(4))
poses = simulate.random_poses(pose_key, COUNT, max_shift_vox=1.5)
series = simulate.TiltSeries(-60, 60, 3, defocus_um=3.0, snr=2.0)
volumes = simulate.simulate(truth[None], np.zeros(COUNT, int), poses, APIX, series, noise_key)
path = pathlib.Path(tempfile.mkdtemp()) / "particles.hdf"
io.write_hdf(path, volumes, APIX)
stack = io.open_stack(path)
plots.central_slices(volumes[:3], APIX, [f"particle {i}" for i in range(3)])

# %% [markdown]
# ## What the particles say of themselves
#
# Noise fills the box, the signal its middle: from that come the radius of the particle and the
# signal to noise of every shell. Two particles are then compared by how much is known about each
# frequency.

# %%
sampling = Sampling(wedge.region(BOX, wedge.Wedge(-60, 60)))
material = generate.prepare(stack, sampling, APIX, progress=progress)
print(f"radius {material.radius_vox * APIX:.0f} angstrom")

# %% [markdown]
# ## A binary tree
#
# Pairs of particles are aligned and averaged, then pairs of these averages, and so on. Poses
# compose, and every average is built from its raw particles.

# %%
settings = generate.TreeSettings(search_vox=4.0, seeds=16)
tree = generate.binary_tree(material, material.usable, settings, keep_maps=True, progress=progress)
from_tree = generate.tree_reference(tree)
print(from_tree.note)
plots.central_slices(
    np.stack([volumes[tree.indices[0]], *(level.maps[0] for level in tree.levels[1:])]),
    APIX,
    ["1 particle", *(f"{2**k} particles" for k in range(1, len(tree.levels)))],
)

# %% [markdown]
# ## Gradient descent
#
# Starts from random poses. Every step aligns a batch of particles to the map as it is and moves the
# map towards them, in wider and wider bands. Two seeds run and are compared: maps that different
# seeds agree on are no accident.

# %%
descent = generate.generate_sgd(
    material,
    material.usable,
    generate.SgdSettings(seeds=2, steps=24, batch=16, search_vox=4.0),
    progress=progress,
)
print(
    f"mean scores {np.round(descent.score, 1)}, agreement {np.round(descent.agreement, 2)}:"
    f" {'the seeds agree' if descent.converged else 'NOT CONVERGED'}"
)
plots.central_slices(np.stack([run[0].map for run in descent.runs]), APIX, ["seed 0", "seed 1"])

# %% [markdown]
# Their FSC compares particles of even number in the best run with those of odd number in the other:
# they have no noise in common, so this curve cannot be fooled by noise.

# %%
frequency = np.arange(BOX // 2 + 1) / (BOX * APIX)
other = 1 - descent.best
curve = descent.fsc[other]
plots.fsc_curves(
    frequency[1:],
    {"seed against seed": curve[1:]},
    {"seed against seed": resolution.resolution_angstrom(curve, APIX)},
)

# %% [markdown]
# ## Against the truth
#
# A map made of particles alone lies in a frame of its own. The planted poses tell how to turn it:
# of the turns that single particles suggest, the one nearest to all others.


# %%
def in_planted_frame(made):
    """The map of a generator, moved to where the phantom lies, and the errors of its poses."""
    planted = np.asarray(poses.rotation)[made.indices]
    turns = np.einsum("pij,pkj->pik", made.rotation, planted)  # planted map to made map
    cosine = (np.einsum("pij,qij->pq", turns, turns) - 1) / 2
    turn = turns[np.median(cosine, 1).argmax()]
    shift = np.median(made.shift - np.asarray(poses.shift)[made.indices] @ turn.T, 0)
    frame = Pose(jnp.asarray(turn, jnp.float32), jnp.asarray(shift, jnp.float32))
    back = resample.transform(jnp.asarray(made.map), rotation.invert(frame))
    error = np.asarray(rotation.angle_deg(jnp.asarray(turn @ planted), jnp.asarray(made.rotation)))
    return np.asarray(back), error


tree_map, tree_error = in_planted_frame(from_tree)
sgd_map, sgd_error = in_planted_frame(descent.maps[0])
plots.central_slices(
    np.stack([tree_map, sgd_map, truth]), APIX, ["binary tree", "gradient descent", "planted"]
)

# %%
figure = Figure(figsize=(5.5, 3.6), layout="constrained")
axes = figure.subplots()
for index, (name, error) in enumerate((("tree", tree_error), ("descent", sgd_error))):
    share = np.arange(1, len(error) + 1) / len(error)
    axes.step(np.sort(error), share, color=plots.OKABE_ITO[index], label=name, where="post")
axes.set(xlabel="error of the pose (degrees)", ylabel="share of the particles", xscale="log")
axes.set(xlim=(0.2, 180), ylim=(0, 1.02))
axes.legend(frameon=False)
figure

# %%
assert np.median(sgd_error) < 15
