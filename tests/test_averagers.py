"""Averagers against the numbers of EMAN2, NumPy by definition, and what every averager owes."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sptjax import averagers, options
from sptjax._errors import InputError

BOX = 8
# every averager that accumulates aligned volumes, as a user spells it
SPECS = (
    "mean", "mean:ignore0=1", "sigma", "sigma:ignore0=1", "median", "minmax", "minmax:max=1",
    "minmax:abs=1", "minmax:max=1:abs=1", "mean.tomo:compat=1", "localweight:apix=4",
)  # fmt: skip


def bound(text):
    return options.bind(options.parse(text), averagers.AVERAGERS, "--averager")


def averaged(averager, volumes, groups=None, weights=None, number=1, cuts=(), box=None):
    """Finished maps after adding the volumes in batches cut at the given places."""
    volumes = np.asarray(volumes, np.float32)
    groups = np.zeros(len(volumes), np.int32) if groups is None else np.asarray(groups, np.int32)
    weights = np.ones(len(volumes)) if weights is None else np.asarray(weights)
    edges = [0, *cuts, len(volumes)]
    state = averager.start(box or volumes.shape[-1], number)
    for a, b in itertools.pairwise(edges):
        weight = jnp.asarray(weights[a:b], jnp.float32)
        state = averager.add(state, jnp.asarray(volumes[a:b]), jnp.asarray(groups[a:b]), weight)
    return np.asarray(averager.finish(state))


def stack(rng, number=7):
    volumes = rng.normal(size=(number, BOX, BOX, BOX)) + rng.normal(size=(BOX, BOX, BOX))
    volumes[rng.random(volumes.shape) < 0.2] = 0
    return volumes.astype(np.float32)


def distance(a, b):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return np.linalg.norm(a - b) / np.linalg.norm(b)


def eman2_rows(golden):
    rows = json.loads((golden / "averagers.json").read_text())
    with np.load(golden / "averagers.npz") as answers:
        arrays = dict(answers)
    return rows, arrays


def spelt(row):
    """The same averager here: the threshold of mean.tomo and the voxel size are explicit."""
    params = dict(row["params"])
    params |= {"mean.tomo": {"compat": 1}, "localweight": {"apix": 4.0}}.get(row["name"], {})
    return options.format(options.Spec(row["name"], params))


def test_every_answer_of_eman2(golden):
    rows, arrays = eman2_rows(golden)
    assert {row["name"] for row in rows} == set(averagers.AVERAGERS)
    for row in rows:
        result = averaged(bound(spelt(row)), arrays["in"])[0]
        # EMAN2's sigma subtracts squares in single precision
        limit = 1e-4 if row["name"] == "sigma" else 2e-6
        assert distance(result, arrays[row["key"]]) < limit, row


@pytest.mark.parametrize("ignore0", [False, True])
def test_mean_sigma_and_variance_are_weighted_by_definition(rng, ignore0):
    volumes, weights = stack(rng), rng.random(7) + 0.1
    each = weights[:, None, None, None] * ((volumes != 0) if ignore0 else np.ones(volumes.shape))
    total = np.where(each.sum(0) > 0, each.sum(0), 1)
    mean = (each * volumes).sum(0) / total
    spread = (each * (volumes - mean) ** 2).sum(0) / total
    averager, sigma = averagers.Mean(ignore0=ignore0), averagers.Sigma(ignore0=ignore0)
    assert distance(averaged(averager, volumes, weights=weights)[0], mean) < 1e-6
    assert distance(averaged(sigma, volumes, weights=weights)[0], np.sqrt(spread)) < 2e-6
    state = averager.start(BOX)
    group = jnp.zeros(7, jnp.int32)
    state = averager.add(state, jnp.asarray(volumes), group, jnp.asarray(weights, jnp.float32))
    assert distance(averagers.variance(state)[0], spread) < 2e-6
    assert int(state.count[0]) == 7


def test_variance_does_not_cancel(rng):
    """Deviations of 1 on a mean of 3000: sums of squares in float32 would lose them."""
    volumes = (3000 + rng.normal(size=(50, BOX, BOX, BOX))).astype(np.float32)
    found = averaged(averagers.Sigma(), volumes, cuts=(20,))[0]
    assert distance(found, volumes.astype(np.float64).std(0)) < 1e-4


def test_mean_tomo_holds_back_only_what_a_volume_lacks(rng):
    """Two halves of a spectrum in two volumes: their average is the whole spectrum."""
    whole = rng.normal(size=(BOX, BOX, BOX))
    spectrum = np.fft.fftn(whole)
    frequency = np.rint(np.fft.fftfreq(BOX) * BOX)
    kz, ky, kx = np.meshgrid(frequency, frequency, frequency, indexing="ij")
    first = np.abs(kz) <= np.abs(kx)
    second = ~first | (kx**2 + ky**2 + kz**2 == 0)  # the mean density always counts
    parts = [np.fft.ifftn(spectrum * held).real for held in (first, second)]
    averager = averagers.MeanTomo(thresh_sigma=1e-6, compat=True)
    result = averaged(averager, parts, weights=[1.0, 3.0])[0]
    inside = np.floor(np.sqrt(kx**2 + ky**2 + kz**2)) <= BOX // 2
    expected = np.fft.ifftn(spectrum * inside).real
    assert distance(result, expected) < 1e-5
    assert distance(averaged(averagers.Mean(), parts)[0], expected) > 0.4


@pytest.mark.parametrize("maximum", [False, True])
@pytest.mark.parametrize("absolute", [False, True])
def test_minmax_by_definition(rng, maximum, absolute):
    volumes = stack(rng)
    key = np.abs(volumes) if absolute else volumes
    pick = (key.argmax if maximum else key.argmin)(0)
    expected = np.take_along_axis(volumes, pick[None], 0)[0]
    averager = averagers.MinMax(max=maximum, abs=absolute)
    np.testing.assert_array_equal(averaged(averager, volumes)[0], expected)


def test_of_equal_absolute_values_the_positive_stays():
    volumes = np.ones((2, BOX, BOX, BOX)) * np.array([-2.0, 2.0])[:, None, None, None]
    for order in (volumes, volumes[::-1]):
        assert (averaged(averagers.MinMax(max=True, abs=True), order) == 2).all()


def test_median_by_definition(rng):
    for number in (6, 7):
        volumes = stack(rng, number)
        found = averaged(averagers.Median(), volumes, weights=np.arange(1, number + 1), cuts=(3,))
        np.testing.assert_array_equal(found[0], np.median(volumes, 0))


def test_local_weights_by_definition(rng):
    volumes, weights = stack(rng), rng.random(7) + 0.1
    frequency = np.fft.fftfreq(BOX)
    square = sum(f**2 for f in np.meshgrid(frequency, frequency, frequency))
    total = np.tensordot(weights, volumes, 1)
    common = (total - total.mean()) / total.std()
    agreement = np.fft.ifftn(
        np.fft.fftn(volumes * common, axes=(1, 2, 3)) * np.exp(-square / (0.02 * 5) ** 2),
        axes=(1, 2, 3),
    ).real
    local = weights[:, None, None, None] * np.maximum(agreement, 0)
    divisor = np.maximum(local.sum(0), 0.8 * local.sum(0).mean())
    found = averaged(bound("localweight:apix=5:dampnoise=0.8"), volumes, weights=weights)[0]
    assert distance(found, (local * volumes).sum(0) / divisor) < 1e-5


@pytest.mark.parametrize("text", SPECS)
def test_groups_batches_padding_and_merging(rng, text):
    """A group is its own average, however it is cut, padded or merged."""
    averager = bound(text)
    volumes, weights = stack(rng), rng.random(7).astype(np.float32) + 0.5
    groups = np.array([0, 2, 0, 2, 0, 2, 0])
    alone = averaged(averager, volumes[groups == 2], weights=weights[groups == 2])[0]
    result = averaged(averager, volumes, groups, weights, number=3)
    assert distance(result[2], alone) < 1e-6
    assert (result[1] == 0).all()
    assert distance(result[0], result[2]) > 0.1

    np.testing.assert_array_equal(averaged(averager, volumes, groups, weights, 3, (2,)), result)

    bad = np.full((1, BOX, BOX, BOX), np.nan, np.float32)
    padded = np.concatenate([volumes[:3], bad, volumes[3:], bad, bad])
    skip_group = [*np.insert(groups, 3, -1), 2, 3]
    skip_weight = [*np.insert(weights, 3, 1), 0, 1]
    np.testing.assert_array_equal(averaged(averager, padded, skip_group, skip_weight, 3), result)

    def state(part):
        args = (jnp.asarray(x[part]) for x in (volumes, groups.astype(np.int32), weights))
        return averager.add(averager.start(BOX, 3), *args)

    merged = averager.merge(state(slice(0, 2)), state(slice(2, 7)))
    assert distance(averager.finish(merged), result) < 2e-6
    unchanged = averager.merge(state(slice(0, 7)), averager.start(BOX, 3))
    np.testing.assert_array_equal(averager.finish(unchanged), result)
    unchanged = averager.merge(averager.start(BOX, 3), state(slice(0, 7)))
    np.testing.assert_array_equal(averager.finish(unchanged), result)


@pytest.mark.parametrize("text", SPECS)
def test_the_scale_of_the_weights_is_divided_out(rng, text):
    volumes, weights = stack(rng), rng.random(7) + 0.5
    averager = bound(text)
    result = averaged(averager, volumes, weights=weights)
    assert distance(averaged(averager, volumes, weights=5 * weights), result) < 1e-5
    assert distance(averaged(averager, volumes, None, weights**8), result) > 1e-3 or (
        text.split(":")[0] in ("median", "minmax")
    )


@pytest.mark.parametrize("text", SPECS)
def test_the_average_of_copies_is_the_volume(rng, text):
    one = stack(rng, 1)
    if text.startswith("localweight"):
        one = np.exp(rng.normal(size=one.shape))  # weighed where it exceeds its mean
    found = averaged(bound(text), np.repeat(one, 3, axis=0), weights=[1.0, 2.0, 0.5])[0]
    if text.startswith("sigma"):
        assert np.abs(found).max() < 1e-6
    elif text.startswith("mean.tomo"):
        lacking = np.abs(np.fft.fftn(found - one[0])) > 1e-3
        assert (np.abs(np.fft.fftn(found))[lacking] < 1e-3).all()  # copied or dropped
    elif text.startswith("localweight"):
        exact = np.isclose(found, one[0], rtol=1e-4)
        assert exact.any()
        assert (found <= one[0] * (1 + 1e-5)).all()
    else:
        assert distance(found, one[0]) < 1e-6


def test_running_on_the_device_differentiates(rng):
    """The derivative of a mean by a volume is its share of the weight."""
    volumes, weights = jnp.asarray(stack(rng, 3)), jnp.asarray([1.0, 2.0, 0.0])
    averager = averagers.Mean()

    def value(volumes):
        state = averager.add(averager.start(BOX), volumes, jnp.zeros(3, jnp.int32), weights)
        return averager.finish(state)[0, 1, 2, 3]

    slope = jax.jit(jax.grad(value))(volumes)
    np.testing.assert_allclose(slope[:, 1, 2, 3], [1 / 3, 2 / 3, 0], rtol=1e-6)
    assert np.count_nonzero(slope) == 2


def test_known_sampling_is_the_rule_and_amplitudes_the_exception():
    assert bound("mean.tomo").by_known_sampling
    assert not any(bound(text).by_known_sampling for text in SPECS)
    with pytest.raises(InputError, match=r"sptjax\.average"):
        bound("mean.tomo").start(BOX)
    with pytest.raises(InputError, match=r"--averager: mean\.tomo: .*compat=1"):
        bound("mean.tomo:thresh_sigma=0.2")


def test_misuse_is_refused_in_words():
    with pytest.raises(InputError, match=r"do not fit averages of box 8"):
        averaged(bound("mean"), np.zeros((1, 4, 4, 4)), box=8)
    with pytest.raises(InputError, match=r"do not fit averages of box 8"):
        averaged(bound("median"), np.zeros((1, 4, 4, 4)), box=8)
    with pytest.raises(InputError, match="voxel size"):
        bound("localweight").start(BOX)
    with pytest.raises(InputError, match="dampnoise"):
        bound("localweight:dampnoise=-1")
    with pytest.raises(InputError, match="no key 'owner'"):
        bound("minmax:owner=1")
    with pytest.raises(InputError, match=r"ctf\.auto"):
        bound("ctf.auto")
