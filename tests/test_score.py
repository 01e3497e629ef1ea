"""The score against float64 sums, its noise counted, its derivatives by differences."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import score as oracle

from sptjax import fourier, resample, rotation, simulate
from sptjax._types import Pose
from sptjax.align._refine import local_model, split_observation
from sptjax.score import Observations, observe, score, slice_reference

BOX, KMAX = 24, 9
VECTORS = fourier.half_ball(KMAX)
WAVE = jnp.asarray(VECTORS, jnp.float32)
SHIFT = jnp.asarray([1.2, -2.4, 0.7], jnp.float32)
TURN = rotation.random(jax.random.key(5), 1)[0]


@pytest.fixture(scope="module")
def reference():
    return jnp.asarray(simulate.phantom(BOX))


@eqx.filter_jit
def table_of(reference, order):
    return resample.slice_table(reference, KMAX, order)


scored = eqx.filter_jit(score)


def samplings():
    """The wedge of -60 to 60 degrees, and a smooth weight like a sum of CTF^2 inside it."""
    region = simulate.sampled_region(BOX, simulate.TiltSeries())[None]
    wedge = np.asarray(fourier.ball_samples(jnp.asarray(region), jnp.asarray(VECTORS)))
    radius = np.linalg.norm(VECTORS, axis=1)
    return {"binary": wedge, "soft": (wedge * (20 * np.sin(0.5 * radius) ** 2 + 0.5)).astype("f4")}


def noises(rng):
    """Per frequency: one power for all, and one that differs everywhere."""
    coloured = 60 * np.exp(rng.normal(size=len(VECTORS)) - 0.2 * np.abs(VECTORS[:, 2]))
    return {"white": np.full(len(VECTORS), 50.0, np.float32), "coloured": coloured.astype("f4")}


def draw(rng, sampling, noise, count):
    """Coefficients of pure noise of power ``noise * sampling``, half of it in the real part."""
    parts = rng.normal(size=(2, count, len(VECTORS))).astype("f4")
    return (parts[0] + 1j * parts[1]) * np.sqrt(0.5 * noise * sampling)


# ---------------------------------------------------------------- definition


@pytest.mark.parametrize("kind", ["binary", "soft"])
def test_matched_score_is_the_sum_of_its_definition(reference, kind, rng):
    sampling, noise = samplings()[kind], noises(rng)["coloured"]
    signal = sampling * oracle.model(reference, VECTORS, TURN, SHIFT)
    data = (signal + draw(rng, sampling, noise, 1)).astype("c8")
    seen = observe(jnp.asarray(data), jnp.asarray(sampling), jnp.asarray(noise))
    table = table_of(reference, 2)
    turns = [TURN, *rotation.random(jax.random.key(1), 3)]
    for turn in turns:
        got = scored(table, seen, WAVE, turn, SHIFT, BOX)
        want = oracle.matched(reference, data[0], sampling[0], noise, VECTORS, turn, SHIFT)
        assert float(got) == pytest.approx(want, rel=2e-3, abs=1e-2)  # quadratic slicing: 1.4e-3


def test_ccc_is_the_correlation_of_the_sampled_part(reference, rng):
    sampling, noise = samplings()["binary"], noises(rng)["white"]
    signal = sampling * oracle.model(reference, VECTORS, TURN, SHIFT)
    data = (signal + draw(rng, sampling, noise, 1)).astype("c8")
    ones = jnp.ones(len(VECTORS), jnp.float32)

    def ccc(coefficients):
        given = jnp.asarray(coefficients, jnp.complex64)
        seen = observe(given, jnp.asarray(sampling), ones, unit_norm=True)
        return float(scored(table_of(reference, 2), seen, WAVE, TURN, SHIFT, BOX))

    want = oracle.ccc(reference, data[0], sampling[0], VECTORS, TURN, SHIFT)
    assert ccc(data) == pytest.approx(float(want), abs=1e-3)
    assert ccc(37 * data) == pytest.approx(float(want), abs=1e-3)
    assert ccc(signal) == pytest.approx(1, abs=1e-4)


def test_particle_frame_shift_and_rotation_are_those_of_the_pose(reference):
    """A particle made by moving the reference back scores 1 there, and less all around."""
    shift = jnp.asarray([2.0, -1.0, 1.5], jnp.float32)
    pose = Pose(TURN, shift)
    particle = jax.jit(resample.transform)(reference, rotation.invert(pose))
    data = fourier.ball_coefficients(particle[None], jnp.asarray(VECTORS))
    ones = jnp.ones((1, len(VECTORS)), jnp.float32)
    seen = observe(data, ones, ones[0], unit_norm=True)
    table = table_of(reference, 2)
    best = float(scored(table, seen, WAVE, TURN, -TURN.T @ shift, BOX))
    assert best == pytest.approx(1, abs=1e-4)
    for axis in np.concatenate([np.eye(3), -np.eye(3)]):
        turned = rotation.exp(jnp.asarray(0.1 * axis, jnp.float32)) @ TURN
        moved = shift + jnp.asarray(0.5 * axis, jnp.float32)
        assert float(scored(table, seen, WAVE, turned, -turned.T @ shift, BOX)) < 0.995
        assert float(scored(table, seen, WAVE, TURN, -TURN.T @ moved, BOX)) < 0.995


def test_rows_of_sampling_belong_to_their_particles(reference, rng):
    """Per-particle wedges give what every particle gives alone."""
    sampling = samplings()["soft"] * (rng.uniform(size=(3, len(VECTORS))) > 0.3)
    noise = noises(rng)["white"]
    data = jnp.asarray(draw(rng, sampling, noise, 3), jnp.complex64)
    together = observe(data, jnp.asarray(sampling, jnp.float32), jnp.asarray(noise))
    table = table_of(reference, 2)
    for i in range(3):
        row = Observations(together.data[i : i + 1], together.weight[i : i + 1])
        got = scored(table, row, WAVE, TURN, SHIFT, BOX)
        want = oracle.matched(
            reference, np.asarray(data)[i], sampling[i], noise, VECTORS, TURN, SHIFT
        )
        assert float(got) == pytest.approx(want, abs=1e-2)


@pytest.mark.parametrize("unit_norm", [False, True])
def test_what_lies_outside_the_wedge_does_not_count(reference, unit_norm, rng):
    sampling, noise = samplings()["soft"], noises(rng)["coloured"]
    data = draw(rng, sampling, noise, 1)
    table, values = table_of(reference, 2), []
    for extra in (0.0, 1e4):
        outside = extra * rng.normal(size=data.shape) * (sampling == 0)
        seen = observe(
            jnp.asarray(data + outside, jnp.complex64),
            jnp.asarray(sampling),
            jnp.asarray(np.where(sampling[0] == 0, 1 + extra, noise), jnp.float32),
            unit_norm=unit_norm,
        )
        values.append(float(scored(table, seen, WAVE, TURN, SHIFT, BOX)))
    assert values[0] == values[1]


def test_frequencies_of_infinite_noise_do_not_count(reference, rng):
    """A band of a correlation: the oracle over the frequencies that are left."""
    sampling, noise = samplings()["soft"], noises(rng)["coloured"]
    data = draw(rng, sampling, noise, 1).astype("c8")
    inside = np.linalg.norm(VECTORS, axis=1) < 6
    power = jnp.asarray(np.where(inside, noise, np.inf), jnp.float32)
    seen = observe(jnp.asarray(data), jnp.asarray(sampling), power)
    got = scored(table_of(reference, 2), seen, WAVE, TURN, SHIFT, BOX)
    rest = (data[0, inside], sampling[0, inside], noise[inside], VECTORS[inside])
    assert float(got) == pytest.approx(oracle.matched(reference, *rest, TURN, SHIFT), abs=1e-2)


# ---------------------------------------------------------------- noise


@eqx.filter_jit
def noise_scores(table, seen, turns):
    """Scores ``[poses, particles]`` for observations with one row of weights."""

    def one(turn, data):
        row = Observations(data[None], seen.weight)
        return score(table, row, WAVE, turn, SHIFT, BOX)

    return jax.vmap(lambda t: jax.vmap(lambda d: one(t, d))(seen.data))(turns)


@pytest.mark.parametrize("colour", ["white", "coloured"])
@pytest.mark.parametrize("kind", ["binary", "soft"])
def test_noise_of_the_score_has_unit_variance_at_every_pose(reference, kind, colour, rng):
    count, poses = 1200, 4
    sampling, noise = samplings()[kind], noises(rng)[colour]
    data = jnp.asarray(draw(rng, sampling, noise, count), jnp.complex64)
    seen = observe(data, jnp.asarray(sampling), jnp.asarray(noise))
    turns = rotation.random(jax.random.key(9), poses)
    values = np.asarray(noise_scores(table_of(reference, 1), seen, turns))
    # 4.5 standard errors: of a mean 1/sqrt(n), of a variance sqrt(2/n)
    assert np.abs(values.mean(1)).max() < 4.5 / np.sqrt(count)
    assert np.abs(values.var(1) - 1).max() < 4.5 * np.sqrt(2 / count)


def test_noise_of_volumes_counts_standard_deviations(reference, rng):
    """White noise of deviation s in the voxels has power ``s^2 n^3`` at every frequency."""
    count, sigma = 300, 0.7
    volumes = sigma * rng.normal(size=(count, BOX, BOX, BOX))
    data = fourier.ball_coefficients(jnp.asarray(volumes, jnp.float32), jnp.asarray(VECTORS))
    sampling = samplings()["binary"]
    power = jnp.full(len(VECTORS), sigma**2 * BOX**3, jnp.float32)
    seen = observe(data * jnp.asarray(sampling, jnp.complex64), jnp.asarray(sampling), power)
    turns = rotation.random(jax.random.key(10), 4)
    values = np.asarray(noise_scores(table_of(reference, 1), seen, turns))
    assert np.abs(values.var(1) - 1).max() < 4.5 * np.sqrt(2 / count)


# ---------------------------------------------------------------- derivatives


@pytest.fixture(scope="module")
def problem(reference):
    """A noisy particle at a pose near, but not at, the best one."""
    rng = np.random.default_rng(3)
    sampling, noise = samplings()["soft"], noises(rng)["coloured"]
    signal = sampling * oracle.model(reference, VECTORS, TURN, SHIFT)
    data = jnp.asarray(signal + draw(rng, sampling, noise, 1), jnp.complex64)
    turn = rotation.exp(jnp.asarray([0.08, -0.05, 0.06], jnp.float32)) @ TURN
    shift = SHIFT + jnp.asarray([0.4, 0.3, -0.5], jnp.float32)

    @jax.jit
    def value(tangent, move, volume, weights):
        seen = observe(data, weights, jnp.asarray(noise))
        table = resample.slice_table(volume, KMAX, 2)
        return score(table, seen, WAVE, rotation.exp(tangent) @ turn, move, BOX)

    point = (jnp.zeros(3, jnp.float32), shift, reference, jnp.asarray(sampling))
    gradient = jax.jit(jax.grad(value, argnums=(0, 1, 2, 3)))(*point)
    return value, point, gradient


# In float32 a score of about 15 carries a rounding error of some 1e-5, so a difference over a
# step of 2 h is good to 5e-6 / h. The steps make the score change by about 0.1, which keeps
# that below 1e-3 of the change; the quadratic spline is smooth, and the error of the central
# difference, a sixth of h^2 f''', stays below it too.
@pytest.mark.parametrize(("argument", "change"), [(0, 0.2), (1, 0.2), (2, 0.1), (3, 0.1)])
def test_gradient_equals_central_differences(problem, argument, change, rng):
    value, point, gradients = problem
    gradient = np.asarray(gradients[argument], np.float64)
    assert np.isfinite(gradient).all()
    for direction in (gradient, rng.normal(size=gradient.shape)):
        if argument == 3:  # a frequency that was not sampled cannot become so
            direction = direction * (np.asarray(point[3]) > 0)
        if argument == 2:  # noise alone is nearly orthogonal to the gradient
            direction = direction / np.linalg.norm(direction) + gradient / np.linalg.norm(gradient)
        slope = np.sum(gradient * direction)
        step = 0.5 * change / np.linalg.norm(gradient) / np.linalg.norm(direction)

        def at(sign, direction=direction, step=step):
            moved = list(point)
            shifted = np.asarray(point[argument]) + sign * step * direction
            moved[argument] = jnp.asarray(shifted, jnp.float32)
            return float(value(*moved))

        difference = (at(1) - at(-1)) / (2 * step)
        scale = float(np.linalg.norm(gradient) * np.linalg.norm(direction))
        assert difference == pytest.approx(float(slope), abs=3e-3 * scale)


def test_the_scale_of_the_reference_drops_out(problem):
    """Euler's identity for a function of degree 0: the gradient is orthogonal to the map."""
    value, point, gradients = problem
    volume, gradient = np.asarray(point[2], np.float64), np.asarray(gradients[2], np.float64)
    along = np.sum(volume * gradient)
    assert abs(along) < 1e-4 * np.linalg.norm(volume) * np.linalg.norm(gradient)
    assert float(value(*point[:2], 7 * point[2], point[3])) == pytest.approx(
        float(value(*point)), rel=1e-5
    )


@pytest.fixture(scope="module")
def local(reference):
    """The quadratic model of a noisy particle as a function of the pose."""
    rng = np.random.default_rng(4)
    sampling, noise = samplings()["soft"], noises(rng)["coloured"]
    table = table_of(reference, 2)
    clean = slice_reference(table, WAVE, TURN, SHIFT, BOX)
    clean = np.asarray(clean)[None] * sampling
    noisy = clean + draw(rng, sampling, noise, 1)
    seen = [
        observe(jnp.asarray(d, jnp.complex64), jnp.asarray(sampling), jnp.asarray(noise))
        for d in (noisy, clean)
    ]
    model = jax.jit(
        lambda data, weight, turn, shift: local_model(table, data, weight, WAVE.T, turn, shift, BOX)
    )
    return table, seen, model


def model_at(local, which, turn, shift):
    _, seen, model = local
    data, weight = split_observation(seen[which])
    return model(data[0], weight[0], turn, shift)


def test_local_model_has_the_score_and_its_gradient(local):
    table, seen, _ = local

    @jax.jit
    def plain(tangent, move, turn):
        return score(table, seen[0], WAVE, rotation.exp(tangent) @ turn, move, BOX)

    derivative = jax.jit(jax.value_and_grad(plain, (0, 1)))
    for length in (0.0, 0.1, 1.0):
        turn = rotation.exp(jnp.full(3, length, jnp.float32)) @ TURN
        move = SHIFT + length
        got = model_at(local, 0, turn, move)
        value, gradient = derivative(jnp.zeros(3, jnp.float32), move, turn)
        assert float(got.score) == pytest.approx(float(value), abs=2e-4)
        want = np.concatenate(gradient)
        np.testing.assert_allclose(got.gradient, want, atol=2e-4 * np.abs(want).max() + 1e-3)


def test_curvature_is_positive_and_that_of_a_clean_score(local):
    for turn in rotation.random(jax.random.key(2), 5):
        curvature = np.asarray(model_at(local, 0, turn, SHIFT).curvature, np.float64)
        np.testing.assert_allclose(curvature, curvature.T, rtol=1e-6)
        assert np.linalg.eigvalsh(curvature).min() > -1e-5 * np.trace(curvature)
    # without noise the score at the right pose falls off by score * curvature
    best = model_at(local, 1, TURN, SHIFT)
    np.testing.assert_allclose(best.gradient, 0, atol=1e-3 * float(best.score))
    hessian, step = np.zeros((6, 6)), 0.004 * np.r_[np.ones(3), 10 * np.ones(3)]
    for i, h in enumerate(step):
        ends = []
        for sign in (1, -1):
            d = np.zeros(6)
            d[i] = sign * h
            turn = rotation.exp(jnp.asarray(d[:3], jnp.float32)) @ TURN
            end = model_at(local, 1, turn, SHIFT + jnp.asarray(d[3:], jnp.float32))
            ends.append(np.asarray(end.gradient, np.float64))
        hessian[i] = (ends[0] - ends[1]) / (2 * h)
    want = float(best.score) * np.asarray(best.curvature, np.float64)
    scale = np.sqrt(np.outer(np.diag(want), np.diag(want)))
    np.testing.assert_allclose(-hessian / scale, want / scale, atol=0.03)
