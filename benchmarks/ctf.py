"""Search of CTF-realistic particles: success, accuracy and time, beside the oracle.

python benchmarks/ctf.py --out=ctf.json
python benchmarks/ctf.py --n=4 --box=32 --apix=20 --snr=0.1 --maps=4ug0

Particles come from the package's tilt-series simulator (3 um defocus, -60 to 60 degrees by 3,
noise per projection). Each is searched against the true map, once as it is and once with the
radial transfer of the calibration folded in. The oracle is local refinement from the true pose
against the same map: a particle that scores clearly less than its oracle was missed by the
search; one that scores more but points elsewhere was beyond this score.
"""

import time

import numpy as np
from _common import C1, SEED, load_map, local, plant, pose_error
from _report import interleaved, launch, numbers, report
from absl import flags

from sptjax.align import AlignmentSettings, align_particles
from sptjax.calibration import calibrate

_N = flags.DEFINE_integer("n", 64, "particles", lower_bound=4)
_BOX = flags.DEFINE_integer("box", 64, "voxels")
_APIX = flags.DEFINE_float("apix", 15.0, "angstrom per voxel")
_SNR = flags.DEFINE_string("snr", "0.05,0.03,0.02", "per projection")
_MAPS = flags.DEFINE_string("maps", "emd_3420,4ug0", "names of maps")
_SHIFT = flags.DEFINE_float("shift", 5.0, "largest planted shift, voxels")
_SEARCH = flags.DEFINE_integer("search", 6, "half width of the searched cube, voxels")
_REPEATS = flags.DEFINE_integer("repeats", 3, "timed calls")

MISSED = 0.5  # standard deviations below the oracle


def measure(name: str, snr: float) -> list[dict]:
    """Rows of one map at one noise level."""
    map_ = load_map(name, _BOX.value, _APIX.value)[None]
    planted = plant(map_, _N.value, snr, _SHIFT.value, apix=_APIX.value, seed=SEED.value)
    particles = planted.load()
    settings = AlignmentSettings(search_vox=_SEARCH.value)
    calibrate(particles, map_, C1, settings)
    begun = time.perf_counter()
    found = calibrate(particles, map_, C1, settings)
    seconds = time.perf_counter() - begun
    particles = particles.with_noise_share(found.noise_share)
    score, rows = found.expected_score, np.arange(len(particles))
    references = {"none": map_, "calibrated": found.references}
    timing = interleaved(
        {
            kind: lambda r=reference: align_particles(
                particles, rows, r, C1, settings, expected_score=score
            )
            for kind, reference in references.items()
        },
        _REPEATS.value,
    )
    out = []
    for kind, reference in references.items():
        ours = timing[kind].result
        best = local(particles, reference, settings, score, planted.truth)
        angle, shift = pose_error(ours.rotation[:, 0], ours.shift[:, 0], planted.truth)
        oracle, _ = pose_error(best.rotation[:, 0], best.shift[:, 0], planted.truth)
        low = ours.score[:, 0] < best.score[:, 0] - MISSED
        out.append(
            {
                "map": name,
                "snr": snr,
                "transfer": kind,
                "within_10_deg": np.mean(angle < 10),
                "oracle_within_10": np.mean(oracle < 10),
                "missed": np.mean(low),
                "score": np.median(ours.score),
                "oracle_score": np.median(best.score),
                "expected": score,
                "median_deg": np.median(angle),
                "oracle_deg": np.median(oracle),
                "median_vox": np.median(shift),
                "ms_per_particle": min(timing[kind].wall) * 1e3 / len(rows),
                "cpu_ms": min(timing[kind].cpu) * 1e3 / len(rows),
                "compile_s": timing[kind].first - min(timing[kind].wall),
                "calibration_s": seconds,
            }
        )
    return out


def main() -> None:
    """All maps at all noise levels."""
    rows = []
    for name in _MAPS.value.split(","):
        for snr in numbers(_SNR.value):
            rows += measure(name, snr)
            print(f"{name} at {snr:g} done", flush=True)
    report({"search of CTF-realistic particles": rows})


if __name__ == "__main__":
    launch(main)
