"""What the benchmark scripts share: maps, planted particles, errors, refinement."""

import dataclasses
import gzip
import pathlib
import time
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from sptjax import io, masks, resample, simulate, symmetry
from sptjax._errors import InputError
from sptjax._types import Pose
from sptjax.align import AlignmentSettings, Found, Refine3D, align_particles
from sptjax.calibration import Calibration, calibrate
from sptjax.copies import Copies
from sptjax.particles import Particles, Sampling, Stack, load_particles
from sptjax.phantom import fit_map
from sptjax.refinement import RefineSettings, refine_round
from sptjax.state import RefineState, converged, initial_state
from sptjax.symmetry import Symmetry
from sptjax.tilt_series import TiltSeries, sampled_region

ROOT = pathlib.Path(__file__).resolve().parent.parent
C1 = (symmetry.parse("c1"),)

_DATA = flags.DEFINE_string("data", str(ROOT.parent / "shared" / "data"), "folder of real data")
SEED = flags.DEFINE_integer("seed", 11, "of poses and noise", lower_bound=0)

# file, angstrom per voxel (headers are not all right), sign that makes density positive
MAPS = {
    "emd_3420": ("maps/emd_3420_b4_10.48A.mrc.gz", 10.48, -1),
    "4ug0": ("maps/4ug0_human80S_4A.mrc", 4.0, 1),
    "groel": ("maps/emd_1080_groel_2.7A.mrc", 2.7, 1),
    "trpv1": ("maps/trpv1_c4_4.88A.mrc", 4.88, 1),
    "apoferritin": ("maps/6pxm_10A.mrc", 10.0, 1),
    "virion": ("maps/8tux_10A.mrc", 10.0, 1),
    "50S_D": ("maps/empiar10076_classD_13.1A.mrc", 13.1, 1),
    "50S_E": ("maps/empiar10076_classE_13.1A.mrc", 13.1, 1),
}
# electrons of the common elements of a protein-nucleic acid complex
_ELECTRONS = {"C": 6, "N": 7, "O": 8, "P": 15, "S": 16, "MG": 12, "ZN": 30, "K": 19}


# ---------------------------------------------------------------- maps


def data_file(name: str) -> pathlib.Path:
    """A file of the data folder."""
    path = pathlib.Path(_DATA.value) / name
    if not path.exists():
        raise InputError(f"--data: {path} does not exist, the benchmark needs this file")
    return path


def load_map(name: str, box: int, apix: float) -> np.ndarray:
    """A map of ``MAPS`` in a box and voxel size, solvent at zero, unit standard deviation."""
    file, own_apix, sign = MAPS[name]
    volume, _, _ = io.read_volume(data_file(file))
    return _framed(fit_map(sign * volume, own_apix, box, apix))


def _framed(volume: np.ndarray) -> np.ndarray:
    box = volume.shape[-1]
    inside = volume * np.asarray(masks.sphere(box, box / 2 - 2, 2.0))
    return (inside / inside.std()).astype(np.float32)


def read_atoms(path: pathlib.Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Chain (author's name), position in angstrom (x, y, z) and electrons of every mmCIF atom."""
    names, chains, places, electrons = [], [], [], []
    with gzip.open(path, "rt") as lines:
        for line in lines:
            if line.startswith("_atom_site."):
                names.append(line.split(".")[1].strip())
            elif names and line.startswith(("ATOM", "HETATM")):
                row = dict(zip(names, line.replace('"', "").split()))  # no spaces in quotes
                chains.append(row["auth_asym_id"])
                places.append([float(row[f"Cartn_{axis}"]) for axis in "xyz"])
                electrons.append(_ELECTRONS.get(row["type_symbol"], 7))
    return np.array(chains), np.array(places), np.array(electrons, float)


def splat(
    xyz: np.ndarray, electrons: np.ndarray, box: int, apix: float, *, normalise: bool = True
) -> np.ndarray:
    """Density of atoms, blurred by a gaussian of half a voxel; (0, 0, 0) is the centre voxel."""
    place = xyz[:, ::-1] / apix + box // 2
    corner = np.rint(place).astype(int)
    density = np.zeros((box,) * 3)
    for offset in np.ndindex(5, 5, 5):
        voxel = corner + np.array(offset) - 2
        weight = electrons * np.exp(-2.0 * ((voxel - place) ** 2).sum(1))
        inside = ((voxel >= 0) & (voxel < box)).all(1)
        np.add.at(density, tuple(voxel[inside].T), weight[inside])
    return _framed(density) if normalise else density.astype(np.float32)


# ---------------------------------------------------------------- particles


class Volumes:
    """Volumes in memory, read like a file."""

    def __init__(self, volumes: np.ndarray) -> None:
        self.volumes = volumes
        self.box: int = volumes.shape[-1]

    def __len__(self) -> int:
        return len(self.volumes)

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Some of them."""
        return self.volumes[np.asarray(indices)]


@dataclasses.dataclass(frozen=True)
class Planted:
    """Simulated particles and their truth."""

    stack: Volumes
    sampling: Sampling
    truth: Found  # [n, 1]
    classes: np.ndarray

    def load(self) -> Particles:
        """Coefficients up to the band that a run uses."""
        return load_particles(self.stack, self.sampling, self.stack.box // 2 - 2)


def plant(
    maps: np.ndarray,
    n: int,
    snr: float,
    reach_vox: float,
    *,
    apix: float | None,
    seed: int,
    tilt_deg: float = 60.0,
) -> Planted:
    """Particles of a tilt series that is symmetric about zero, maps taken in turn.

    Args:
        maps: ``[c, n, n, n]``.
        n: how many.
        snr: per projection; with ``apix=None`` variance of the map over that of the noise.
        reach_vox: largest planted shift; half edge of a cube if white, radius of a ball if not.
        apix: of a CTF-realistic simulation at 3 um; None: white noise times the wedge.
        seed: of everything.
        tilt_deg: the last tilt.
    """
    box, classes = maps.shape[-1], np.arange(n) % len(maps)
    key, noise = jax.random.split(jax.random.key(seed))
    geometry = TiltSeries(-tilt_deg, tilt_deg, snr=snr)
    pose = simulate.random_poses(key, n, reach_vox)
    if apix is None:
        place = np.random.default_rng(seed).uniform(-reach_vox, reach_vox, (n, 3))
        shift = -np.einsum("nij,nj->ni", np.asarray(pose.rotation), place)
        pose = Pose(pose.rotation, jnp.asarray(shift, jnp.float32))
        made = simulate.white_wedge_particles(
            jnp.asarray(maps), jnp.asarray(classes), pose, geometry, noise
        )
        volumes = np.asarray(made)
    else:
        volumes = simulate.simulate(maps, classes, pose, apix, geometry, noise)
    region = sampled_region(box, geometry).astype(np.float32)
    truth = Found(
        np.asarray(pose.rotation)[:, None], np.asarray(pose.shift)[:, None], np.zeros((n, 1))
    )
    return Planted(Volumes(volumes), Sampling(region), truth, classes)


def pose_error(
    turn: np.ndarray, shift: np.ndarray, truth: Found, group: Symmetry = C1[0]
) -> tuple[np.ndarray, np.ndarray]:
    """Angle in degrees modulo symmetry, and distance of the centres in the particle, voxels."""
    known, offset = truth.rotation[:, 0], truth.shift[:, 0]
    angle = symmetry.angle_deg_modulo(jnp.asarray(turn), jnp.asarray(known), group)
    place, right = (-np.einsum("nji,nj->ni", r, t) for r, t in ((turn, shift), (known, offset)))
    return np.asarray(angle), np.linalg.norm(place - right, axis=1)


def turned_onto(volume: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """A map in the frame of the truth, by a search of all poses."""
    box = truth.shape[-1]
    whole = Sampling(np.ones((box,) * 3, np.float32))
    found = align_particles(
        load_particles(Volumes(volume[None]), whole, box // 2 - 2), np.array([0]), truth[None], C1,
        AlignmentSettings(), expected_score=20.0,
    )  # fmt: skip
    pose = Pose(jnp.asarray(found.rotation[0, 0]), jnp.asarray(found.shift[0, 0]))
    return np.asarray(resample.transform(jnp.asarray(volume, jnp.float32), pose))


def local(
    particles: Particles,
    references: np.ndarray,
    settings: AlignmentSettings,
    expected_score: float,
    start: Found,
    *,
    steps: int = 12,
    symmetries: tuple[Symmetry, ...] = C1,
) -> Found:
    """Local refinement from given poses (with ``steps=0`` their score), every particle."""
    fine = Refine3D(maxiter=steps) if steps else None
    here = dataclasses.replace(settings, aligner=None, fine=fine)
    rows = np.arange(len(particles))
    return align_particles(
        particles, rows, references, symmetries, here, expected_score=expected_score, start=start
    )


def refinement(
    references: np.ndarray,
    particles: Particles,
    stack: Stack,
    sampling: Sampling,
    settings: RefineSettings,
    most: int,
    *,
    until_converged: bool = True,
    told_apart: bool = True,
) -> Iterator[tuple[RefineState, float, Calibration]]:
    """Calibrate, then rounds until converged or ``most``: state, its seconds, the calibration."""
    found = calibrate(particles, references, settings.symmetries, settings.alignment)
    state = initial_state(
        found.references,
        len(particles),
        gold_standard=settings.gold_standard,
        expected_score=found.expected_score,
        noise_share=found.noise_share,
        told_apart=told_apart,
    )
    for _ in range(most):
        begun = time.perf_counter()
        after = refine_round(state, Copies.of(particles), stack, sampling, settings)
        yield after, time.perf_counter() - begun, found
        if until_converged and converged(state, after, apix=settings.apix):
            return
        state = after
