"""Run the scripts of ``experiments/`` inside a test, and a small simulated set to run them on."""

import dataclasses
import functools
import importlib
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from sptjax import fourier, io, rotation, simulate

EXPERIMENTS = pathlib.Path(__file__).resolve().parents[1] / "experiments"
_MODULES = tuple(path.stem for path in EXPERIMENTS.glob("*.py"))

BOX, APIX, COUNT = 24, 16.0, 24


def load(name):
    """A fresh copy of a script; the flags of the one loaded before are taken down."""
    if str(EXPERIMENTS) not in sys.path:
        sys.path.insert(0, str(EXPERIMENTS))
    unload()
    return importlib.import_module(name)


def unload():
    """Take down the flags of the script loaded last, and its modules."""
    table = flags.FLAGS.flags_by_module_dict()
    for module in _MODULES:
        for flag in list(table.get(module, [])):
            delattr(flags.FLAGS, flag.name)
        sys.modules.pop(module, None)


def call(name, *options, monkeypatch=None):
    """Run a script with options; returns its final state and the lines it printed."""
    script = load(name)
    said = []
    if monkeypatch is not None:
        monkeypatch.setattr(script.console, "say", said.append)
    argv = [f"experiments/{name}.py", *map(str, options)]
    return script.run(values=script._flags.parse(argv), argv=argv), said


@dataclasses.dataclass(frozen=True)
class Small:
    """Files of a simulated set and what was planted in it."""

    folder: pathlib.Path
    maps: np.ndarray  # [2, n, n, n]
    classes: np.ndarray
    matrices: np.ndarray  # [p, 3, 4]

    @property
    def particles(self):
        return self.folder / "particles.hdf"

    def ref(self, c):
        return self.folder / f"ref{c}.hdf"


@functools.cache
def small_set(folder):
    """24 particles of 24 voxels in two classes, clear of the noise; references at 60 A."""
    maps = np.stack([simulate.phantom(BOX, state) for state in (0, 1)])
    poses = simulate.random_poses(jax.random.key(5), COUNT, 2.0)
    classes = np.random.default_rng(5).permutation(np.arange(COUNT) % 2)
    geometry = simulate.TiltSeries(-60, 60, 6, defocus_um=3.0, snr=3.0)
    particles = simulate.simulate(maps, classes, poses, APIX, geometry, jax.random.key(6))
    io.write_hdf(folder / "particles.hdf", particles, APIX)
    gain = jnp.asarray(np.arange(BOX // 2 + 1) <= BOX * APIX / 60, jnp.float32)
    for c, volume in enumerate(maps):
        smooth = np.asarray(fourier.radial_filter(jnp.asarray(volume), gain))
        io.write_hdf(folder / f"ref{c}.hdf", smooth, APIX)
    return Small(folder, maps, classes, np.asarray(rotation.pose_to_matrix34(poses)))
