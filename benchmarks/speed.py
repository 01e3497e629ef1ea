"""Time and accuracy of the search, interleaved with a prototype and with other programs' methods.

python benchmarks/speed.py --prototype=../shared/prototype --out=speed.json
python benchmarks/speed.py --n=4 --box=32 --repeats=1 --snr=0.1

Particles of white noise (variance of the map over that of the noise, in the box) times a wedge
of +-60 degrees, shifts up to 7 voxels along each axis. A call takes volumes to poses: Fourier
transforms, noise estimate and search, without compilation. The calibration, once per run, is
reported apart. With ``--prototype`` the same particles go to its configurations v2b and v2d in
turn with ours, and an EMAN-like exhaustive search (its ``baseline.rt3d``) is timed on a few
rotations. acryo, where installed, is timed on the same rotations. Their times for the whole list
are EXTRAPOLATED from these.
"""

import importlib
import importlib.util
import pathlib
import sys
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
from _common import C1, SEED, plant, pose_error
from _report import Timing, interleaved, launch, numbers, report
from absl import flags
from scipy.spatial.transform import Rotation

from sptjax import orientations
from sptjax._errors import InputError
from sptjax.align import AlignmentSettings, Found, align_particles
from sptjax.calibration import calibrate
from sptjax.comparators import CCCTomoThresh, Matched
from sptjax.phantom import phantom

_N = flags.DEFINE_integer("n", 64, "particles", lower_bound=4)
_BOX = flags.DEFINE_integer("box", 64, "voxels")
_SNR = flags.DEFINE_string("snr", "0.1,0.01", "variance ratio in the box")
_REPEATS = flags.DEFINE_integer("repeats", 5, "timed calls of each method, in turn", lower_bound=1)
_PROTOTYPE = flags.DEFINE_string("prototype", None, "folder of the prototype")
_FEW = flags.DEFINE_integer("rotations", 12, "rotations measured of the exhaustive searches")
_LIST = flags.DEFINE_integer("full_list", 8840, "rotations of the exhaustive search (12, 4, 1 deg)")

SEARCH = 8  # voxels
SHIFT = 7.0


def flipped(matrices: np.ndarray) -> np.ndarray:
    """(x, y, z) to (z, y, x) order, or back."""
    return matrices[..., ::-1, ::-1]


def prototype_module(name: str) -> types.ModuleType:
    """A module of the prototype; its baseline imports acryo, which it need not find."""
    folder = pathlib.Path(_PROTOTYPE.value or "").resolve()
    if not (folder / f"{name}.py").exists():
        raise InputError(f"--prototype: {folder} has no {name}.py")
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    missing = "acryo" not in sys.modules and importlib.util.find_spec("acryo") is None
    if name == "baseline" and missing:
        stub = types.ModuleType("acryo.alignment")
        stub.__dict__.update(ZNCCAlignment=None, PCCAlignment=None, NCCAlignment=None)
        sys.modules["acryo.alignment"] = stub
        sys.modules["acryo"] = types.ModuleType("acryo")
    return importlib.import_module(name)


def density(box: int) -> np.ndarray:
    """The prototype's density, or the phantom without it."""
    if _PROTOTYPE.value is None:
        return phantom(box)
    module = prototype_module("common")
    return module.render(box, *module.density(box))


def prototypes(map_: np.ndarray, volumes: np.ndarray) -> dict:
    """Calls of the prototype's two configurations."""
    pipeline, common = prototype_module("pipeline2"), prototype_module("common")
    given, out = jnp.asarray(volumes), {}
    for name, (kind, options) in pipeline.CF.items():
        if name[:3] in ("v2b", "v2d"):
            aligner = kind(map_, map_.shape[-1], **options)
            seen = jnp.asarray(common.wedge_pts(aligner.K), jnp.float32)
            wedge = jnp.broadcast_to(seen, (len(volumes), len(aligner.K)))
            out[f"prototype {name[:3]}"] = lambda a=aligner, w=wedge: a(given, w)
    return out


def exhaustive(map_: np.ndarray, volume: np.ndarray) -> list[dict]:
    """EMAN-like and acryo: seconds per particle, EXTRAPOLATED from a few rotations."""
    few, full = _FEW.value, _LIST.value
    turns = np.asarray(orientations.uniform(12.0, C1[0]).rotations, float)
    turns = turns[:: max(1, len(turns) // few)][:few]
    methods = {}
    if _PROTOTYPE.value is not None:
        module = prototype_module("baseline")
        methods["EMAN-like exhaustive"] = (
            lambda: None,
            lambda _: module.rt3d(volume, map_, flipped(turns.swapaxes(-1, -2)), search=SEARCH),
        )
    try:
        alignment = importlib.import_module("acryo.alignment")
    except ImportError:
        alignment = None
        print("acryo is not installed (pip install acryo): left out")
    for name in ("ZNCC", "PCC") if getattr(alignment, "PCCAlignment", None) else ():
        model = getattr(alignment, f"{name}Alignment")
        options = {
            "mask": np.ones_like(map_),
            "rotations": Rotation.from_matrix(turns),
            "tilt": (-60, 60),
        }
        methods[f"acryo {name}"] = (
            lambda m=model, o=options: m(map_, **o),
            lambda aligner: aligner.align(volume, max_shifts=(SEARCH,) * 3),
        )
    out = []
    for name, (prepare, align) in methods.items():
        begun = time.perf_counter()
        model = prepare()
        preparation = (time.perf_counter() - begun) / few
        timing = interleaved({name: lambda a=align, m=model: a(m)}, min(_REPEATS.value, 3))[name]
        wall, cpu = min(timing.wall) / few, min(timing.cpu) / few
        out.append(
            {
                "method": f"{name}, EXTRAPOLATED from {few} to {full} rotations",
                "ms_per_rotation": wall * 1e3,
                "prepare_ms_per_rotation": preparation * 1e3,
                "wall_s_per_particle": wall * full,
                "cpu_s_per_particle": cpu * full,
            }
        )
    return out


def measure(snr: float) -> tuple[list[dict], list[dict]]:
    """Table of the searches, and of the exhaustive ones, at one noise level."""
    map_ = density(_BOX.value)
    planted = plant(map_[None], _N.value, snr, SHIFT, apix=None, seed=SEED.value)
    volumes, rows = planted.stack.volumes, np.arange(_N.value)
    particles, calls, calibrations = planted.load(), {}, {}
    for label, comparator in (("matched", Matched()), ("ccc.tomo.thresh", CCCTomoThresh())):
        settings = AlignmentSettings(search_vox=SEARCH, comparator=comparator)
        calibrate(particles, map_[None], C1, settings)
        begun = time.perf_counter()
        found = calibrate(particles, map_[None], C1, settings)
        name = f"sptjax {label}"
        calibrations[name] = time.perf_counter() - begun

        def ours(settings=settings, found=found):
            loaded = planted.load().with_noise_share(found.noise_share)
            score = found.expected_score
            return poses(
                align_particles(loaded, rows, found.references, C1, settings, expected_score=score)
            )

        calls[name] = ours
    if _PROTOTYPE.value is not None:
        calls |= prototypes(map_, volumes)
    timings = interleaved(calls, _REPEATS.value)
    slow = exhaustive(map_, volumes[0])
    return [
        _row(snr, name, timing, planted.truth, calibrations.get(name), slow)
        for name, timing in timings.items()
    ], [{"snr": snr, **row} for row in slow]


def poses(found: Found) -> tuple[np.ndarray, np.ndarray]:
    """Rotation and shift against the one reference."""
    return found.rotation[:, 0], found.shift[:, 0]


def _row(
    snr: float, name: str, timing: Timing, truth: Found, calibration: float | None, slow: list[dict]
) -> dict:
    turn, shift = (np.asarray(x) for x in timing.result[:2])
    if name.startswith("prototype"):  # reference -> particle in (z, y, x); the shift is the place
        turn = flipped(turn.swapaxes(-1, -2))
        shift = -np.einsum("nij,nj->ni", turn, shift[:, ::-1])
    angle, distance = pose_error(jax.device_put(turn), shift, truth)
    cpu = min(timing.cpu) / len(angle)
    return {
        "snr": snr,
        "method": name,
        **timing.columns(len(angle)),
        "compile_s": timing.first - min(timing.wall),
        "calibration_s": "" if calibration is None else calibration,
        "median_deg": np.median(angle),
        "p90_deg": np.percentile(angle, 90),
        "max_deg": angle.max(),
        "gross_failures": int((angle > 10).sum()),
        "median_vox": np.median(distance),
        **{f"cpu ratio {s['method'].split(',')[0]}": s["cpu_s_per_particle"] / cpu for s in slow},
    }


def main() -> None:
    """All noise levels."""
    fast, slow = [], []
    for snr in numbers(_SNR.value):
        one, other = measure(snr)
        fast, slow = fast + one, slow + other
    report({"search": fast, "exhaustive search (EXTRAPOLATED)": slow})


if __name__ == "__main__":
    launch(main)
