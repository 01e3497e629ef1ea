"""Bootstrap against explicit averages of resampled lists of particles."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from sptjax import average, bootstrap, fourier
from sptjax._errors import InputError
from sptjax._types import Pose

BOX, NUMBER, COUNT = 8, 9, 6
KEY = jax.random.key(3)
MEMBERS = np.array([1, 1, 0, 1, 1, 1, 0, 1, 1], bool)


def particles(rng):
    volumes = rng.normal(size=(NUMBER, BOX, BOX, BOX)).astype(np.float32)
    grids = (rng.random((NUMBER, BOX, BOX, BOX)) + 0.5).astype(np.float32)
    return volumes, (grids + centred_mirror(grids)) / 2


def centred_mirror(grids):
    """Values at ``-k``, so that half a grid tells all."""
    return np.roll(grids[:, ::-1, ::-1, ::-1], (1, 1, 1), (1, 2, 3))


def batches(data, size=4, order=range(NUMBER)):
    """A factory of batches of ``size``, the last one padded by particle -1 made of NaN."""
    order = list(order)

    def factory():
        for start in range(0, len(order), size):
            pick = np.array(order[start : start + size])
            lack = size - len(pick)
            parts = (x[pick] for x in data)
            pad = [(0, lack), (0, 0), (0, 0), (0, 0)]
            parts = (jnp.asarray(np.pad(x, pad, constant_values=np.nan)) for x in parts)
            yield bootstrap.Batch(np.pad(pick, (0, lack), constant_values=-1), *parts)

    return factory


def drawn_lists(members, count):
    """Every replicate as an explicit list of particles, from the numbers of draws."""
    times = np.asarray(bootstrap.bootstrap_weights(KEY, members, count))
    return [np.repeat(np.arange(len(members)), row.astype(int)) for row in times]


def explicit(lists, volumes, grids, weights, floor=0.1):
    """Averages of lists of particles, one particle after the other, all in float64."""
    frequency = np.rint(np.fft.fftfreq(BOX) * BOX)
    radius = np.sqrt(sum(f**2 for f in np.meshgrid(frequency, frequency, frequency)))
    maps = []
    for chosen in lists:
        numerator, weight = np.zeros((BOX,) * 3, complex), np.zeros((BOX,) * 3)
        for i in chosen:
            numerator += weights[i] * np.fft.fftn(np.fft.ifftshift(volumes[i].astype(float)))
            weight += weights[i] * np.fft.ifftshift(grids[i].astype(float))
        result = np.zeros((BOX,) * 3, complex)
        for shell in range(BOX):
            on = (np.rint(radius) == shell) & (radius <= BOX / 2)
            if on.any():
                result[on] = numerator[on] / np.maximum(weight[on], floor * weight[on].mean())
        maps.append(np.fft.fftshift(np.fft.ifftn(result)).real)
    return np.array(maps)


def distance(a, b):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return np.linalg.norm(a - b) / np.linalg.norm(b)


@pytest.mark.parametrize("block", [None, 4])
def test_mean_and_variance_over_explicit_averages(rng, block):
    volumes, grids = particles(rng)
    weights = rng.random(NUMBER) + 0.2
    maps = explicit(drawn_lists(MEMBERS, COUNT), volumes, grids, weights)
    found = bootstrap.bootstrap(
        KEY, MEMBERS, batches((volumes, grids)), BOX, COUNT, weights=weights, block=block
    )
    assert distance(found.mean, maps.mean(0)) < 1e-5
    assert distance(found.variance, maps.var(0, ddof=1)) < 1e-5


def test_without_sampling_replicates_are_means(rng):
    volumes, grids = particles(rng)
    maps = explicit(drawn_lists(MEMBERS, COUNT), volumes, np.ones_like(grids), np.ones(NUMBER))
    found = bootstrap.bootstrap(KEY, MEMBERS, batches((volumes,)), BOX, COUNT)
    assert distance(found.mean, maps.mean(0)) < 1e-5
    assert distance(found.variance, maps.var(0, ddof=1)) < 1e-5


def test_order_batches_and_strangers_do_not_matter(rng):
    data = particles(rng)
    found = bootstrap.bootstrap(KEY, MEMBERS, batches(data), BOX, COUNT)
    data[0][~MEMBERS] = np.nan
    only = np.flatnonzero(MEMBERS)[::-1]
    again = bootstrap.bootstrap(KEY, MEMBERS, batches(data, 4, only), BOX, COUNT)
    whole = bootstrap.bootstrap(KEY, MEMBERS, batches(data, 12), BOX, COUNT)
    for other in (again, whole):
        assert distance(other.mean, found.mean) < 1e-5
        assert distance(other.variance, found.variance) < 1e-5
    other = bootstrap.bootstrap(jax.random.key(4), MEMBERS, batches(data), BOX, COUNT)
    assert distance(other.variance, found.variance) > 0.1


def test_weight_zero_skips_a_particle_whatever_its_voxels(rng):
    volumes, grids = particles(rng)
    weights = np.ones(NUMBER)
    weights[3] = 0
    maps = explicit(drawn_lists(MEMBERS, COUNT), volumes, grids, weights)
    volumes[3] = np.nan
    found = bootstrap.bootstrap(
        KEY, MEMBERS, batches((volumes, grids)), BOX, COUNT, weights=weights
    )
    assert distance(found.mean, maps.mean(0)) < 1e-5


def test_poses_give_the_averages_of_resampled_lists(rng):
    """Unaligned particles, summed by the averaging itself, with a finish of the caller's."""
    volumes, grids = particles(rng)
    poses = Pose(
        jnp.asarray(Rotation.from_quat(rng.normal(size=(NUMBER, 4))).as_matrix(), jnp.float32),
        jnp.asarray(rng.normal(size=(NUMBER, 3)), jnp.float32),
    )

    def finish(sums):
        return average.finish(sums, floor=0.9)

    lists = drawn_lists(MEMBERS, COUNT)
    chosen = jnp.asarray(np.concatenate(lists))
    groups = jnp.asarray(np.repeat(np.arange(COUNT), [len(x) for x in lists]))
    posed = jax.tree.map(lambda x: x[chosen], poses)
    maps = finish(
        average.add(
            average.empty(BOX, COUNT), jnp.asarray(volumes)[chosen], posed, groups,
            sampling=jnp.asarray(grids)[chosen],
        )
    )  # fmt: skip

    def factory():
        yield bootstrap.Batch(np.arange(NUMBER), jnp.asarray(volumes), jnp.asarray(grids), poses)

    found = bootstrap.bootstrap(KEY, MEMBERS, factory, BOX, COUNT, finish=finish)
    assert distance(found.mean, np.mean(maps, 0)) < 1e-5
    assert distance(found.variance, np.var(maps, 0, ddof=1)) < 1e-5


def test_variance_of_a_mean_of_white_noise(rng):
    """What is known in advance: the variance of a mean of n, over the frequencies kept."""
    number, box = 40, 12
    volumes = rng.normal(size=(number, box, box, box)).astype(np.float32)
    batch = bootstrap.Batch(np.arange(number), jnp.asarray(volumes))
    found = bootstrap.bootstrap(KEY, np.ones(number, bool), lambda: [batch], box, 64)
    inside = (fourier.half_grid(box) ** 2).sum(-1) <= box * box / 4
    kept = (fourier.hermitian_count(box) * inside).sum() / box**3
    assert found.variance.mean() == pytest.approx(kept / number, rel=0.1)


def test_draws_are_multinomial(rng):
    count = 3000
    times = np.asarray(bootstrap.bootstrap_weights(KEY, MEMBERS, count))
    m = MEMBERS.sum()
    assert times.shape == (count, NUMBER)
    assert (times.sum(1) == m).all()
    assert (times[:, ~MEMBERS] == 0).all()
    # mean 1, variance 1 - 1/m, covariance -1/m; 5 standard errors of the estimates
    assert np.abs(times[:, MEMBERS].mean(0) - 1).max() < 5 / np.sqrt(count)
    covariance = np.cov(times[:, MEMBERS].T)
    assert np.abs(covariance - (np.eye(m) - 1 / m)).max() < 5 * 1.5 / np.sqrt(count)
    # replicate r is the same, however many are drawn
    np.testing.assert_array_equal(bootstrap.bootstrap_weights(KEY, MEMBERS, 5), times[:5])


def test_misuse_is_refused_in_words(rng):
    data = particles(rng)
    two = np.arange(NUMBER) < 2
    with pytest.raises(InputError, match="3 particles or more, not 2"):
        bootstrap.bootstrap(KEY, two, batches(data), BOX)
    with pytest.raises(InputError, match="2 replicates or more, not 1"):
        bootstrap.bootstrap(KEY, MEMBERS, batches(data), BOX, 1)
    with pytest.raises(InputError, match="gave 1 members never or more than once, the first is 8"):
        bootstrap.bootstrap(KEY, MEMBERS, batches(data, 4, range(8)), BOX, COUNT)
    with pytest.raises(InputError, match="gave 1 members never or more than once, the first is 1"):
        bootstrap.bootstrap(KEY, MEMBERS, batches(data, 4, [*range(9), 1, 2, 2]), BOX, COUNT)
    with pytest.raises(InputError, match="no particle 7 among 7"):
        bootstrap.bootstrap(KEY, MEMBERS[:7], batches(data), BOX, COUNT)
    with pytest.raises(InputError, match="the box is 10"):
        bootstrap.bootstrap(KEY, MEMBERS, batches(data), 10, COUNT)
