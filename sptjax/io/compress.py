"""Whole files of images to compressed HDF, and back to plain HDF or MRC."""

import math
import os
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import h5py
import numpy as np

from sptjax._errors import InputError

from ._atomic import atomic_path
from ._hdf_attributes import write_attribute
from ._hdf_copy import copy_attributes
from ._hdf_pixels import Pixels, Storage, check_pixels, write_pixels
from ._hdf_reader import HdfReader
from ._hdf_writer import DERIVED, array_items, new_hdf
from ._inputs import FileImage, Input, open_input
from ._mapping import Mapping as Limits
from ._mapping import choose_mapping, eman2_mapping, usable
from ._pieces import Image, Work, chunk_shape, pieces, slabs, workers
from ._scan import Extremes, Scan, eman2_bins, eman2_outliers, join, scan
from .mrc import write_mrc_parts

_FLOAT = np.dtype("<f4")
_DATATYPES = {1: 2, 2: 4, 4: 7}
_INT32 = 2**31 - 1
Progress = Callable[[float], object]


@dataclass(frozen=True)
class Compression:
    """How images are compressed.

    Attributes:
        bits: kept of every value: 2 to 16; 0 keeps floats as they are, deflated; negative
            writes plain floats.
        level: of deflate, 0 to 9.
        no_outliers: leave out the most extreme values, 1 of 20,000 (at least 8) at each end.
        limits: smallest and largest value to keep.
        sigmas: standard deviations below and above the mean to keep.
        eman_compat: choose limits as EMAN2's own program does, its defects included.
    """

    bits: int = 10
    level: int = 1
    no_outliers: bool = False
    limits: tuple[float, float] | None = None
    sigmas: tuple[float, float] | None = None
    eman_compat: bool = False

    def __post_init__(self) -> None:
        if self.bits == 1 or self.bits > 16:
            raise InputError(f"--bits={self.bits}: 0 or 2 to 16 are possible")
        if not 0 <= self.level <= 9:
            raise InputError(f"--compresslevel={self.level}: 0 to 9 are possible")
        if self.limits is not None and not usable(self.limits):
            low, high = self.limits
            raise InputError(f"--range={low:g},{high:g}: a smaller and a larger number are needed")
        if self.sigmas is not None and not 0 < sum(self.sigmas) < math.inf:
            low, high = self.sigmas
            raise InputError(f"--sigrange={low:g},{high:g}: the range must be positive and finite")

    @property
    def limited(self) -> bool:
        """Whether some values may be cut off."""
        return self.no_outliers or self.limits is not None or self.sigmas is not None


@dataclass(frozen=True)
class Outcome:
    """What became of a file.

    Attributes:
        images: their number.
        bytes_in: of the input.
        bytes_out: of the output.
        values: in all images.
        not_finite: values that were NaN or infinite.
        outside: values beyond the limits.
        worst_sigma: largest error, in standard deviations of its image (if measured).
        rms_sigma: root mean square of the errors, likewise.
        lost: header items that no EMAN2 file can hold.
    """

    images: int
    bytes_in: int
    bytes_out: int
    values: int = 0
    not_finite: int = 0
    outside: int = 0
    worst_sigma: float = 0.0
    rms_sigma: float = 0.0
    lost: tuple[str, ...] = ()


def compress_file(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    settings: Compression | None = None,
    *,
    threads: int = 1,
    verify: bool = False,
    strict: bool = False,
    split: bool | None = None,
    unsigned: bool = False,
    measure: bool = False,
    progress: Progress = lambda share: None,
) -> Outcome:
    """Write the images of a file as a compressed HDF stack, atomically.

    An image that already has these bits, where no limits are asked for, keeps its codes.

    Args:
        source: any readable file; `target` may be the same.
        target: the HDF file to create or replace. A file that replaces its source is read back
            and compared first.
        settings: bits, level, limits; by default 10 bits.
        threads: that deflate.
        verify: read the file back and compare before it appears, whatever it replaces.
        strict: refuse values that are not finite.
        split: whether the sections of an MRC file are images; if not, they are volumes by the
            table of :mod:`sptjax.io.mrc`. None: as EMAN2 does, images in .mrcs files.
        unsigned: bytes of an MRC file go from 0 to 255, whatever its header says.
        measure: find the errors made.
        progress: told the share of the file that was done last.

    Raises:
        InputError: the source cannot be read, the target cannot be written or does not read
            back, or it would replace something that it does not contain; an existing target is
            as it was.
    """
    settings = settings or Compression()
    try:
        before = os.path.getsize(source) if os.path.exists(source) else 0
        with (
            open_input(source, split=split, unsigned=unsigned) as images,
            workers(threads) as work,
            atomic_path(target) as temporary,
        ):
            replaced = _replaced(images, target)
            maker = _Maker(settings, work, strict, measure, progress)
            found, checks = maker.make(images, temporary)
            if replaced or verify:
                _verify(temporary, checks)
            if os.path.exists(target):
                os.chmod(temporary, os.stat(target).st_mode & 0o7777)
            outcome = found(before, os.path.getsize(temporary))
            if replaced and outcome.lost:
                raise _not_replaced(target, "its header has what EMAN2 cannot hold", outcome.lost)
    except (OSError, RuntimeError) as error:
        raise InputError(f"Cannot write {target}: {_reason(error)}.") from error
    return outcome


def _replaced(images: Input, target: str | os.PathLike[str]) -> bool:
    """Whether the target is the source, all of which will be in the target."""
    if not os.path.exists(target):
        return False
    for file in images.listed:
        if file.exists() and file.samefile(target):
            raise InputError(f"{target} is not replaced, because {images.path} lists images of it.")
    if not images.path.samefile(target):
        return False
    others = images.others()
    if others:
        raise _not_replaced(target, "it holds more than images", others)
    return True


def _not_replaced(target: str | os.PathLike[str], reason: str, lost: Sequence[str]) -> InputError:
    names = f"{', '.join(lost[:3])}{', ...' if len(lost) > 3 else ''}"
    return InputError(
        f"{target} is not replaced, because {reason}, which would be lost ({names}); --outpath"
        " names another folder."
    )


def _reason(error: BaseException) -> str:
    """Why a file could not be written: the first failure counts, not those of tidying up."""
    chain: list[BaseException] = [error]
    while chain[-1].__context__ is not None:
        chain.append(chain[-1].__context__)
    for link in reversed(chain):
        number = getattr(link, "errno", None)
        told = re.search(r"error message = '([^']+)'", str(link))
        if number or told:
            return os.strerror(number) if number else str(told and told[1])
    return str(error).splitlines()[0]


class _Maker:
    """Writes the images of one file.

    Args:
        settings: bits, level, limits.
        work: a map.
        strict: refuse values that are not finite.
        measure: find errors.
        progress: told the share done.
    """

    def __init__(
        self, settings: Compression, work: Work, strict: bool, measure: bool, progress: Progress
    ):
        self._settings, self._work = settings, work
        self._strict, self._measure, self._progress = strict, measure, progress

    def make(
        self, images: Input, path: pathlib.Path
    ) -> tuple[Callable[[int, int], Outcome], list[dict]]:
        """Write them all.

        Returns:
            What makes the outcome from the sizes of both files, and the checksums of the images.
        """
        values = lost_finite = outside = 0
        worst = squares = 0.0
        lost: list[str] = []
        checks = []
        with new_hdf(path) as file:
            top = file.create_group("MDF/images")
            if images.group is not None:
                lost += copy_attributes(images.group, top, _unless({"imageid_max"}))
            for index in range(images.count):
                group, image = top.create_group(str(index)), images.image(index)
                try:
                    pixels, found = self._image(group, image, images, index, lost)
                except InputError as error:
                    name = f"{images.path} image {index}"
                    text = str(error)
                    raise InputError(text if name in text else f"{name}: {text}") from error
                checks.append(pixels.checks)
                values += math.prod(image.shape)
                outside += pixels.outside
                lost_finite += found.size - found.finite
                if found.sigma > 0:
                    worst = max(worst, pixels.worst / found.sigma)
                    squares += pixels.squares / found.sigma**2
            write_attribute(top, "imageid_max", images.count - 1)

        def outcome(bytes_in: int, bytes_out: int) -> Outcome:
            return Outcome(
                images.count,
                bytes_in,
                bytes_out,
                values,
                lost_finite,
                outside,
                worst,
                math.sqrt(squares / max(values, 1)),
                tuple(dict.fromkeys(lost)),
            )

        return outcome, checks

    def _image(
        self, group: h5py.Group, image: FileImage, images: Input, index: int, lost: list[str]
    ) -> tuple[Pixels, Scan]:
        settings = self._settings
        known = image.mapping
        advance = _scaled(self._progress, images.count)
        if known and known.bits == settings.bits and not (settings.limited or settings.eman_compat):
            storage = Storage(known.dtype, settings.level, None)
            pixels = write_pixels(group, _Codes(image), storage, self._work, advance)
            source: Any = image.attributes
            lost += copy_attributes(source, group, _unless({"EMAN.render_compress_level"}))
            write_attribute(group, "EMAN.render_compress_level", settings.level)
            _scale(group, known)
            return pixels, Scan()
        passes = 2 + settings.limited + settings.no_outliers
        advance = _scaled(advance, passes if settings.bits > 0 else 2)
        found = look(image, self._work, advance=advance)
        if self._strict and found.finite < found.size:
            raise InputError(f"{found.size - found.finite} values are not finite (--strict)")
        mapping = self._mapping(image, found, advance) if settings.bits > 0 else None
        dtype = mapping.dtype if mapping else _FLOAT
        level = settings.level if settings.bits >= 0 else None
        storage = Storage(dtype, level, mapping, self._measure)
        pixels = write_pixels(group, image, storage, self._work, advance)
        header = image.header()
        items = _items(image, found, dtype, header)
        items |= {"source_path": str(images.path), "source_n": index}
        if level is not None:
            items["render_compress_level"] = level
        if mapping:
            items |= {"stored_renderbits": mapping.bits, "stored_rendermin": mapping.low}
            items |= {"stored_rendermax": mapping.high}
            items |= {"stored_truncated": min(pixels.outside, _INT32)}
            _scale(group, mapping)
        lost += _write_header(group, image, header, items)
        return pixels, found

    def _mapping(self, image: FileImage, found: Scan, advance: Progress) -> Limits:
        """Limits of the codes of an image."""
        settings = self._settings
        limits = self._limits(image, found, advance)
        clipped = look(image, self._work, *limits, advance=advance) if limits else found
        if not settings.eman_compat:
            return choose_mapping(clipped, settings.bits)
        first = next(iter(image.read((slice(0, 1),)).flat))
        return eman2_mapping(clipped, float(first), limits, settings.bits)

    def _limits(
        self, image: FileImage, found: Scan, advance: Progress
    ) -> tuple[float, float] | None:
        """The limits asked for; whole numbers for images of whole numbers."""
        settings, compat = self._settings, self._settings.eman_compat
        if not found.finite:
            return None
        if settings.no_outliers:
            low, high = found.minimum, found.maximum
            if compat and low < high:
                counts = map(lambda part: eman2_bins(part, low, high), _parts(image, advance))
                limits = eman2_outliers(reduce(np.add, counts).tolist(), low, high)
            else:
                extremes = Extremes(max(found.size // 20000, 8) + 1)
                for part in _parts(image, advance):
                    extremes.add(part)
                    del part  # before the next slab is read
                limits = extremes.limits()
        elif settings.limits is not None:
            limits = settings.limits
        elif settings.sigmas is not None:
            below, above = settings.sigmas
            limits = (found.mean - below * found.sigma, found.mean + above * found.sigma)
        else:
            return None
        if limits and found.integers and not compat:
            limits = (float(round(limits[0])), float(round(limits[1])))
        return limits if limits and usable(limits) else None


class _Codes:
    """The codes of a compressed image in place of its values."""

    def __init__(self, image: FileImage):
        dataset: Any = image.dataset
        self.shape, self.depth, self._dataset = image.shape, image.depth, dataset

    def read(self, region: tuple[slice, ...]) -> np.ndarray:
        """A part."""
        extra = self._dataset.ndim - len(self.shape)
        part = self._dataset[(slice(0, 1),) * extra + region]
        return part.reshape(part.shape[extra:])


def _slabs(image: Image, advance: Progress) -> Iterator[Iterator[np.ndarray]]:
    """Slabs in order, each as an iterator over its parts, which must not be kept."""
    rows = chunk_shape(image.shape, 2)[-2:][0]
    for region in slabs(image.shape, rows, image.depth):
        values = image.read(region)
        yield (part for _, part in pieces(region, values, rows))
        advance(values.size / math.prod(image.shape))
        del values  # before the next slab is read


def _parts(image: Image, advance: Progress) -> Iterator[np.ndarray]:
    for slab in _slabs(image, advance):
        yield from slab


def look(
    image: Image,
    work: Work,
    low: float = -np.inf,
    high: float = np.inf,
    advance: Progress = lambda share: None,
) -> Scan:
    """One pass over an image.

    Args:
        image: read slab by slab.
        work: a map.
        low: values below count as this.
        high: values above count as this.
        advance: told the share of the image that was looked at last.
    """
    found = Scan()
    for slab in _slabs(image, advance):
        found = reduce(join, work(lambda part: scan(part, low, high), slab), found)
        del slab  # before the next one is read
    return found


def _items(image: Image, found: Scan, dtype: np.dtype, header: Mapping[str, Any]) -> dict[str, Any]:
    """Header items that are made anew."""
    nz, ny, nx = (1, 1, 1, *image.shape)[-3:]
    items = array_items((nz, ny, nx), _DATATYPES[dtype.itemsize], found.statistics())
    for axis in "xyz":
        items[f"apix_{axis}"] = _number(header.get(f"apix_{axis}"), 1.0)
        items[f"origin_{axis}"] = _number(header.get(f"origin_{axis}"), 0.0)
    count = header.get("changecount", 0)
    return items | {"changecount": count if isinstance(count, int) else 0}


def _number(value: Any, otherwise: float) -> np.float32:
    return np.float32(value if isinstance(value, (int, float)) else otherwise)


def _write_header(
    group: h5py.Group, image: FileImage, header: Mapping[str, Any], items: Mapping[str, Any]
) -> list[str]:
    """Attributes: those of the source as they are, then the items; names of those left out."""
    made = DERIVED | set(items)
    lost = []
    if image.attributes is not None:
        names = {f"EMAN.{name}" for name in made}
        lost = copy_attributes(image.attributes, group, _unless(names))
    else:
        for name in header.keys() - made:
            try:
                write_attribute(group, f"EMAN.{name}", header[name])
            except InputError:
                lost.append(name)
    for name, value in items.items():
        write_attribute(group, f"EMAN.{name}", value)
    return lost


def _unless(names: set[str] | frozenset[str]) -> Callable[[str], str | None]:
    return lambda name: None if name in names else name


def _scaled(progress: Progress, count: int) -> Progress:
    return lambda share: progress(share / count)


def _scale(group: h5py.Group, mapping: Limits) -> None:
    """The names by which general HDF5 programs find the scale of stored integers."""
    dataset = group["image"]
    dataset.attrs["scale_factor"] = (float(mapping.high) - float(mapping.low)) / mapping.top
    dataset.attrs["add_offset"] = float(mapping.low)


def _verify(path: pathlib.Path, checks: list[dict]) -> None:
    with HdfReader(path) as reader:
        if len(reader) != len(checks):
            raise InputError(f"{len(checks)} images were written, but {len(reader)} read back")
        for index, expected in enumerate(checks):
            check_pixels(reader.dataset(index), expected)


def decompress_mrc(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    progress: Progress = lambda share: None,
    *,
    split: bool | None = None,
    unsigned: bool = False,
) -> Outcome:
    """Write the images of a file, restored, as a float32 MRC file, atomically.

    One volume is a map, images are an image stack, several volumes a volume stack.

    Args:
        source: any readable file whose images have one shape.
        target: the MRC file to create or replace.
        progress: told the share of the file that was done last.
        split: as in :func:`compress_file`.
        unsigned: likewise.

    Raises:
        InputError: the source cannot be read, its images differ in shape, or the target cannot
            be written.
    """
    with open_input(source, split=split, unsigned=unsigned) as images:
        first = images.image(0)
        shape = first.shape if len(first.shape) > 1 else (1, *first.shape)
        header = first.header()

        def parts() -> Iterator[tuple[tuple[int | slice, ...], np.ndarray]]:
            for index in range(images.count):
                image = images.image(index)
                if image.shape != first.shape:
                    raise InputError(
                        f"{source} image {index} has the shape {image.shape}, image 0"
                        f" {first.shape}; an MRC file holds images of one shape."
                    )
                for region in slabs(image.shape, 1, image.depth):
                    values = image.read(region).astype(np.float32, copy=False)
                    place = region if len(first.shape) > 1 else (0,)
                    yield ((index, *place) if images.count > 1 else place), values
                    progress(values.size / math.prod(image.shape) / images.count)

        full = (images.count, *shape) if images.count > 1 else shape
        apix = float(_number(header.get("apix_x"), 1.0))
        try:
            write_mrc_parts(target, full, parts(), apix, header, images=len(shape) == 2)
        except (OSError, RuntimeError) as error:
            raise InputError(f"Cannot write {target}: {_reason(error)}.") from error
        values = images.count * math.prod(shape)
        return Outcome(images.count, os.path.getsize(source), os.path.getsize(target), values)
