"""Scales and B-factors: planted ones are found, absent ones are not, and averages gain."""

import jax
import jax.numpy as jnp
import numpy as np
import option_runs
import pytest
from scipy import optimize

from sptjax import average, fourier, io, particle_weights, phantom, resample, simulate, transfer
from sptjax._errors import InputError
from sptjax._types import Pose
from sptjax.particle_weights import Strengths, fit_strengths
from sptjax.score import observe
from sptjax.transfer import Regression

BOX, APIX = 32, 8.0


def regressions(rng, scale, b_factor, strength):
    """Sums of particles as the model says, ``strength`` the signal in standard deviations."""
    shell = np.arange(BOX // 2 + 1)
    power = shell**2 * np.exp(-((shell / 7) ** 2))
    power = power * strength**2 / (2 * power.sum())
    fall = (shell / (BOX * APIX)) ** 2 / 4
    gain = scale[:, None] * np.exp(-b_factor[:, None] * fall)
    noise = rng.normal(size=gain.shape) * np.sqrt(power / 2)
    power = np.broadcast_to(power, gain.shape)
    parts = (gain * power + noise, power, power)
    return Regression(*(jnp.asarray(x, jnp.float32) for x in parts)), gain


def planted(rng, count):
    return rng.uniform(0.5, 1.5, count), rng.uniform(0, 500, count)


# ---------------------------------------------------------------- the fit


def slope(of, on):
    return np.polyfit(on, of, 1)[0]


@pytest.mark.parametrize("strength", [6.0, 15.0, 60.0])
def test_planted_strengths_are_found_unbiased(rng, strength):
    """Relative to the mean of the particles; a mean given the data has slope one."""
    scale, b_factor = planted(rng, 300)
    sums, _ = regressions(rng, scale, b_factor, strength)
    found = fit_strengths(sums, BOX, APIX)
    assert abs(found.scale.mean() - 1) < 0.02
    assert abs(found.b_factor.mean()) < 5
    assert abs(slope(scale, found.scale) - 1) < 0.15
    assert abs(found.spread[0] / scale.std() - 1) < 0.2
    assert np.corrcoef(scale, found.scale)[0, 1] > {6: 0.8, 15: 0.94, 60: 0.98}[strength]
    if strength > 10:  # B of a weaker particle stays that of all
        assert abs(slope(b_factor, found.b_factor) - 1) < 0.35
        assert abs(found.spread[1] / b_factor.std() - 1) < 0.3
    if strength > 50:
        assert abs(slope(b_factor, found.b_factor) - 1) < 0.12
        assert np.corrcoef(b_factor, found.b_factor)[0, 1] > 0.75


def test_equal_particles_are_left_equal(rng):
    for strength in (4.0, 20.0):
        sums, _ = regressions(rng, np.ones(200), np.zeros(200), strength)
        found = fit_strengths(sums, BOX, APIX)
        assert found.scale.std() < 0.06
        assert found.b_factor.std() < 10


def test_noise_alone_is_no_signal():
    zero = jnp.zeros((3, 17), jnp.float32)
    found = fit_strengths(Regression(zero, zero, zero), BOX, APIX)
    np.testing.assert_array_equal(found.gain(BOX, APIX), 1)


def test_most_likely_values_are_those_of_a_search(rng):
    """Both parameters of single particles by a slow search of the posterior."""
    scale, b_factor = planted(rng, 6)
    sums, _ = regressions(rng, scale, b_factor, 12.0)
    fall = jnp.asarray(100 * (np.arange(17) / (BOX * APIX)) ** 2 / 4, jnp.float32)
    people = particle_weights._population(jnp.log(jnp.asarray([2.7, 1.0, 0.4, 1.5], jnp.float32)))
    mean, spread = np.asarray(people.mean, float), np.asarray(people.spread, float)
    found = particle_weights._most_likely(sums.product, sums.power, fall, people)

    def cost(x, i):
        gain = x[0] * np.exp(-x[1] * np.asarray(fall))
        data = (gain**2 * sums.power[i] - 2 * gain * sums.product[i]).sum()
        return data + 0.5 * (((x - mean) / spread) ** 2).sum()

    for i in range(6):
        grid = [(s, b) for s in np.linspace(0, 2, 21) for b in np.linspace(-4, 8, 49)]
        start = min(grid, key=lambda x: cost(np.array(x), i))
        best = optimize.minimize(cost, start, (i,), "Nelder-Mead", options={"xatol": 1e-5})
        assert cost(np.asarray(found[i], float), i) < best.fun + 1e-3
        np.testing.assert_allclose(found[i], best.x, atol=0.03)


def test_gain_by_definition():
    found = Strengths(np.array([0.5, 2.0]), np.array([100.0, -50.0]), (0.1, 10.0))
    q = np.arange(9) / (16 * 10.0)
    wanted = found.scale[:, None] * np.exp(-found.b_factor[:, None] * q**2 / 4)
    np.testing.assert_allclose(found.gain(16, 10.0), wanted, rtol=1e-6)


# ---------------------------------------------------------------- regressions and averages


@pytest.fixture(scope="module")
def set_of_two_kinds():
    """Particles of a map: signal, noise, sampling and poses, for any amplitudes."""
    count, box = 64, 24
    map_ = np.asarray(phantom.phantom(box, 0))
    pose = simulate.random_poses(jax.random.key(3), count, 1.0)
    geometry = simulate.TiltSeries(-60, 60, snr=None)
    none = jnp.zeros(count, jnp.int32)
    clean = simulate.white_wedge_particles(
        jnp.asarray(map_)[None], none, pose, geometry, jax.random.key(4)
    )
    rng = np.random.default_rng(5)
    noise = rng.normal(size=clean.shape) * map_.std() / np.sqrt(0.1)
    region = np.asarray(simulate.sampled_region(box, geometry), np.float32)
    noise = average.apply_sampling(jnp.asarray(noise, jnp.float32), jnp.asarray(region))
    return map_, np.asarray(clean), np.asarray(noise), region, pose


def with_strengths(clean, noise, strengths, apix):
    gain = jnp.asarray(strengths.gain(clean.shape[-1], apix))
    return jax.vmap(fourier.radial_filter)(jnp.asarray(clean), gain) + noise


def truth_fsc(sums, map_):
    """Mean correlation with the truth over the shells 2 ... 9."""
    found = np.fft.fftn(np.asarray(average.finish(sums)[0]))
    wanted = np.fft.fftn(map_)
    axis = np.fft.fftfreq(len(map_), 1 / len(map_))
    shell = np.rint(np.sqrt(sum(a**2 for a in np.meshgrid(axis, axis, axis)))).astype(int)
    total = lambda x: np.bincount(shell.ravel(), x.ravel().real)  # noqa: E731
    curve = total(found * wanted.conj()) / np.sqrt(total(abs(found) ** 2) * total(abs(wanted) ** 2))
    return curve[2:10].mean()


def test_each_regression_is_its_own_and_their_sum_the_whole(set_of_two_kinds):
    map_, clean, noise, region, pose = set_of_two_kinds
    vectors = fourier.half_ball(6)
    index = jnp.asarray(vectors)
    weight = fourier.ball_samples(jnp.asarray(region)[None], index)
    values = fourier.ball_coefficients(jnp.asarray(clean[:5] + noise[:5]), index)
    seen = observe(values * weight.astype(values.dtype), weight, jnp.full(len(vectors), 2.0))
    table = resample.slice_table(jnp.asarray(map_), 8.0, 2)
    known = (table, seen, jnp.asarray(vectors, jnp.float32))
    each = transfer.regress(*known, pose.rotation[:5], pose.shift[:5], box=24)
    assert each.product.shape == (5, 13)
    for part, total in zip(jax.tree.leaves(each), jax.tree.leaves(each.summed())):
        np.testing.assert_allclose(part.sum(0), total, rtol=1e-5)
    shell = np.rint(np.linalg.norm(vectors, axis=1)).astype(int)
    data = np.abs(np.asarray(seen.data)) ** 2
    wanted = [np.bincount(shell, row, minlength=13) for row in data]
    np.testing.assert_allclose(each.total, wanted, rtol=1e-4)


def averaged(volumes, pose, region, gain=None):
    groups = jnp.zeros(len(volumes), jnp.int32)
    return average.add(
        average.empty(volumes.shape[-1]), volumes, pose, groups, None, jnp.asarray(region), gain
    )


def test_gain_in_the_sums_by_definition(set_of_two_kinds):
    """One particle in place: its own transform times the gain, its sampling times the square."""
    _, clean, _, region, _ = set_of_two_kinds
    gain = jnp.linspace(2.0, 0.5, 13)[None]
    pose = Pose(jnp.eye(3)[None], jnp.zeros((1, 3)))
    one = jnp.asarray(clean[:1])
    plain, known = averaged(one, pose, region), averaged(one, pose, region, gain)
    radius = np.linalg.norm(fourier.half_grid(24), axis=-1)
    factor = np.interp(radius, np.arange(13), np.asarray(gain[0]))
    inside = radius <= 12
    for new, old, power in ((known.numerator, plain.numerator, 1), (known.weight, plain.weight, 2)):
        wanted = np.where(inside, np.asarray(old[0]) * factor**power, 0)
        np.testing.assert_allclose(new[0], wanted, rtol=1e-4, atol=1e-4)
    with pytest.raises(InputError, match="fits no 1 particles of box 24"):
        averaged(one, pose, region, gain[:, :5])


@pytest.mark.parametrize("differ", [True, False])
def test_averages_by_fitted_strengths(set_of_two_kinds, differ):
    """Nearer to the truth where particles differ, and no further where they do not."""
    map_, clean, noise, region, pose = set_of_two_kinds
    rng, count, apix = np.random.default_rng(7), len(clean), 8.0
    scale, b_factor = planted(rng, count) if differ else (np.ones(count), np.zeros(count))
    volumes = with_strengths(clean, noise, Strengths(scale, b_factor, (0, 0)), apix)
    vectors = fourier.half_ball(10)
    index = jnp.asarray(vectors)
    weight = fourier.ball_samples(jnp.asarray(region)[None], index)
    power = np.abs(np.asarray(fourier.ball_coefficients(jnp.asarray(noise), index))) ** 2
    level = jnp.full(len(vectors), float(power[:, np.asarray(weight[0]) > 0].mean()), jnp.float32)
    seen = observe(
        fourier.ball_coefficients(volumes, index) * weight.astype(jnp.complex64), weight, level
    )
    table = resample.slice_table(jnp.asarray(map_), 11.0, 2)
    sums = transfer.regress(
        table, seen, jnp.asarray(vectors, jnp.float32), pose.rotation, pose.shift, box=24
    )
    found = fit_strengths(sums, 24, apix)
    plain = truth_fsc(averaged(volumes, pose, region), map_)
    known = truth_fsc(averaged(volumes, pose, region, jnp.asarray(found.gain(24, apix))), map_)
    if differ:
        assert known > plain + 0.003
        assert np.corrcoef(found.scale, scale)[0, 1] > 0.7
    else:
        assert known > plain - 0.001


# ---------------------------------------------------------------- the option


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return option_runs.Bench(tmp_path_factory.mktemp("strengths"))


def test_option_weighs_and_writes(bench):
    run, base = bench.run(weighbyscale=True), bench.run()
    strength = run.state.strength
    assert strength.shape == (option_runs.COUNT, 2)
    assert base.state.strength is None
    assert abs(strength[:, 0].mean() - 1) < 0.05
    name = "sptali_rm_0_0.json"
    written = io.read_extras(run.folder / name, option_runs.COUNT)
    np.testing.assert_allclose(written["scale"], strength[:, 0], rtol=1e-6)
    np.testing.assert_allclose(written["b_factor"], strength[:, 1], rtol=1e-6)
    assert "scale" not in io.read_extras(base.folder / name, option_runs.COUNT)
    for after, before in zip(run.state.maps, base.state.maps):
        assert np.corrcoef(after.ravel(), before.ravel())[0, 1] > 0.99


def test_option_needs_sums(bench):
    with pytest.raises(InputError, match=r"--weighbyscale: .* --averager=mean\.tomo alone"):
        bench.run(weighbyscale=True, averager="median")
