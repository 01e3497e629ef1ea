# %% [markdown]
# # 3 Multi-reference refinement, step by step
#
# Particles of two kinds, in one stack, unlabelled. A few rounds sort them: align every particle to
# every class, put it into the class of its best score, average, filter, go on. This is what
# `sptjax refinemulti` does; here each step is in the open.

# %%
# %matplotlib inline
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np

from sptjax import fourier, io, plots, simulate, wedge
from sptjax.align import AlignmentSettings
from sptjax.averaging import Assigned
from sptjax.calibration import calibrate
from sptjax.console import progress
from sptjax.copies import Pipelines, load_copies
from sptjax.coverage import sampled
from sptjax.particles import Sampling
from sptjax.refinement import RefineSettings, refine_round
from sptjax.resolution import resolution_angstrom
from sptjax.state import converged, initial_state
from sptjax.symmetry import parse

# %% tags=["parameters"]
BOX, APIX, COUNT, ROUNDS = 24, 16.0, 48, 3

# %% [markdown]
# ## Particles
#
# The two kinds differ by the small lobe of the phantom: whole, or without it.

# %%
maps = np.stack([simulate.phantom(BOX, state) for state in (0, 1)])
planted = np.random.default_rng(1).permutation(np.arange(COUNT) % 2)
pose_key, noise_key = jax.random.split(jax.random.key(3))
poses = simulate.random_poses(pose_key, COUNT, max_shift_vox=2.0)
series = simulate.TiltSeries(-60, 60, 3, defocus_um=3.0, snr=1.0)
volumes = simulate.simulate(maps, planted, poses, APIX, series, noise_key)
path = pathlib.Path(tempfile.mkdtemp()) / "particles.hdf"
io.write_hdf(path, volumes, APIX)
stack = io.open_stack(path)
plots.central_slices(maps, APIX, ["planted 0", "planted 1"])

# %% [markdown]
# ## Start
#
# Both references are blurred to 120 angstrom: of the lobe little more than a shadow is left.

# %%
gain = jnp.asarray(np.arange(BOX // 2 + 1) <= BOX * APIX / 120, jnp.float32)
start = np.stack([np.asarray(fourier.radial_filter(jnp.asarray(m), gain)) for m in maps])
plots.central_slices(start, APIX, ["reference 0", "reference 1"])

# %% [markdown]
# Particles are read once, as Fourier coefficients; a pilot search on a few of them measures the
# noise and the contrast transfer.

# %%
sampling = Sampling(wedge.region(BOX, wedge.Wedge(-60, 60)))
copies = load_copies(stack, sampling, Pipelines(), APIX, progress=progress)
symmetries = (parse("c1"),) * 2
alignment = AlignmentSettings(search_vox=3, apix=APIX)
pilot = calibrate(copies.coarse.particles, start, symmetries, alignment, progress=progress)
print(f"a particle at its pose is expected to score {pilot.expected_score:.1f} sigma")

# %% [markdown]
# ## Rounds

# %%
settings = RefineSettings(alignment, symmetries, APIX, seed=0)
state = initial_state(
    pilot.references,
    COUNT,
    gold_standard=False,
    expected_score=pilot.expected_score,
    noise_share=pilot.noise_share,
)
history = []
for number in range(ROUNDS):
    before = state
    state = refine_round(state, copies, stack, sampling, settings, progress=progress)
    history.append(state)
    right = np.mean(state.classes == planted)
    print(
        f"round {number}: classes of {np.bincount(state.classes, minlength=2)}, {right:.0%} right,"
        f" mean score {state.score.max(1).mean():.1f}"
    )
    if converged(before, state, apix=APIX):
        break

# %%
assert right > 0.9

# %% [markdown]
# ## What came out
#
# The averages, and below them what was planted. The averages are unfiltered and show the contrast
# transfer of the microscope.

# %%
plots.central_slices(
    np.concatenate([state.maps, maps]), APIX, ["class 0", "class 1", "planted 0", "planted 1"]
)

# %% [markdown]
# Which class did particles move to from round to round, and how sure are they? A particle whose
# margin (best minus second-best score) is near zero could as well be in the other class.

# %%
plots.class_flow(np.stack([one.classes for one in history]))

# %%
plots.margins(state.margin, state.classes)

# %% [markdown]
# Resolution: even against odd particles of every class. Both halves share a reference here, which
# makes these curves optimistic; `classaverage` keeps them apart.

# %%
frequency = np.arange(BOX // 2 + 1) / (BOX * APIX)
curves = {f"class {c}": state.fsc[c, 0] for c in range(2)}
plots.fsc_curves(
    frequency[1:],
    {name: curve[1:] for name, curve in curves.items()},
    {name: resolution_angstrom(curve, APIX) for name, curve in curves.items()},
)

# %% [markdown]
# From where was every class seen, and what did its wedges leave unseen?

# %%
turns, shifts = state.pose
plots.viewing_directions([turns[state.classes == c][:, :, 2] for c in range(2)])

# %%
assigned = Assigned(np.arange(COUNT), turns, shifts, state.classes, np.ones(COUNT, np.float32))
plots.fourier_coverage(sampled(assigned, sampling, symmetries, BOX), APIX)
