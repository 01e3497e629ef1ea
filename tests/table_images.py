"""A phantom planted by each program's own numbers, written as that program writes them.

Nothing here comes from the library. A particle is a sum of Gaussians without symmetry; `matrix`
takes reference to tomogram as each program documents its angles, with explicit elements or SciPy.
"""

import dataclasses
import functools
import json

import emfile
import numpy as np
from scipy.spatial.transform import Rotation

POINTS = np.array([[0, 0, 0], [4, 0, 0], [0, 3, 0], [0, 0, 5], [-2, 3, 2], [3, -3, -3]], float)
HEIGHTS = np.array([1.0, 0.9, 0.6, 0.8, -0.5, 0.7])
SIGMA = 1.3
SIZE = np.array([64, 60, 56])  # of the tomogram, (x, y, z)
APIX = 5.0


def density(points):
    """The reference at points (x, y, z) from its centre, ``[..., 3]``."""
    square = ((points[..., None, :] - POINTS) ** 2).sum(-1)
    return (HEIGHTS * np.exp(-square / (2 * SIGMA**2))).sum(-1)


def grid(shape):
    """Points (x, y, z) of an array ``[z, y, x]``, voxel 0 at 0."""
    return np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")[::-1], -1).astype(
        float
    )


def tomogram(matrices, places):
    """References turned by `matrices` with their centres at `places` (voxels from 0)."""
    points = grid(SIZE[::-1])
    out = np.zeros(points.shape[:-1])
    for matrix, place in zip(matrices, places):
        out += density((points - place) @ matrix)  # rows: matrix' (x - place)
    return out.astype(np.float32)


def relion_matrix(rot, tilt, psi):
    """Reference to particle, RELION's Euler matrix by its elements (Heymann et al. 2005)."""
    (a, b, g), (ca, cb, cg) = (f(np.radians([rot, tilt, psi])) for f in (np.sin, np.cos))
    return np.array(
        [
            [cg * cb * ca - g * a, cg * cb * a + g * ca, -cg * b],
            [-g * cb * ca - cg * a, -g * cb * a + cg * ca, g * b],
            [b * ca, b * a, cb],
        ]
    )


def dynamo_matrix(tdrot, tilt, narot):
    """The template is turned clockwise about z, the new x and the new z (Dynamo wiki)."""
    return Rotation.from_euler("ZXZ", [-tdrot, -tilt, -narot], degrees=True).as_matrix()


def av3_matrix(phi, psi, theta):
    """The template is turned by phi about z, theta about x, psi about z, all fixed (TOM, PyTom)."""
    return Rotation.from_euler("zxz", [phi, theta, psi], degrees=True).as_matrix()


def eman_matrix(az, alt, phi):
    """Particle to reference, EMAN2's Transform by its elements; inverted: reference to particle."""
    (a, b, g), (ca, cb, cg) = (f(np.radians([az, alt, phi])) for f in (np.sin, np.cos))
    return np.array(
        [
            [cg * ca - cb * a * g, cg * a + cb * ca * g, b * g],
            [-g * ca - cb * a * cg, -g * a + cb * ca * cg, b * cg],
            [b * a, -b * ca, cb],
        ]
    ).T


@dataclasses.dataclass(frozen=True)
class Planted:
    """A table as a program writes it, and what it means."""

    path: object
    matrices: np.ndarray  # reference to tomogram
    places: np.ndarray  # of the references' centres, voxels of the tomogram from 0


COUNT = 2
ANGLES = np.array([[25.0, 70.0, -130.0], [-100.0, 140.0, 15.0]])
BOX_ANGLES = np.array([[40.0, 20.0, 75.0], [-10.0, 110.0, 60.0]])
SHIFTS = np.array([[1.25, -2.5, 0.75], [-1.5, 0.25, 2.0]])  # in the program's own sense, voxels
CENTRES = np.array([[18.0, 20.0, 17.0], [43.0, 38.0, 37.0]])  # whole voxels, from 0


def _star(name, columns):
    keys = "".join(f"_{key} #{i}\n" for i, key in enumerate(columns, 1))
    rows = "".join(" ".join(map(str, row)) + "\n" for row in zip(*columns.values()))
    return f"\n# version 30001\n\ndata_{name}\n\nloop_ \n{keys}{rows}\n"


def _xyz(prefix, suffix, values):
    return {f"{prefix}{a}{suffix}": values[:, i] for i, a in enumerate("XYZ")}


def relion(folder, version, centres=CENTRES):
    """Coordinate minus origin is the centre; origins are in angstrom from 3.1 on."""
    angles = {f"rlnAngle{k}": ANGLES[:, i] for i, k in enumerate(("Rot", "Tilt", "Psi"))}
    turn = np.stack([relion_matrix(*a) for a in ANGLES])
    shift = -SHIFTS
    optics = {"rlnOpticsGroup": [1], "rlnOpticsGroupName": ["one"], "rlnImagePixelSize": [APIX]}
    path = folder / f"relion{version}.star"
    names = {"3.0": "rlnMicrographName", "3.1": "rlnMicrographName"}
    loop = {names.get(version, "rlnTomoName"): ["tomo"] * COUNT, **angles}
    if version == "3.0":
        origins = _xyz("rlnOrigin", "", SHIFTS)
        size = {"rlnMagnification": [10000.0] * COUNT, "rlnDetectorPixelSize": [APIX] * COUNT}
        loop |= _xyz("rlnCoordinate", "", centres) | origins | size
        path.write_text(_star("", loop))
        return Planted(path, turn, centres + shift)
    loop |= _xyz("rlnOrigin", "Angst", SHIFTS * APIX) | {"rlnOpticsGroup": [1] * COUNT}
    if version == "3.1":
        loop |= _xyz("rlnCoordinate", "", centres)
    else:
        optics |= {"rlnTomoTiltSeriesPixelSize": [APIX / 4], "rlnTomoSubtomogramBinning": [4.0]}
    if version == "4":  # unbinned pixels, and boxes turned against the tomogram
        loop |= _xyz("rlnCoordinate", "", centres * 4)
        keys = ("rlnTomoSubtomogramRot", "rlnTomoSubtomogramTilt", "rlnTomoSubtomogramPsi")
        loop |= {key: BOX_ANGLES[:, i] for i, key in enumerate(keys)}
        boxes = np.stack([relion_matrix(*a) for a in BOX_ANGLES])
        turn = boxes @ turn  # particle to tomogram: A_subtomogram A_particle
        shift = np.einsum("nij,nj->ni", boxes, shift)  # position: coordinate - A_subtomogram origin
    if version == "5":
        loop |= _xyz("rlnCenteredCoordinate", "Angst", (centres - SIZE / 2) * APIX)
    path.write_text(_star("optics", optics) + _star("particles", loop))
    return Planted(path, turn, centres + shift)


def dynamo(folder, centres=CENTRES):
    """Continuous coordinates with the corner of the first voxel at 0; the shift is added."""
    table = np.zeros((COUNT, 36))
    table[:, 0], table[:, 3:6], table[:, 6:9] = [1, 2], SHIFTS, ANGLES
    table[:, 19], table[:, 23:26], table[:, 35] = 1, centres + 0.5, APIX
    lines = [" ".join(f"{x:g}" for x in row) for row in table]
    lines[1] = lines[1].replace(" 0 ", " 0+1.2e-06i ", 1)
    (folder / "table.tbl").write_text("\n".join(lines) + "\n")
    turn = np.stack([dynamo_matrix(*a) for a in ANGLES])
    return Planted(folder / "table.tbl", turn, centres + SHIFTS)


def _av3(centres):
    return np.stack([av3_matrix(*a) for a in ANGLES]), centres + SHIFTS


def stopgap(folder, centres=CENTRES):
    """MATLAB's coordinates, from 1."""
    columns = {"motl_idx": [1, 2], "tomo_num": [1, 1], "object": [7, 8], "subtomo_num": [1, 2]}
    columns |= {"halfset": ["A", "B"]}
    columns |= {f"orig_{a}": centres[:, i] + 1 for i, a in enumerate("xyz")}
    columns |= {"score": [0.5, 0.25]} | {f"{a}_shift": SHIFTS[:, i] for i, a in enumerate("xyz")}
    columns |= {key: ANGLES[:, i] for i, key in enumerate(("phi", "psi", "the"))} | {
        "class": [1, 2]
    }
    path = folder / "motl.star"
    path.write_text(_star("stopgap_motivelist", columns))
    return Planted(path, *_av3(centres))


def av3(folder, centres=CENTRES):
    """Rows 8-10 coordinates from 1, 11-13 shift, 17-19 phi, psi, theta."""
    rows = np.zeros((20, COUNT), np.float32)
    rows[0], rows[3], rows[4], rows[5] = [0.5, 0.25], [1, 2], 1, [7, 8]
    rows[7:10], rows[10:13], rows[16:19] = centres.T + 1, SHIFTS.T, ANGLES.T
    path = folder / "motl.em"
    emfile.write(path, np.ascontiguousarray(rows.T[None]), overwrite=True)
    return Planted(path, *_av3(centres))


def pytom(folder, centres=CENTRES):
    """Coordinates from 0; Z1 is phi, Z2 psi, X theta."""
    text = "<!-- PyTom Version: 0.963 -->\n<ParticleList>\n"
    for (phi, psi, theta), shift, place in zip(ANGLES, SHIFTS, centres):
        x, y = (f'X="{v[0]}" Y="{v[1]}" Z="{v[2]}"' for v in (shift, place))
        text += f'<Particle Filename="a.em">\n<Rotation X="{theta}" Paradigm="ZXZ" Z1="{phi}"'
        text += f' Z2="{psi}"/>\n<Shift {x}/>\n<PickPosition Origin="tomo.mrc" {y}/>\n'
        text += '<Wedge Type="SingleTiltWedge"><SingleTiltWedge Angle1="30" Angle2="28"/></Wedge>\n'
        text += '<Score Type="FLCFScore" Value="0.5"/><Class Name="2"/>\n</Particle>\n'
    path = folder / "list.xml"
    path.write_text(text + "</ParticleList>\n")
    return Planted(path, *_av3(centres))


def _eman(centres):
    """`xform.align3d` as 3x4 rows, x_ref = R x + t; the centre lies at -R' t."""
    turn = np.stack([eman_matrix(*a) for a in ANGLES])
    matrices = np.concatenate([turn.transpose(0, 2, 1), SHIFTS[..., None]], -1)
    return matrices, turn, centres - np.einsum("nij,nj->ni", turn, SHIFTS)


def lst(folder, centres=CENTRES):
    """A list with poses and places in its third column."""
    matrices, turn, places = _eman(centres)
    text = "#LSX\n# a comment\n# 600\n"
    for i, matrix in enumerate(matrices):
        numbers = "[" + ",".join(f"{x:.9g}" for x in matrix.ravel()) + "]"
        pose = {"__class__": "Transform", "matrix": numbers}
        item = {"xform.align3d": pose, "score": -0.5, "ptcl_source_coord": centres[i].tolist()}
        text += f"{i}\tparticles.hdf\t{json.dumps(item)}\n"
    path = folder / "list.lst"
    path.write_text(text)
    return Planted(path, turn, places)


def csv(folder, centres=CENTRES):
    """Our own table."""
    _, turn, places = _eman(centres)
    columns = [centres, ANGLES, SHIFTS]
    rows = [",".join(f"{x}" for x in np.concatenate(row)) for row in zip(*columns)]
    path = folder / "table.csv"
    path.write_text("x,y,z,az,alt,phi,tx,ty,tz\n" + "\n".join(rows) + "\n")
    return Planted(path, turn, places)


PROGRAMS = {
    **{f"relion{v}": functools.partial(relion, version=v) for v in ("3.0", "3.1", "4", "5")},
    "dynamo": dynamo,
    "stopgap": stopgap,
    "av3": av3,
    "pytom": pytom,
    "lst": lst,
    "csv": csv,
}
