"""What the scripts refuse: one clear sentence, a non-zero exit, and no run folder."""

import dataclasses
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
import script_runs
from absl import flags

from sptjax import io
from sptjax._errors import InputError

GOOD = ("--input=good.hdf", "--ref=ref.hdf", "--nref=2", "--wedge=none")


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """A folder with good and bad files of 16 voxels."""
    folder = tmp_path_factory.mktemp("bad_input")
    rng = np.random.default_rng(3)

    def noise(*shape):
        return rng.normal(size=shape).astype(np.float32)

    io.write_hdf(folder / "good.hdf", noise(4, 16, 16, 16), 10.0)
    io.write_hdf(folder / "three.hdf", noise(3, 16, 16, 16), 10.0)
    io.write_hdf(folder / "ref.hdf", noise(16, 16, 16), 10.0)
    io.write_hdf(folder / "flat_ref.hdf", np.ones((16, 16, 16), np.float32), 10.0)
    io.write_hdf(folder / "brick.hdf", noise(3, 16, 16, 12), 10.0)
    io.write_hdf(folder / "odd.hdf", noise(3, 15, 15, 15), 10.0)
    io.write_hdf(folder / "large.hdf", noise(2, 20, 20, 20), 10.0)
    io.write_hdf(folder / "weights20.hdf", np.ones((20, 20, 20), np.float32), 10.0)
    io.write_hdf(folder / "weights3.hdf", np.ones((3, 16, 16, 16), np.float32), 10.0)
    io.write_em(folder / "no_apix.em", noise(16, 16, 16))
    (folder / "mixed.lst").write_text("#LSX\n# two boxes\n0\tgood.hdf\n0\tlarge.hdf\n")
    whole = (folder / "good.hdf").read_bytes()
    (folder / "short.hdf").write_bytes(whole[: len(whole) // 2])
    (folder / "text.hdf").write_text("not an image")
    (folder / "file").write_text("")
    two = io.ClassMatrix(
        n_classes=2,
        classes=np.array([0, 1, 0, 1]),
        weights=np.ones(4, np.float32),
        scores=np.zeros(4, np.float32),
        euler_deg=np.zeros((4, 3), np.float32),
        shifts_vox=np.zeros((4, 3), np.float32),
    )
    io.write_classmx(folder / "classmx.hdf", two)
    gap = dataclasses.replace(two, n_classes=3, classes=np.array([0, 2, 0, 2]))
    io.write_classmx(folder / "gap.hdf", gap)
    io.write_hdf(folder / "zeros.hdf", np.zeros((16, 16, 16), np.float32), 10.0)
    io.write_hdf(folder / "mask8.hdf", np.ones((16, 16, 16), np.float32), 8.0)
    poses = np.eye(3, 4)[None].repeat(4, 0)
    io.write_alignments(folder / "three.json", poses[:3], np.zeros(3))
    poses[2] *= 1.1
    io.write_alignments(folder / "bent.json", poses, np.zeros(4))
    return folder


MULTI = {
    # input, output, run control
    "no input": (["--input="], r"--input: a stack of particles"),
    "missing file": (["--input=nowhere.hdf"], r"nowhere\.hdf"),
    "not cubic": (["--input=brick.hdf"], r"brick\.hdf image 0 is not a cubic .*12 x 16 x 16"),
    "odd box": (["--input=odd.hdf"], r"odd\.hdf image 0 has an odd box of 15"),
    "mixed boxes": (["--input=mixed.lst"], r"large\.hdf image 0 .*20 voxels, .* have 16"),
    "no voxel size": (["--input=no_apix.em"], r"no_apix\.em has no voxel size.*--apix"),
    "negative voxel size": (["--apix=-2"], r"--apix=-2: .*positive"),
    "truncated": (["--input=short.hdf"], r"short\.hdf"),
    "not an image": (["--input=text.hdf"], r"text\.hdf"),
    "output name": (["--output=average.mrc"], r"--output=average\.mrc: .*\.hdf"),
    "output folder": (["--output=sub/a.hdf"], r"--output=sub/a\.hdf: .*without a folder"),
    "unwritable": (["--path=file/run"], r"file: cannot create this folder"),
    "subset of one": (["--subset=1"], r"--subset=1: from 2 to all 4 particles"),
    "subset too large": (["--subset=5"], r"--subset=5: from 2 to all 4 particles"),
    "subset below classes": (
        ["--subset=2", "--nref=3"],
        r"--nref=3: there are only 2 particles",
    ),
    "parallel scheme": (["--parallel=all:4"], r"--parallel=all:4: known are auto, none, thread"),
    "no threads": (["--parallel=thread:0"], r"--parallel=thread:0: .*at least 1"),
    "parallel word": (["--parallel=thread:many"], r"--parallel=thread:many: .*at least 1"),
    "no such GPU": (["--parallel=gpu:99"], r"--parallel=gpu:99: \d+ GPUs are there"),
    "nothing to resume": (["--resume"], r"there is no run to resume"),
    "stray word": (["more.hdf"], r"unexpected argument more\.hdf"),
    # references and classes
    "reference missing": (["--ref=nowhere.hdf"], r"nowhere\.hdf"),
    "reference flat": (["--ref=flat_ref.hdf"], r"--ref: flat_ref\.hdf is constant"),
    "reference not cubic": (["--ref=brick.hdf:0"], r"--ref: brick\.hdf:0 is not cubic"),
    "reference stack": (["--ref=three.hdf"], r"three\.hdf holds 3 images; name one"),
    "reference without size": (["--ref=no_apix.em"], r"no_apix\.em has no voxel size"),
    "too many classes": (["--nref=5"], r"--nref=5: there are only 4 particles"),
    "random phases": (["--refrandphase=15"], r"--refrandphase=15: finer than Nyquist \(20 A\)"),
    "negative resolution": (["--refrandphase=-1"], r"--refrandphase=-1"),
    "pose missing": (
        ["--inixforms=three.json"],
        r"--inixforms: three\.json: the pose of particle 3 is missing",
    ),
    "pose not rigid": (
        ["--inixforms=bent.json"],
        r"--inixforms: bent\.json: the pose of particle 2 is not rigid",
    ),
    "poses missing": (["--inixforms=nowhere.json"], r"--inixforms: .*nowhere\.json"),
    "symmetry c0": (["--sym=c0"], r"c0"),
    "symmetry x": (["--sym=x7"], r"x7"),
    "helix start": (["--sym=h3:2:30:5"], r"h3:2:30:5.*(start|1)"),
    "class symmetry": (["--syms=c1,qq"], r"qq"),
    "tag": (["--refinemultireftag=a/b"], r"--refinemultireftag=a/b: letters, digits"),
    "two sources": (["--classmx=classmx.hdf"], r"--classmx and --ref"),
    "classmx of others": (["--input=three.hdf", "--ref=", "--classmx=classmx.hdf"], r"4 rows, 3"),
    "classmx and nref": (["--ref=", "--classmx=classmx.hdf", "--nref=3"], r"--nref=3.* 2 classes"),
    "classmx with an empty class": (
        ["--ref=", "--classmx=gap.hdf", "--nref=3"],
        r"--classmx: class 1 of gap\.hdf is empty",
    ),
    "class beyond": (["--oneclass=2"], r"--oneclass=2: there are 2 classes, from 0 on"),
    "result name": (["--resultmx=x.txt"], r"--resultmx=x\.txt"),
    # preprocessing
    "mask of another group": (
        ["--mask=normalize"],
        r"--mask=normalize: a processor of the group mask",
    ),
    "mask of nothing": (["--mask=mask.sharp:outer_radius=0"], r"the mask is zero"),
    "mask file missing": (["--maskfile=nowhere.hdf"], r"nowhere\.hdf"),
    "mask file of zeros": (["--maskfile=zeros.hdf"], r"--maskfile: zeros\.hdf must hold"),
    "mask file below zero": (["--maskfile=ref.hdf"], r"--maskfile: ref\.hdf must hold"),
    "mask file of other voxels": (
        ["--maskfile=mask8.hdf"],
        r"--maskfile: mask8\.hdf has voxels of 8 A, the particles 10",
    ),
    "normalisation of another group": (
        ["--normproc=mask.sharp"],
        r"--normproc=mask\.sharp: a processor of the group normalize",
    ),
    "processor name": (
        ["--lowpass=filter.lowpass.gaus"],
        r"--lowpass: .*'filter\.lowpass\.gaus'.*did you mean 'filter\.lowpass\.gauss'",
    ),
    "processor key": (
        ["--highpassfine=filter.highpass.gauss:cutof_freq=0.1"],
        r"--highpassfine: .*'cutof_freq'.*'cutoff_freq'.*keys",
    ),
    "processor value": (
        ["--threshold=threshold.belowtozero:minval=low"],
        r"--threshold: .*'minval'.*number",
    ),
    "processor grammar": (["--preprocess=normalize:a"], r"'a' is not of the form key=value"),
    "processor moves": (["--preprocessfine=xform.centerofmass", "--falign=refine_3d"], r"centres"),
    "box of the copies": (["--shrink=2"], r"clip and shrink leave a box of 8 voxels"),
    "clip too small": (["--clip=10"], r"clip and shrink leave a box of 10 voxels"),
    # alignment
    "aligner name": (
        ["--align=rotate_translate_3d_tre"],
        r"--align: .*did you mean 'rotate_.*tree'",
    ),
    "aligner key": (["--align=rotate_translate_3d:serch=4"], r"--align: .*'serch'.*'search'"),
    "aligner value": (["--align=rotate_translate_3d:delta=0"], r"--align: .*delta=0"),
    "aligner grammar": (["--align=rotate_translate_3d:delta"], r"'delta' is not of the form"),
    "aligner bounds": (
        ["--align=rotate_translate_3d_grid:alt0=20:alt1=20"],
        r"--align: .*alt0=20 must be below alt1=20",
    ),
    "aligner searches": (
        ["--align=rotate_translate_3d:search=2:searchx=2"],
        r"--align: .*search or searchx",
    ),
    "aligner steps": (["--align=rotate_translate_3d:delta=9:n=8"], r"--align: .*delta or n"),
    "fine aligner": (["--falign=refine_3dd"], r"--falign: .*refine_3d"),
    "fine tree": (["--falign=rotate_translate_3d_tree"], r"needs maxang"),
    "comparator": (["--aligncmp=cccc"], r"--aligncmp: .*did you mean 'ccc'"),
    "no comparator": (["--aligncmp=None"], r"--aligncmp: a comparator is needed"),
    "fine comparator": (["--faligncmp=frcc"], r"--faligncmp: .*'frc'"),
    "comparator key": (["--aligncmp=ccc:sigma=1"], r"--aligncmp: ccc has no key 'sigma'"),
    "peaks without search": (["--align=None", "--npeakstorefine=3"], r"--npeakstorefine"),
    "search beyond the box": (["--search=8"], r"--search=8: half of the box of the copies is 8"),
    "fine search beyond the box": (["--searchfine=9"], r"--searchfine=9: half of the box"),
    "radius below two voxels": (["--radius=15"], r"--radius=15: less than two voxels of 10 A"),
    "negative radius": (["--radius=-80"], r"--radius=-80"),
    "precision": (["--radius=40", "--precision=0"], r"--precision=0: voxels above 0"),
    "radius without search": (["--radius=40", "--align=None"], r"--radius and --align=None"),
    # averaging
    "averager": (["--averager=meen"], r"--averager: .*did you mean 'mean'"),
    "no averager": (["--averager=None"], r"--averager: an averager is needed"),
    "keep none": (["--keep=0"], r"--keep=0: a fraction"),
    "keep too many": (["--keep=1.5"], r"--keep=1\.5: a fraction"),
    "tilt axis text": (["--weighbytiltaxis=200"], r"--weighbytiltaxis=200: two numbers A,B"),
    "tilt axis place": (["--weighbytiltaxis=0,0.5"], r"--weighbytiltaxis=0,0\.5: A > 0"),
    "tilt axis weight": (["--weighbytiltaxis=200,1.5"], r"B in 0 \.\.\. 1"),
    "tilt axis header": (
        ["--weighbytiltaxis=200,0.5"],
        r"--weighbytiltaxis: .*ptcl_source_coord is missing in particles 0, 1, 2, 3$",
    ),
    "processor before averaging": (
        ["--preavgproc1=threshold.belowzero"],
        r"--preavgproc1: .*did you mean 'threshold\.belowtozero'",
    ),
    "processor that resizes": (
        ["--preavgproc2=math.meanshrink:n=2"],
        r"--preavgproc2=math\.meanshrink:n=2: the box of the particles must stay",
    ),
    "centring": (["--autocenter=normalize"], r"--autocenter=normalize: xform\.centerofmass or"),
    "centring mask alone": (
        ["--autocentermask=mask.sharp:outer_radius=4"],
        r"--autocentermask does nothing without --autocenter",
    ),
    "centring filter alone": (
        ["--autocenterpreprocess"],
        r"--autocenterpreprocess does nothing without --autocenter",
    ),
    "centring mask of another group": (
        ["--autocenter=xform.centeracf", "--autocentermask=normalize"],
        r"--autocentermask=normalize: a processor of the group mask",
    ),
    "final processor": (["--postprocess=filter.lowpas.gauss"], r"--postprocess: .*lowpass\.gauss"),
    "variance of a median": (["--averager=median", "--varmap"], r"--varmap: there is none"),
    # sampling
    "wedge one number": (["--wedge=60"], r"--wedge=60: expected none"),
    "wedge axis": (["--wedge=-60,60,z"], r"--wedge=-60,60,z: tilt axis 'z'"),
    "wedge reversed": (["--wedge=60,-60"], r"--wedge=60,-60: tilt range"),
    "wedge file": (["--wedge=weights20.hdf"], r"weights20\.hdf has box 20, the particles 16"),
    "wedge count": (["--wedge=weights3.hdf"], r"weights3\.hdf has 3 grids for 4"),
    "premultiplied": (["--premultiplied"], r"--premultiplied: --wedge must name"),
}
SINGLE = {
    "two references": (["--ref=ref.hdf,ref.hdf"], r"--ref: 2 maps, one is refined"),
    "recompute without classes": (["--recompute"], r"--recompute: .*--classmx, which is not given"),
    "one class without classes": (["--oneclass=0"], r"--oneclass: .*--classmx, which is not"),
    "class beyond": (
        ["--classmx=classmx.hdf", "--oneclass=2"],
        r"--oneclass=2: there are 2 classes, from 0 on",
    ),
    "class too small": (
        ["--classmx=classmx.hdf"],
        r"class 0 of --classmx: 2 particles are too few",
    ),
    "bad option with several classes": (
        ["--classmx=classmx.hdf", "--goldstandardoff", "--keep=2"],
        r"--keep=2: a fraction",
    ),
    "too few": (["--input=three.hdf"], r"3 particles are too few"),
    "subset too small": (["--subset=3"], r"3 particles are too few"),
    "symmetry": (["--sym=d0"], r"d0"),
}
# values that the flags themselves refuse, with the name and the reason
OUT_OF_RANGE = (
    "--nref=1", "--iter=0", "--seed=-1", "--subset=-1", "--verbose=12", "--verbose=-1",
    "--shrink=-1", "--shrinkfine=-2", "--clip=-4", "--npeakstorefine=0", "--oneclass=-1",
    "--nboot=1", "--procfinelikecoarse=maybe", "--iter=two", "--keep=much", "--maskfile_target=all",
)  # fmt: skip


def _not_reached(*_, **__):
    raise AssertionError("work began")


def refuse(script, options, message, folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(os, "sched_setaffinity", lambda *_: None, raising=False)
    before = set(folder.rglob("*"))
    argv = [script.__name__, *GOOD, *options]
    if script.__name__ == "classaverage":
        argv = [a for a in argv if not a.startswith("--nref")]
    monkeypatch.setattr(script._job, "execute", _not_reached)
    with pytest.raises(InputError) as caught:
        script.run(values=script._flags.parse(argv), argv=argv)
    text = str(caught.value)
    assert re.search(message, text), text
    assert "\n" not in text
    assert len(text) < 300, text
    assert set(folder.rglob("*")) == before, "a run folder was made"


@pytest.fixture(scope="module")
def refinemulti():
    return script_runs.load("refinemulti")


@pytest.mark.parametrize("case", MULTI)
def test_refinemulti_refuses(case, refinemulti, bench, monkeypatch):
    refuse(refinemulti, *MULTI[case], bench, monkeypatch)


def test_verbosity_has_three_spellings(refinemulti):
    for words in (["-v", "2"], ["-v2"], ["-v=2"], ["--verbose=2"], ["--v=2"], ["--verbose", "2"]):
        values = refinemulti._flags.parse(["refinemulti.py", *words, "--nref=4"])
        assert (values["verbose"], values["nref"]) == (2, 4), words
    assert refinemulti._flags.parse(["x", "-v", "--nref=4"])["verbose"] == 1
    assert refinemulti._flags.parse(["x"])["verbose"] == 0


@pytest.mark.parametrize("word", OUT_OF_RANGE)
def test_flag_values_out_of_range_are_refused_by_name(word, refinemulti):
    name = word.split("=")[0].lstrip("-")
    with pytest.raises(flags.Error, match=name):
        refinemulti._flags.parse(["x", word])
    refinemulti._flags.parse(["x"])


def test_a_misspelt_option_is_refused_by_name(refinemulti):
    with pytest.raises(flags.UnrecognizedFlagError, match="lowpas"):
        refinemulti._flags.parse(["x", "--lowpas=2"])


def test_a_reference_of_another_box_is_resampled_and_said(refinemulti, tmp_path):
    """A Gaussian blob keeps its place and its width in angstrom."""
    axis = (np.arange(30) - 15) * 6.0
    square = axis[:, None, None] ** 2 + (axis[:, None] - 12) ** 2 + axis**2
    io.write_hdf(tmp_path / "blob.hdf", np.exp(-square / (2 * 25.0**2)).astype(np.float32), 6.0)
    said = []
    inputs = refinemulti._inputs
    io.write_hdf(tmp_path / "stack.hdf", np.zeros((2, 24, 24, 24), np.float32), 12.0)
    particles = inputs.open_particles(str(tmp_path / "stack.hdf"), 0.0, 0)
    found = inputs.load_references(str(tmp_path / "blob.hdf"), particles, 0.0, said.append)
    assert len(said) == 1
    assert "resampled from 30 voxels of 6 A to 24 of 12" in said[0]
    axis = (np.arange(24) - 12) * 12.0
    square = axis[:, None, None] ** 2 + (axis[:, None] - 12) ** 2 + axis**2
    truth = np.exp(-square / (2 * 25.0**2))
    assert np.abs(found[0] - truth).max() < 0.03 * truth.max()


def test_references_with_the_particles_grid_are_taken_as_they_are(refinemulti, bench):
    said = []
    name = str(bench / "ref.hdf")
    particles = refinemulti._inputs.open_particles(str(bench / "good.hdf"), 0.0, 0)
    found = refinemulti._inputs.load_references(name, particles, 0.0, said.append)[0]
    assert not said
    shift = io.read_volume(name)[0] - found
    assert np.ptp(shift) < 1e-5  # only the solvent level is gone


def test_the_command_line_says_one_sentence_and_fails(bench):
    """Through the shell: status 1 and the reason on standard error; and a flag nobody knows."""
    script = str(script_runs.EXPERIMENTS / "refinemulti.py")
    for options, message in (
        (
            ["--input=odd.hdf", "--ref=ref.hdf"],
            r"refinemulti\.py: odd\.hdf image 0 has an odd box.*",
        ),
        (["--inpt=odd.hdf"], r"(?s).*Unknown command line flag 'inpt'\. Did you mean: input.*"),
    ):
        done = subprocess.run(
            [sys.executable, script, *options], cwd=bench, capture_output=True, text=True
        )
        assert done.returncode == 1
        assert re.fullmatch(message, done.stderr.strip()), done.stderr
        assert "Traceback" not in done.stderr
    assert not list(pathlib.Path(bench).glob("spt_*"))


@pytest.mark.parametrize("case", SINGLE)
def test_classaverage_refuses(case, bench, monkeypatch):
    refuse(script_runs.load("classaverage"), *SINGLE[case], bench, monkeypatch)
