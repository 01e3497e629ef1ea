# %% [markdown]
# # 6 Gradients: build on the library
#
# Everything between a map and a score is a JAX function of arrays. `jax.grad` differentiates it,
# `jax.vmap` runs it for many particles at once, and any optimiser can drive it. Three examples:
# the tilt range from the power of the particles, the pose of a particle, a map from nothing.
#
# `pip install '.[notebooks]'` brings the optimisers, `optax` and `optimistix`.

# %%
# %matplotlib inline
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optimistix
from jax.scipy.special import ndtr
from matplotlib.figure import Figure

from sptjax import average, fourier, plots, resample, resolution, rotation, simulate, wedge
from sptjax.align import refine_pose
from sptjax.console import progress
from sptjax.score import Observations, observe, score, slice_reference

# %% tags=["parameters"]
BOX, APIX, COUNT, STEPS = 32, 12.0, 96, 150

# %% [markdown]
# ## Particles
#
# White noise and a missing wedge that is not symmetric: tilts from -48 to 63 degrees. The half
# ball of Fourier coefficients up to `KMAX` is what all three examples see.

# %%
KMAX = BOX // 2 - 2
TILTS = simulate.TiltSeries(-48, 63, 3, defocus_um=0, snr=6.0)
truth = jnp.asarray(simulate.phantom(BOX))
pose_key, noise_key = jax.random.split(jax.random.key(6))
planted = simulate.random_poses(pose_key, COUNT, max_shift_vox=2.0)
same = jnp.zeros(COUNT, jnp.int32)
volumes = simulate.white_wedge_particles(truth[None], same, planted, TILTS, noise_key)
ball = fourier.half_ball(KMAX)
coefficients = fourier.ball_coefficients(volumes, jnp.asarray(ball))
vectors = jnp.asarray(ball, jnp.float32)
plots.central_slices(np.asarray(volumes[:2]), APIX, ["particle 0", "particle 1"])

# %% [markdown]
# ## A tilt range by gradient
#
# Power is high where the tilts have sampled and low elsewhere. The model of it has two numbers, the
# limits; a tenth is left in the wedge, and the level at every `|k|` is that of the data. The power
# of a coefficient scatters exponentially about its mean `m`, so minus the log-likelihood is the sum
# of `log m + power / m`. Sharp limits have no gradient: they are soft, first much, then less.

# %%
power = (np.abs(coefficients) ** 2).mean(0)
direction = np.degrees(np.arctan2(ball[:, 2], ball[:, 0])).astype(np.float32)
shell = np.round(np.linalg.norm(ball, axis=1)).astype(np.int32)


def sampled(limits, softness=1.0):
    """Share of the full power that the model expects at every frequency; all in degrees."""
    rise, fall = (direction - limits[0]) / softness, (limits[1] - direction) / softness
    return 0.1 + 0.9 * ndtr(rise) * ndtr(fall)


def surprise(limits, softness):
    """Minus the log-likelihood of the mean power, per frequency."""
    share = sampled(limits, softness)
    total, number = (
        jax.ops.segment_sum(x, shell, KMAX + 1) for x in (power / share, jnp.ones_like(power))
    )
    mean = share * (total / jnp.maximum(number, 1.0))[shell]
    return jnp.mean(jnp.log(mean) + power / mean)


def descend(loss, start, steps, rate, title):
    """The end of a gradient descent (Adam, falling rate), and the loss along it."""
    adam = optax.adam(optax.cosine_decay_schedule(rate, steps))

    @jax.jit
    def step(guess, memory):
        value, slope = jax.value_and_grad(loss)(guess)
        change, memory = adam.update(slope, memory)
        return optax.apply_updates(guess, change), memory, value

    guess, memory, along = start, adam.init(start), []
    for _ in progress(range(steps), title):
        guess, memory, value = step(guess, memory)
        along.append(float(value))
    return guess, along


tilt_range = jnp.array([-30.0, 30.0])
for softness in (4.0, 1.0):
    tilt_range, _ = descend(partial(surprise, softness=softness), tilt_range, 60, 2.0, "limits")
tilt_range = np.asarray(tilt_range)
print(f"tilts {tilt_range[0]:.1f} to {tilt_range[1]:.1f} degrees; planted were -48 to 63")

# %%
level = power / np.bincount(shell, power)[shell]
bins = np.arange(-90, 91, 4)
place = np.digitize(direction, bins) - 1
outer = shell > KMAX // 3  # where directions are fine enough
figure = Figure(figsize=(6.5, 3.4), layout="constrained")
axes = figure.subplots()
for values, name, color in ((level, "particles", 0), (sampled(tilt_range), "fitted model", 1)):
    inside = [np.asarray(values)[(place == b) & outer] for b in range(len(bins) - 1)]
    means = np.array([x.mean() if len(x) else np.nan for x in inside])
    there = np.isfinite(means)  # some directions have no point of the grid
    relative = means[there] / np.percentile(means[there], 75)
    axes.plot(bins[:-1][there] + 2, relative, color=plots.OKABE_ITO[color], label=name)
for limit in (TILTS.min_deg, TILTS.max_deg):
    axes.axvline(limit, color="0.5", linestyle=":", label="planted" if limit < 0 else None)
axes.set(xlabel="angle about the tilt axis (degrees)", ylabel="mean power (relative)")
axes.set(xlim=(-90, 90), ylim=(0, None), title="Tilt range fitted by gradient")
axes.legend(frameon=False)
figure

# %% [markdown]
# The library's own estimate is a search without gradients: `wedge.estimate`. From here on the
# fitted range is what the examples use; the noise is white, so one number is its power.

# %%
region = wedge.region(BOX, wedge.Wedge(*tilt_range.round().tolist()))
sampling = fourier.ball_samples(jnp.asarray(region)[None], jnp.asarray(ball))
high = (shell == KMAX) & np.asarray(sampling[0] > 0)
noise = jnp.full(len(ball), float(power[high].mean()))
particles = observe(coefficients * sampling, sampling, noise)

# %% [markdown]
# ## A pose by gradient
#
# A pose is six numbers: a rotation vector (radians), applied to a start, and the position of the
# reference's centre in the particle (voxels). Of the residual between particle and reference at its
# best scale, the sum of squares is a constant minus half the squared score, so least squares climb
# the score. Levenberg-Marquardt comes from `optimistix`; the derivatives are JAX's.

# %%
table = jax.jit(resample.slice_table, static_argnums=1)(truth, KMAX)
away = np.random.default_rng(6).choice([-0.12, 0.12], (COUNT, 3))  # radians: 12 degrees
starts = rotation.exp(jnp.asarray(away, jnp.float32)) @ planted.rotation


def moved(step, first):
    """Rotation and position after a step of six numbers from a first rotation."""
    return rotation.exp(step[:3]) @ first, step[3:]


def residual(step, observed):
    """Particle minus the reference at its best scale, real and imaginary parts in a row."""
    data, weight, first = observed
    model = weight * slice_reference(table, vectors, *moved(step, first), BOX)
    scale = jnp.vdot(model, data).real / jnp.vdot(model, model).real
    rest = data - scale.astype(data.dtype) * model
    return jnp.concatenate([rest.real, rest.imag])


LM = optimistix.LevenbergMarquardt(rtol=1e-4, atol=1e-4)


def fit_pose(data, weight, first):
    """Rotation and position of one particle, by Levenberg-Marquardt."""
    observed = (data, weight.astype(data.dtype), first)
    found = optimistix.least_squares(residual, LM, jnp.zeros(6), observed, throw=False)
    return moved(found.value, first)


def fit_pose_here(data, weight, first):
    """The same by the library, whose derivatives are written out."""
    parts = jnp.stack([data.real, data.imag])
    return refine_pose(table, parts, weight, vectors.T, first, jnp.zeros(3), box=BOX, steps=12)[:2]


# %% [markdown]
# Each is a function of one particle; `jax.vmap` makes it one of all of them.

# %%
weights = jnp.broadcast_to(particles.weight, particles.data.shape)
fits = {"Levenberg-Marquardt": fit_pose, "sptjax": fit_pose_here}
errors_deg = {"start": np.asarray(rotation.angle_deg(starts, planted.rotation))}
poses = {}
for name, fit in progress(fits.items(), "poses"):
    poses[name] = jax.jit(jax.vmap(fit))(particles.data, weights, starts)
    errors_deg[name] = np.asarray(rotation.angle_deg(poses[name][0], planted.rotation))
for name, error in errors_deg.items():
    print(f"{name:20s} median error {np.median(error):5.2f} degrees, worst {error.max():5.2f}")

# %%
figure = Figure(figsize=(6.5, 3.4), layout="constrained")
axes = figure.subplots()
for index, (name, error) in enumerate(errors_deg.items()):
    share = (np.arange(COUNT) + 1) / COUNT
    style = {"color": plots.OKABE_ITO[index], "linestyle": ("-", "-", "--")[index]}
    axes.step(np.sort(error), share, where="post", label=name, **style)
axes.set(xscale="log", xlabel="error of the rotation (degrees)", ylabel="share of the particles")
axes.set(ylim=(0, 1.02), title="Poses before and after refinement")
axes.legend(frameon=False)
figure

# %% [markdown]
# ## A map by gradient
#
# The same score as a function of the map. From a formless blob and the poses just found, every
# voxel moves so that half the squared scores, the log-likelihood ratios, grow.

# %%
turns, positions = poses["Levenberg-Marquardt"]


def minus_likelihood(volume):
    """Minus the mean log-likelihood ratio of all particles."""
    drawn = resample.slice_table(volume, KMAX)

    def one(data, weight, turn, position):
        observation = Observations(data[None], weight[None])
        return 0.5 * score(drawn, observation, vectors, turn, position, BOX) ** 2

    return -jax.vmap(one)(particles.data, weights, turns, positions).mean()


z, y, x = np.indices((BOX,) * 3) - BOX // 2
blob = jnp.asarray(np.exp(-(x**2 + y**2 + z**2) / (2 * (0.15 * BOX) ** 2)), jnp.float32)
learned, losses = descend(minus_likelihood, blob, STEPS, 0.05, "map")
seen = fourier.ball_coefficients(learned[None], jnp.asarray(ball))
learned = fourier.from_ball(seen, jnp.asarray(ball), BOX)[0]  # nobody has asked for the rest

# %% [markdown]
# There is an answer in closed form: the average of the particles at these poses.

# %%
pose = simulate.Pose(turns, -jnp.einsum("nij,nj->ni", turns, positions))
sums = average.add(average.empty(BOX), volumes, pose, same, None, jnp.asarray(region))
averaged = average.finish(sums)[0]
curves = {
    "learned by gradient": np.asarray(resolution.fsc(learned, truth)),
    "average": np.asarray(resolution.fsc(averaged, truth)),
    "start": np.asarray(resolution.fsc(blob, truth)),
}
frequency = np.arange(1, KMAX + 1) / (BOX * APIX)
plots.fsc_curves(frequency, {name: curve[1 : KMAX + 1] for name, curve in curves.items()})

# %%
shown = [np.asarray(v / v.max()) for v in (truth, blob, learned, averaged)]
plots.central_slices(np.stack(shown), APIX, ["truth", "start", "learned", "average"])

# %%
figure = Figure(figsize=(6.5, 3.2), layout="constrained")
axes = figure.subplots()
axes.plot(-np.array(losses), color=plots.OKABE_ITO[0])
axes.set(xlabel="step", ylabel="mean log-likelihood ratio", title="Learning the map")
figure
