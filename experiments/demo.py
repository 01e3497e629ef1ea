"""See it work: simulate two classes, refine them, compare with the planted truth.

sptjax demo
sptjax demo --path=/tmp/demo

A built-in phantom with and without its small lobe is rotated, shifted, projected at the tilts of
a series, given contrast transfer and noise, and back-projected. Three rounds of refinemulti.py
then start from phase-randomised copies of one low-passed map. Everything goes to runs/demo_NN.
"""

import itertools
import pathlib
import shlex
from collections.abc import Sequence

import _flags
import jax
import jax.numpy as jnp
import numpy as np
import refinemulti
from absl import flags

from sptjax import console, fourier, io, plots, resample, rotation, simulate, workdir
from sptjax._types import Pose
from sptjax.outputs import resolutions
from sptjax.state import RefineState

BOX = 32
APIX = 12.0  # angstrom
PARTICLES = 64
GEOMETRY = simulate.TiltSeries(-60, 60, 3, defocus_um=3.0, snr=2.0)  # SNR per projection
MAX_SHIFT_VOX = 3.0
LOWPASS_A = 40.0  # of the map that the refinement starts from
SEED = 7

flags.FLAGS.set_default("path", "runs/demo")


def simulate_set(folder: pathlib.Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Write ``particles.hdf``, its truth and the starting map.

    Returns:
        The planted maps ``[2, n, n, n]``, classes ``[p]`` and poses ``[p, 3, 4]``.
    """
    maps = np.stack([simulate.phantom(BOX, state) for state in (0, 1)])
    pose_key, noise_key = jax.random.split(jax.random.key(SEED))
    poses = simulate.random_poses(pose_key, PARTICLES, MAX_SHIFT_VOX)
    classes = np.random.default_rng(SEED).permutation(np.arange(PARTICLES) % 2)
    particles = simulate.simulate(maps, classes, poses, APIX, GEOMETRY, noise_key)
    matrices = np.asarray(rotation.pose_to_matrix34(poses))
    io.write_hdf(folder / "particles.hdf", particles, APIX)
    io.write_alignments(folder / "truth.json", matrices, np.zeros(PARTICLES), {"class": classes})
    gain = np.arange(BOX // 2 + 1) <= BOX * APIX / LOWPASS_A
    start = fourier.radial_filter(jnp.asarray(maps.mean(0)), jnp.asarray(gain, jnp.float32))
    io.write_hdf(folder / "start.hdf", [np.asarray(start)], APIX)
    return maps, classes, matrices


def class_frame(found: np.ndarray, planted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rigid transform from the planted map to a class average, by the poses of its particles.

    A class that starts from random phases may settle in a frame of its own. Of the transforms
    that single particles suggest, the mean of those near the most central one is taken.

    Args:
        found: poses ``[p, 3, 4]`` against the class average.
        planted: against the planted map.
    """
    turns = np.einsum("pij,pkj->pik", found[:, :, :3], planted[:, :, :3])
    cosine = (np.einsum("pij,qij->pq", turns, turns) - 1) / 2
    centre = np.median(cosine, axis=1).argmax()
    near = cosine[centre] > np.cos(np.radians(20))
    turn = np.asarray(rotation.orthogonalize(turns[near].mean(0)))
    move = np.median(found[:, :, 3] - planted[:, :, 3] @ turn.T, axis=0)
    return turn, move


def compare(
    state: RefineState, classes: np.ndarray, planted: np.ndarray
) -> tuple[list[tuple[str, ...]], list[int], list[Pose]]:
    """Rows of the table, and the planted class and the frame of every refined class."""
    labels = max(
        itertools.permutations(range(2)), key=lambda p: np.sum(np.take(p, state.classes) == classes)
    )
    turn, shift = state.pose
    found = np.concatenate([turn, shift[:, :, None]], axis=2)
    right = np.take(labels, state.classes) == classes
    table, frames = resolutions(state, APIX), []
    rows = [
        ("class", "particles", "right class", "median angle", "median shift", "frame", "FSC .143")
    ]
    for c in range(2):
        member = state.classes == c
        frame, move = class_frame(found[member], planted[member])
        frames.append(Pose(jnp.asarray(frame), jnp.asarray(move)))
        wanted = frame @ planted[member, :, :3]
        angle = np.asarray(rotation.angle_deg(jnp.asarray(turn[member]), jnp.asarray(wanted)))
        away = shift[member] - planted[member, :, 3] @ frame.T - move
        own = np.degrees(np.arccos(np.clip((np.trace(frame) - 1) / 2, -1, 1)))
        limit = table[str(c)]["unmasked"]["0.143"]
        rows.append(
            (
                str(c),
                str(member.sum()),
                f"{100 * right[member].mean():.1f} %",
                f"{np.median(angle):.2f} deg",
                f"{np.median(np.linalg.norm(away, axis=1)) * APIX:.2f} A",
                f"{own:.1f} deg",
                f"{limit:.1f} A" if limit else "-",
            )
        )
    rows.append(("all", str(len(right)), f"{100 * right.mean():.1f} %", "", "", "", ""))
    return rows, list(labels), frames


def run(*, stem: str, verbose: int) -> list[tuple[str, ...]]:
    """Simulate, refine, compare; returns the table."""
    folder = workdir.reserve(stem)
    console.say(
        f"simulating {PARTICLES} particles of {BOX}^3 voxels of {APIX:g} A, tilts"
        f" {GEOMETRY.min_deg:g} to {GEOMETRY.max_deg:g} degrees, defocus"
        f" {GEOMETRY.defocus_um:g} um, SNR per projection {GEOMETRY.snr:g}"
    )
    maps, classes, matrices = simulate_set(folder)
    command = [
        "experiments/refinemulti.py",
        f"--input={folder / 'particles.hdf'}",
        f"--ref={folder / 'start.hdf'}",
        f"--path={folder / 'spt_refinemulti'}",
        "--nref=2",
        "--iter=3",
        f"--verbose={verbose}",
    ]
    console.say("sptjax " + shlex.join(["refinemulti", *command[1:]]))
    state = refinemulti.run(values=_flags.parse(command), argv=command)
    rows, labels, frames = compare(state, classes, matrices)
    shown, names = [], []
    for c, frame in enumerate(frames):
        back = resample.transform(jnp.asarray(state.maps[c]), rotation.invert(frame))
        shown += [np.asarray(back), maps[labels[c]]]
        names += [f"class {c}", "planted"]
    plots.save(plots.central_slices(np.stack(shown), APIX, names), folder / "classes.png")
    console.say("against the planted truth (angle and shift within the frame of the class):")
    for row in rows:
        console.say("  " + "  ".join(text.rjust(12) for text in row))
    console.say(
        f"classes, turned into the planted frame, beside the planted maps: {folder / 'classes.png'}"
    )
    refined = workdir.latest(folder / "spt_refinemulti")
    console.say(f"FSC curves: {refined / 'fsc_2.png'}; everything else: {refined}")
    return rows


def main(argv: Sequence[str]) -> None:
    """Flags to arguments."""
    del argv
    values = _flags.resolved()
    run(stem=values["path"], verbose=values["verbose"])


if __name__ == "__main__":
    _flags.launch(main, "demo.py", only=("path", "verbose"))
