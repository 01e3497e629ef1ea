"""Symmetric particles: accuracy modulo symmetry, and the gain of the restricted search.

python benchmarks/symmetry.py --out=symmetry.json
python benchmarks/symmetry.py --n=4 --box=32 --maps=trpv1

Each particle is searched with its symmetry (one asymmetric unit) and without (c1), on the same
white-noise particles with a wedge. Maps are first centred, put on the axes of the package's
convention and symmetrised, so that the truth is exact.
"""

import jax
import jax.numpy as jnp
import numpy as np
from _common import SEED, load_map, plant, pose_error
from _report import interleaved, launch, report
from absl import flags
from scipy import ndimage, optimize
from scipy.spatial.transform import Rotation

from sptjax import align, orientations, resample, symmetry
from sptjax._types import Pose
from sptjax.calibration import calibrate

_N = flags.DEFINE_integer("n", 32, "particles", lower_bound=4)
_BOX = flags.DEFINE_integer("box", 64, "voxels")
_SNR = flags.DEFINE_float("snr", 0.05, "variance of the map over that of the noise, in the box")
_MAPS = flags.DEFINE_string("maps", "groel,trpv1,apoferritin,virion", "names of maps")
_SHIFT = flags.DEFINE_float("shift", 5.0, "largest planted shift along each axis, voxels")
_SEARCH = flags.DEFINE_integer("search", 6, "half width of the searched cube, voxels")
_REPEATS = flags.DEFINE_integer("repeats", 3, "timed calls of each search, in turn", lower_bound=1)

GROUPS = {"groel": "d7", "trpv1": "c4", "apoferritin": "oct", "virion": "icos"}
DIAMETER = {"groel": 160.0, "trpv1": 150.0, "apoferritin": 130.0, "virion": 330.0}  # angstrom


def asymmetry(map_: np.ndarray, operators: np.ndarray, turn: np.ndarray) -> float:
    """One minus the mean correlation of a map turned by ``turn`` with its symmetry mates."""
    box = map_.shape[-1]
    axis = np.arange(0, box, max(1, box // 24)) - box // 2
    points = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
    points = points[np.linalg.norm(points, axis=1) < box / 2 - 2]

    def values(operator: np.ndarray) -> np.ndarray:
        place = points @ (turn.T @ operator).T + box // 2  # map(turn^T S x), (x, y, z)
        return ndimage.map_coordinates(map_, place[:, ::-1].T, order=1)

    own = values(np.eye(3))
    return 1 - float(np.mean([np.corrcoef(own, values(s))[0, 1] for s in operators]))


def on_axes(map_: np.ndarray, group: symmetry.Symmetry) -> np.ndarray:
    """The map centred, turned onto the axes of the group, and averaged over it."""
    operators = np.asarray(group.operators, float)
    weight = np.maximum(map_, 0)
    offset = np.array(ndimage.center_of_mass(weight))[::-1] - map_.shape[-1] // 2
    exact = asymmetry(map_, operators[1:], np.eye(3)) < 0.02
    shift = np.zeros(3) if exact else -offset
    map_ = np.asarray(_moved(map_, np.eye(3), shift))
    turn = np.eye(3)
    if asymmetry(map_, operators[1:], turn) > 0.05:
        few = operators[1 : 1 + max(2, len(operators) // 15)]
        smooth = ndimage.gaussian_filter(map_, 1.5)
        starts = np.asarray(orientations.uniform(6.0, symmetry.parse("c1")).rotations, float)
        starts = starts[
            np.asarray(symmetry.in_asymmetric_unit(jnp.asarray(starts, jnp.float32), group))
        ]
        start = min(starts, key=lambda r: asymmetry(smooth, few, r))

        def cost(vector: np.ndarray) -> float:
            return asymmetry(map_, few, Rotation.from_rotvec(vector).as_matrix() @ start)

        simplex = np.concatenate([np.zeros((1, 3)), 0.05 * np.eye(3)])
        best = optimize.minimize(
            cost, np.zeros(3), method="Nelder-Mead", options={"initial_simplex": simplex}
        ).x
        turn = Rotation.from_rotvec(best).as_matrix() @ start
    left = asymmetry(map_, operators[1:], turn)
    print(
        f"moved by {np.round(shift, 2)} voxels, turned {not np.allclose(turn, np.eye(3))};"
        f" correlation with the mates {1 - left:.3f}",
        flush=True,
    )
    mates = [np.asarray(_moved(map_, s @ turn, np.zeros(3))) for s in operators]
    return np.mean(mates, axis=0)


@jax.jit
def _transform(volume, pose):
    return resample.transform(volume, pose)


def _moved(volume: np.ndarray, turn: np.ndarray, shift: np.ndarray) -> jax.Array:
    pose = Pose(jnp.asarray(turn, jnp.float32), jnp.asarray(shift, jnp.float32))
    return _transform(jnp.asarray(volume, jnp.float32), pose)


def measure(name: str) -> list[dict]:
    """Restricted and unrestricted search of one map."""
    box, group = _BOX.value, symmetry.parse(GROUPS[name])
    apix = DIAMETER[name] / (0.6 * box)
    map_ = on_axes(load_map(name, box, apix), group)[None]
    planted = plant(map_, _N.value, _SNR.value, _SHIFT.value, apix=None, seed=SEED.value)
    particles, rows = planted.load(), np.arange(_N.value)
    settings = align.AlignmentSettings(search_vox=_SEARCH.value)
    calls, about = {}, {}
    for searched in (symmetry.parse("c1"), group):
        found = calibrate(particles, map_, (searched,), settings)
        observed = particles.with_noise_share(found.noise_share)
        score, references = found.expected_score, found.references
        plan = align.make_plan(particles, jnp.asarray(references), settings, score, len(searched))
        count = len(orientations.uniform(plan.delta_deg, searched).rotations)
        about[searched.name] = {
            "coarse_k": plan.coarse_k,
            "delta_deg": plan.delta_deg,
            "rotations": count,
        }
        calls[searched.name] = lambda s=searched, r=references, e=score, p=observed: (
            align.align_particles(p, rows, r, (s,), settings, expected_score=e)
        )
    out = []
    timings = interleaved(calls, _REPEATS.value)
    for searched, timing in timings.items():
        ours = timing.result
        angle, shift = pose_error(ours.rotation[:, 0], ours.shift[:, 0], planted.truth, group)
        out.append(
            {
                "map": name,
                "group": group.name,
                "searched": searched,
                **about[searched],
                **timing.columns(_N.value),
                "gain_cpu": min(timings["c1"].cpu) / min(timing.cpu),
                "within_10_deg": np.mean(angle < 10),
                "median_deg": np.median(angle),
                "max_deg": angle.max(),
                "median_vox": np.median(shift),
            }
        )
    return out


def main() -> None:
    """All maps."""
    report({"symmetry": [row for name in _MAPS.value.split(",") for row in measure(name)]})


if __name__ == "__main__":
    launch(main)
