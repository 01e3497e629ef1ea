"""Which option wins where options contradict each other, and the numbers that follow from them."""

import dataclasses

import numpy as np
import pytest
import script_runs
from option_runs import draw
from test_options import NAMES

from sptjax import io
from sptjax._errors import InputError
from sptjax.align import (
    Refine3D,
    Refine3DGrid,
    RotateTranslate3D,
    RotateTranslate3DGrid,
    RotateTranslate3DTree,
)
from sptjax.comparators import Matched

BOX, APIX = 64, 4.0
NEEDED = ("--input=particles.hdf", "--ref=ref.hdf")


class Rules:
    """The scripts' flags resolved as for a run, without one."""

    def __init__(self, program):
        self.script = script_runs.load(program)
        self.said = []

    def values(self, *words):
        return self.script._flags.parse(["x", *NEEDED, *words])

    def settings(self, *words, box=BOX, apix=APIX):
        values = self.values(*words)
        self.said = []
        return self.script._job._alignment.settings(values, box, apix, self.said.append)

    def pipelines(self, *words, fine=True, box=BOX, apix=APIX):
        values = self.values(*words)
        self.said = []
        resolve = self.script._job._resolve
        return resolve.pipelines(values, box, apix, fine=fine, say=self.said.append)

    def heard(self, words):
        return any(words in line for line in self.said)


@pytest.fixture(scope="module")
def multi():
    return Rules("refinemulti")


# ---------------------------------------------------------------- search and searchfine


def reach(settings):
    """Half width of the coarse search, voxels, whoever states it."""
    return settings.aligner.search if settings.search_vox is None else settings.search_vox


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ([], 8),  # the documented default
        (["--search=5"], 5),
        (["--align=rotate_translate_3d:delta=12"], 8),  # the aligner does not say
        (["--align=rotate_translate_3d:delta=12", "--search=5"], 5),
        (["--align=rotate_translate_3d:search=6"], 6),  # a default does not override
        (["--align=rotate_translate_3d:search=6", "--search=5"], 5),  # any other value does
        (["--align=rotate_translate_3d:search=6", "--search=8"], 6),  # nor one that is spelt out
        (["--align=rotate_translate_3d", "--search=0"], 0),
        (["--align=rotate_translate_3d", "--search=-1"], 30),  # half the box less two
    ],
)
def test_search(multi, words, wanted):
    assert reach(multi.settings(*words)) == wanted


def test_a_spelt_default_that_gives_way_is_said(multi):
    multi.settings("--align=rotate_translate_3d:search=6", "--search=8")
    assert multi.heard("--search=8 is the default: the search of --align is used")
    multi.settings("--align=rotate_translate_3d:search=6")
    assert not multi.said


def test_search_keeps_the_other_keys_of_the_aligner(multi):
    aligner = multi.settings(
        "--align=rotate_translate_3d:search=10:delta=12:dphi=14", "--search=6"
    ).aligner
    assert (aligner.delta, aligner.dphi) == (12, 14)


def test_the_tree_takes_maxshift_or_search(multi):
    tree = multi.settings("--align=rotate_translate_3d_tree:maxshift=6")
    assert (tree.aligner.maxshift, tree.search_vox) == (6, None)
    assert multi.settings("--align=rotate_translate_3d_tree").search_vox == 8
    assert multi.settings("--align=rotate_translate_3d_tree", "--search=3").search_vox == 3


def test_searchx_excludes_search(multi):
    for aligner in ("rotate_translate_3d", "rotate_translate_3d_grid"):
        with pytest.raises(InputError, match=f"--align: {aligner}: give search or searchx"):
            multi.settings(f"--align={aligner}:search=4:searchx=2")
    apart = multi.settings("--align=rotate_translate_3d:searchx=2:searchz=5")
    assert (apart.aligner.searchx, apart.aligner.searchy, apart.aligner.searchz) == (2, None, 5)
    assert apart.search_vox is None


def test_a_search_beyond_the_box_of_the_copies(multi):
    """The copies have 32 voxels, half of which are 16."""
    assert multi.settings("--search=15", "--shrink=2").search_vox == 15
    for words in (["--search=16"], ["--align=rotate_translate_3d:search=16"]):
        with pytest.raises(InputError, match=r"16.*half of the box of the copies is 16"):
            multi.settings(*words, "--shrink=2")
    with pytest.raises(InputError, match=r"--searchfine=32: half of the box of the copies is 32"):
        multi.settings("--searchfine=32")
    assert multi.settings("--shrink=8").search_vox == 2  # the default gives way silently


def fine_reach(settings):
    own = settings.fine.search
    return settings.search_fine_vox if own is None else own


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["--falign=refine_3d_grid"], 2),
        (["--falign=refine_3d_grid", "--searchfine=1"], 1),
        (["--falign=refine_3d_grid:search=4"], 4),
        (["--falign=refine_3d_grid:search=4", "--searchfine=2"], 4),
        (["--falign=refine_3d_grid:search=4", "--searchfine=3"], 3),
        (["--falign=refine_3d_grid", "--searchfine=0"], 0),
    ],
)
def test_searchfine(multi, words, wanted):
    assert fine_reach(multi.settings(*words)) == wanted
    assert multi.heard("the search of --falign is used") == ("--searchfine=2" in words)


# ---------------------------------------------------------------- radius and precision


@pytest.mark.parametrize(
    ("words", "fine"),
    [
        # 360 * precision * apix * shrinkfine / (2 pi radius), apix 4, radius 100
        ([], 2.292),
        (["--shrinkfine=2"], 4.584),
        (["--shrinkfine=2", "--precision=2"], 9.167),
        (["--precision=0.5"], 1.146),
    ],
)
def test_steps_from_the_radius(multi, words, fine):
    """A fine range of two steps, coarse steps of four."""
    made = multi.settings("--radius=100", *words)
    assert isinstance(made.fine, Refine3DGrid)
    assert made.fine.delta == pytest.approx(fine, abs=1e-3)
    assert made.fine.range == pytest.approx(2 * fine, abs=2e-3)
    assert isinstance(made.aligner, RotateTranslate3D)
    assert made.aligner.delta == pytest.approx(4 * fine, abs=4e-3)
    assert made.aligner.dphi == made.aligner.delta
    assert made.search_vox == 8


def test_coarse_steps_are_no_finer_than_the_coarse_copy_shows(multi):
    """One of its voxels at the radius: 8 / 4 times the step."""
    made = multi.settings("--radius=100", "--shrink=8")
    assert made.aligner.delta == pytest.approx(8 * 2.292, abs=0.01)


def test_the_radius_keeps_names_symmetry_and_shifts(multi):
    made = multi.settings(
        "--radius=100",
        "--align=rotate_translate_3d:search=5:delta=9:sym=c4:refine=0",
        "--falign=refine_3d_grid:search=3:delta=1",
    )
    wanted = RotateTranslate3D(search=5, sym="c4", refine=False, delta=0.1, dphi=0.1)
    step = made.aligner.delta
    assert dataclasses.replace(wanted, delta=step, dphi=step) == made.aligner
    assert made.fine.search == 3
    assert multi.heard("--radius replaces the angular steps of --align")
    grid = multi.settings("--radius=100", "--align=rotate_translate_3d_grid:alt1=30:dalt=3")
    assert isinstance(grid.aligner, RotateTranslate3DGrid)
    assert (grid.aligner.alt1, grid.aligner.dalt) == (30, pytest.approx(9.167, abs=1e-3))
    tree = multi.settings("--radius=100", "--align=rotate_translate_3d_tree:sym=d2:maxshift=7")
    assert (tree.aligner.sym, tree.aligner.search) == ("d2", 7)
    numbered = multi.settings("--radius=100", "--align=rotate_translate_3d:n=50")
    assert numbered.aligner.n is None
    simplex = multi.settings("--radius=100", "--falign=refine_3d")
    assert isinstance(simplex.fine, Refine3D)


def test_what_the_radius_refuses(multi):
    for words, message in (
        (["--radius=7.9"], r"--radius=7\.9: less than two voxels of 4 A"),
        (["--radius=-3"], r"--radius=-3"),
        (["--radius=50", "--precision=0"], r"--precision=0: voxels above 0"),
        (["--precision=-1"], r"--precision=-1: voxels above 0"),
        (["--radius=50", "--align=None"], r"--radius and --align=None"),
    ):
        with pytest.raises(InputError, match=message):
            multi.settings(*words)


def test_what_the_radius_says(multi):
    multi.settings("--radius=300")
    assert multi.heard("--radius=300 reaches out of the box of 256 A")
    plain = multi.settings("--precision=2")
    assert multi.heard("--precision does nothing without --radius")
    assert isinstance(plain.aligner, RotateTranslate3DTree)
    assert plain.fine is None


# ---------------------------------------------------------------- aligners and comparators


def test_without_align_the_search_adapts_itself(multi):
    made = multi.settings()
    assert made.aligner == RotateTranslate3DTree()
    assert isinstance(made.comparator, Matched)
    spelt = multi.settings(f"--align={multi.script._flags.ALIGN}").aligner
    assert (spelt.search, spelt.delta, spelt.dphi) == (8, 12, 12)


def test_none_switches_stages_off(multi):
    made = multi.settings("--align=None", "--falign=None")
    assert (made.aligner, made.fine) == (None, None)
    assert multi.settings("--align=none").aligner is None


def test_a_fine_aligner_follows_a_tree_if_it_is_asked_for(multi):
    assert multi.settings("--align=rotate_translate_3d_tree").fine is None
    made = multi.settings("--align=rotate_translate_3d_tree", "--falign=refine_3d")
    assert isinstance(made.fine, Refine3D)


def test_the_fine_comparator_is_the_coarse_one_unless_given(multi):
    made = multi.settings("--aligncmp=ccc", "--falign=refine_3d")
    assert made.of_fine_stage().comparator == made.comparator
    own = multi.settings("--aligncmp=ccc", "--falign=refine_3d", "--faligncmp=frc")
    assert own.of_fine_stage().comparator != own.comparator


def test_peaks_need_a_fine_stage(multi):
    assert multi.settings("--npeakstorefine=4", "--falign=refine_3d").peaks == 4
    assert multi.settings("--npeakstorefine=4").peaks is None
    assert multi.heard("--npeakstorefine: without --falign only the best pose is used")


# ---------------------------------------------------------------- preprocessing


LOW, HIGH = "filter.lowpass.gauss:cutoff_freq=0.02", "filter.highpass.gauss:cutoff_freq=0.01"


def test_shrinkfine_lifts_shrink(multi):
    made = multi.pipelines("--shrink=2", "--shrinkfine=4")
    assert (made.coarse.shrink, made.fine.shrink) == (4, 4)
    assert multi.heard("--shrink=2 is less than --shrinkfine: 4 is used for both")
    made = multi.pipelines("--shrink=4", "--shrinkfine=2")
    assert (made.coarse.shrink, made.fine.shrink) == (4, 2)
    assert not multi.said


@pytest.mark.parametrize(
    ("program", "words", "inherits"),
    [
        ("refinemulti", [], True),
        ("refinemulti", ["--procfinelikecoarse"], True),
        ("refinemulti", ["--procfinelikecoarse=False"], False),
        ("refinemulti", ["--procfinelikecoarse=0"], False),
        ("refinemulti", ["--noprocfinelikecoarse"], False),
        ("classaverage", [], False),
        ("classaverage", ["--procfinelikecoarse"], True),
        ("classaverage", ["--procfinelikecoarse=true"], True),
    ],
)
def test_fine_filters_that_are_not_given(program, words, inherits):
    """Inherited or left out; what is given counts in any case; shrinking is never inherited."""
    rules = Rules(program)
    made = rules.pipelines(
        f"--lowpass={LOW}", f"--highpass={HIGH}", "--shrink=2", "--highpassfine=None", *words
    )
    assert (made.fine.lowpass is not None) == inherits
    assert (made.fine.highpass is not None) == inherits
    assert made.fine.shrink == 1
    own = rules.pipelines(f"--lowpass={LOW}", f"--lowpassfine={HIGH}", *words)
    assert type(own.fine.lowpass) is type(made.coarse.highpass)


def test_mask_normalisation_threshold_and_clip_are_shared(multi):
    made = multi.pipelines(
        "--mask=mask.sharp:outer_radius=9",
        "--normproc=normalize.mask",
        "--threshold=threshold.belowtozero:minval=0",
        "--clip=40",
        "--noprocfinelikecoarse",
        f"--lowpass={LOW}",
    )
    for name in ("mask", "normalise", "threshold", "clip"):
        assert getattr(made.fine, name) is getattr(made.coarse, name)
    assert made.fine.lowpass is None


def test_an_odd_or_large_clip_is_said(multi):
    assert multi.pipelines("--clip=31").coarse.clip == 32
    assert multi.heard("--clip=31 is odd: 32 is used")
    assert multi.pipelines("--clip=80").coarse.clip == 80
    assert multi.heard("--clip=80: the copies are padded")


def test_tweak_needs_a_shrunk_last_stage(multi):
    multi.pipelines("--tweak", "--shrink=2")
    assert multi.heard("--tweak: the last stage is not shrunk")
    made = multi.pipelines("--tweak", "--shrink=2", "--shrinkfine=2", "--clip=48")
    assert not multi.said
    assert (made.full.shrink, made.full.clip) == (0, 48)
    assert multi.pipelines("--tweak", "--shrink=2", fine=False).full is not None
    assert not multi.said


def test_the_mask_file_goes_where_each_program_says(tmp_path):
    path = tmp_path / "mask.hdf"
    io.write_hdf(path, np.ones((BOX,) * 3, np.float32), APIX)
    for program, target, particles, reference in (
        ("refinemulti", None, True, False),
        ("classaverage", None, False, True),
        ("classaverage", "particles", True, False),
        ("refinemulti", "both", True, True),
    ):
        rules = Rules(program)
        words = [f"--maskfile={path}"] + ([f"--maskfile_target={target}"] if target else [])
        assert (rules.pipelines(*words).coarse.mask_volume is not None) == particles
        resolve, values = rules.script._job._resolve, rules.values(*words)
        made = resolve.reference_settings(values, BOX, APIX, match=True)
        assert (made.mask is not None) == reference


# ---------------------------------------------------------------- averaging, classes, references


def test_sigma_wins_over_the_fraction(multi):
    resolve = multi.script._job._resolve
    stack = None
    assert resolve.selection(multi.values("--keep=0.5", "--keepsig"), stack).in_sigma
    assert resolve.selection(multi.values("--keep=-1.5", "--keepsig"), stack).keep == -1.5
    assert not resolve.selection(multi.values("--keep=0.5"), stack).in_sigma


def test_symmetries_of_classes_win_over_the_common_one(multi, monkeypatch):
    said = []
    monkeypatch.setattr(multi.script.console, "say", said.append)

    def names(sym, syms, count):
        return [s.name for s in multi.script.class_symmetries(sym, syms, count)]

    assert names("c4", "", 2) == ["c4", "c4"]
    assert names("c4", "d2,c1", 2) == ["d2", "c1"]
    assert names("c4", "d2", 3) == ["d2", "c4", "c4"]
    assert not said
    assert names("c1", "d2,d3,d5", 2) == ["d2", "d3"]
    assert said == ["--syms: 3 entries for 2 classes, the last are ignored"]


def test_maps_for_classes(multi, monkeypatch):
    """As many as classes: as they are; fewer: copies in turn, perturbed; more: the first."""
    said = []
    monkeypatch.setattr(multi.script.console, "say", said.append)
    maps = np.stack([draw([((0, 0, k), 1.0)]) for k in range(3)])

    def made(count, randphase=0.0, given=3):
        said.clear()
        return multi.script.class_references(maps[:given], count, randphase, 10.0, 0)

    np.testing.assert_array_equal(made(3), maps)
    assert not said
    np.testing.assert_array_equal(made(2), maps[:2])
    assert said == ["--ref: 3 maps for 2 classes, the last are not used"]
    copies = made(3, given=2)
    assert "random phases beyond 60 A" in said[0]
    assert np.abs(copies[2] - copies[0]).max() > 0.05
    own = made(3, randphase=100.0, given=2)
    assert not said
    assert np.abs(own - copies).max() > 0.01


@pytest.mark.parametrize("program", ["refinemulti", "classaverage"])
def test_flags_of_yes_and_no_have_all_spellings(program):
    rules = Rules(program)
    for words, wanted in (
        (["--keepsig"], True),
        (["--nokeepsig"], False),
        (["--keepsig=True"], True),
        (["--keepsig=False"], False),
        (["--keepsig=1"], True),
        (["--keepsig=0"], False),
    ):
        assert rules.values(*words)["keepsig"] is wanted


@pytest.mark.parametrize("program", ["refinemulti", "classaverage"])
def test_every_flag_says_what_it_is_for(program):
    """A sentence each; numbers say their unit or what they count."""
    script = script_runs.load(program)
    for name in script._flags.parse(["x"]):
        text = script._flags.flags.FLAGS[name].help
        assert text, name
        assert len(text) > 15, name


def test_every_documented_option_is_a_flag_of_a_script():
    known = set()
    for program in ("refinemulti", "classaverage"):
        known |= set(script_runs.load(program)._flags.parse(["x"]))
    assert not sorted(set(NAMES) - known)
