# %% [markdown]
# # 1 Conventions and files
#
# What a pose means, which way an axis points, what a file holds. Everything else in sptjax, and in
# these notebooks, rests on this page.

# %%
# %matplotlib inline
import json
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np

from sptjax import io, plots, resample, resolution, rotation, simulate, tables
from sptjax._types import Pose

# %% tags=["parameters"]
BOX, APIX = 32, 10.0  # voxels, angstrom per voxel

# %%
folder = pathlib.Path(tempfile.mkdtemp())

# %% [markdown]
# ## Volumes
#
# A volume is an array indexed `[z, y, x]`; vectors are written (x, y, z). The centre of a box of n
# voxels is voxel n//2. Here is the built-in phantom, an asymmetric particle in the likeness of a
# ribosome. In a panel named *xz*, x points right and z up; the beam is z, the tilt axis y.

# %%
reference = simulate.phantom(BOX)
plots.central_slices(reference[None], APIX, ["phantom"])

# %% [markdown]
# ## Poses
#
# A pose maps **particle to reference**, `x_ref = R x + t`, both counted from the centre: it says
# how the particle must be moved to lie on the reference. This is EMAN2's `xform.align3d`. `t` is in
# voxels, and comes after the rotation.
#
# A particle at this pose therefore is the reference moved by the *inverse*:

# %%
angles = jnp.asarray([30.0, 70.0, -45.0])  # az, alt, phi in degrees
pose = Pose(rotation.from_euler(angles, rotation.Convention.EMAN), jnp.asarray([2.0, -3.0, 1.5]))
particle = resample.transform(jnp.asarray(reference), rotation.invert(pose))
back = resample.transform(particle, pose)
plots.central_slices(
    np.stack([reference, particle, back]), APIX, ["reference", "particle", "particle, moved back"]
)

# %% [markdown]
# The particle moved back is the reference but for the interpolation. How much that costs shows the
# Fourier shell correlation: 1 means nothing.

# %%
curve = np.asarray(resolution.fsc(jnp.asarray(reference), back))
frequency = np.arange(len(curve)) / (BOX * APIX)
plots.fsc_curves(frequency[1:], {"moved there and back": curve[1:]})

# %%
assert curve[1 : BOX // 2 - 1].min() > 0.95

# %% [markdown]
# ## One pose in many programs
#
# Programs differ in the axes that they turn about, in the direction that a pose points, and in
# where a shift applies. sptjax keeps matrices and knows the rest:

# %%
for convention in (
    rotation.Convention.EMAN,
    rotation.Convention.RELION,
    rotation.Convention.DYNAMO,
    rotation.Convention.QUATERNION,
):
    numbers = np.asarray(rotation.to_euler(pose.rotation, convention))
    named = ", ".join(f"{n} {v:.2f}" for n, v in zip(convention.value, numbers))
    print(f"{convention.name:10s} {named}")
relion_angles, relion_origin = rotation.pose_to_relion(pose)
print(f"RELION's origin, voxels: {np.round(relion_origin, 2)}")

# %% [markdown]
# The way there and back changes nothing that matters:

# %%
again = rotation.pose_from_relion(relion_angles, relion_origin)
print(f"{float(rotation.angle_deg(again.rotation, pose.rotation)):.1e} degrees")

# %% [markdown]
# ## Files
#
# Stacks are EMAN2's HDF; MRC, EM, TIFF and LST are read too. A stack is lazy: only what is asked
# for is read.

# %%
key = jax.random.key(0)
poses = simulate.random_poses(key, 6, max_shift_vox=2.0)
series = simulate.TiltSeries(-60, 60, 3, defocus_um=3.0, snr=2.0)
volumes = simulate.simulate(reference[None], np.zeros(6, int), poses, APIX, series, key)
io.write_hdf(folder / "particles.hdf", volumes, APIX)
stack = io.open_stack(folder / "particles.hdf")
print(f"{len(stack)} particles of {stack.box} voxels of {stack.apix:g} angstrom")

# %% [markdown]
# They are noisy, they have been multiplied by the contrast transfer of the microscope, and of their
# Fourier space a wedge is missing. That is what a sub-tomogram is. Summed along the beam (xy) it is
# an image; summed along x (yz) nearly nothing is left, because what such a sum shows lies in the
# wedge that no tilt has seen.

# %%
plots.projections(stack.read(np.arange(3)), APIX, ["particle 0", "particle 1", "particle 2"])

# %% [markdown]
# Poses go to EMAN2's JSON as matrices. There a smaller score is better, so that scores change sign
# on the way to that file, and only there: everywhere else in sptjax **larger is better**.

# %%
score = np.linspace(20, 10, 6)
matrices = np.asarray(rotation.pose_to_matrix34(poses))
io.write_alignments(folder / "sptali.json", matrices, -score)
print(json.dumps(json.loads((folder / "sptali.json").read_text())["subtomo_0"], indent=1))

# %% [markdown]
# Tables of RELION, Dynamo, STOPGAP, AV3 and PyTom are read into one record and written from it.

# %%
table = tables.read(folder / "sptali.json").at(APIX)
tables.write(folder / "particles.star", table, "relion4")
print((folder / "particles.star").read_text()[:900])

# %%
read = tables.read(folder / "particles.star")
np.testing.assert_allclose(read.rotation, matrices[:, :, :3], atol=2e-6)
np.testing.assert_allclose(read.shift, matrices[:, :, 3], atol=1e-4)
