"""Runs of the scripts on planted blobs, small enough for one run per option."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest
import script_runs
from scipy.spatial.transform import Rotation

from sptjax import io, workdir
from sptjax.state import RefineState

BOX, APIX, COUNT = 24, 10.0, 8
WIDTH = 1.3  # voxels, of a blob

# places (x, y, z) in voxels about the centre, and heights; the classes differ in the last blob
_BODY = [((4, 0, 0), 1.0), ((-3, 3, 1), 0.9), ((0, -4, 3), 1.1), ((1, 2, -5), 0.8)]
BLOBS = ([*_BODY, ((-2, -3, -2), 1.2)], [*_BODY, ((3, 3, 4), 1.2)])
CLASSES = np.array([0, 1, 0, 0, 1, 1, 0, 1])


def draw(blobs, turn=None, shift=(0, 0, 0)):
    """Gaussian blobs in a box, turned and shifted without any interpolation."""
    turn = np.eye(3) if turn is None else turn
    axis = np.arange(BOX) - BOX // 2
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    out = np.zeros((BOX,) * 3)
    for place, height in blobs:
        a, b, c = turn @ np.array(place, float) + np.array(shift, float)
        out += height * np.exp(-((x - a) ** 2 + (y - b) ** 2 + (z - c) ** 2) / (2 * WIDTH**2))
    return out.astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Result:
    """A finished run."""

    folder: pathlib.Path
    state: RefineState
    said: list

    def stack(self, name):
        """All volumes of a file of the run."""
        stack = io.open_stack(self.folder / name)
        return stack.read(np.arange(len(stack)))

    def header(self, name, index=0):
        return io.open_stack(self.folder / name).header(index)

    def apix(self, name):
        return io.open_stack(self.folder / name).apix

    def names(self):
        return {path.name for path in self.folder.iterdir()}

    def poses(self, name):
        """Matrices and scores of a pose file, with EMAN2's sign."""
        return io.read_alignments(self.folder / name)

    def initial(self):
        """References before the first round, ``[h, c, n, n, n]``."""
        return np.load(self.folder / "state_0.npz")["references"]

    def options(self):
        return workdir.read_manifest(self.folder).options

    def json(self, name):
        return json.loads((self.folder / name).read_text())


class Bench:
    """A planted set in a folder, and runs on it; equal runs are made once."""

    def __init__(self, folder):
        self.folder, self._known = folder, {}
        rng = np.random.default_rng(7)
        self.maps = np.stack([draw(blobs) for blobs in BLOBS])
        turns = Rotation.random(COUNT, random_state=7).as_matrix()
        shifts = rng.uniform(-1.5, 1.5, (COUNT, 3))
        self.matrices = np.concatenate([turns, shifts[:, :, None]], 2)  # particle to reference
        clean = [draw(BLOBS[c], r.T, -r.T @ t) for c, r, t in zip(CLASSES, turns, shifts)]
        noise = rng.normal(size=(COUNT, BOX, BOX, BOX))
        self.particles = (np.array(clean) + 0.15 * noise).astype(np.float32)
        self.x = np.array([0, 100, 200, 300, 400, 500, 600, 700])  # in the tomogram, voxels
        self.write("particles.hdf", self.particles, coordinates=True)
        for c, volume in enumerate(self.maps):
            self.write(f"ref{c}.hdf", volume)
        self.poses("poses.json", self.matrices)
        self.classes("classmx.hdf", CLASSES, self.matrices)

    def write(self, name, volumes, apix=APIX, *, coordinates=False):
        """A stack or volume in the folder of the set."""
        volumes = np.asarray(volumes, np.float32)
        headers = [{"ptcl_source_coord": [int(x), 5, 5]} for x in self.x] if coordinates else None
        images = list(volumes) if volumes.ndim == 4 else [volumes]
        io.write_hdf(self.folder / name, images, apix, headers)
        return self.folder / name

    def poses(self, name, matrices):
        io.write_alignments(self.folder / name, matrices, np.zeros(len(matrices)))
        return self.folder / name

    def classes(self, name, classes, matrices, n_classes=2):
        """A class matrix with poses."""
        turns = Rotation.from_matrix(matrices[:, :, :3].swapaxes(1, 2))
        angles = turns.as_euler("ZXZ", degrees=True)  # EMAN2's az, alt, phi turn the other way
        matrix = io.ClassMatrix(
            n_classes=n_classes,
            classes=np.asarray(classes),
            weights=np.ones(len(classes), np.float32),
            scores=np.zeros(len(classes), np.float32),
            euler_deg=angles.astype(np.float32),
            shifts_vox=matrices[:, :, 3].astype(np.float32),
        )
        io.write_classmx(self.folder / name, matrix)
        return self.folder / name

    def common(self, program):
        refs = [self.folder / f"ref{c}.hdf" for c in (0, 1)]
        return {
            "input": self.folder / "particles.hdf",
            "ref": ",".join(map(str, refs)) if program == "refinemulti" else refs[0],
            "wedge": "none",
            "align": "None",
            "inixforms": self.folder / "poses.json",
            "plots": False,
        } | ({"nref": 2} if program == "refinemulti" else {})

    def run(self, program="refinemulti", **options):
        """Run a script; an option of value None is left out, also one of the common ones."""
        chosen = self.common(program) | options
        key = (program, *sorted((k, str(v)) for k, v in chosen.items()))
        if key not in self._known:
            stem = chosen.pop("path", self.folder / f"run{len(self._known)}")
            words = [f"--{k}={v}" for k, v in chosen.items() if v is not None]
            with pytest.MonkeyPatch.context() as patch:
                state, said = script_runs.call(program, f"--path={stem}", *words, monkeypatch=patch)
            self._known[key] = Result(workdir.latest(stem), state, said)
        return self._known[key]
