"""Real ribosomes in cells: alignment against the published poses, and a gold-standard refinement.

python benchmarks/real.py --out=real.json
python benchmarks/real.py --rounds=1 --particles=8

Forty CTF-premultiplied sub-tomograms with weights of their own. First they are aligned to the
published map: how many land near the published poses and, for each that does not, whether the
published pose (shift searched within 1.5 voxels, then refined locally within 3 degrees) scores
higher, so that the search missed it, or lower, so that the score prefers another. Then a
refinement from the map low-passed to 80 A, halves apart; its FSC to the published map stands
beside that of the average at published poses.
"""

import dataclasses
import time

import jax.numpy as jnp
import numpy as np
from _common import C1, Volumes, data_file, local, pose_error, refinement
from _report import launch, report
from absl import flags

from sptjax import fourier, io, resample, resolution, rotation
from sptjax.align import AlignmentSettings, Found, align_particles
from sptjax.calibration import calibrate
from sptjax.halves import half_pose
from sptjax.io.eman_json import subtomo_key
from sptjax.particles import Particles, Sampling, load_particles
from sptjax.refinement import RefineSettings, average_round
from sptjax.state import initial_state

_PARTICLES = flags.DEFINE_integer("particles", 40, "how many of them", lower_bound=4)
_ROUNDS = flags.DEFINE_integer("rounds", 5, "of refinement", lower_bound=1)
_SEARCH = flags.DEFINE_integer("search", 4, "half width of the searched cube, voxels")
_START = flags.DEFINE_float("start", 80.0, "low-pass of the first reference, angstrom")

APIX = 12.0
NEAR = 3.0  # degrees that local refinement may move a published pose
DIFFERENT = 15.0  # degrees


def read() -> tuple[Volumes, Sampling, Found, np.ndarray]:
    """Particles, weights, published poses and map."""
    folder = data_file("real_ribosomes")
    rows = np.arange(_PARTICLES.value)
    volumes = io.open_stack(folder / "particles.hdf").read(rows)
    weights = io.open_stack(folder / "weights.hdf").read(rows)
    published = io.read_json(folder / "poses.json")
    names = [subtomo_key(int(i), len(published)) for i in rows]
    matrices = [io.transform_from_json(published[name][0], name) for name in names]
    pose = rotation.pose_from_matrix34(np.stack(matrices))
    truth = Found(
        np.asarray(pose.rotation)[:, None],
        np.asarray(pose.shift)[:, None],
        np.zeros((len(rows), 1), np.float32),
    )
    reference, _, _ = io.read_volume(folder / "reference.hdf")
    sampling = Sampling(None, Volumes(weights), premultiplied=True)
    return Volumes(volumes), sampling, truth, reference / reference.std()


def published_scores(
    particles: Particles,
    map_: np.ndarray,
    settings: AlignmentSettings,
    expected: float,
    truth: Found,
) -> np.ndarray:
    """Score of every published pose, its shift searched and then refined locally, near it."""
    best = local(particles, map_, settings, expected, truth, steps=0)
    axis = np.array([-1.5, -0.75, 0.0, 0.75, 1.5], np.float32)
    for offset in np.stack(np.meshgrid(axis, axis, axis), -1).reshape(-1, 3):
        moved = Found(truth.rotation, truth.shift + offset, truth.score)
        here = local(particles, map_, settings, expected, moved, steps=0)
        better = here.score[:, 0] > best.score[:, 0]
        best.shift[better], best.score[better] = here.shift[better], here.score[better]
    refined = local(particles, map_, settings, expected, best)
    turned, _ = pose_error(refined.rotation[:, 0], refined.shift[:, 0], truth)
    return np.where(turned <= NEAR, refined.score[:, 0], best.score[:, 0])


def alignment(
    particles: Particles, reference: np.ndarray, truth: Found
) -> tuple[list[dict], list[dict]]:
    """Tables: how many agree, and the particles that do not."""
    settings = AlignmentSettings(search_vox=_SEARCH.value)
    found = calibrate(particles, reference[None], C1, settings)
    particles = particles.with_noise_share(found.noise_share)
    rows, summary, differing = np.arange(len(particles)), [], []
    for kind, map_ in {"none": reference[None], "calibrated": found.references}.items():
        expected = found.expected_score
        begun = time.perf_counter()
        ours = align_particles(particles, rows, map_, C1, settings, expected_score=expected)
        seconds = time.perf_counter() - begun
        angle, shift = pose_error(ours.rotation[:, 0], ours.shift[:, 0], truth)
        published = published_scores(particles, map_, settings, expected, truth)
        higher = published > ours.score[:, 0]
        far = angle > DIFFERENT
        summary.append(
            {
                "transfer": kind,
                "particles": len(rows),
                **{f"within_{d}_deg": int((angle < d).sum()) for d in (10, 15, 20)},
                "median_deg": np.median(angle),
                "median_deg_of_within_15": np.median(angle[~far]) if (~far).any() else np.nan,
                "median_vox": np.median(shift),
                "expected_score": expected,
                "search_missed": int((far & higher).sum()),
                "score_prefers_other": int((far & ~higher).sum()),
                "first_call_s": seconds,
            }
        )
        differing += [
            {
                "transfer": kind,
                "particle": int(i),
                "angle_deg": angle[i],
                "shift_vox": shift[i],
                "our_score": ours.score[i, 0],
                "published_score": published[i],
                "verdict": "search missed it" if higher[i] else "score prefers ours",
            }
            for i in np.flatnonzero(far)
        ]
    return summary, differing


def fsc_to(reference: np.ndarray, map_: np.ndarray) -> np.ndarray:
    """FSC of a map, moved onto the reference, with the reference."""
    given, own = jnp.asarray(reference), jnp.asarray(map_)
    return np.asarray(resolution.fsc(given, resample.transform(own, half_pose(given, own))))


def refine(
    particles: Particles, stack: Volumes, sampling: Sampling, reference: np.ndarray, truth: Found
) -> tuple[list[dict], list[dict]]:
    """Tables: rounds, and FSC by shell."""
    box = stack.box
    shell = np.arange(box // 2 + 1)
    gain = np.exp(-0.5 * (shell / (box * APIX / _START.value)) ** 4)  # 0.6 at the cut
    start = np.asarray(
        fourier.radial_filter(jnp.asarray(reference), jnp.asarray(gain, jnp.float32))
    )
    settings = RefineSettings(
        AlignmentSettings(search_vox=_SEARCH.value), C1, APIX, gold_standard=True
    )
    rounds, state = [], None
    for state, seconds, _ in refinement(
        start[None], particles, stack, sampling, settings, _ROUNDS.value
    ):
        angle, _ = pose_error(state.rotation[:, 0], state.shift[:, 0], truth)
        rounds.append(
            {
                "round": state.round + 1,
                "seconds": seconds,
                "within_15_deg": int((angle < 15).sum()),
                "median_deg": np.median(angle),
                "halves_fsc_143_angstrom": resolution.resolution_angstrom(state.fsc[0, 0], APIX),
                "mean_score": state.score.mean(),
            }
        )
    assert state is not None
    plain = dataclasses.replace(settings, gold_standard=False)
    blank = initial_state(reference[None], len(stack), gold_standard=False, expected_score=0.0)
    known = dataclasses.replace(
        blank,
        rotation=truth.rotation,
        shift=truth.shift,
        classes=np.zeros(len(stack), np.int32),
    )
    best = average_round(known, stack, sampling, plain)
    curves = {
        "refined_to_published_map": fsc_to(reference, state.maps[0]),
        "published_poses_to_published_map": fsc_to(reference, best.maps[0]),
        "refined_half_to_half": state.fsc[0, 0],
        "published_poses_half_to_half": best.fsc[0, 0],
    }
    table = [
        {"shell": int(k), "angstrom": box * APIX / k, **{n: float(c[k]) for n, c in curves.items()}}
        for k in shell[1:]
    ]
    return rounds, table


def main() -> None:
    """Both parts."""
    stack, sampling, truth, reference = read()
    particles = load_particles(stack, sampling, stack.box // 2 - 2)
    summary, differing = alignment(particles, reference, truth)
    rounds, curves = refine(particles, stack, sampling, reference, truth)
    report(
        {
            "alignment to the published map": summary,
            f"particles beyond {DIFFERENT:g} degrees": differing,
            "gold-standard refinement": rounds,
            "FSC": curves,
        }
    )


if __name__ == "__main__":
    launch(main)
