"""PyTom's particle lists (XML).

Angles and shift are AV3's: ``Z1`` is phi, ``X`` theta, ``Z2`` psi, the shift follows the rotation
of the reference. ``PickPosition`` counts from 0, in voxels of the tomogram. Other elements of a
particle (its wedge, the kind of score) are kept from list to list.
"""

import pathlib
import xml.etree.ElementTree as ET

import numpy as np

from sptjax._errors import InputError
from sptjax.io._atomic import atomic_path

from ._angles import from_av3, to_av3
from ._record import ParticleTable, names

_OWN = {"Rotation", "Shift", "PickPosition", "Class"}
_ELEMENTS = "xml"  # the column of what is kept
FAMILY = "pytom"


def parse(path: pathlib.Path) -> ET.Element | None:
    """The list of a file; None if it is XML of another kind.

    Raises:
        InputError: the file is no XML.
    """
    try:
        root = ET.parse(path).getroot()
    except (ET.ParseError, OSError) as error:
        raise InputError(f"The file {path} cannot be read as XML ({error}).") from error
    return root if root.tag == "ParticleList" else root.find(".//ParticleList")


def read(
    path: pathlib.Path, root: ET.Element, apix: float | None, coordinate_apix: float | None
) -> ParticleTable:
    """The particles of a list; arguments as those of the other formats."""
    particles = root.findall("Particle")
    count = len(particles)

    def numbers(tag: str, *keys: str) -> np.ndarray:
        out = np.zeros((count, len(keys)))
        for row, particle in enumerate(particles):
            element = particle.find(tag)
            for column, key in enumerate(keys if element is not None else ()):
                text = (element.get(key) if element is not None else None) or "0"
                try:
                    out[row, column] = float(text)
                except ValueError as error:
                    where = f"{path}: particle {row}, {tag} {key}"
                    raise InputError(f"{where} is no number: {text!r}") from error
        return out

    turns = [element for p in particles if (element := p.find("Rotation")) is not None]
    paradigms = {element.get("Paradigm", "ZXZ") for element in turns}
    if paradigms - {"ZXZ"}:
        raise InputError(f"{path}: rotations of the paradigm {paradigms} are not known, only ZXZ")
    rotation, shift = from_av3(numbers("Rotation", "Z1", "Z2", "X"), numbers("Shift", *"XYZ"))
    size = np.full(count, float(apix)) if apix else None
    origin = [getattr(p.find("PickPosition"), "attrib", {}).get("Origin", "") for p in particles]
    labels = [getattr(p.find("Class"), "attrib", {}).get("Name") for p in particles]
    return ParticleTable(
        rotation,
        shift,
        apix=size,
        coordinate=numbers("PickPosition", *"XYZ"),
        coordinate_apix=np.full(count, float(coordinate_apix)) if coordinate_apix else size,
        tomogram=names(origin) if any(origin) else None,
        image=names([particle.get("Filename", "") for particle in particles]),
        classes=_classes(labels),
        score=numbers("Score", "Value")[:, 0],
        family=FAMILY,
        extra={_ELEMENTS: [_rest(particle) for particle in particles]},
    )


def write(path: pathlib.Path, table: ParticleTable) -> list[str]:
    """Write a list; returns what is to be said."""
    table = table.in_particle_voxels()
    angles, shift = to_av3(table.rotation, table.shift)
    root = ET.Element("ParticleList")
    kept = table.extra.get(_ELEMENTS) if table.family == FAMILY else None
    for row in range(len(table)):
        name = f"particle_{row + 1}.em" if table.image is None else str(table.image[row])
        particle = ET.SubElement(root, "Particle", Filename=name)
        turn = {key: f"{x:.6f}" for key, x in zip(("Z1", "Z2", "X"), angles[row])}
        ET.SubElement(particle, "Rotation", {"Paradigm": "ZXZ"} | turn)
        ET.SubElement(particle, "Shift", _xyz(shift[row]))
        origin = "" if table.tomogram is None else str(table.tomogram[row])
        place = np.zeros(3) if table.coordinate is None else table.coordinate[row]
        ET.SubElement(particle, "PickPosition", {"Origin": origin} | _xyz(place))
        if kept is not None:
            particle.extend(ET.fromstring(kept[row]))
        if table.score is not None:
            score = particle.find("Score")
            if score is None:
                score = ET.SubElement(particle, "Score", Type="FLCFScore", RemoveAutocorr="False")
                prior = {"Filename": "", "Radius": "0.0", "Smooth": "-1.0"}
                ET.SubElement(score, "PeakPrior", prior)
            score.set("Value", f"{table.score[row]:.9g}")
        if table.classes is not None:
            ET.SubElement(particle, "Class", Name=str(int(table.classes[row])))
    ET.indent(root)
    with atomic_path(path) as temporary:
        ET.ElementTree(root).write(temporary, encoding="utf-8", xml_declaration=True)
    indexed = table.image_index is not None and (table.image_index >= 0).any()
    return ["PyTom has one file per particle: numbers in stacks are lost"] if indexed else []


def _xyz(values: np.ndarray) -> dict[str, str]:
    return {key: f"{x:.6f}" for key, x in zip("XYZ", values)}


def _classes(labels: list[str | None]) -> np.ndarray | None:
    if any(label is None or not label.strip().lstrip("-").isdigit() for label in labels):
        return None
    return np.array([int(label or 0) for label in labels], int)


def _rest(particle: ET.Element) -> str:
    """The elements that the record does not hold, as text."""
    rest = ET.Element("Rest")
    rest.extend([element for element in particle if element.tag not in _OWN])
    for element in rest.iter():  # the layout of the file is no content
        element.tail = None
        element.text = (element.text or "").strip() or None
    return ET.tostring(rest, encoding="unicode")
