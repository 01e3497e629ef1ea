"""Compression to integers: limits, codes and what EMAN2 reads back, number by number.

The acceptance cases and where they are (numbers are those of EMAN2 2.99 unless marked *new*):

==  ==========================================================  ==============================
 1  plain float32, types of all attributes                       test_compress_files
 2  header of every type                                         test_compress_files
 3  EMAN2's own header                                           test_compress_files
 4  0...255 at 8 bits exact; the same less 128                   here, TABLE
 5  5 bits: 0...248, 7 cut off; 4 bits 3...243                    here, TABLE
 6  thirds at 8 and 4 bits                                       here, thirds
 7  masks and the unit range                                     here, TABLE
 8  real values of one sign (*new*)                              here, one sign
 9  constants (*new*)                                            here, constants
10  an outlier as first pixel (*new*)                            here, first pixel
11  integers stay integers under --nooutliers (*new*)            here, hot pixels
12  counts at 2...10 bits                                        here, counts
13  the full 16-bit range                                        here, TABLE
14  exact zeros, all bits (*new*)                                here, zeros
15  NaN and infinities (*new*)                                   here, not finite
16  lossless and plain floats                                    here, lossless
17  thin images (*new*)                                          test_compress_files
18  stacks of several sizes, other programs' access patterns     test_compress_files
19  idempotent, atomic, readable meanwhile                       test_compress_faults
20  names                                                        test_compress_script
21  one bad file of five                                         test_compress_script
22  MRC and TIFF arrangements                                    test_compress_files
23  levels: same pixels, sizes fall                              here, levels
24  regions                                                      test_compress_files
25  files of other programs                                      test_compress_files
26  a volume beyond memory                                       test_compress_faults (slow)
27  lists                                                        test_compress_files
28  command lines that make no sense                             test_compress_script
==  ==========================================================  ==============================
"""

import itertools

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import eman2_hdf as eman2

from sptjax._errors import InputError
from sptjax.io import Compression, compress_file, read_hdf, write_hdf
from sptjax.io._deflate import FASTEST, deflate
from sptjax.io._mapping import choose_mapping, encode
from sptjax.io._scan import Extremes, eman2_bins, eman2_outliers, scan

F = np.float32
RAMP = np.arange(256, dtype=F).reshape(16, 16)


def squeezed(folder, image, bits, **options):
    """Compress one image; returns the file."""
    keep = {k: options.pop(k) for k in ("strict", "verify", "threads", "measure") if k in options}
    write_hdf(folder / "in.hdf", [np.asarray(image, F)], 2.5)
    compress_file(folder / "in.hdf", folder / "out.hdf", Compression(bits, **options), **keep)
    return folder / "out.hdf"


def restored(path, index=0):
    """Pixels that sptjax reads, which all builds of EMAN2 read too, to the last place."""
    ours = read_hdf(path, index)[0]
    np.testing.assert_array_equal(ours, eman2.read(path, index, "fused"), strict=True)
    span = np.abs(eman2.limits(path, index)[:2]).max()
    for order in ("fast", "strict"):
        assert np.abs(eman2.read(path, index, order) - ours).max() <= 3e-7 * span
    return ours


# image, bits, low, high, values cut off, largest error
TABLE = {
    "4 ramp": (RAMP, 8, 0, 255, 0, 0),
    "4 signed ramp": (RAMP - 128, 8, -128, 127, 0, 0),
    "5 ramp": (RAMP, 5, 0, 248, 7, 7),
    "5 signed ramp": (RAMP - 128, 5, -128, 120, 7, 7),
    "5 ramp from 3": (RAMP + 3, 4, 3, 243, 15, 15),
    "7 mask": (RAMP % 2, 5, 0, 1, 0, 0),
    "7 unit range": (RAMP / F(255), 8, 0, 1, 0, 6e-8),
    "13 all 16 bits": (np.arange(65536).reshape(256, 256), 16, 0, 65535, 0, 0),
    "13 in 12 bits": (np.arange(65536).reshape(256, 256), 12, 0, 65520, 15, 15),
    "13 in 8 bits": (np.arange(65536).reshape(256, 256), 8, 0, 65280, 255, 255),
    "12 counts in 2 bits": (RAMP % 7, 2, 0, 6, 0, 1),
    "new integers from -1 to 0": (RAMP % 2 - 1, 8, -1, 254, 0, 0),
}


@pytest.mark.parametrize("compat", [False, True], ids=["ours", "eman"])
@pytest.mark.parametrize("case", TABLE)
def test_integers_and_unit_range(tmp_path, case, compat):
    image, bits, low, high, outside, error = TABLE[case]
    if compat and case.startswith("new"):
        return
    image = np.asarray(image, F)
    path = squeezed(tmp_path, image, bits, eman_compat=compat)
    assert eman2.limits(path) == (low, high, outside)
    found = restored(path)
    if not case.endswith("unit range"):
        np.testing.assert_array_equal(found, np.rint(found))
        np.testing.assert_array_equal(eman2.read(path, order="strict"), found)
    worst = np.abs(found.astype(float) - image).max()
    assert worst <= error
    assert worst == pytest.approx(error, abs=6e-8)
    codes = eman2.codes(path)
    assert codes.dtype == (np.uint8 if bits <= 8 else np.uint16)
    assert codes.max() < 2**bits
    if case == "7 mask":
        assert set(np.unique(codes)) == {0, 31}


def test_thirds_by_eman2_and_by_us(tmp_path):
    image = RAMP / F(3) - F(40)
    path = squeezed(tmp_path, image, 8, eman_compat=True)
    low, high, _ = eman2.limits(path)
    assert (low, high) == (pytest.approx(-40.157478, abs=4e-6), pytest.approx(45.177162, abs=4e-6))
    theirs = eman2.codes(path)
    assert np.abs(restored(path) - image).max() == pytest.approx(0.16666, abs=2e-5)
    path = squeezed(tmp_path, image, 8)
    assert eman2.limits(path)[:2] == (pytest.approx(low, rel=1e-4), pytest.approx(high, rel=1e-4))
    assert np.count_nonzero(eman2.codes(path) != theirs) <= 6  # at halves of a step
    assert np.abs(restored(path) - image).max() <= 0.1674
    for order in ("fast", "fused", "strict"):
        assert eman2.read(path, order=order)[image == 0] == 0
    path = squeezed(tmp_path, image, 4, eman_compat=True)
    low, high, _ = eman2.limits(path)
    assert (low, high) == (pytest.approx(-42.5, abs=4e-6), pytest.approx(48.571434, abs=4e-6))
    assert (eman2.codes(path).min(), eman2.codes(path).max()) == (0, 14)


@pytest.mark.parametrize("sign", [1, -1])
def test_real_values_of_one_sign_survive(tmp_path, rng, sign):
    image = (sign * rng.normal(100, 5, (40, 50))).astype(F)
    path = squeezed(tmp_path, image, 10)
    low, high, outside = eman2.limits(path)
    assert (low, high, outside) == (image.min(), image.max(), 0)
    half = (image.max() - image.min()) / 2046
    assert np.abs(restored(path) - image).max() <= half * (1 + 1e-4)
    if sign == 1:
        with pytest.raises(InputError, match="zeros"):
            squeezed(tmp_path, image, 10, eman_compat=True)
    image[rng.random(image.shape) < 0.5] = 0
    found = restored(squeezed(tmp_path, image, 10))
    np.testing.assert_array_equal(found == 0, image == 0)


@pytest.mark.parametrize(
    ("value", "low", "high"), [(0.5, 0.5, None), (3, 3, 1026), (0, 0, 1023), (-0.25, -0.25, None)]
)
def test_constants_are_exact(tmp_path, value, low, high):
    path = squeezed(tmp_path, np.full((9, 10), value), 10)
    np.testing.assert_array_equal(restored(path), F(value))
    assert eman2.limits(path)[0] == low
    assert high is None or eman2.limits(path)[1] == high


def test_the_first_pixel_counts_no_more_than_others(tmp_path, rng):
    image = rng.normal(0, 1, (64, 64)).astype(F)
    image[5, 5], image[6, 6] = -3.5, 3.5
    image[0, 0] = 100
    expected = image.copy()
    expected[0, 0] = 3
    theirs = squeezed(tmp_path, image, 8, limits=(-3, 3), eman_compat=True)
    assert eman2.limits(theirs)[:2] == (
        pytest.approx(-3.244, abs=2e-3),
        pytest.approx(100.161, abs=2e-1),
    )
    ours = squeezed(tmp_path, image, 8, limits=(-3, 3))
    low, high, outside = eman2.limits(ours)
    assert outside == np.count_nonzero((image < F(low)) | (image > F(high))) >= 17 - 2
    assert squeezed(tmp_path, expected, 8, limits=(-3, 3))
    assert eman2.limits(tmp_path / "out.hdf")[:2] == (low, high)
    assert -3.05 < low <= -3
    assert 3 <= high < 3.05


def test_limits_beyond_the_data_are_drawn_in(tmp_path, rng):
    image = rng.uniform(1, 2, (32, 32)).astype(F)
    path = squeezed(tmp_path, image, 8, limits=(-50, 50))
    assert eman2.limits(path)[:2] == (image.min(), image.max())
    assert eman2.limits(squeezed(tmp_path, RAMP, 8, limits=(10.4, 99.6)))[0] == 10
    found = restored(tmp_path / "out.hdf")  # the codes are there, so nothing is cut off above
    np.testing.assert_array_equal(found, RAMP.clip(10))
    found = restored(squeezed(tmp_path, RAMP, 5, limits=(10.4, 99.6)))
    assert eman2.limits(tmp_path / "out.hdf")[:2] == (10, 10 + 31 * 4)
    assert np.abs(found - RAMP.clip(10, 134)).max() == 2


def test_sigmas(tmp_path, rng):
    image = rng.normal(7, 2, (100, 100)).astype(F)
    path = squeezed(tmp_path, image, 8, sigmas=(2, 3))
    low, high, outside = eman2.limits(path)
    mean, sigma = image.mean(dtype=float), image.std(dtype=float, ddof=1)
    assert low == pytest.approx(mean - 2 * sigma, rel=1e-5)
    assert high == pytest.approx(min(mean + 3 * sigma, image.max()), rel=1e-5)
    assert outside == np.count_nonzero((image < F(low)) | (image > F(high)))


def test_hot_pixels_are_cut_off_and_integers_stay(tmp_path, rng):
    image = rng.poisson(20, (300, 400)).astype(F)
    hot = rng.choice(image.size, 5, replace=False)
    image.reshape(-1)[hot] = 5000
    path = squeezed(tmp_path, image, 5, no_outliers=True)
    rank = max(image.size // 20000, 8)
    ordered = np.sort(image.reshape(-1))
    low, high = ordered[rank], ordered[-rank - 1]
    assert high < 60
    found = restored(path)
    step = 2
    assert eman2.limits(path)[:2] == (low, low + 31 * step)
    np.testing.assert_array_equal(found, np.rint(found))
    assert np.abs(found - image.clip(low, low + 31 * step)).max() <= 1
    # EMAN2: one pass over 1024 bins, at most half of them
    image = rng.poisson(20, (300, 400)).astype(F)
    image[3, 4] = 5000
    histogram = eman2_bins(image, image.min(), 5000.0)
    assert eman2_outliers(histogram.tolist(), float(image.min()), 5000.0)[1] == pytest.approx(
        2508, abs=5
    )
    theirs = squeezed(tmp_path, image, 5, no_outliers=True, eman_compat=True)
    assert eman2.limits(theirs)[1] == pytest.approx(2508, abs=5)


def test_extremes_are_those_of_sorting(rng):
    values = rng.standard_cauchy(50000).astype(F)
    values[:40], values[40], values[41:44] = np.nan, np.inf, -np.inf
    ordered = np.sort(values[np.isfinite(values)])
    for rank in (1, 9, 700):
        extremes = Extremes(rank)
        for part in np.array_split(values, 23):
            extremes.add(part)
        assert extremes.limits() == (ordered[rank - 1], ordered[-rank])
    few = Extremes(9)
    few.add(np.arange(12, dtype=F))
    assert few.limits() is None


def test_counts_are_exact(tmp_path, rng):
    counts = np.minimum(rng.poisson(1.5, (100, 120)), 7)
    counts[0, 0] = 7
    for bits in (10, 8, 5, 4, 3):
        np.testing.assert_array_equal(restored(squeezed(tmp_path, counts, bits)), counts)
    assert np.abs(restored(squeezed(tmp_path, np.minimum(counts, 6), 2)) - counts).max() <= 2


def signed_with_zeros(rng, seed, shape):
    """Real values of both signs, every third set off zero, every seventh <= 0; half exactly 0."""
    scale = 10.0 ** rng.uniform(-9, 3)  # all floats beyond 2^24 are integers
    image = rng.normal(rng.uniform(-2, 2) * (seed % 3), 1, shape) * scale
    image[rng.random(image.shape) < 0.5] = 0
    image[0, :2] = 0, -scale
    return (image if seed % 7 else np.minimum(image, 0)).astype(F)


@pytest.mark.parametrize("bits", range(2, 17))
def test_zeros_are_zeros_at_all_bits(tmp_path, bits):
    rng, strict = np.random.default_rng(bits), 0
    top = F(2**bits - 1)
    for seed in range(200):
        image = signed_with_zeros(rng, seed, (12, 16))
        mapping = choose_mapping(scan(image), bits)
        codes, outside = encode(image, mapping)
        span = mapping.high - mapping.low
        scale = F(1) / top * span
        fast = codes.astype(F) * scale + mapping.low
        fused = (codes * float(scale) + float(mapping.low)).astype(F)
        assert not outside
        assert not fast[image == 0].any()
        assert not fused[image == 0].any()
        strict += (codes.astype(F) / top * span + mapping.low)[image == 0].any()
        step = float(span) / float(top)
        assert np.abs(fast - image).max() <= step / 2 + 4e-7 * np.abs(image).max()
        widest = np.ptp(image) / (2**bits - 2)
        assert step <= widest * (1.2 if bits < 5 else 1.02)
    assert strict <= 30  # EMAN2's own limits: 0 to 58 % are not zero in one order or the other
    stack = [signed_with_zeros(rng, seed, (9, 30)) for seed in range(4)]
    write_hdf(tmp_path / "in.hdf", stack, 1.0)
    compress_file(tmp_path / "in.hdf", tmp_path / "out.hdf", Compression(bits))
    for index, image in enumerate(stack):
        assert not restored(tmp_path / "out.hdf", index)[image == 0].any()


def test_values_beyond_what_floats_can_span_are_refused(tmp_path, rng):
    image = rng.normal(0, 1, (12, 16)).astype(F)
    image[0, 0] = 3e38
    with pytest.raises(InputError, match="span more than"):
        squeezed(tmp_path, image, 8)
    found = restored(squeezed(tmp_path, image, 8, limits=(-4, 4)))
    assert np.abs(found - image)[image < 4].max() < 0.02
    assert not np.isinf(restored(squeezed(tmp_path, np.abs(image), 8))).any()


def test_values_that_are_not_finite(tmp_path, rng):
    image = rng.normal(0, 1, (64, 64)).astype(F)
    clean = image.copy()
    image[1, 1], image[2, 2], image[3, 3] = np.nan, np.inf, -np.inf
    clean[[1, 2, 3], [1, 2, 3]] = 0
    write_hdf(tmp_path / "in.hdf", [image], 1.0)
    outcome = compress_file(tmp_path / "in.hdf", tmp_path / "out.hdf", Compression(8), measure=True)
    found = restored(tmp_path / "out.hdf")
    assert outcome.not_finite == 3
    low, high, outside = eman2.limits(tmp_path / "out.hdf")
    assert outside == 2
    step = (high - low) / 255
    good = np.isfinite(image)
    assert np.abs(found - image)[good].max() <= step / 2 * 1.001
    assert found[1, 1] == 0
    assert found[2, 2] == pytest.approx(high, rel=1e-6)
    assert found[3, 3] == pytest.approx(low, rel=1e-6)
    assert outcome.worst_sigma == pytest.approx(
        np.abs(found - image)[good].max() / image[good].std(ddof=1), rel=1e-5
    )
    header = eman2.header(tmp_path / "out.hdf")
    assert header["maximum"] == image[good].max()
    with pytest.raises(InputError, match="3 values are not finite"):
        squeezed(tmp_path, image, 8, strict=True)
    np.testing.assert_array_equal(restored(tmp_path / "out.hdf"), found)  # as it was
    nothing = squeezed(tmp_path, np.full((8, 9), np.nan), 8)
    assert not restored(nothing).any()


def test_lossless_and_plain_floats(tmp_path, rng):
    image = rng.normal(0, 1, (30, 33, 70)).astype(F)
    image[0, 0, :5] = [-0.0, 1e-45, np.inf, -np.inf, np.frombuffer(b"\x01\x02\xc0\x7f", F)[0]]
    path = squeezed(tmp_path, image, 0, verify=True)
    with h5py.File(path) as file:
        dataset = file["MDF/images/0/image"]
        assert dataset.shuffle
        assert (dataset.compression, dataset.compression_opts) == ("gzip", 1)
        assert dataset[()].tobytes() == image.tobytes()
        assert not [name for name in file["MDF/images/0"].attrs if "stored" in name]
    np.testing.assert_array_equal(eman2.read(path), image)
    compress_file(path, tmp_path / "plain.hdf", Compression(-1), verify=True)
    with h5py.File(tmp_path / "plain.hdf") as file:
        dataset = file["MDF/images/0/image"]
        assert (dataset.chunks, dataset.compression, dataset.dtype.str) == (None, None, "<f4")
        assert dataset[()].tobytes() == image.tobytes()


def test_levels_change_the_size_and_nothing_else(tmp_path, rng):
    image = rng.normal(0, 1, (8, 64, 300)).astype(F)
    image[:, :20] = np.round(image[:, :20])
    sizes, first = [], None
    for level in range(10):
        path = squeezed(tmp_path, image, 5, level=level)
        codes = eman2.codes(path)
        first = codes if first is None else first
        np.testing.assert_array_equal(codes, first)
        with h5py.File(path) as file:
            assert file["MDF/images/0/image"].compression_opts == level
        sizes.append(path.stat().st_size)
    assert all(b <= 1.01 * a for a, b in itertools.pairwise(sizes))
    assert sizes[0] > 1.3 * sizes[1]


def test_smaller_than_gzip(tmp_path, rng):
    """A movie of about one electron per pixel, and low-passed noise at 10 bits."""
    movie = rng.poisson(0.97, (3, 512, 700)).astype(F)
    smooth = np.fft.irfftn(
        np.fft.rfftn(rng.normal(0, 1, (16, 256, 256)))
        * (np.hypot(np.fft.fftfreq(256)[:, None], np.fft.rfftfreq(256)) < 0.3)
    ).astype(F)
    for image, bits, most in ((movie, 5, 0.80), (smooth, 10, 0.85)):
        path = squeezed(tmp_path, image, bits)
        codes = eman2.codes(path)
        with h5py.File(tmp_path / "gzip.hdf", "w") as file:
            file.create_dataset(
                "x", data=codes, chunks=(1, 8, image.shape[2]), compression="gzip",
                compression_opts=1,
            )  # fmt: skip
            size = file["x"].id.get_storage_size()
        with h5py.File(path) as file:
            assert file["MDF/images/0/image"].id.get_storage_size() <= most * size


@pytest.mark.parametrize("library", ["zlib", "zlib_ng.zlib_ng"])
@pytest.mark.parametrize("level", [0, 1, 6])
def test_streams_are_zlib(rng, library, level):
    import zlib

    used = pytest.importorskip(library)
    for chunk in (
        rng.poisson(1, 999).astype(np.uint8),
        rng.normal(500, 9, 3000).astype(np.uint16),
        np.zeros(5000, np.uint16),
        rng.normal(0, 1, 7).astype(F),
        np.repeat(rng.integers(0, 9, 400), 11).astype(np.uint8),
    ):
        stream = deflate(chunk, level, used)
        planes = chunk.view(np.uint8).reshape(-1, chunk.itemsize).T
        assert zlib.decompress(stream) == planes.tobytes()
    assert FASTEST is not None


kinds = st.sampled_from(["f4", "u1", "i1", "u2", "i2", "i4", "f2", "f8"])


@settings(max_examples=60, deadline=None, database=None)
@given(
    kind=kinds,
    shape=st.lists(st.integers(1, 19), min_size=1, max_size=3),
    bits=st.integers(2, 16),
    low=st.floats(-1e4, 1e4),
    span=st.floats(1e-3, 6e4),
    zeros=st.booleans(),
    threads=st.integers(1, 3),
    seed=st.integers(0, 2**32 - 1),
)
def test_round_trip_of_anything(
    tmp_path_factory, kind, shape, bits, low, span, zeros, threads, seed
):
    rng = np.random.default_rng(seed)
    values = low + span * rng.random(shape)
    if kind[0] in "iu":
        info = np.iinfo(kind)
        values = np.rint(values.clip(info.min, info.max))
    image = values.clip(-6e4, 6e4).astype(kind)
    if zeros:
        image[rng.random(shape) < 0.4] = 0
    folder = tmp_path_factory.mktemp("any")
    with h5py.File(folder / "in.hdf", "w") as file:
        file.create_dataset("MDF/images/0/image", data=image)
        file["MDF/images"].attrs["imageid_max"] = np.array([0], "i4")
    compress_file(
        folder / "in.hdf", folder / "out.hdf", Compression(bits), threads=threads, verify=True
    )
    found, wanted = restored(folder / "out.hdf"), image.astype(F)
    while wanted.ndim > 1 and wanted.shape[0] == 1:
        wanted = wanted[0]
    assert found.shape == wanted.shape
    error = np.abs(found.astype(float) - wanted).max()
    whole = np.array_equal(wanted, np.rint(wanted))
    range_ = float(wanted.max()) - float(wanted.min())
    if whole:
        np.testing.assert_array_equal(found, np.rint(found))
        step = 1 if range_ < 2**bits else 2.0 ** (int(range_).bit_length() - bits)
        assert error < step
    else:
        assert error <= (range_ / (2**bits - 2)) * 0.61 + 3e-7 * np.abs(wanted).max()
    assert not found[wanted == 0].any() or (whole and wanted.min() > 0) or range_ >= 2**bits
