"""Sort aligned particles into classes by principal components and k-means.

sptjax msa --input=particles.hdf --inixforms=spt_01/sptali_ir_4.json --ncls=3
sptjax msa --input=particles.hdf --classmx=refined_01/classmx_9.hdf --nbasis=6

Particles keep the poses given. Results go to a new folder spt_msa_NN: msa_basis.hdf (the mean,
then eigenvolumes), msa_projection.txt (index and coordinates), classmx_msa.hdf, class_avgs_msa.hdf
and pictures. The class matrix serves refinemulti.py --classmx.
"""

import pathlib
import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import _flags
import _help
import _inputs
import _job
import _report
import _resolve
import jax.numpy as jnp
import numpy as np
from absl import flags

from sptjax import console, msa, options, particles, rotation, symmetry, workdir
from sptjax._errors import InputError
from sptjax._messages import step
from sptjax.averagers import AVERAGERS
from sptjax.averaging import Averaging
from sptjax.preprocess import Pipeline

f = flags
with _help.group("input"):
    _inputs.define_particles()
    f.DEFINE_string("inixforms", None, "table of the poses of the particles")
    f.DEFINE_string("classmx", None, "class matrix (.hdf) with poses, instead of --inixforms")
with _help.group("classification"):
    f.DEFINE_integer("oneclass", None, "sort the particles of this class of --classmx alone")
    f.DEFINE_integer("ncls", 2, "classes")
    f.DEFINE_integer("nbasis", 3, "principal components")
    f.DEFINE_string("mask", "", "mask processor: where classes may differ; automatic if not given")
    f.DEFINE_string("maskfile", None, "mask volume, multiplied to --mask: classes by a part alone")
    f.DEFINE_string(
        "lowpass", "", "low-pass processor: frequencies beyond half its gain are left out"
    )
with _help.group("averaging"):
    f.DEFINE_string("sym", "c1", "symmetry of the class averages")
    f.DEFINE_string("averager", "mean.tomo", "of the class averages")
with _help.group("output"):
    f.DEFINE_string("path", "spt_msa", "stem of the run folder: results go to <path>_NN")
    f.DEFINE_bool("plots", True, "draw the particles and the class averages (PNG)")
    f.DEFINE_integer("verbose", 0, "0 quiet, 1 progress bars", lower_bound=0, upper_bound=11)
with _help.group("compute"):
    f.DEFINE_integer("seed", 0, "of the random starts", lower_bound=0)
    f.DEFINE_string("parallel", "auto", "auto, none, thread:N or gpu[:i,j]: what to compute on")


def posed_particles(values: Mapping[str, Any], given: _inputs.Particles) -> msa.Posed:
    """Particles that can be used, with their poses."""
    if bool(values["inixforms"]) == bool(values["classmx"]):
        raise InputError("poses are needed, from either --inixforms or --classmx")
    rows = np.arange(len(given.stack))
    if values["classmx"]:
        matrix = _inputs.read_classes(values, given)
        if not _inputs.posed(matrix):
            raise InputError(f"--classmx: {values['classmx']} holds no poses")
        turn = rotation.from_euler(jnp.asarray(matrix.euler_deg), rotation.Convention["EMAN"])
        turns, shifts = np.asarray(turn), np.asarray(matrix.shifts_vox)
        rows = rows[matrix.classes >= 0]
        if values["oneclass"] is not None:
            if not 0 <= values["oneclass"] < matrix.n_classes:
                raise InputError(f"--oneclass={values['oneclass']}: {matrix.n_classes} are there")
            rows = np.flatnonzero(matrix.classes == values["oneclass"])
    else:
        if values["oneclass"] is not None:
            raise InputError("--oneclass: the classes come from --classmx, which is not given")
        found = _inputs.read_poses(values["inixforms"], given, 1)
        turns, shifts = found.rotation[:, 0], found.shift[:, 0]
    status = [particles.check_volumes(given.stack.read(np.array([i])))[0] for i in rows]
    rows = rows[np.array(status) == 0]
    return msa.Posed(rows, turns[rows].astype(np.float32), shifts[rows].astype(np.float32))


@console.transcript()
def run(*, values: Mapping[str, Any], argv: Sequence[str]) -> msa.Sorted:
    """Check everything, then sort.

    Args:
        values: every flag by name.
        argv: the command line, for the record.
    """
    given = _inputs.open_particles(values["input"], values["apix"], values["subset"])
    stack, apix = given.stack, given.apix
    _job.use_devices(values["parallel"])
    volume = values["maskfile"]
    pipeline = Pipeline(
        mask=_resolve.processor(values, "mask", group="mask."),
        mask_volume=_inputs.read_mask(volume, stack.box, apix) if volume else None,
    )
    pipeline.check(stack.box, apix)
    settings = msa.MsaSettings(
        classes=values["ncls"],
        components=values["nbasis"],
        seed=values["seed"],
        mask=pipeline.mask_image(stack.box, apix),
        lowpass=_resolve.processor(values, "lowpass"),
    )
    own = symmetry.parse(values["sym"])
    averager = options.bind(options.parse(values["averager"]), AVERAGERS, "--averager")
    if averager is None:
        raise InputError("--averager: an averager is needed")
    posed = posed_particles(values, given)
    settings.check(len(posed.indices))
    sampling = _inputs.find_sampling(values["wedge"], values["premultiplied"], given, console.say)
    folder = workdir.reserve(values["path"])
    manifest = workdir.describe("msa", argv, values, values["seed"], _job.device())
    workdir.write_manifest(folder, manifest)
    _report.begin(folder)
    progress = console.progress if values["verbose"] else console.silent
    try:
        found = msa.sort(
            posed, stack, sampling, own, Averaging(averager), apix, settings, progress=progress
        )
    except InputError:
        shutil.rmtree(folder)  # nothing was computed
        raise
    msa.write(found, len(stack), pathlib.Path(folder), apix, pictures=values["plots"])
    share = ", ".join(f"{100 * x:.1f} %" for x in found.components.share)
    sizes = np.bincount(found.classes)
    console.say(step(f"shares of the variance: {share}; classes of {sizes}"))
    console.say(step(f"averages: {folder / 'class_avgs_msa.hdf'}"))
    _report.of_sorting(folder, values, found, len(stack), apix)
    return found


def main(argv: Sequence[str]) -> None:
    """Flags to arguments."""
    del argv
    run(values=_flags.resolved(), argv=sys.argv)


if __name__ == "__main__":
    _flags.launch(main, "msa.py")
