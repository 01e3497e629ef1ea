"""Multi-reference refinement: sort particles into classes and average each of them.

sptjax refinemulti --input=particles.hdf --ref=a.hdf,b.hdf --iter=5
sptjax refinemulti --input=particles.hdf --ref=map.hdf --nref=3 --iter=10 --sym=c4
sptjax refinemulti --input=particles.hdf --nref=2 --iter=5 --refgenmethod=hac

One map for several classes is copied, each copy with random phases of its own beyond 60 A; the
first classes then come from the differences between the particles at the poses found. Without a
map every class gets one made of a part of the particles (ref<r>.hdf).
Results go to a new folder spt_refinemulti_NN: class_avgs.hdf, poses (sptali_rm_*.json), class
matrices (classmx_*.hdf), FSC curves, resolution.json and pictures.
"""

import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import _classes
import _flags
import _generate
import _help
import _inputs
import _job
import _report
import numpy as np
from _resolve import given
from absl import flags

from sptjax import console, distributed, symmetry, workdir
from sptjax._errors import InputError
from sptjax._messages import step, warning
from sptjax.io import ClassMatrix
from sptjax.state import RefineState

_flags.define_shared(
    path="spt_refinemulti", output="class_avgs.hdf", fine_like_coarse=True, mask_target="particles"
)
_generate.define()
_classes.define()
with _help.group("references"):
    flags.DEFINE_integer("nref", 3, "number of classes, if not that of the maps", lower_bound=2)
    flags.DEFINE_string("syms", "", "symmetry of each class, comma separated; overrides --sym")

_RANDOM_BEYOND = 60.0  # angstrom, for copies of one reference


def class_symmetries(sym: str, syms: str, count: int) -> tuple[symmetry.Symmetry, ...]:
    """One symmetry per class; a short ``--syms`` is filled up with ``--sym``."""
    names = [name.strip() for name in syms.split(",") if name.strip()]
    if len(names) > count:
        text = f"--syms: {len(names)} entries for {count} classes, the last are ignored"
        console.say(warning(text))
    return tuple(symmetry.parse(name) for name in [*names, *[sym] * count][:count])


def class_references(maps: np.ndarray, count: int, randphase: float, apix: float, seed: int):
    """Copies of the maps given, one per class, told apart by random phases if need be."""
    if len(maps) > count:
        text = f"--ref: {len(maps)} maps for {count} classes, the last are not used"
        console.say(warning(text))
    copies = maps[np.arange(count) % len(maps)]
    if randphase == 0 and len(maps) < count:
        randphase = _RANDOM_BEYOND
        console.say(f"--ref: copies get random phases beyond {randphase:g} A (--refrandphase)")
    return _inputs.randomised(copies, randphase, apix, seed) if randphase else copies


@console.transcript()
def run(*, values: Mapping[str, Any], argv: Sequence[str]) -> RefineState:
    """Check everything, then refine, once or with several seeds.

    Args:
        values: every flag by name.
        argv: the command line, for the record.

    Returns:
        The last state; of the last seed, if there are several.
    """
    hosts = _job.join_processes(values)
    _job.use_devices(values["parallel"])
    _classes.check(values)
    if values["nseeds"] == 1:
        return _run(values, argv, hosts)
    folder = _job.run_folder("refinemulti", values, argv, hosts)
    _report.begin(folder)
    states, seeds = [], [values["seed"] + i for i in range(values["nseeds"])]
    try:
        for i, seed in enumerate(seeds):
            console.say(step(f"seed {seed}, {i + 1} of {len(seeds)}"))
            again = values["resume"] and any(folder.glob(f"seed{seed}_*"))
            own = {"path": str(folder / f"seed{seed}"), "seed": seed, "resume": again, "nseeds": 1}
            states.append(_run({**values, **own}, argv, hosts))
    except InputError:
        if hosts.leads and not states and not values["resume"]:
            shutil.rmtree(folder)  # nothing was computed
        raise
    count = states[0].score.shape[1]
    if not hosts.leads:
        return states[-1]
    found = _classes.write_stability(folder, [s.classes for s in states], count, seeds)
    shares = ", ".join(f"{share:.2f}" for share in found.group)
    console.say(
        f"{len(seeds)} seeds: mean adjusted Rand index {found.mean_rand:.2f}, stability of the"
        f" classes {shares} ({folder / 'stability.txt'})"
    )
    parts = {f"seed {seed}": workdir.latest(folder / f"seed{seed}") for seed in seeds}
    agreement = f"adjusted Rand index {found.mean_rand:.2f} on average (1: alike, 0: by chance)"
    done = [
        f"{len(seeds)} runs differ in their seed alone. Their classes agree with an {agreement}.",
        f"Share of every class that all runs agree on: {shares}.",
    ]
    _report.of_parts(folder, parts, done)
    return states[-1]


@console.transcript()
def _run(values: Mapping[str, Any], argv: Sequence[str], hosts: distributed.Hosts) -> RefineState:
    """One run."""
    particles = _inputs.open_particles(values["input"], values["apix"], values["subset"])
    available = len(particles.stack)
    matrix: ClassMatrix | None = None
    count = values["nref"]
    if values["classmx"]:
        if values["ref"]:
            raise InputError("--classmx and --ref: the classes come from one or the other")
        matrix = _inputs.read_classes(values, particles)
        count = matrix.n_classes
        if given("nref") and values["nref"] != count:
            raise InputError(f"--nref={values['nref']}: {values['classmx']} has {count} classes")
    if count > available:
        raise InputError(f"--nref={count}: there are only {available} particles")
    references, same_start = None, False
    if values["ref"]:
        _generate.ignored(values, console.say)
        maps = _inputs.load_references(values["ref"], particles, values["apix"], console.say)
        if not given("nref") and len(maps) > 1:
            count = len(maps)
        same_start = len(maps) == 1
        randphase, seed = values["refrandphase"], values["seed"]
        references = class_references(maps, count, randphase, particles.apix, seed)
    symmetries = class_symmetries(values["sym"], values["syms"], count)
    if values["skipali"] and matrix is None and not values["ref"]:
        matrix, same_start = _classes.from_poses(values, particles, count), True
    elif not values["ref"] and (matrix is None or not _inputs.posed(matrix)):
        if values["skipali"]:
            raise InputError(f"--skipali: {values['classmx']} holds no poses")
        known = None if matrix is None else matrix.classes
        references = _generate.recipe(
            values, available, symmetries, console.say, halves=False, classes=known
        )
        matrix = None
    return _job.carry_out(
        "refinemulti",
        values,
        argv,
        particles,
        references,
        matrix,
        symmetries,
        gold=False,
        same_start=same_start,
        hosts=hosts,
    )


def main(argv: Sequence[str]) -> None:
    """Flags to arguments."""
    del argv
    run(values=_flags.resolved(), argv=sys.argv)


if __name__ == "__main__":
    _flags.launch(main, "refinemulti.py")
