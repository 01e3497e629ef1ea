"""What the scripts refuse: one clear sentence, a non-zero exit, and no run folder."""

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
    return folder


MULTI = {
    "no input": (["--input="], r"--input: a stack of particles"),
    "missing file": (["--input=nowhere.hdf"], r"nowhere\.hdf"),
    "not cubic": (["--input=brick.hdf"], r"brick\.hdf image 0 is not a cubic .*12 x 16 x 16"),
    "odd box": (["--input=odd.hdf"], r"odd\.hdf image 0 has an odd box of 15"),
    "mixed boxes": (["--input=mixed.lst"], r"large\.hdf image 0 .*20 voxels, .* have 16"),
    "no voxel size": (["--input=no_apix.em"], r"no_apix\.em has no voxel size.*--apix"),
    "negative voxel size": (["--apix=-2"], r"--apix=-2: .*positive"),
    "truncated": (["--input=short.hdf"], r"short\.hdf"),
    "not an image": (["--input=text.hdf"], r"text\.hdf"),
    "no reference": (["--ref="], r"--ref: give reference maps, or --classmx"),
    "reference missing": (["--ref=nowhere.hdf"], r"nowhere\.hdf"),
    "reference flat": (["--ref=flat_ref.hdf"], r"--ref: flat_ref\.hdf is constant"),
    "reference not cubic": (["--ref=brick.hdf:0"], r"--ref: brick\.hdf:0 is not cubic"),
    "reference stack": (["--ref=three.hdf"], r"three\.hdf holds 3 images; name one"),
    "reference without size": (["--ref=no_apix.em"], r"no_apix\.em has no voxel size"),
    "two sources": (["--classmx=classmx.hdf"], r"--classmx and --ref"),
    "classmx of others": (["--input=three.hdf", "--ref=", "--classmx=classmx.hdf"], r"4 rows, 3"),
    "classmx and nref": (["--ref=", "--classmx=classmx.hdf", "--nref=3"], r"--nref=3.* 2 classes"),
    "too many classes": (["--nref=5"], r"--nref=5: there are only 4 particles"),
    "symmetry c0": (["--sym=c0"], r"c0"),
    "symmetry x": (["--sym=x7"], r"x7"),
    "class symmetry": (["--syms=c1,qq"], r"qq"),
    "aligner name": (
        ["--align=rotate_translate_3d_tre"],
        r"--align: .*did you mean 'rotate_.*tree'",
    ),
    "aligner key": (["--align=rotate_translate_3d:serch=4"], r"--align: .*'serch'.*'search'"),
    "aligner value": (["--align=rotate_translate_3d:delta=0"], r"--align: .*delta=0"),
    "aligner grammar": (["--align=rotate_translate_3d:delta"], r"'delta' is not of the form"),
    "fine aligner": (["--falign=refine_3dd"], r"--falign: .*refine_3d"),
    "fine after tree": (["--falign=refine_3d"], r"--falign=refine_3d: .*refines its poses itself"),
    "comparator": (["--aligncmp=ccc"], r"--aligncmp=ccc: known are matched"),
    "peaks without search": (["--align=None", "--npeakstorefine=3"], r"--npeakstorefine"),
    "no poses": (["--align=None"], r"--align=None: poses are needed"),
    "wedge one number": (["--wedge=60"], r"--wedge=60: expected none"),
    "wedge axis": (["--wedge=-60,60,z"], r"--wedge=-60,60,z: tilt axis 'z'"),
    "wedge reversed": (["--wedge=60,-60"], r"--wedge=60,-60: tilt range"),
    "wedge file": (["--wedge=weights20.hdf"], r"weights20\.hdf has box 20, the particles 16"),
    "wedge count": (["--wedge=weights3.hdf"], r"weights3\.hdf has 3 grids for 4"),
    "premultiplied": (["--premultiplied"], r"--premultiplied: --wedge must name"),
    "keep none": (["--keep=0"], r"--keep=0: a fraction"),
    "keep too many": (["--keep=1.5"], r"--keep=1\.5: a fraction"),
    "output name": (["--output=average.mrc"], r"--output=average\.mrc: .*\.hdf"),
    "output folder": (["--output=sub/a.hdf"], r"--output=sub/a\.hdf: .*without a folder"),
    "result name": (["--resultmx=x.txt"], r"--resultmx=x\.txt"),
    "random phases": (["--refrandphase=15"], r"--refrandphase=15: finer than Nyquist \(20 A\)"),
    "negative resolution": (["--refrandphase=-1"], r"--refrandphase=-1"),
    "unwritable": (["--path=file/run"], r"file: cannot create this folder"),
    "nothing to resume": (["--resume"], r"there is no run to resume"),
    "stray word": (["more.hdf"], r"unexpected argument more\.hdf"),
}
SINGLE = {
    "two references": (["--ref=ref.hdf,ref.hdf"], r"--ref: 2 maps, one is refined"),
    "neither": (["--ref="], r"--ref: give one reference map, or --classmx"),
    "two classes": (["--ref=", "--classmx=classmx.hdf"], r"--classmx: 2 classes"),
    "too few": (["--input=three.hdf"], r"3 particles are too few"),
    "symmetry": (["--sym=d0"], r"d0"),
}


def refuse(script, options, message, folder, monkeypatch):
    monkeypatch.chdir(folder)
    before = set(folder.rglob("*"))
    argv = [script.__name__, *GOOD, *options]
    if script.__name__ == "classaverage":
        argv = [a for a in argv if not a.startswith("--nref")]
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


def test_flag_values_out_of_range_are_refused_by_name(refinemulti):
    for word in ("--nref=1", "--iter=0", "--seed=-1", "--averager=median", "--verbose=99"):
        name = word.split("=")[0].lstrip("-")
        with pytest.raises(flags.Error, match=name):
            refinemulti._flags.parse(["x", word])
    refinemulti._flags.parse(["x"])


def test_options_that_do_not_act_are_unknown(refinemulti):
    for name in ("shrink", "lowpass", "btref", "parallel", "radius"):
        with pytest.raises(flags.UnrecognizedFlagError, match=name):
            refinemulti._flags.parse(["x", f"--{name}=2"])


def test_a_reference_of_another_box_is_resampled_and_said(refinemulti, tmp_path):
    """A Gaussian blob keeps its place and its width in angstrom."""
    axis = (np.arange(30) - 15) * 6.0
    square = axis[:, None, None] ** 2 + (axis[:, None] - 12) ** 2 + axis**2
    io.write_hdf(tmp_path / "blob.hdf", np.exp(-square / (2 * 25.0**2)).astype(np.float32), 6.0)
    said = []
    found = refinemulti._flags.load_references(
        str(tmp_path / "blob.hdf"), 24, 12.0, 0.0, said.append
    )
    assert len(said) == 1
    assert "resampled from 30 voxels of 6 A to 24 of 12" in said[0]
    axis = (np.arange(24) - 12) * 12.0
    square = axis[:, None, None] ** 2 + (axis[:, None] - 12) ** 2 + axis**2
    truth = np.exp(-square / (2 * 25.0**2))
    assert np.abs(found[0] - truth).max() < 0.03 * truth.max()


def test_references_with_the_particles_grid_are_taken_as_they_are(refinemulti, bench):
    said = []
    name = str(bench / "ref.hdf")
    found = refinemulti._flags.load_references(name, 16, 10.0, 0.0, said.append)[0]
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
