"""What every documented option does: a run without it, a run with it, and the stated difference.

One row per name of the user's table. A row runs a script on eight planted particles and holds
the option to a number, a file or a header item that only it can change.
"""

import os

import jax
import numpy as np
import option_runs
import pytest
from option_runs import APIX, BOX, CLASSES, COUNT

from sptjax import console, io

LONG = {"refgenmethod", "ncls"}

NAMES = """
ncls nbasis input ref nref refgenmethod subset4ref subset refpreprocess apix path syms output
oneclass classmx resultmx refinemultireftag refrandphase hacref ssaref btref radius iter savesteps
saveali saveallalign sym mask maskfile normproc threshold preprocess preprocessfine lowpass
lowpassfine highpass highpassfine postprocess procfinelikecoarse npeakstorefine align aligncmp
falign faligncmp averager keep inixforms breaksym randomizewedge savepreproc keepsig autocenter
autocentermask autocenterpreprocess shrink shrinkfine search searchfine parallel automask resample
ppid verbose plots notmatchimgs preavgproc1 preavgproc2 weighbytiltaxis weighbyscore clip precision
tweak
""".split()

ROWS = {}


def row(name):
    def add(function):
        assert name not in ROWS, f"two rows for {name}"
        ROWS[name] = function
        return function

    return add


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return option_runs.Bench(tmp_path_factory.mktemp("options"))


def test_every_documented_option_has_a_row():
    assert len(NAMES) == len(set(NAMES)) == 72
    assert set(ROWS) == set(NAMES)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.long if n in LONG else ()) for n in NAMES]
)
def test_option(name, bench):
    ROWS[name](bench)


# ---------------------------------------------------------------- definitions used by the rows

CENTRED = np.arange(BOX) - BOX // 2
Z, Y, X = np.meshgrid(CENTRED, CENTRED, CENTRED, indexing="ij")
RADIUS = np.sqrt(X**2 + Y**2 + Z**2)
GRID = "rotate_translate_3d_grid:alt0=0:alt1=1:az0=0:az1=1:dphi=90:search=2"  # four turns about z
COARSE = {"align": "rotate_translate_3d:search=2:delta=60:dphi=60", "aligncmp": "ccc"}
LOW = "filter.lowpass.gauss:cutoff_freq=0.02"  # 1/angstrom
HIGH = "filter.highpass.gauss:cutoff_freq=0.01"
FINE = {"falign": "refine_3d", "aligncmp": "ccc", "savepreproc": True}


def filtered(volumes, gain, apix=APIX):
    """Volumes whose coefficients are multiplied by a function of frequency in 1/angstrom."""
    f = np.fft.fftfreq(volumes.shape[-1], apix)
    frequency = np.sqrt(f[:, None, None] ** 2 + f[:, None] ** 2 + f**2)
    spectra = np.fft.fftn(volumes, axes=(-3, -2, -1)) * gain(frequency)
    return np.fft.ifftn(spectra, axes=(-3, -2, -1)).real


def lowpassed(volumes):
    return filtered(volumes, lambda f: np.exp(-(f**2) / 0.02**2))


def highpassed(volumes):
    return filtered(volumes, lambda f: 1 - np.exp(-(f**2) / 0.01**2))


def banded(volume, kmax):
    """Nothing beyond ``kmax`` Fourier pixels, and no mean."""
    limit = (kmax + 1e-6) / (BOX * APIX)
    return filtered(volume, lambda f: ((f <= limit) & (f > 0)).astype(float))


def cropped(volumes, box):
    """The lowest frequencies alone, in a smaller box; the centre voxel stays the centre."""
    axes = (-3, -2, -1)
    spectra = np.fft.fftshift(np.fft.fftn(np.fft.ifftshift(volumes, axes), axes=axes), axes)
    part = slice(BOX // 2 - box // 2, BOX // 2 + box // 2)
    spectra = spectra[..., part, part, part].copy()
    spectra[..., 0, :, :] = spectra[..., :, 0, :] = spectra[..., :, :, 0] = 0
    volumes = np.fft.ifftn(np.fft.ifftshift(spectra, axes), axes=axes).real
    return np.fft.fftshift(volumes, axes) * (box / BOX) ** 3


def half_turn(volume):
    """About z through the centre voxel; the planes that leave the box are cut off."""
    return volume[:, :0:-1, :0:-1]


def turned_deg(matrix):
    return np.degrees(np.arccos(np.clip((np.trace(matrix, axis1=-2, axis2=-1) - 1) / 2, -1, 1)))


def apart(found, truth):
    """Angles in degrees and distances of the particle's places in voxels."""
    (r, t), (s, u) = ((m[:, :, :3], m[:, :, 3]) for m in (found, truth))
    place = [-np.einsum("nji,nj->ni", a, b) for a, b in ((r, t), (s, u))]
    return turned_deg(r @ s.swapaxes(1, 2)), np.abs(place[0] - place[1])


def own_poses(run, it="0"):
    """Pose of every particle in its class."""
    both = np.stack([run.poses(f"sptali_rm_{it}_{c}.json")[0] for c in (0, 1)])
    return both[run.state.classes, np.arange(len(run.state.classes))]


def own_scores(run):
    return run.state.score[np.arange(len(run.state.classes)), run.state.classes]


def scores(run):
    return run.poses("sptali_rm_0_0.json")[1]


def assert_other_scores(run, base):
    assert np.abs(scores(run) - scores(base)).min() > 1e-3


# ---------------------------------------------------------------- classes by PCA


@row("ncls")
def _(bench):
    """The particles of one average sorted into so many classes: two are the planted ones."""
    base = bench.run("classaverage", goldstandardoff=True)
    assert "classmx_msa.hdf" not in base.names()
    run = bench.run("classaverage", goldstandardoff=True, ncls=2)
    found = io.read_classmx(run.folder / "classmx_msa.hdf").classes
    assert max(np.mean(found == CLASSES), np.mean(found != CLASSES)) == 1
    assert len(run.stack("class_avgs_msa.hdf")) == 2
    assert len(run.stack("msa_basis.hdf")) == 1 + 3  # default of --nbasis
    assert np.array_equal(run.stack("final_avg.hdf"), base.stack("final_avg.hdf"))


@row("nbasis")
def _(bench):
    """As many eigenvolumes and coordinates; two classes by default."""
    run = bench.run("classaverage", goldstandardoff=True, nbasis=1)
    assert len(run.stack("msa_basis.hdf")) == 1 + 1
    assert np.loadtxt(run.folder / "msa_projection.txt").shape == (COUNT, 1 + 1)
    assert len(run.stack("class_avgs_msa.hdf")) == 2
    assert run.header("msa_basis.hdf", 1)["eigval"] > 0


# ---------------------------------------------------------------- input, output, run control


@row("input")
def _(bench):
    """Other particles: the planted classes in the order of the other file."""
    stack = bench.write("reversed.hdf", bench.particles[::-1])
    poses = bench.poses("reversed.json", bench.matrices[::-1])
    base, run = bench.run(), bench.run(input=stack, inixforms=poses)
    assert base.state.classes.tolist() == CLASSES.tolist()
    assert run.state.classes.tolist() == CLASSES[::-1].tolist()
    np.testing.assert_allclose(run.stack("class_avgs.hdf"), base.stack("class_avgs.hdf"), atol=1e-4)


@row("output")
def _(bench):
    """The name of the averages, and of nothing else."""
    base, run = bench.run(), bench.run(output="mine.hdf")
    assert run.names() - base.names() == {"mine.hdf"}
    assert base.names() - run.names() == {"class_avgs.hdf"}
    np.testing.assert_array_equal(run.stack("mine.hdf"), base.stack("class_avgs.hdf"))


@row("path")
def _(bench):
    """The folder is made with its parents, numbered from 01."""
    stem = bench.folder / "new" / "mine"
    assert bench.run(path=stem).folder == bench.folder / "new" / "mine_01"
    assert bench.run(path=stem, keep=0.9).folder == bench.folder / "new" / "mine_02"


@row("apix")
def _(bench):
    """Headers and the axis of the FSC follow."""
    base, run = bench.run(), bench.run(apix=20)
    assert base.apix("class_avgs.hdf") == pytest.approx(10)
    assert run.apix("class_avgs.hdf") == pytest.approx(20)
    assert np.loadtxt(base.folder / "fsc_0_0.txt")[-1, 0] == pytest.approx(1 / 20, rel=1e-4)
    assert np.loadtxt(run.folder / "fsc_0_0.txt")[-1, 0] == pytest.approx(1 / 40, rel=1e-4)


@row("subset")
def _(bench):
    """The first particles of the file, and no more."""
    run = bench.run(subset=5, inixforms=bench.folder / "poses.json")
    assert run.state.classes.tolist() == CLASSES[:5].tolist()
    assert len(run.json("sptali_rm_0_0.json")) == 5
    found = [run.header("class_avgs.hdf", c)["spt_multiplicity"] for c in (0, 1)]
    assert found == [3, 2]


@row("iter")
def _(bench):
    """A second round against the averages of the first: files of its own, other scores."""
    base, run = bench.run(), bench.run(iter=2)
    assert "sptali_rm_1_0.json" not in base.names()
    again = run.poses("sptali_rm_1_0.json")[1]
    np.testing.assert_allclose(run.poses("sptali_rm_0_0.json")[1], scores(base), rtol=1e-5)
    assert np.abs(again - scores(base)).min() > 0.1


@row("parallel")
def _(bench):
    """Cores and dispatch as asked for; results do not depend on it."""
    base, asked = bench.run(), []
    cores = sorted(os.sched_getaffinity(0))
    before = jax.config.read("jax_cpu_enable_async_dispatch")
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "sched_setaffinity", lambda pid, mine: asked.append(mine))
            runs = [bench.run(parallel=p) for p in ("thread:2", "none")]
        assert not jax.config.read("jax_cpu_enable_async_dispatch")
    finally:
        jax.config.update("jax_cpu_enable_async_dispatch", before)
    assert asked == [cores[:2], cores[:1]]
    for run in runs:
        np.testing.assert_array_equal(run.state.maps, base.state.maps)
        np.testing.assert_array_equal(run.state.score, base.state.score)


@row("ppid")
def _(bench):
    """Recorded in the manifest and in the parameters; no other effect."""
    base, run = bench.run(), bench.run(ppid=4711)
    assert (base.options()["ppid"], run.options()["ppid"]) == (-1, 4711)
    assert "ppid=4711" in (run.folder / "parameters_refinemulti.txt").read_text().splitlines()
    np.testing.assert_array_equal(run.state.maps, base.state.maps)


@row("verbose")
def _(bench):
    """Progress bars over the batches of every stage."""
    titles = []

    def bar(items, title):
        titles.append(title)
        return items

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(console, "progress", bar)
        bench.run(verbose=0)
        assert titles == []
        bench.run(verbose=1)
    assert {"aligning", "averaging"} <= set(titles)


@row("plots")
def _(bench):
    """Pictures of slices, FSC and scores."""
    base, run = bench.run(), bench.run(plots=True, iter=1)
    assert not [n for n in base.names() if n.endswith(".png")]
    wanted = {"slices.png", "fsc_0.png", "spt_cccs_0.png", "class_occupancy.png"}
    assert wanted <= run.names()
    assert (run.folder / "slices.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


# ---------------------------------------------------------------- references and classes


@row("ref")
def _(bench):
    """The classes follow the order of the maps."""
    refs = f"{bench.folder / 'ref1.hdf'},{bench.folder / 'ref0.hdf'}"
    assert bench.run(ref=refs).state.classes.tolist() == (1 - CLASSES).tolist()


@row("nref")
def _(bench):
    """One map for two classes is copied with random phases beyond 60 A; one class more, one map."""
    one = bench.folder / "ref0.hdf"
    run = bench.run(ref=one, nref=2)
    assert len(run.stack("class_avgs.hdf")) == 2
    first, second = banded(run.initial()[0], 3.5)
    np.testing.assert_allclose(first, second, atol=1e-3)
    assert np.abs(run.initial()[0, 0] - run.initial()[0, 1]).max() > 0.1
    more = bench.run(ref=one, nref=3)
    assert len(more.stack("class_avgs.hdf")) == 3
    assert {f"sptali_rm_0_{c}.json" for c in range(3)} <= more.names()


@row("refrandphase")
def _(bench):
    """Amplitudes stay, phases beyond the resolution are random, each map has its own."""
    base, run = bench.run(), bench.run(refrandphase=80)
    k = 2.5  # shells up to BOX * APIX / 80 = 3 are kept
    old, new = base.initial()[0], run.initial()[0]
    np.testing.assert_allclose(banded(new, k), banded(old, k), atol=1e-3)
    size = [np.abs(np.fft.fftn(v, axes=(1, 2, 3))) for v in (old, new)]
    np.testing.assert_allclose(size[1], size[0], atol=2e-3 * size[0].max())
    shift = new - old
    assert np.corrcoef(new[0].ravel(), old[0].ravel())[0, 1] < 0.9
    assert abs(np.corrcoef(shift[0].ravel(), shift[1].ravel())[0, 1]) < 0.9


@row("refpreprocess")
def _(bench):
    """Given references pass the filters too."""
    options = {"lowpass": LOW, "savepreproc": True}
    base, run = bench.run(**options), bench.run(refpreprocess=True, **options)
    assert run.names() - base.names() == {"ref0_preproc.hdf", "ref1_preproc.hdf"}
    wanted = lowpassed(run.initial()[0])
    for c in (0, 1):
        np.testing.assert_allclose(run.stack(f"ref{c}_preproc.hdf")[0], wanted[c], atol=1e-4)
    assert_other_scores(run, base)


@row("sym")
def _(bench):
    """Averages have the symmetry."""
    base, run = bench.run(), bench.run(sym="c2")
    for c in (0, 1):
        before, after = base.stack("class_avgs.hdf")[c][1:], run.stack("class_avgs.hdf")[c][1:]
        mean = (before[:, 1:, 1:] + half_turn(before)) / 2
        assert np.abs(before[:, 1:, 1:] - half_turn(before)).max() > 0.3
        np.testing.assert_allclose(after[2:-2, 3:-2, 3:-2], mean[2:-2, 2:-2, 2:-2], atol=0.05)


@row("syms")
def _(bench):
    """Each class has its own symmetry."""
    base, run = bench.run(), bench.run(syms="c1,c2")
    before, after = base.stack("class_avgs.hdf"), run.stack("class_avgs.hdf")
    np.testing.assert_allclose(after[0], before[0], atol=1e-4)
    inner = (slice(3, -2), slice(3, -2), slice(3, -2))
    turned = np.zeros_like(after[1])
    turned[:, 1:, 1:] = half_turn(after[1])
    np.testing.assert_allclose(after[1][inner], turned[inner], atol=0.05)
    assert np.abs(after[1] - before[1]).max() > 0.3


@row("breaksym")
def _(bench):
    """The averages of a symmetric search stay as they are without symmetry."""
    base, run = bench.run(), bench.run(sym="c2", breaksym=True)
    np.testing.assert_allclose(run.state.maps, base.state.maps, atol=1e-4)
    assert np.abs(bench.run(sym="c2").state.maps - base.state.maps).max() > 0.3


@row("classmx")
def _(bench):
    """Poses and the first references are those of the matrix; nref is its width."""
    options = {"ref": None, "nref": None, "inixforms": None}
    run = bench.run(classmx=bench.folder / "classmx.hdf", **options)
    np.testing.assert_allclose(run.poses("sptali_rm_0_1.json")[0], bench.matrices, atol=1e-5)
    assert run.state.classes.tolist() == CLASSES.tolist()
    swapped = bench.classes("swapped.hdf", 1 - CLASSES, bench.matrices)
    other = bench.run(classmx=swapped, **options)
    assert other.state.classes.tolist() == (1 - CLASSES).tolist()


@row("oneclass")
def _(bench):
    """Only that class is averaged; the particles are assigned as before."""
    base, run = bench.run(), bench.run(oneclass=1)
    assert run.state.classes.tolist() == base.state.classes.tolist()
    before, after = base.stack("class_avgs.hdf"), run.stack("class_avgs.hdf")
    np.testing.assert_allclose(after[1], before[1], atol=1e-5)
    assert np.abs(before[0]).max() > 0.5
    assert not after[0].any()


@row("resultmx")
def _(bench):
    """Classes, weights and poses of the last round."""
    base, run = bench.run(keep=0.5), bench.run(keep=0.5, resultmx="result.hdf")
    assert run.names() - base.names() == {"result.hdf"}
    matrix = io.read_classmx(run.folder / "result.hdf")
    assert matrix.classes.tolist() == CLASSES.tolist()
    assert matrix.weights.tolist() == run.state.used.astype(float).tolist()
    np.testing.assert_allclose(matrix.shifts_vox, bench.matrices[:, :, 3], atol=1e-5)


@row("refinemultireftag")
def _(bench):
    """The tag stands in the names of the pose files."""
    base, run = bench.run(), bench.run(refinemultireftag="mine")
    names = {f"sptali_rm_{{}}_{c}{end}.json" for c in (0, 1) for end in ("", "_ext")}
    assert run.names() - base.names() == {n.format("mine") for n in names}
    assert base.names() - run.names() == {n.format("0") for n in names}


@row("inixforms")
def _(bench):
    """With ``--align=None``, the poses."""
    base = bench.run(inixforms=None)
    run = bench.run()
    identity = np.eye(3, 4)[None].repeat(COUNT, 0)
    np.testing.assert_allclose(base.poses("sptali_rm_0_0.json")[0], identity, atol=1e-6)
    np.testing.assert_allclose(run.poses("sptali_rm_0_0.json")[0], bench.matrices, atol=1e-5)


# ---------------------------------------------------------------- preprocessing


def prepared(bench, **options):
    """Coarse copies of a run, which must score otherwise than raw particles; and the run."""
    run = bench.run(savepreproc=True, **options)
    assert_other_scores(run, bench.run())
    return run.stack("particles_preproc.hdf"), run


@row("savepreproc")
def _(bench):
    """The copies that are aligned, with their place in the file."""
    base, run = bench.run(), bench.run(savepreproc=True)
    assert run.names() - base.names() == {"particles_preproc.hdf"}
    np.testing.assert_array_equal(run.stack("particles_preproc.hdf"), bench.particles)
    assert run.header("particles_preproc.hdf", 3)["spt_indx_original"] == 3


@row("mask")
def _(bench):
    """Zero outside the sphere, the particle inside."""
    copies, _ = prepared(bench, mask="mask.sharp:outer_radius=6")
    np.testing.assert_allclose(copies, bench.particles * (RADIUS < 6), atol=1e-6)


@row("maskfile")
def _(bench):
    """Multiplied to particles in refinemulti, to the reference in classaverage."""
    mask = (np.abs(X) < 5).astype(np.float32)
    path = bench.write("mask.hdf", mask)
    copies, _ = prepared(bench, maskfile=path)
    np.testing.assert_allclose(copies, bench.particles * mask, atol=1e-6)
    options = {"goldstandardoff": True, "savepreproc": True}
    base, run = (bench.run("classaverage", maskfile=m, **options) for m in (None, path))
    copies = run.stack("particles_preproc.hdf")
    np.testing.assert_array_equal(copies, bench.particles)
    assert np.abs(run.state.score - base.state.score).min() > 1e-3


@row("normproc")
def _(bench):
    """Mean 0 and sigma 1; the score has no unit but the spectra of the copies do."""
    copies = bench.run(savepreproc=True, normproc="normalize").stack("particles_preproc.hdf")
    raw = bench.particles
    mean, sigma = raw.mean((1, 2, 3)), raw.std((1, 2, 3), ddof=1)
    wanted = (raw - mean[:, None, None, None]) / sigma[:, None, None, None]
    np.testing.assert_allclose(copies, wanted, atol=1e-4)


@row("threshold")
def _(bench):
    """Nothing below zero."""
    copies, _ = prepared(bench, threshold="threshold.belowtozero:minval=0")
    np.testing.assert_allclose(copies, np.maximum(bench.particles, 0), atol=1e-6)


@row("lowpass")
def _(bench):
    """A Gaussian of 0.02 1/A."""
    copies, _ = prepared(bench, lowpass=LOW)
    np.testing.assert_allclose(copies, lowpassed(bench.particles), atol=1e-4)


@row("highpass")
def _(bench):
    """One minus a Gaussian of 0.01 1/A."""
    copies, _ = prepared(bench, highpass=HIGH)
    np.testing.assert_allclose(copies, highpassed(bench.particles), atol=1e-4)


@row("preprocess")
def _(bench):
    """Any processor, after the filters."""
    copies, _ = prepared(bench, lowpass=LOW, preprocess="threshold.belowtozero:minval=0")
    np.testing.assert_allclose(copies, np.maximum(lowpassed(bench.particles), 0), atol=1e-4)


def fine_copies(bench, **options):
    """Coarse and fine copies of a run that refines."""
    run = bench.run(**FINE, **options)
    return run.stack("particles_preproc.hdf"), run.stack("particles_preprocfine.hdf"), run


@row("lowpassfine")
def _(bench):
    """The low-pass of the fine copies alone."""
    base = bench.run(**FINE)
    coarse, fine, run = fine_copies(bench, lowpassfine=LOW)
    np.testing.assert_array_equal(coarse, bench.particles)
    np.testing.assert_allclose(fine, lowpassed(bench.particles), atol=1e-4)
    assert "particles_preprocfine.hdf" not in base.names()
    assert_other_scores(run, base)


@row("highpassfine")
def _(bench):
    """The high-pass of the fine copies alone."""
    coarse, fine, _ = fine_copies(bench, highpassfine=HIGH)
    np.testing.assert_array_equal(coarse, bench.particles)
    np.testing.assert_allclose(fine, highpassed(bench.particles), atol=1e-4)


@row("preprocessfine")
def _(bench):
    """The last step of the fine copies alone."""
    coarse, fine, _ = fine_copies(bench, preprocessfine="threshold.belowtozero:minval=0")
    np.testing.assert_array_equal(coarse, bench.particles)
    np.testing.assert_allclose(fine, np.maximum(bench.particles, 0), atol=1e-6)


@row("procfinelikecoarse")
def _(bench):
    """Off, fine copies get no filter of the coarse ones; on (refinemulti's default), they do."""
    base = bench.run(**FINE, lowpass=LOW)
    assert "particles_preprocfine.hdf" not in base.names()
    coarse, fine, run = fine_copies(bench, lowpass=LOW, procfinelikecoarse=False)
    np.testing.assert_allclose(coarse, lowpassed(bench.particles), atol=1e-4)
    np.testing.assert_array_equal(fine, bench.particles)
    assert_other_scores(run, base)


@row("clip")
def _(bench):
    """The middle of the box with a soft edge; maps and poses stay those of the whole box."""
    copies, run = prepared(bench, clip=16)
    assert copies.shape[1:] == (16, 16, 16)
    inner = bench.particles[:, 4:-4, 4:-4, 4:-4]
    near = RADIUS[4:-4, 4:-4, 4:-4] < 5
    np.testing.assert_allclose(copies[:, near], inner[:, near], atol=1e-5)
    assert np.abs(copies[:, 0, 0, 0]).max() < 0.1 * np.abs(inner[:, 0, 0, 0]).max()
    np.testing.assert_allclose(run.state.maps, bench.run().state.maps, atol=1e-4)


@row("shrink")
def _(bench):
    """Copies of half the box; shifts found on them come back in raw voxels."""
    copies, run = prepared(bench, shrink=2)
    assert run.apix("particles_preproc.hdf") == pytest.approx(2 * APIX)
    assert np.abs(copies - cropped(bench.particles, 12)).max() < 0.05
    start = bench.matrices * [1, 1, 1, 0]
    found = bench.run(
        inixforms=bench.poses("turns.json", start),
        align="rotate_translate_3d:search=2",
        translateonly=True,
        aligncmp="ccc",
        shrink=2,
    )
    assert np.abs(bench.matrices[:, :, 3]).max() > 1
    assert apart(own_poses(found), bench.matrices)[1].max() < 0.3


@row("shrinkfine")
def _(bench):
    """The fine copies have half the box; the coarse ones at least that."""
    coarse, fine, run = fine_copies(bench, shrinkfine=2, lowpassfine=LOW)
    assert (coarse.shape[1:], fine.shape[1:]) == ((12,) * 3, (12,) * 3)
    assert run.apix("particles_preprocfine.hdf") == pytest.approx(2 * APIX)
    assert any("--shrink=0 is less than --shrinkfine: 2 is used" in line for line in run.said)
    away, vox = apart(own_poses(run), bench.matrices)
    assert away.max() < 6
    assert vox.max() < 0.5


@row("notmatchimgs")
def _(bench):
    """On, the score knows the radial power of the reference; off, any sharpening is undone."""
    sharp = filtered(bench.maps, lambda f: np.exp(np.minimum(f, 0.05) ** 2 / 0.025**2))
    refs = ",".join(str(bench.write(f"sharp{c}.hdf", v)) for c, v in enumerate(sharp))
    one, two = (
        bench.run(aligncmp="ccc", ref=r) for r in (bench.common("refinemulti")["ref"], refs)
    )
    np.testing.assert_allclose(scores(one), scores(two), atol=0.01)
    one, two = (
        bench.run(aligncmp="ccc", ref=r, notmatchimgs=True)
        for r in (bench.common("refinemulti")["ref"], refs)
    )
    assert np.abs(own_scores(one) - own_scores(two)).min() > 0.02


# ---------------------------------------------------------------- alignment


@row("align")
def _(bench):
    """None keeps the identity; a grid of four turns about z finds one of these four."""
    base, run = (bench.run(inixforms=None, aligncmp="ccc", align=a) for a in ("None", GRID))
    assert turned_deg(own_poses(base)[:, :, :3]).max() < 1e-3
    turns = own_poses(run)[:, :, :3]
    np.testing.assert_allclose(turns[:, 2, 2], 1, atol=1e-6)
    np.testing.assert_allclose(np.abs(turns[:, :2, :2]).sum(2), 1, atol=1e-5)
    assert (own_scores(run) >= own_scores(base) - 1e-6).all()
    assert len(np.unique(turned_deg(turns).round())) > 1


@row("aligncmp")
def _(bench):
    """``ccc`` is the correlation of the particle with the reference in its frame."""
    run = bench.run(aligncmp="ccc", notmatchimgs=True)
    for i in range(COUNT):
        turn, shift = bench.matrices[i, :, :3], bench.matrices[i, :, 3]
        model = option_runs.draw(option_runs.BLOBS[0], turn.T, -turn.T @ shift)
        pair = [banded(v, 10).ravel() for v in (model, bench.particles[i])]
        assert -scores(run)[i] == pytest.approx(np.corrcoef(*pair)[0, 1], abs=0.02)
    assert own_scores(bench.run()).min() > 5  # the default counts in sigma of the noise


@row("falign")
def _(bench):
    """Poses off by 8 degrees and 0.7 voxels are led back."""
    start = moved(bench, degrees=8, vox=0.7)
    base = bench.run(inixforms=start, aligncmp="ccc")
    run = bench.run(inixforms=start, aligncmp="ccc", falign="refine_3d")
    assert apart(own_poses(base), bench.matrices)[0].min() > 7.9
    away, vox = apart(own_poses(run), bench.matrices)
    assert away.max() < 3
    assert vox.max() < 0.3
    assert (own_scores(run) > own_scores(base)).all()


def moved(bench, degrees, vox):
    """The planted poses turned about x, the particles' places moved along x."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turn = bench.matrices[:, :, :3] @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    place = -np.einsum("nji,nj->ni", bench.matrices[:, :, :3], bench.matrices[:, :, 3])
    shift = -np.einsum("nij,nj->ni", turn, place + np.array([vox, 0, 0]))
    return bench.poses(f"moved_{degrees}_{vox}.json", np.concatenate([turn, shift[..., None]], 2))


@row("faligncmp")
def _(bench):
    """The reported score is that of the fine stage."""
    options = {"falign": "refine_3d:maxiter=1", "aligncmp": "dot", "notmatchimgs": True}
    base, run = bench.run(**options), bench.run(faligncmp="ccc", **options)
    assert 0 < own_scores(run).min() < own_scores(run).max() < 1
    same = bench.run(**(options | {"aligncmp": "ccc"}))
    np.testing.assert_allclose(own_scores(run), own_scores(same), atol=0.02)
    assert_other_scores(run, base)


@row("npeakstorefine")
def _(bench):
    """That many coarse poses, 1.5 steps of the grid apart; the best of them all is no worse."""
    options = COARSE | {"falign": "refine_3d", "saveallpeaks": True, "inixforms": None}
    base, run = bench.run(**options), bench.run(npeakstorefine=3, **options)
    assert len(base.json("sptali_rm_coarse_allpeaks_0_0.json")) == COUNT
    assert len(run.json("sptali_rm_coarse_allpeaks_0_0.json")) == 3 * COUNT
    peaks = coarse_peaks(run, 3)
    assert turned_deg(peaks[:, 0] @ peaks[:, 1].swapaxes(1, 2)).min() >= 89.9
    assert (run.state.score >= base.state.score - 1e-4).all()


def coarse_peaks(run, count):
    """Rotations of the coarse stage against class 0, ``[n, p, 3, 3]``."""
    table = run.json("sptali_rm_coarse_allpeaks_0_0.json")
    values = [table[f"subtomo_{i}_peak_{p}"][0] for i in range(COUNT) for p in range(count)]
    matrices = [io.eman_json.transform_from_json(v, "peak") for v in values]
    return np.array(matrices).reshape(COUNT, count, 3, 4)[..., :3]


STEPS = COARSE | {"saveallpeaks": True, "inixforms": None}
STEPS["align"] += ":refine=0"


def coarse_and_fine(run, step):
    """How far tilts of the coarse poses are from multiples of a step; how far poses went."""
    coarse = coarse_peaks(run, 1)[:, 0]
    tilt = np.degrees(np.arccos(np.clip(coarse[:, 2, 2], -1, 1)))
    fine = run.poses("sptali_rm_0_0.json")[0][:, :, :3]
    return np.abs(tilt - step * np.round(tilt / step)), turned_deg(fine @ coarse.swapaxes(1, 2))


@row("radius")
def _(bench):
    """Fine steps of one voxel at the radius, coarse ones four times as wide, a fine stage."""
    fine = 360 * APIX / (2 * np.pi * 80)
    base, run = bench.run(**STEPS), bench.run(radius=80, **STEPS)
    off, went = coarse_and_fine(run, 4 * fine)
    assert off.max() < 0.05
    assert 0.5 < went.max() <= 2 * fine + 0.01
    off, went = coarse_and_fine(base, 60)
    assert off.max() < 0.05
    assert went.max() < 0.05  # no fine stage


@row("precision")
def _(bench):
    """Two voxels at the radius: steps twice as wide."""
    fine = 2 * 360 * APIX / (2 * np.pi * 80)
    off, went = coarse_and_fine(bench.run(radius=80, precision=2, **STEPS), 4 * fine)
    assert off.max() < 0.05
    assert went.max() <= 2 * fine + 0.01
    base, _ = coarse_and_fine(bench.run(radius=80, **STEPS), 4 * fine)
    assert base.max() > 1


@row("search")
def _(bench):
    """0 lets nothing move; enough of it finds the planted shifts."""
    start = bench.poses("turns.json", bench.matrices * [1, 1, 1, 0])
    options = {
        "inixforms": start,
        "align": "rotate_translate_3d",
        "translateonly": True,
        "aligncmp": "ccc",
    }
    base, run = bench.run(search=0, **options), bench.run(search=3, **options)
    assert np.abs(own_poses(base)[:, :, 3]).max() < 1e-6
    assert apart(own_poses(run), bench.matrices)[1].max() < 0.3


@row("searchfine")
def _(bench):
    """How far the fine stage may move a particle along each axis."""
    start = moved(bench, degrees=4, vox=1.5)
    options = {"inixforms": start, "aligncmp": "ccc", "falign": "refine_3d"}
    base, run = bench.run(searchfine=3, **options), bench.run(searchfine=1, **options)
    from_file = io.read_alignments(start)[0]
    assert apart(own_poses(run), from_file)[1].max() <= 1.001
    assert apart(own_poses(base), bench.matrices)[1].max() < 0.3
    assert apart(own_poses(run), bench.matrices)[1].max() > 0.4


@row("randomizewedge")
def _(bench):
    """One random turn of the grid; of a symmetric class, a random equivalent of every pose."""
    options = {"inixforms": None, "aligncmp": "ccc", "align": GRID, "randomizewedge": True}
    plain = bench.run(**options).state.rotation[:, 0]
    assert np.abs(plain[:, 2, 2] - 1).min() > 1e-3
    between = plain[0] @ plain.swapaxes(1, 2)  # the turn drops out, the four turns about z stay
    np.testing.assert_allclose(between[:, 2, 2], 1, atol=1e-5)
    np.testing.assert_allclose(np.abs(between[:, :2, :2]).sum(2), 1, atol=1e-4)
    pairs = bench.run(sym="c2", **options).state.rotation[:, 0] @ plain.swapaxes(1, 2)
    np.testing.assert_allclose(pairs[:, 2, 2], 1, atol=1e-5)
    kinds = np.unique(pairs[:, 0, 0].round(3))
    assert kinds.tolist() == [-1, 1]


@row("tweak")
def _(bench):
    """A last stage without shrinking comes nearer to the planted poses."""
    options = {
        "inixforms": moved(bench, degrees=3, vox=0.5),
        "aligncmp": "ccc",
        "falign": "refine_3d_grid:delta=4:range=4:search=1:refine=0",
        "shrink": 2,
        "shrinkfine": 2,
    }
    base, run = bench.run(**options), bench.run(tweak=True, **options)
    before, after = (apart(own_poses(r), bench.matrices) for r in (base, run))
    assert np.median(after[0]) < 0.7 * np.median(before[0])
    assert np.median(after[1].max(1)) < 0.7 * np.median(before[1].max(1))
    turned, went = apart(own_poses(run), own_poses(base))
    assert turned.max() <= 4.51
    assert went.max() <= 2.51


# ---------------------------------------------------------------- averaging and what follows


@row("averager")
def _(bench):
    """The median of the aligned particles, voxel by voxel."""
    run = bench.run(averager="median", saveali=True)
    for c in (0, 1):
        wanted = np.median(run.stack(f"class{c}_ptcl.hdf"), 0)
        np.testing.assert_allclose(run.stack("class_avgs.hdf")[c], wanted, atol=1e-4)
    assert np.abs(run.state.maps - bench.run().state.maps).max() > 0.05


@row("keep")
def _(bench):
    """The better half of every class."""
    base, run = bench.run(), bench.run(keep=0.5)
    assert base.state.used.all()
    score = own_scores(run)
    for c in (0, 1):
        member = CLASSES == c
        assert run.state.used[member].sum() == 2
        assert score[member & run.state.used].min() > score[member & ~run.state.used].max()
    weight = io.read_classmx(run.folder / "classmx_0.hdf").weights
    assert weight.tolist() == run.state.used.astype(float).tolist()
    assert np.abs(run.state.maps - base.state.maps).max() > 0.05


@row("keepsig")
def _(bench):
    """What scores better than the mean of its class plus ``--keep`` sigma (in EMAN2's sign)."""
    base, run = bench.run(keep=0.5), bench.run(keep=0.5, keepsig=True)
    score = own_scores(run)
    for c in (0, 1):
        member = CLASSES == c
        limit = score[member].mean() - 0.5 * score[member].std()
        assert (run.state.used[member] == (score[member] >= limit)).all()
    assert (run.state.used != base.state.used).any()


@row("weighbyscore")
def _(bench):
    """Score over the best score of the class."""
    run = bench.run(weighbyscore=True)
    score, best = own_scores(run), np.zeros(COUNT)
    for c in (0, 1):
        best[CLASSES == c] = score[CLASSES == c].max()
    weight = np.array(run.json("sptali_rm_0_0_ext.json")["weight"])
    np.testing.assert_allclose(weight, score / best, rtol=1e-5)
    assert weight.min() < 0.999
    assert bench.run().state.weight.tolist() == [1.0] * COUNT


@row("weighbytiltaxis")
def _(bench):
    """1 on the axis, B at the edges 0 and 2 A."""
    run = bench.run(weighbytiltaxis="350,0.4")
    weight = np.array(run.json("sptali_rm_0_0_ext.json")["weight"])
    np.testing.assert_allclose(weight, 1 - 0.6 * np.abs(bench.x - 350) / 350, rtol=1e-5)
    assert (weight[0], weight[7]) == pytest.approx((0.4, 0.4))


@row("preavgproc1")
def _(bench):
    """Applied to every aligned particle, which is averaged afterwards."""
    run = bench.run(preavgproc1="threshold.belowtozero:minval=0", saveali=True)
    for c in (0, 1):
        wanted = np.maximum(run.stack(f"class{c}_ptcl.hdf"), 0).mean(0)
        found = run.stack("class_avgs.hdf")[c]
        near, plain = RADIUS < 10, bench.run().stack("class_avgs.hdf")[c]
        away = [np.abs(v - wanted)[near].mean() for v in (found, plain)]
        assert away[0] < 0.01
        assert away[1] > 0.03


@row("preavgproc2")
def _(bench):
    """Applied after the first one."""
    first = {"preavgproc1": "threshold.belowtozero:minval=0", "averager": "median"}
    base = bench.run(saveali=True, **first)
    run = bench.run(preavgproc2=LOW, saveali=True, **first)
    for c in (0, 1):
        above = np.maximum(run.stack(f"class{c}_ptcl.hdf"), 0)
        wanted = np.median(lowpassed(above), 0)
        np.testing.assert_allclose(run.stack("class_avgs.hdf")[c], wanted, atol=1e-3)
    assert np.abs(run.state.maps - base.state.maps).max() > 0.05


def off_centre(bench):
    """References three voxels further along x, and the planted poses with them."""
    matrices = bench.matrices.copy()
    matrices[:, 0, 3] += 3
    refs = [bench.write(f"off{c}.hdf", np.roll(v, 3, 2)) for c, v in enumerate(bench.maps)]
    poses = bench.poses("off.json", matrices)
    return {"ref": ",".join(map(str, refs)), "inixforms": poses}


def centre_of_mass(volume, least):
    """Of the density from a level on, (x, y, z) from the centre voxel."""
    axis = np.arange(len(volume)) - len(volume) // 2
    mass = np.where(volume >= least, volume, 0)
    sums = mass.sum((0, 1)), mass.sum((0, 2)), mass.sum((1, 2))
    return np.array([(axis * x).sum() for x in sums]) / mass.sum()


def assert_moved(run, base, c, move):
    """The poses of a class moved by a translation."""
    assert run.state.classes.tolist() == base.state.classes.tolist() == CLASSES.tolist()
    went = (own_poses(run) - own_poses(base))[CLASSES == c, :, 3]
    np.testing.assert_allclose(went, np.broadcast_to(move, went.shape), atol=1e-4)


MASS = "xform.centerofmass:threshold=0.4"


@row("autocenter")
def _(bench):
    """Averages off the centre go back to it, and the poses with them."""
    base = bench.run(**off_centre(bench))
    run = bench.run(autocenter=MASS, **off_centre(bench))
    for c in (0, 1):
        before, after = base.stack("class_avgs.hdf")[c], run.stack("class_avgs.hdf")[c]
        move = -np.round(centre_of_mass(before, 0.4))
        assert move[0] <= -2
        wanted = np.roll(before, move[::-1].astype(int), (0, 1, 2))
        np.testing.assert_allclose(after, wanted, atol=1e-3)
        assert_moved(run, base, c, move)


@row("autocentermask")
def _(bench):
    """The centre of what the mask leaves."""
    base = bench.run(**off_centre(bench))
    whole = bench.run(autocenter=MASS, **off_centre(bench))
    run = bench.run(
        autocenter=MASS, autocentermask="mask.sharp:outer_radius=4", **off_centre(bench)
    )
    for c in (0, 1):
        inner = base.stack("class_avgs.hdf")[c] * (RADIUS < 4)
        assert_moved(run, base, c, -np.round(centre_of_mass(inner, 0.4)))
    assert np.abs(own_poses(run) - own_poses(whole)).max() > 0.9


@row("autocenterpreprocess")
def _(bench):
    """A filtered copy of half the box: two voxels a step, between those of the map."""
    centring = {"autocenter": "xform.centerofmass:threshold=0.1"}
    base = bench.run(**off_centre(bench))
    run = bench.run(autocenterpreprocess=True, **centring, **off_centre(bench))
    for c in (0, 1):
        passed = filtered(
            base.stack("class_avgs.hdf")[c],
            lambda f: 1 - np.exp(-((f * APIX * BOX / 2) ** 2)),
        )
        copy = passed.reshape(12, 2, 12, 2, 12, 2).mean((1, 3, 5))
        copy = filtered(copy, lambda f: np.exp(-((4 * APIX * f) ** 2)), 2 * APIX)
        assert_moved(run, base, c, -2 * np.round(centre_of_mass(copy, 0.1)) - 0.5)


@row("automask")
def _(bench):
    """The second round sees masked references; the first, and the averages, do not change."""
    base, run = bench.run(iter=2), bench.run(iter=2, automask=True)
    np.testing.assert_array_equal(scores(run), scores(base))
    again = [r.poses("sptali_rm_1_0.json")[1] for r in (base, run)]
    assert np.abs(again[0] - again[1]).min() > 1e-3
    np.testing.assert_allclose(run.state.maps, base.state.maps, atol=1e-5)


@row("postprocess")
def _(bench):
    """Beside the averages: masked by a sphere and processed; the averages stay as they are."""
    base, run = bench.run(), bench.run(postprocess="threshold.belowtozero:minval=0")
    assert run.names() - base.names() == {"class_avgs_postproc.hdf"}
    plain = run.stack("class_avgs.hdf")
    np.testing.assert_array_equal(plain, base.stack("class_avgs.hdf"))
    wanted = np.maximum(plain * (RADIUS < BOX // 2 - 1), 0)
    np.testing.assert_allclose(run.stack("class_avgs_postproc.hdf"), wanted, atol=1e-5)


@row("resample")
def _(bench):
    """Mean and variance over averages of resampled particles; the average itself stays."""
    base, run = bench.run(), bench.run(resample=True, nboot=8)
    names = {f"class{c}_boot{what}.hdf" for c in (0, 1) for what in ("mean", "var")}
    assert run.names() - base.names() == names
    np.testing.assert_array_equal(run.state.maps, base.state.maps)
    spread = run.stack("class0_bootvar.hdf")[0]
    assert spread.min() >= 0
    # of the mean of 4 particles: about noise over 4, less what the replicates share
    inside = np.median(spread[RADIUS < 8])
    assert 0.2 < inside / (0.15**2 / 4) < 2
    away = run.stack("class0_bootmean.hdf")[0] - run.stack("class_avgs.hdf")[0]
    assert np.abs(away)[RADIUS < 8].max() < 0.4


@row("savesteps")
def _(bench):
    """The averages of every round, in one file a round and in one file a class."""
    base, run = bench.run(iter=2), bench.run(iter=2, savesteps=True)
    names = {"class_avgs_iter0.hdf", "class_avgs_iter1.hdf", "class_0.hdf", "class_1.hdf"}
    assert run.names() - base.names() == names
    first = bench.run().stack("class_avgs.hdf")
    np.testing.assert_allclose(run.stack("class_avgs_iter0.hdf"), first, atol=1e-5)
    for c in (0, 1):
        steps = run.stack(f"class_{c}.hdf")
        np.testing.assert_allclose(steps[0], first[c], atol=1e-5)
        np.testing.assert_array_equal(steps[1], run.stack("class_avgs.hdf")[c])


@row("saveali")
def _(bench):
    """Raw particles in the frame of their class, rejected ones included."""
    base, run = bench.run(keep=0.5), bench.run(keep=0.5, saveali=True)
    assert run.names() - base.names() == {"class0_ptcl.hdf", "class1_ptcl.hdf"}
    for c in (0, 1):
        rows = np.flatnonzero(CLASSES == c)
        aligned = run.stack(f"class{c}_ptcl.hdf")
        assert len(aligned) == len(rows)
        for volume, i, j in zip(aligned, rows, range(len(rows))):
            header = run.header(f"class{c}_ptcl.hdf", j)
            assert header["spt_indx_original"] == i
            assert header["spt_used"] == int(run.state.used[i])
            near = np.corrcoef(volume.ravel(), bench.maps[c].ravel())[0, 1]
            assert near > 0.45
            assert near > np.corrcoef(bench.particles[i].ravel(), bench.maps[c].ravel())[0, 1] + 0.1


@row("saveallalign")
def _(bench):
    """The same after every round, in files of their own."""
    base, run = bench.run(iter=2), bench.run(iter=2, saveallalign=True)
    names = {f"class{c}_ptcl_{it}.hdf" for c in (0, 1) for it in (0, 1)}
    assert run.names() - base.names() == names
    last = bench.run(saveali=True).stack("class0_ptcl.hdf")
    np.testing.assert_allclose(run.stack("class0_ptcl_0.hdf"), last, atol=1e-5)


# ---------------------------------------------------------------- references from the particles


def made_of(bench, **options):
    """Particles in the references of two classes, and what was said."""
    run = bench.run(ref=None, search=1, **options)
    return [run.header(f"ref{r}.hdf")["spt_ptcl_indxs"] for r in (0, 1)], run


@row("btref")
def _(bench):
    two, run = made_of(bench, btref=2)
    four, other = made_of(bench, btref=4)
    assert two == [[0, 2], [1, 3]]
    assert four == [[0, 2, 4, 6], [1, 3, 5, 7]]
    assert "binary tree of 2 particles" in " ".join(run.said)
    assert not np.allclose(run.stack("ref0.hdf"), other.stack("ref0.hdf"))


@row("hacref")
def _(bench):
    rows, run = made_of(bench, hacref=3)
    assert rows == [[0, 2, 4], [1, 3, 5]]
    assert "hierarchical classification: 3 of 3 particles" in " ".join(run.said)


@row("subset4ref")
def _(bench):
    assert made_of(bench)[0] == [[0, 2, 4, 6], [1, 3, 5, 7]]
    assert made_of(bench, subset4ref=2)[0] == [[0, 2], [1, 3]]


@row("refgenmethod")
def _(bench):
    assert made_of(bench, subset4ref=3)[0] == [[0, 2], [1, 3]]  # a power of two
    rows, run = made_of(bench, subset4ref=3, refgenmethod="hac")
    assert rows == [[0, 2, 4], [1, 3, 5]]
    assert "hierarchical classification" in " ".join(run.said)


@row("ssaref")
def _(bench):
    run = bench.run("classaverage", ref=None, goldstandardoff=True, ssaref=1, sym="c4", search=1)
    assert run.header("ref0.hdf")["spt_ptcl_indxs"] == 0  # one number is kept as such
    volume = run.stack("ref0.hdf")[0][1:, 1:, 1:]
    turned = np.rot90(volume, axes=(1, 2))
    assert np.abs(turned - volume).max() < 0.02 * np.ptp(volume)
