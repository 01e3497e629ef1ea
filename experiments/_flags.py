"""Flags of ``refinemulti`` and ``classaverage``: names, defaults and what they mean.

The names and spellings are EMAN2's. Values stay text here; :mod:`_resolve` turns them into
checked objects before anything is computed or written.
"""

import os
import pathlib
import sys
from collections.abc import Callable, Collection, Sequence
from typing import Any

import _help
import _inputs
import _uncertainty
import jax
from _argv import take_back_v
from absl import app, flags, logging

from sptjax._errors import InputError

ALIGN = "rotate_translate_3d:search=8:delta=12:dphi=12"


def define_shared(path: str, output: str, *, fine_like_coarse: bool, mask_target: str) -> None:
    """Define the flags of ``refinemulti`` and ``classaverage`` alike.

    Args:
        path: default stem of the run folder.
        output: default name of the final averages.
        fine_like_coarse: default of ``--procfinelikecoarse``.
        mask_target: default of ``--maskfile_target``.
    """
    _define_input()
    _define_references()
    _define_preprocessing(fine_like_coarse, mask_target)
    _define_alignment()
    _define_classification()
    _define_averaging()
    _uncertainty.define()
    _define_output(path, output)
    _define_computing()


@_help.group("input")
def _define_input() -> None:
    f = flags
    _inputs.define_particles()
    f.DEFINE_string(
        "inixforms",
        None,
        "poses known beforehand: a table of EMAN2, RELION, Dynamo, STOPGAP, AV3, PyTom or CSV;"
        " --align=None keeps them",
    )
    f.DEFINE_string("classmx", None, "class matrix (.hdf): start from its classes and poses")


@_help.group("references")
def _define_references() -> None:
    f = flags
    f.DEFINE_string("ref", None, "reference map(s), comma separated; file:n takes image n")
    f.DEFINE_float(
        "refrandphase",
        0.0,
        "random phases of references beyond this, angstrom: halves become independent, copies"
        " differ; 0 = not",
    )
    f.DEFINE_bool(
        "refpreprocess",
        False,
        "preprocess given references like the particles; off for densities of atomic models,"
        " which are positive everywhere",
    )
    f.DEFINE_string(
        "sym",
        "c1",
        "symmetry c<n>, d<n>, tet, oct, icos, h<n>:1:<daz>:<tz>: averages are symmetrised, one"
        " asymmetric unit is searched",
    )
    f.DEFINE_bool("breaksym", False, "search one asymmetric unit but do not symmetrise averages")


@_help.group("preprocessing")
def _define_preprocessing(fine_like_coarse: bool, mask_target: str) -> None:
    f = flags
    f.DEFINE_string("mask", "", "mask processor, such as mask.sharp:outer_radius=-2")
    f.DEFINE_string(
        "maskfile", None, "mask volume in the box of the particles; see --maskfile_target"
    )
    f.DEFINE_enum(
        "maskfile_target",
        mask_target,
        ["particles", "reference", "both"],
        "what --maskfile is multiplied with; a mask that is no sphere fits the reference",
    )
    f.DEFINE_string("normproc", "", "normalisation, such as normalize.edgemean")
    f.DEFINE_string(
        "threshold", "", "processor after normalisation, such as threshold.belowtozero:minval=0"
    )
    f.DEFINE_string(
        "lowpass",
        "",
        "low-pass filter of the coarse stage, such as filter.lowpass.gauss:cutoff_freq=0.02"
        " (in 1/angstrom)",
    )
    f.DEFINE_string("highpass", "", "high-pass filter of the coarse stage")
    f.DEFINE_string("preprocess", "", "any processor of the coarse stage")
    f.DEFINE_string("lowpassfine", "", "low-pass filter of the fine stage")
    f.DEFINE_string("highpassfine", "", "high-pass filter of the fine stage")
    f.DEFINE_string("preprocessfine", "", "any processor of the fine stage")
    f.DEFINE_bool(
        "procfinelikecoarse",
        fine_like_coarse,
        "filters and processor of the coarse stage serve the fine one too where it has none",
    )
    f.DEFINE_integer(
        "shrink",
        0,
        "shrink the coarse copies by this factor: faster, blind to finer detail; 0 = not",
        lower_bound=0,
    )
    f.DEFINE_integer(
        "shrinkfine",
        0,
        "shrink the fine copies by this factor, --shrink at least as much; 0 = not",
        lower_bound=0,
    )
    f.DEFINE_integer(
        "clip",
        0,
        "cut the copies to this box, voxels (even, 12 at least): faster, poses stay the same;"
        " 0 = not",
        lower_bound=0,
    )
    f.DEFINE_bool(
        "notmatchimgs",
        False,
        "leave the radial power of references as it is (else it is fitted to the particles')",
    )


@_help.group("alignment")
def _define_alignment() -> None:
    f = flags
    f.DEFINE_integer(
        "iter",
        1,
        "rounds of alignment and averaging; a run that has converged stops earlier",
        lower_bound=1,
    )
    f.DEFINE_string(
        "align",
        ALIGN,
        "coarse aligner, or None; not given, spacing and band follow from the data",
    )
    f.DEFINE_string(
        "aligncmp",
        "matched",
        "comparator of --align: matched = matched filter with the noise of the stack, in sigma;"
        " ccc.tomo.thresh, fsc.tomo, ...",
    )
    f.DEFINE_string(
        "falign",
        "",
        "fine aligner, from each of --npeakstorefine poses: refine_3d, refine_3d_grid,"
        " rotate_translate_3d_tree:maxang=degrees",
    )
    f.DEFINE_string("faligncmp", "", "comparator of --falign; that of --align if not given")
    f.DEFINE_integer(
        "npeakstorefine", 1, "distinct coarse poses that --falign refines", lower_bound=1
    )
    f.DEFINE_integer(
        "search",
        8,
        "largest shift along each axis, voxels of the coarse copy; 0 = none, negative = half the"
        " box; beats --align if not 8",
    )
    f.DEFINE_integer(
        "searchfine",
        2,
        "how far --falign may move a shift along each axis, voxels of its copy; beats --falign if"
        " not 2",
    )
    f.DEFINE_float(
        "radius",
        0.0,
        "radius of the particle, angstrom: steps move its edge --precision voxels (coarse: four"
        " times that); 0 = off",
    )
    f.DEFINE_float(
        "precision", 1.0, "with --radius: voxels that the particle's edge moves in the finest step"
    )
    f.DEFINE_bool(
        "randomizewedge",
        False,
        "turn the search grid at random every round, and poses by random symmetry operators, so"
        " that missing wedges spread",
    )
    f.DEFINE_bool(
        "tweak", False, "after a shrunk last stage, one more local alignment without shrinking"
    )
    f.DEFINE_bool("translateonly", False, "search shifts only")
    f.DEFINE_bool(
        "filterbyfsc", False, "filter particles and references of a search by the last FSC"
    )


@_help.group("classification")
def _define_classification() -> None:
    f = flags
    f.DEFINE_integer("oneclass", None, "average and write only this class", lower_bound=0)
    f.DEFINE_integer(
        "ncls",
        None,
        "sort the aligned particles of every class into so many more after the last round, by PCA;"
        " 2 if only --nbasis is given",
    )
    f.DEFINE_integer("nbasis", None, "principal components of that; 3 if only --ncls is given")


@_help.group("averaging")
def _define_averaging() -> None:
    f = flags
    f.DEFINE_string(
        "averager",
        "mean.tomo",
        "mean.tomo divides every frequency by how often it was sampled; mean, median, sigma,"
        " minmax, localweight",
    )
    f.DEFINE_float(
        "keep",
        1.0,
        "best-scoring fraction of every class (or half) that is averaged; all are aligned",
    )
    f.DEFINE_bool(
        "keepsig",
        False,
        "average what scores no worse than --keep standard deviations below the mean",
    )
    f.DEFINE_bool("weighbyscore", False, "weight particles by score over best score")
    f.DEFINE_bool(
        "weighbyscale",
        False,
        "weigh particles, frequency by frequency, by their scale and B-factor, fitted every round",
    )
    f.DEFINE_string(
        "weighbytiltaxis",
        "",
        "A,B: weight 1 at x = A voxels (the tilt axis in the tomogram), B at its edges 0 and 2 A",
    )
    f.DEFINE_string("preavgproc1", "", "processor of aligned particles before averaging")
    f.DEFINE_string("preavgproc2", "", "another one after it")
    f.DEFINE_string("autocenter", "", "centre the averages: xform.centerofmass, xform.centeracf")
    f.DEFINE_string("autocentermask", "", "mask processor of the copy that is centred")
    f.DEFINE_bool("autocenterpreprocess", False, "filter and shrink the copy that is centred")
    f.DEFINE_bool(
        "automask",
        False,
        "mask averages automatically before they serve as references (and before centring)",
    )
    f.DEFINE_string("postprocess", "", "processor of the final maps, written beside them")
    f.DEFINE_bool("resample", False, "bootstrap variance maps of the final averages")
    f.DEFINE_integer("nboot", 32, "replicates of --resample", lower_bound=2)


@_help.group("output")
def _define_output(path: str, output: str) -> None:
    f = flags
    f.DEFINE_string("path", path, "stem of the run folder: results go to <path>_NN")
    f.DEFINE_string("output", output, "name of the final averages in the run folder (.hdf)")
    f.DEFINE_string("resultmx", None, "write the final class matrix under this name (.hdf)")
    f.DEFINE_string("refinemultireftag", "", "suffix of the pose files instead of the iteration")
    f.DEFINE_bool("savesteps", False, "keep the averages of every round")
    f.DEFINE_bool("savepreproc", False, "write the preprocessed copies, as they are aligned")
    f.DEFINE_bool(
        "saveali",
        False,
        "write the raw particles, aligned, after the last round; rejected ones too",
    )
    f.DEFINE_bool(
        "saveallalign", False, "the same after every round (as large as the stack each time)"
    )
    f.DEFINE_bool("saveallpeaks", False, "write all coarse poses of every round")
    f.DEFINE_bool(
        "varmap",
        False,
        "write voxel variances over the aligned particles (always with --averager=mean)",
    )
    f.DEFINE_bool(
        "plots",
        True,
        "draw slices, FSC, scores, classes, views and sampling (PNG, and in report.html)",
    )
    f.DEFINE_integer(
        "verbose",
        0,
        "0 = one line a round; 1 = progress bars; 2 = classes; 3, 4, 5 = scores, margins, poses of"
        " particles; 9 = settings",
        lower_bound=0,
        upper_bound=11,
    )


@_help.group("compute")
def _define_computing() -> None:
    f = flags
    f.DEFINE_bool("resume", False, "go on with the last run of --path from its last whole round")
    f.DEFINE_integer("seed", 0, "of all random numbers", lower_bound=0)
    f.DEFINE_string(
        "parallel",
        "auto",
        "auto = all devices, and all processes of SLURM or Open MPI; mpi:N = just N; thread:N"
        " = N cores; none; gpu[:i,j]",
    )
    f.DEFINE_string(
        "coordinator",
        None,
        "host:port of the first of several processes with the same options; with --num_processes,"
        " --process_id",
    )
    f.DEFINE_integer("num_processes", None, "how many processes share the run", lower_bound=1)
    f.DEFINE_integer("process_id", None, "which of them this is, from 0 on", lower_bound=0)
    f.DEFINE_float(
        "memory",
        0.0,
        "GB that the run may use (0 = 80 % of what is free): batches shrink, then coefficients go"
        " to a file, until it fits",
        lower_bound=0.0,
    )
    f.DEFINE_string("scratch", None, "folder for that file (not given: that of the run)")
    f.DEFINE_enum(
        "cache",
        "float32",
        ["float32", "bfloat16"],
        "how coefficients are kept; bfloat16 takes half the room and has three digits",
    )
    f.DEFINE_integer("ppid", -1, "process that started this one; recorded, no other effect")


def cache_compilations() -> None:
    """Keep compiled programs between runs, unless the environment says where or whether."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        folder = pathlib.Path.home() / ".cache" / "sptjax" / "xla"
        jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def launch(main: Callable[[Sequence[str]], None], program: str, only: Collection[str] = ()) -> None:
    """Run a script: ``-v N`` is ``--verbose=N``, bad input is one sentence and status 1.

    Args:
        main: what to run.
        program: name of the script.
        only: names of the flags that may be given; all if empty.
    """

    def guarded(argv: Sequence[str]) -> None:
        try:
            if len(argv) > 1:
                raise InputError(f"unexpected argument {argv[1]}; options are --name=value")
            for name in resolved() if only else ():
                if name not in only and flags.FLAGS[name].present:
                    raise InputError(f"--{name}: this program takes {', '.join(only)} alone")
            main(argv)
        except InputError as error:
            sys.exit(f"{program}: {error}")

    argv = _help.answered(take_back_v(sys.argv), only)
    cache_compilations()
    logging.set_verbosity(logging.WARNING)
    app.run(guarded, argv=argv)


def resolved() -> dict[str, Any]:
    """Every flag of this script with its value."""
    module = flags.FLAGS.flags_by_module_dict()
    names = [f.name for key, own in module.items() if "absl" not in key for f in own]
    return {name: flags.FLAGS[name].value for name in sorted(names)}


def parse(argv: Sequence[str]) -> dict[str, Any]:
    """Values of a command line of this script, as if no other had been read before.

    Args:
        argv: the command line, the script's name first.
    """
    for key, own in flags.FLAGS.flags_by_module_dict().items():
        for flag in own if "absl" not in key else ():
            flag.unparse()
    rest = flags.FLAGS(take_back_v(argv))
    if len(rest) > 1:
        raise InputError(f"unexpected argument {rest[1]}; options are --name=value")
    return resolved()
