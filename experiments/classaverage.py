"""Refine one map in two independent halves (gold standard).

sptjax classaverage --input=particles.hdf --ref=map.hdf --iter=5 --refrandphase=60
sptjax classaverage --input=particles.hdf --ref=map.hdf --sym=d7 --keep=0.8
sptjax classaverage --input=particles.hdf --btref=64 --iter=5
sptjax classaverage --input=particles.hdf --classmx=classmx_4.hdf --recompute

Without --ref every half gets a reference of its own, made from its particles (ref_even.hdf).

Results go to a new folder spt_NN: final_avg.hdf with its halves final_avg_even.hdf and
final_avg_odd.hdf, poses (sptali_ir_*.json), FSC curves, resolution.json and pictures. With a
class matrix of several classes each is refined by itself, in a folder class<c>_01 of the run.
"""

import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import _flags
import _generate
import _help
import _inputs
import _job
import _report
import numpy as np
from absl import flags

from sptjax import console, distributed, symmetry, workdir
from sptjax._errors import InputError
from sptjax._messages import step, warning
from sptjax.io import ClassMatrix
from sptjax.state import RefineState

_flags.define_shared(
    path="spt", output="final_avg.hdf", fine_like_coarse=False, mask_target="reference"
)
_generate.define()
with _help.group("references"):
    flags.DEFINE_bool("goldstandardoff", False, "let both halves share one reference")
with _help.group("averaging"):
    flags.DEFINE_bool("recompute", False, "only average with the classes and poses of --classmx")


@console.transcript()
def run(*, values: Mapping[str, Any], argv: Sequence[str]) -> RefineState:
    """Check everything, then refine.

    Args:
        values: every flag by name.
        argv: the command line, for the record.

    Returns:
        The last state; of the last class, if several are refined.
    """
    hosts = _job.join_processes(values)
    _job.use_devices(values["parallel"])
    particles = _inputs.open_particles(values["input"], values["apix"], values["subset"])
    gold = not values["goldstandardoff"] and not values["recompute"]
    matrix = _inputs.read_classes(values, particles) if values["classmx"] else None
    if matrix is None:
        for name, asked in (
            ("recompute", values["recompute"]),
            ("oneclass", values["oneclass"] is not None),
        ):
            if asked:
                raise InputError(f"--{name}: the classes come from --classmx, which is not given")
    own = symmetry.parse(values["sym"])
    if values["recompute"]:
        assert matrix is not None, "checked above"
        if not _inputs.posed(matrix):
            raise InputError(f"--recompute: {values['classmx']} holds no poses")
        return _job.carry_out(
            "classaverage",
            values,
            argv,
            particles,
            None,
            matrix,
            (own,) * matrix.n_classes,
            gold=False,
            average_only=True,
            hosts=hosts,
        )
    if matrix is None or matrix.n_classes == 1:
        return _one_class(values, argv, particles, matrix, own, hosts, gold=gold)
    wanted = range(matrix.n_classes) if values["oneclass"] is None else [values["oneclass"]]
    if wanted[-1] >= matrix.n_classes:
        raise InputError(
            f"--oneclass={wanted[-1]}: there are {matrix.n_classes} classes, from 0 on"
        )
    for c in wanted:
        _check_count(int((matrix.classes == c).sum()), gold, f"class {c} of --classmx")
    folder = _job.run_folder("classaverage", values, argv, hosts)
    _report.begin(folder)
    for c in wanted:
        rows = np.flatnonzero(matrix.classes == c)
        console.say(step(f"class {c}: {len(rows)} particles"))
        again = values["resume"] and any(folder.glob(f"class{c}_*"))
        alone = dict(values, path=str(folder / f"class{c}"), oneclass=None, resume=again)
        part = particles.select(rows)
        try:
            state = _one_class(alone, argv, part, _rows_of(matrix, rows), own, hosts, gold=gold)
        except InputError:
            if hosts.leads and not values["resume"] and not list(folder.glob("class*_*")):
                shutil.rmtree(folder)  # nothing was computed
            raise
    if hosts.leads:
        parts = {f"class {c}": workdir.latest(folder / f"class{c}") for c in wanted}
        done = [f"Each class of {values['classmx']} was refined by itself."]
        _report.of_parts(folder, parts, done)
    return state


@console.transcript()
def _one_class(
    values: Mapping[str, Any],
    argv: Sequence[str],
    particles: _inputs.Particles,
    matrix: ClassMatrix | None,
    own: symmetry.Symmetry,
    hosts: distributed.Hosts,
    *,
    gold: bool,
) -> RefineState:
    _check_count(len(particles.stack), gold, "--input")
    references = None
    if values["ref"]:
        maps = _inputs.load_references(values["ref"], particles, values["apix"], console.say)
        if len(maps) != 1:
            raise InputError(f"--ref: {len(maps)} maps, one is refined here (see refinemulti.py)")
        randphase, seed = values["refrandphase"], values["seed"]
        references = half_references(maps, gold, randphase, particles.apix, seed)
        matrix = None
        _generate.ignored(values, console.say)
    elif matrix is None or not _inputs.posed(matrix):
        matrix = None
        # halves that share a reference share the one of all particles
        count = len(particles.stack)
        references = _generate.recipe(values, count, (own,), console.say, halves=gold)
    return _job.carry_out(
        "classaverage", values, argv, particles, references, matrix, (own,), gold=gold, hosts=hosts
    )


def _check_count(count: int, gold: bool, where: str) -> None:
    if count < (4 if gold else 2):
        raise InputError(f"{where}: {count} particles are too few to refine")


def _rows_of(matrix: ClassMatrix, rows: np.ndarray) -> ClassMatrix:
    """The poses of some particles, all in one class."""
    pick = lambda x: None if x is None else x[rows]  # noqa: E731
    return ClassMatrix(
        n_classes=1,
        classes=np.zeros(len(rows), np.int32),
        weights=matrix.weights[rows],
        scores=matrix.scores[rows],
        euler_deg=pick(matrix.euler_deg),
        shifts_vox=pick(matrix.shifts_vox),
    )


def half_references(
    maps: np.ndarray, gold: bool, randphase: float, apix: float, seed: int
) -> np.ndarray:
    """References of the halves ``[2, 1, n, n, n]``, or one for both ``[1, n, n, n]``."""
    if not gold:
        return _inputs.randomised(maps, randphase, apix, seed) if randphase else maps
    both = np.concatenate([maps, maps])
    if randphase:
        both = _inputs.randomised(both, randphase, apix, seed)
    else:
        console.say(
            warning(
                "--refrandphase=0: the halves start from the same phases (a low-passed reference,"
                " or --refrandphase=60, makes them independent)"
            )
        )
    return both[:, None]


def main(argv: Sequence[str]) -> None:
    """Flags to arguments."""
    del argv
    run(values=_flags.resolved(), argv=sys.argv)


if __name__ == "__main__":
    _flags.launch(main, "classaverage.py")
