"""Comparators against EMAN2's numbers, sums over voxels in float64, and each other."""

import functools
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import score as oracle
from scipy.spatial.transform import Rotation

from sptjax import fourier, options, score, simulate
from sptjax._errors import InputError
from sptjax.comparators import COMPARATORS, Matched, ball_score, compare

APIX = 4.0
BOX, KMAX = 16, 7.99  # every frequency below shell n / 2
VECTORS = fourier.half_ball(KMAX)
RADIUS = np.linalg.norm(VECTORS, axis=1)
WORST = {"ccc.tomo": -np.sqrt(BOX**3), "phase": -np.pi, "matched": -1e30, "dot": -1e30}
DEFINED_FOR_CONSTANTS = {"dot", "sqeuclidean"}

ball = jax.jit(ball_score, static_argnums=(0, 5, 6))
whole = jnp.ones((BOX,) * 3)


@functools.partial(jax.jit, static_argnums=0)
def compared(comparator, a, b, region=whole):
    return compare(comparator, a, b, apix=APIX, wedge_a=region)


every = pytest.mark.parametrize("name", list(COMPARATORS))


def make(text):
    comparator = options.bind(options.parse(text), COMPARATORS, "--aligncmp")
    assert comparator is not None
    return comparator


def worst(name):
    return WORST.get(name, -1.0)


# ---------------------------------------------------------------- numbers of EMAN2

# EMAN2 finds the sampled region by amplitudes and counts the stored half of a transform
COMPAT = {"ccc.tomo.thresh", "fsc.tomo.auto", "phase"}
# a few coefficients lie within rounding of the threshold; phases in the empty wedge of a
# particle are those of rounding errors, about 0.01 of the mean per standard deviation
TOLERANCE = {"fsc.tomo.auto": (2e-4, 0), "phase": (0, 0.08), "frc": (1e-5, 1e-6)}
PAIRS = {
    "ptcl_vs_aligned": ("ptcl_wedge", "ref_aligned"),
    "ptcl_vs_unaligned": ("ptcl_wedge", "ref"),
    "aligned_vs_ptcl": ("ref_aligned", "ptcl_wedge"),
}


@pytest.fixture(scope="module")
def volumes(golden):
    with np.load(golden / "comparators.npz") as arrays:
        return {key: jnp.asarray(arrays[key]) for key in arrays}


@pytest.mark.parametrize("pair", list(PAIRS))
def test_golden_values(pair, volumes, golden):
    rows = json.loads((golden / "comparators.json").read_text())["values"]
    rows = [r for r in rows if r["pair"] == pair and r["cmp"] in COMPARATORS]
    assert len(rows) == 13
    for row in rows:
        keys = {k: v for k, v in row["params"].items() if k != "mask"}
        keys |= {"compat": 1} if row["cmp"] in COMPAT else {}
        comparator = make(options.format(options.Spec(row["cmp"], keys)))
        a, b = (volumes[key] for key in PAIRS[pair])
        mask = volumes["mask"] if "mask" in row["params"] else None
        got = compare(comparator, a, b, apix=APIX, mask=mask)
        relative, absolute = TOLERANCE.get(row["cmp"], (1e-5, 0))
        assert -float(got) == pytest.approx(row["value"], rel=relative, abs=absolute), row


def trilinear(volume, matrix):
    """Rotation about ``n // 2``, zero outside; beyond the last voxel its value goes on."""
    n = volume.shape[0]
    z, y, x = np.meshgrid(*[np.arange(n)] * 3, indexing="ij")
    source = (np.stack([x, y, z], -1) - n // 2) @ matrix + n // 2
    low = np.floor(source).astype(int)
    part = source - low
    out = np.zeros(volume.shape)
    for corner in itertools.product((0, 1), repeat=3):
        at = np.clip(low + corner, 0, n - 1)
        weight = np.where(corner, part, 1 - part).prod(-1)
        out += weight * volume[at[..., 2], at[..., 1], at[..., 0]]
    return np.where(((source >= 0) & (source < n)).all(-1), out, 0).astype("f4")


@pytest.fixture(scope="module")
def smooth():
    z, y, x = np.meshgrid(*[np.arange(16)] * 3, indexing="ij")
    volume = (np.sin(0.1 * (x + 2 * y + 3 * z)) + 0.01 * x).astype("f4")
    return volume, trilinear(volume, Rotation.from_euler("ZXZ", [10, 5, 0], degrees=True)
                             .as_matrix().T)  # fmt: skip


@pytest.mark.parametrize(
    ("text", "value", "tolerance"),
    [
        ("ccc", 0.917708, 2e-6),
        ("dot", 0.410271, 2e-6),
        ("sqeuclidean", -0.075832, 2e-5),
        ("ccc.tomo", 3.617453, 2e-6),
        ("ccc.tomo.thresh:compat=1", 0.945241, 2e-6),
        ("fsc.tomo.auto:compat=1", 0.786627, 1e-5),
        ("frc", 0.724866, 2e-6),
        ("phase:compat=1", -0.720534, 2e-3),  # EMAN2's angles come from a table
    ],
)
def test_eman2_values_of_a_smooth_volume(text, value, tolerance, smooth):
    a, b = (jnp.asarray(v) for v in smooth)
    assert float(compare(make(text), a, b, apix=2.5)) == pytest.approx(value, rel=tolerance)


def test_phase_differs_from_eman2_by_its_table_of_cosines(smooth):
    """Angles rounded to those of 2001 cosines give its number to all six digits."""
    cosine, weight = [], []
    a, b = (np.fft.rfftn(v.astype("f8")) for v in smooth)
    low, high = 16 * 2.5 / 500, 16 * 2.5 / 10
    for index in np.ndindex(a.shape):
        k = [min(i, 16 - i) for i in index]
        shell = int(np.linalg.norm(k))
        if shell < 8:
            product = a[index] * np.conj(b[index])
            cosine.append(product.real / abs(product))
            rise, fall = np.tanh(5 * (shell - low) / low) + 1, 1 - np.tanh(shell - high)
            weight.append(rise * fall)
    exact = np.average(np.arccos(cosine), weights=weight)
    table = np.average(np.arccos(np.round(1000 * np.array(cosine)) / 1000), weights=weight)
    assert table == pytest.approx(0.720534, abs=1e-6)
    got = compare(make("phase:compat=1"), *map(jnp.asarray, smooth), apix=2.5)
    assert -float(got) == pytest.approx(exact, rel=1e-5)


# ---------------------------------------------------------------- the two uses


def smooth_ball(rng, count):
    """Coefficients of noise that falls off, and the volumes that have no others."""
    shape = (count, len(VECTORS))
    noise = rng.normal(size=shape) + 1j * rng.normal(size=shape)
    coefficients = (BOX**1.5 * noise / (1 + RADIUS)).astype("c8")
    axis = np.arange(BOX) - BOX // 2
    x, y, z = (np.exp(2j * np.pi / BOX * VECTORS[:, i, None] * axis) for i in range(3))
    volumes = 2 * np.einsum("nk,kz,ky,kx->nzyx", coefficients, z, y, x, optimize=True).real
    return coefficients, (volumes / BOX**3).astype("f4")


def pair_of(rng):
    coefficients, volumes = smooth_ball(rng, 2)
    coefficients[1] = coefficients[0] + 0.7 * coefficients[1]
    volumes[1] = volumes[0] + 0.7 * volumes[1]
    return coefficients, volumes


def on_ball(comparator, data, model, weight=None):
    weight = np.ones(len(VECTORS), np.float32) if weight is None else weight
    arrays = (jnp.asarray(v) for v in (data, model, weight))
    return float(ball(comparator, *arrays, jnp.asarray(VECTORS), BOX, APIX))


@functools.cache
def wedge():
    """Sampled region of -60 to 60 degrees, on the grid and on the ball."""
    grid = (simulate.sampled_region(BOX, simulate.TiltSeries()) > 0.5).astype(np.float32)
    samples = fourier.ball_samples(jnp.asarray(grid)[None], jnp.asarray(VECTORS))
    return grid, np.asarray(samples)[0]


KEYED = [
    *COMPARATORS, "dot:normalize=1", "sqeuclidean:normto=1", "ccc.tomo:norm=0",
    "frc:sweight=0:ampweight=1:pmin=2:pmax=5", "phase:snrweight=1",
]  # fmt: skip


@pytest.mark.parametrize("text", KEYED)
def test_volumes_and_ball_agree(text, rng):
    """Complete, and a particle without its wedge, whose region is known."""
    comparator = make(text)
    white = np.float32(BOX**3 if text == "matched" else 1)
    coefficients, volumes = pair_of(rng)
    grid, samples = wedge()
    for region, weight in ((np.ones_like(grid), np.ones_like(samples)), (grid, samples)):
        spectrum = np.fft.ifftshift(region) * np.fft.fftn(volumes[0])
        particle = np.fft.ifftn(spectrum).real.astype("f4")
        got = on_ball(comparator, coefficients[0] * weight / white, coefficients[1], weight / white)
        want = compared(comparator, *map(jnp.asarray, (particle, volumes[1], region)))
        assert got == pytest.approx(float(want), rel=2e-5, abs=1e-6)


def test_voxel_comparators_are_sums_over_voxels(rng):
    """With a mean, and the CCF volume computed lag by lag."""
    _, volumes = pair_of(rng)
    a, b = volumes + np.array([0.3, -0.2], "f4")[:, None, None, None]
    x, y = a.astype("f8"), b.astype("f8")
    lags = itertools.product(range(BOX), repeat=3)
    ccf = np.array([np.vdot(np.roll(y, lag, (0, 1, 2)), x) for lag in lags])
    slope, offset = np.polyfit(y.ravel(), x.ravel(), 1)
    want = {
        "ccc": np.corrcoef(x.ravel(), y.ravel())[0, 1],
        "dot": (x * y).mean(),
        "dot:normalize=1": np.vdot(x, y) / np.linalg.norm(x) / np.linalg.norm(y),
        "sqeuclidean": -((x - y) ** 2).mean(),
        "sqeuclidean:normto=1": -((slope * y + offset - x) ** 2).mean(),
        "ccc.tomo": (ccf[0] - ccf.mean()) / ccf.std(ddof=1),
        "ccc.tomo:norm=0": ccf[0],
    }
    for text, value in want.items():
        got = compare(make(text), jnp.asarray(a), jnp.asarray(b))
        assert float(got) == pytest.approx(value, rel=2e-5), text


@pytest.mark.parametrize("text", ["ccc", "dot", "sqeuclidean", "sqeuclidean:normto=1"])
def test_mask_leaves_the_voxels_inside(text, rng):
    _, (a, b) = pair_of(rng)
    a, b = a + np.float32(0.5), b - np.float32(0.1)
    inside = rng.random(a.shape) < 0.3
    x, y = a[inside].astype("f8"), b[inside].astype("f8")
    slope, offset = np.polyfit(y, x, 1)
    want = {
        "ccc": np.corrcoef(x, y)[0, 1],
        "dot": (x * y).mean(),
        "sqeuclidean": -((x - y) ** 2).mean(),
        "sqeuclidean:normto=1": -((slope * y + offset - x) ** 2).mean(),
    }
    arrays = (jnp.asarray(v) for v in (a, b))
    got = compare(make(text), *arrays, mask=jnp.asarray(inside, jnp.float32))
    assert float(got) == pytest.approx(want[text], rel=1e-5)


# ---------------------------------------------------------------- weights and shells


def soft_particle(rng):
    """Noisy data multiplied by a smooth sampling, zero in the wedge."""
    coefficients, _ = smooth_ball(rng, 3)
    weight = (wedge()[1] * (0.2 + np.sin(0.6 * RADIUS) ** 2)).astype("f4")
    noise = np.sqrt(weight) * coefficients[2]
    return (weight * coefficients[0] + noise).astype("c8"), coefficients[0], weight


def ncc(data, model, weight, u):
    """Weighted correlation by its definition, whitened data against weighted model."""
    seen = weight > 0
    data, model, weight, u = (np.asarray(v)[seen] for v in (data, model, weight, u))
    white, seen_model = data / np.sqrt(weight), np.sqrt(weight) * model
    norm = np.sqrt(np.sum(u * abs(white) ** 2) * np.sum(u * abs(seen_model) ** 2))
    return np.sum(u * np.real(np.conj(white) * seen_model)) / norm


def band(text):
    """What the weight should be, written once more."""
    shell = np.floor(RADIUS + 1e-9)
    values = {
        "ccc.tomo.thresh": np.ones(len(RADIUS)),
        "fsc.tomo": np.ones(len(RADIUS)),
        "fsc.tomo:minres=30:maxres=12": (RADIUS >= 64 / 30) & (RADIUS <= 64 / 12),
        "fsc.tomo.auto": (shell >= 3) / RADIUS**2,
        "fsc.tomo.auto:pmin=2:pmax=5": ((shell >= 2) & (shell <= 5)) / RADIUS**2,
        "fsc.tomo.auto:minres=30:maxres=12": ((shell >= 2) & (shell <= 6)) / RADIUS**2,
    }
    return values[text].astype(float)


LINEAR = [
    "ccc.tomo.thresh", "fsc.tomo", "fsc.tomo:minres=30:maxres=12", "fsc.tomo.auto",
    "fsc.tomo.auto:pmin=2:pmax=5", "fsc.tomo.auto:minres=30:maxres=12",
]  # fmt: skip


@pytest.mark.parametrize("text", LINEAR)
def test_linear_weights_give_the_score(text, rng):
    comparator = make(text)
    weight = comparator.linear_weight(jnp.asarray(RADIUS, jnp.float32), BOX, APIX)
    assert np.asarray(weight) == pytest.approx(band(text), rel=1e-5)
    data, model, sampling = soft_particle(rng)
    got = on_ball(comparator, data, model, sampling)
    assert got == pytest.approx(ncc(data, model, sampling, band(text)), abs=2e-6)


NOT_LINEAR = [
    "ccc", "dot", "dot:normalize=1", "ccc.tomo", "frc", "sqeuclidean", "phase",
    "ccc.tomo.thresh:compat=1", "fsc.tomo.auto:compat=1", "fsc.tomo:compat=1",
    "ccc.tomo.thresh:negative=0", "fsc.tomo:negative=0", "fsc.tomo.auto:negative=0",
]  # fmt: skip


@pytest.mark.parametrize("text", NOT_LINEAR)
def test_the_others_have_no_linear_weight(text):
    assert make(text).linear_weight(jnp.asarray(RADIUS, jnp.float32), BOX, APIX) is None


def test_matched_and_thresh_are_the_scores_of_the_search(rng):
    data, model, sampling = soft_particle(rng)
    noise = np.exp(0.1 * RADIUS).astype("f4") * BOX**3

    def of_search(noise, unit_norm):
        observed, region = jnp.asarray(data)[None], jnp.asarray(sampling)[None]
        seen = score.observe(observed, region, jnp.asarray(noise), unit_norm=unit_norm)
        kept = np.asarray(seen.weight[0]) * model
        product = np.sum((np.conj(np.asarray(seen.data[0])) * kept).real)
        return np.sqrt(2) * product / np.linalg.norm(kept)

    got = on_ball(Matched(), data / noise, model, sampling / noise)
    assert got == pytest.approx(of_search(noise, False), rel=1e-5)
    got = on_ball(make("ccc.tomo.thresh"), data, model, sampling)
    assert got == pytest.approx(of_search(np.ones_like(noise), True), rel=1e-5)
    ones = Matched().linear_weight(jnp.asarray(RADIUS, jnp.float32), BOX, APIX)
    assert np.asarray(ones) == pytest.approx(1.0)


def test_matched_counts_standard_deviations(rng):
    """Noise of variance 1 per voxel scores 0 +- 1 against any reference."""
    _, volumes = smooth_ball(rng, 1)
    noise = jnp.asarray(rng.normal(size=(300, BOX, BOX, BOX)), jnp.float32)
    scores = jax.jit(jax.vmap(lambda a: compare(Matched(), a, jnp.asarray(volumes[0]))))(noise)
    assert float(scores.mean()) == pytest.approx(0, abs=0.25)
    assert float(scores.std()) == pytest.approx(1, abs=0.2)


def shell_statistics(data, model, weight):
    """Per shell: correlation inside the sampled region, members, mean model amplitude."""
    rows = {}
    for shell in range(1, BOX // 2):
        at = (np.rint(RADIUS) == shell) & (weight > 0)
        if at.any():
            curve = ncc(data[at], model[at], weight[at], np.ones(at.sum()))
            rows[shell] = curve, 2 * at.sum(), abs(model[at]).mean()
    return rows


def soft(shell, low, high):
    rise = (np.tanh(5 * (shell - low) / low) + 1) / 2 if low else 1.0
    return rise * ((1 - np.tanh(shell - high)) / 2 if high else 1.0)


@pytest.mark.parametrize(
    ("text", "low", "high", "sweight", "ampweight"),
    [
        ("frc", 64 / 200, 64 / 8, 1, 0),
        ("frc:minres=40:maxres=12", 64 / 40, 64 / 12, 1, 0),
        ("frc:pmin=2:pmax=5:sweight=0:ampweight=1", 2, 5, 0, 1),
    ],
)
def test_frc_averages_the_shells(text, low, high, sweight, ampweight, rng):
    data, model, sampling = soft_particle(rng)
    values, weights = [], []
    for shell, (curve, members, amplitude) in shell_statistics(data, model, sampling).items():
        values.append(curve)
        weights.append(soft(shell, low, high) * members**sweight * amplitude**ampweight)
    got = on_ball(make(text), data, model, sampling)
    assert got == pytest.approx(np.average(values, weights=weights), abs=2e-6)


@pytest.mark.parametrize("key", ["", ":ampweight=1", ":snrweight=1"])
def test_phase_is_the_weighted_mean_difference(key, rng):
    data, model, sampling = soft_particle(rng)
    statistics = shell_statistics(data, model, sampling)
    angle, weights = [], []
    for d, m, w, k in zip(data, model, sampling, RADIUS):
        if w > 0 and k < BOX // 2:
            angle.append(abs(np.angle(d * np.conj(m))))
            weight = w * soft(np.floor(k), 64 / 500, 64 / 10)
            curve = statistics[min(round(k), BOX // 2 - 1)][0] ** 2
            snr = min(curve, 0.99) / (1 - min(curve, 0.99))
            weights.append(weight * {"": 1, ":ampweight=1": abs(m), ":snrweight=1": snr}[key])
    got = on_ball(make("phase" + key), data, model, sampling)
    assert got == pytest.approx(-np.average(angle, weights=weights), rel=2e-5)


def test_known_wedge_is_not_held_against_the_particle(rng):
    """Its exact copy correlates fully inside the region, and not outside."""
    coefficients, _ = smooth_ball(rng, 1)
    samples = wedge()[1]
    data = coefficients[0] * samples
    for name in ("ccc.tomo.thresh", "fsc.tomo.auto", "fsc.tomo", "frc"):
        assert on_ball(make(name), data, coefficients[0], samples) == pytest.approx(1, abs=1e-6)
    assert on_ball(make("phase"), data, coefficients[0], samples) == pytest.approx(0, abs=1e-3)
    share = np.linalg.norm(data) / np.linalg.norm(coefficients[0])
    for name in ("ccc", "dot:normalize=1"):
        assert on_ball(make(name), data, coefficients[0], samples) == pytest.approx(share, rel=1e-5)


def test_data_outside_the_sampled_region_do_not_count(rng):
    data, model, sampling = soft_particle(rng)
    dirty = np.where(sampling > 0, data, 1e3).astype("c8")
    for name in COMPARATORS:
        comparator = make(name)
        clean = on_ball(comparator, data, model, sampling)
        assert on_ball(comparator, dirty, model, sampling) == clean, name


# ---------------------------------------------------------------- compat


def threshold_oracle(a, b, kept_of):
    f, g = (np.fft.rfftn(np.asarray(v, "f8")) for v in (a, b))
    kept = kept_of(f, g)
    return np.sum((f * g.conj()).real[kept]) / np.sqrt(
        np.sum(abs(f[kept]) ** 2) * np.sum(abs(g[kept]) ** 2)
    )


def test_fsc_tomo_compat_takes_amplitudes_above_those_of_the_wedge(rng):
    grid, _ = wedge()
    _, volumes = pair_of(rng)
    hole = np.fft.ifftshift(grid)[..., : BOX // 2 + 1] == 0
    noise = rng.normal(size=(2, *volumes[0].shape)) * 0.02
    a, b = (np.fft.ifftn(np.fft.ifftshift(grid) * np.fft.fftn(v)).real for v in volumes)
    a, b = (a + noise[0]).astype("f4"), (b + noise[1]).astype("f4")

    def kept(f, g):
        limits = [abs(x[hole]).mean() + 2 * abs(x[hole]).std() for x in (f, g)]
        return (abs(f) > limits[0]) & (abs(g) > limits[1])

    comparator = make("fsc.tomo:compat=1:sigmas=2")
    region = jnp.asarray(grid)
    arrays = [jnp.asarray(v) for v in (a, b)]
    got = compare(comparator, *arrays, wedge_a=region, wedge_b=region)
    assert float(got) == pytest.approx(threshold_oracle(a, b, kept), abs=1e-5)
    with pytest.raises(InputError, match="give a wedge"):
        compare(comparator, *arrays)


def test_thresholds_change_the_region(volumes):
    a, b = volumes["ptcl_wedge"], volumes["ref"]
    for name, key in (("ccc.tomo.thresh", "sigmaimg"), ("fsc.tomo.auto", "sigmaimgval")):
        values = [float(compare(make(f"{name}:compat=1:{key}={s}"), a, b)) for s in (0, 0.5, 2)]
        assert len({round(v, 4) for v in values}) == 3, values
        plain = [float(compare(make(f"{name}:{key}={s}"), a, b)) for s in (0, 2)]
        assert plain[0] == plain[1]  # without compat the thresholds are not used


def test_compat_on_the_ball_finds_the_wedge_by_amplitude(rng):
    """The exact copy of a particle without its wedge scores 1 with no region given."""
    coefficients, _ = smooth_ball(rng, 2)
    data = coefficients[0] * wedge()[1]
    for name in ("ccc.tomo.thresh", "fsc.tomo.auto"):
        comparator = make(f"{name}:compat=1")
        assert on_ball(comparator, data, coefficients[0]) == pytest.approx(1, abs=1e-6)
        assert on_ball(comparator, data, coefficients[1]) < 0.5
        assert on_ball(make(name), data, coefficients[0]) < 0.95


# ---------------------------------------------------------------- contract of the registry


@every
def test_the_planted_reference_scores_best_and_gradients_are_differences(name, rng):
    coefficients, _ = smooth_ball(rng, 9)
    samples = (wedge()[1] * (0.2 + np.sin(0.6 * RADIUS) ** 2)).astype("f4")
    data = (samples * coefficients[0] + 0.5 * np.sqrt(samples) * coefficients[8]).astype("c8")
    comparator = make(name)
    particle, weight, vectors = (jnp.asarray(v) for v in (data, samples, VECTORS))
    direction = jnp.asarray(coefficients[7])

    @jax.jit
    @jax.vmap
    @jax.value_and_grad
    def at(step, start):
        model = start + step.astype(direction.dtype) * direction
        return ball_score(comparator, particle, model, weight, vectors, BOX, APIX)

    h = 1e-3 if name == "phase" else 1e-2  # absolute differences of phases have kinks
    steps = np.array([0] * 7 + [h, -h, 0], "f4")
    nothing = np.zeros_like(coefficients[0])
    models = np.stack([*coefficients[:7], coefficients[0], coefficients[0], nothing])
    values, slopes = map(np.asarray, at(jnp.asarray(steps), jnp.asarray(models)))
    assert values[:7].argmax() == 0
    singly = [on_ball(comparator, data, model, samples) for model in models[:3]]
    assert values[:3] == pytest.approx(singly, rel=2e-5)
    rise = (values[7] - values[8]) / (2 * h)
    assert slopes[0] == pytest.approx(rise, rel=2e-2, abs=6e-3 if name == "phase" else 2e-3)
    assert np.isfinite(slopes[9])


@pytest.mark.parametrize(
    "name", ["ccc", "ccc.tomo", "ccc.tomo.thresh", "dot", "fsc.tomo", "fsc.tomo.auto"]
)
def test_negative_turns_the_ranking_round(name, rng):
    data, model, sampling = (jnp.asarray(v) for v in soft_particle(rng))
    given = (data, model, sampling, jnp.asarray(VECTORS), BOX, APIX)
    upside = float(ball_score(make(f"{name}:negative=0"), *given))
    assert upside == pytest.approx(-float(ball(make(name), *given)), rel=1e-5)


SCALED = ["ccc", "ccc.tomo", "ccc.tomo.thresh", "dot:normalize=1", "frc", "fsc.tomo",
          "fsc.tomo.auto", "phase", "sqeuclidean:normto=1"]  # fmt: skip


@pytest.mark.parametrize("text", SCALED)
def test_contrast_and_mean_of_the_reference_do_not_matter(text, rng):
    """Nor do they for particles of very small or large numbers; inverted contrast is worse."""
    _, (a, b) = pair_of(rng)
    comparator = make(text)
    score_of = functools.partial(compared, comparator)
    plain = float(score_of(jnp.asarray(a), jnp.asarray(b)))
    for scale in (1e-4, 1e4):
        got = float(score_of(jnp.asarray(a), jnp.asarray(scale * b, jnp.float32)))
        assert got == pytest.approx(plain, rel=2e-4)
    if text != "dot:normalize=1":
        assert float(score_of(jnp.asarray(a), jnp.asarray(b + 3))) == pytest.approx(plain, rel=2e-4)
    if text != "sqeuclidean:normto=1":  # its scale may be negative
        assert float(score_of(jnp.asarray(a), jnp.asarray(-b))) < plain


@every
def test_undefined_is_the_worst(name, rng):
    comparator = make(name)
    _, (a, b) = pair_of(rng)
    a, b = jnp.asarray(a), jnp.asarray(b)
    constants = [jnp.zeros_like(a), jnp.full_like(a, 0.3), jnp.full_like(a, 1234.5)]
    for c in constants:
        for pair in ((a, c), (c, b)):
            got = float(compared(comparator, *pair))
            if name in DEFINED_FOR_CONSTANTS:
                assert np.isfinite(got)
            elif name == "matched" and pair[0] is c:
                assert got == pytest.approx(0, abs=1e-6)  # data without signal, as probable
            else:
                assert got == pytest.approx(worst(name))
    empty = jnp.zeros_like(a)
    if name not in {"ccc", "ccc.tomo", *DEFINED_FOR_CONSTANTS}:
        got = float(compared(comparator, a, b, empty))
        assert got == pytest.approx(worst(name))
    broken = float(compared(comparator, a.at[0, 0, 0].set(jnp.nan), b))
    assert broken == pytest.approx(worst(name) if name != "sqeuclidean" else -1e30)


@pytest.mark.parametrize("text", ["ccc.tomo.thresh:compat=1", "fsc.tomo.auto:compat=1"])
def test_constant_volumes_do_not_match_by_their_means(text):
    a = jnp.full((BOX,) * 3, 0.3)
    assert float(compare(make(text), a, a)) == -1.0


@every
def test_nothing_on_the_ball_is_the_worst(name, rng):
    coefficients, _ = smooth_ball(rng, 1)
    nothing = np.zeros_like(coefficients[0])
    unseen = np.zeros(len(VECTORS), np.float32)
    comparator = make(name)
    cases = [(coefficients[0], nothing, None), (coefficients[0], coefficients[0], unseen)]
    for data, model, weight in cases:
        got = on_ball(comparator, data, model, weight)
        assert got == pytest.approx(worst(name)) or name in DEFINED_FOR_CONSTANTS
        assert np.isfinite(got)


# ---------------------------------------------------------------- misuse


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ccc:mask=1", "no key 'mask'"),
        ("ccc.tomo.tresh", "did you mean 'ccc.tomo.thresh'"),
        ("fsc.tomo:minres=10:maxres=20", "must exceed maxres"),
        ("frc:maxres=-1", "cannot be negative"),
        ("fsc.tomo.auto:pmin=5:pmax=4", "pmax is below pmin"),
        ("matched:negative=1", "no key 'negative'"),
    ],
)
def test_bad_specifications_are_refused(text, message):
    with pytest.raises(InputError, match=message):
        make(text)


def test_volumes_of_different_size_are_refused():
    with pytest.raises(InputError, match="cubes of one size"):
        compare(make("ccc"), jnp.zeros((8, 8, 8)), jnp.zeros((8, 8, 9)))


def test_oracle_of_the_ball_is_the_transform(rng):
    """The volumes of these tests have the coefficients that they claim."""
    coefficients, volumes = smooth_ball(rng, 1)
    some = rng.choice(len(VECTORS), 20)
    got = oracle.transform(volumes[0], VECTORS[some])
    assert got == pytest.approx(coefficients[0][some], rel=1e-4, abs=1e-3)
