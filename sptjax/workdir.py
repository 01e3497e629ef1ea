"""Run folders: numbered, self-describing, and readable after a kill at any moment.

A run reserves ``<stem>_01``, ``<stem>_02``... and keeps there

* ``manifest.json`` and ``parameters_<program>.txt``: what was run, with what, where and when;
* ``state_<round>.npz``: everything needed to go on after that round, with a checksum;
* ``log.jsonl``: one JSON line per round.

Whole files appear under their final name at once or not at all. A state that is damaged all
the same (a full disk, a bad copy) fails its checksum and the round before it is used.
"""

import dataclasses
import datetime
import hashlib
import importlib.metadata
import io
import json
import os
import pathlib
import platform
import re
import shlex
import sys
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ._errors import InputError
from .io._atomic import atomic_path

# Options that a resumed run may change: where it runs, what it prints and keeps, how long it goes.
FREE_ON_RESUME = frozenset(
    "path resume iter parallel coordinator num_processes process_id memory scratch ppid verbose"
    " plots savesteps saveali saveallalign savepreproc".split()
)

_PACKAGES = ("jax", "jaxlib", "numpy")
_MANIFEST = "manifest.json"
_STATE = re.compile(r"state_(\d+)\.npz")
_META = "meta.json"
# What reading a damaged zip archive or its contents can raise; zipfile's NotImplementedError stands
# for a damaged byte that names a compression it does not know.
_DAMAGE = (zipfile.BadZipFile, ValueError, KeyError, EOFError, NotImplementedError, RuntimeError)


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a run is, written once at its start.

    Attributes:
        program: such as ``refinemulti``.
        command: the command line, quoted for a shell.
        options: every option with its resolved value.
        seed: of all random numbers.
        device: what it runs on, in words.
        versions: of Python and the packages that decide the numbers.
        started: ISO 8601, UTC.
    """

    program: str
    command: str
    options: Mapping[str, Any]
    seed: int
    device: str
    versions: Mapping[str, str]
    started: str


@dataclasses.dataclass(frozen=True)
class RoundState:
    """The newest intact round of a run.

    Attributes:
        index: of the round.
        arrays: as given to :func:`save_round`, ``[...]``, bit for bit.
        meta: as given to :func:`save_round`, through JSON.
        skipped: names of newer state files that are damaged.
    """

    index: int
    arrays: dict[str, np.ndarray]
    meta: dict[str, Any]
    skipped: tuple[str, ...] = ()


# ---------------------------------------------------------------- folders


def reserve(stem: str | os.PathLike[str]) -> pathlib.Path:
    """Create ``<stem>_NN``, the first unused number from 01 (three digits past 99).

    Two jobs started together get two folders. Parents are created.

    Raises:
        InputError: the stem names nothing, or the folder cannot be made there.
    """
    path = pathlib.Path(stem)
    if not path.name or path.name == "..":
        raise InputError(f"--path={stem}: expected the beginning of a folder name.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path.parent}: cannot create this folder, {error.strerror}.") from error
    number = 0
    while True:
        number += 1
        folder = path.with_name(f"{path.name}_{number:02d}")
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        except OSError as error:
            raise InputError(f"{folder}: cannot create this folder, {error.strerror}.") from error
        return folder


def latest(stem: str | os.PathLike[str]) -> pathlib.Path:
    """The run to resume: the folder itself if it is one, else the last started ``<stem>_NN``.

    Raises:
        InputError: there is no such run (a folder without manifest is none).
    """
    path = pathlib.Path(stem)
    if (path / _MANIFEST).is_file():
        return path
    numbered = re.compile(re.escape(path.name) + r"_(\d{2,})")
    runs = []
    for folder in path.parent.glob("*") if path.name else ():
        match = numbered.fullmatch(folder.name)
        if match and (folder / _MANIFEST).is_file():
            runs.append((read_manifest(folder).started, int(match[1]), folder))
    if not runs:
        raise InputError(f"{path}: there is no run to resume, neither here nor in {path}_NN.")
    return max(runs)[-1]


# ---------------------------------------------------------------- manifest


def describe(
    program: str, argv: Sequence[str], options: Mapping[str, Any], seed: int, device: str
) -> Manifest:
    """The manifest of a run that starts now, with the versions installed here.

    Args:
        program: its name.
        argv: the command line.
        options: by name, with their values.
        seed: of all random numbers.
        device: what it computes on, in words.
    """
    versions = {"sptjax": sys.modules[__package__ or ""].__version__}  # also from a checkout
    versions |= {package: importlib.metadata.version(package) for package in _PACKAGES}
    versions["python"] = platform.python_version()
    started = datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds")
    return Manifest(program, shlex.join(argv), _plain(options), seed, device, versions, started)


def write_manifest(folder: str | os.PathLike[str], manifest: Manifest) -> None:
    """Write ``parameters_<program>.txt``, then ``manifest.json``.

    The text file is EMAN2's: the time, one ``name=value`` line per option, an empty line, the
    command.

    Args:
        folder: of the run.
        manifest: of the run.
    """
    root = pathlib.Path(folder)
    options = [f"{name}={value}" for name, value in manifest.options.items()]
    lines = [manifest.started, *options, "", manifest.command, ""]
    _write(root / f"parameters_{manifest.program}.txt", "\n".join(lines).encode())
    text = json.dumps(dataclasses.asdict(manifest), indent=1, default=_jsonable)
    _write(root / _MANIFEST, text.encode())


def read_manifest(folder: str | os.PathLike[str]) -> Manifest:
    """Read ``manifest.json``.

    Args:
        folder: of the run.

    Raises:
        InputError: it is missing or not a manifest.
    """
    path = pathlib.Path(folder) / _MANIFEST
    try:
        return Manifest(**json.loads(path.read_bytes()))
    except OSError as error:
        raise InputError(f"{path}: cannot read the manifest, {error.strerror}.") from error
    except (ValueError, TypeError) as error:
        raise InputError(f"{path}: this is not the manifest of a run ({error}).") from error


def check_resume(
    folder: str | os.PathLike[str],
    options: Mapping[str, Any],
    free: Iterable[str] = FREE_ON_RESUME,
) -> None:
    """Refuse to go on with other options than the run was started with.

    Args:
        folder: of the run.
        options: resolved options of this call.
        free: names that may differ because they do not change the result of a round.

    Raises:
        InputError: names every option that differs, with both values.
    """
    before, now = read_manifest(folder).options, _plain(options)
    differ = []
    for name in sorted({*before, *now} - set(free)):
        old, new = (json.dumps(o[name]) if name in o else "absent" for o in (before, now))
        if old != new and not (name in before and name in now and before[name] == now[name]):
            differ.append(f"--{name} (was {old}, is {new})")
    if differ:
        raise InputError(f"{folder}: cannot resume with other options: {', '.join(differ)}.")


def sweep(folder: str | os.PathLike[str]) -> None:
    """Remove the unfinished files that a killed run left behind.

    Args:
        folder: of the run.
    """
    for path in pathlib.Path(folder).glob(".*.tmp"):
        path.unlink(missing_ok=True)


# ---------------------------------------------------------------- rounds


def save_round(
    folder: str | os.PathLike[str],
    round_index: int,
    arrays: Mapping[str, np.ndarray],
    meta: Mapping[str, Any],
) -> pathlib.Path:
    """Write ``state_<round>.npz`` at once: all arrays, the meta data and their SHA-256.

    ``numpy.load`` reads it too; ``meta.json`` is one of its members.

    Args:
        folder: of the run.
        round_index: from 0 on.
        arrays: by name, of any shape ``[...]``.
        meta: what JSON can hold.

    Raises:
        TypeError: an array of Python objects or of a type that NumPy's format cannot keep, or
            meta data that JSON cannot keep.
    """
    arrays = {name: np.asarray(array) for name, array in arrays.items()}
    for name, array in arrays.items():
        if array.dtype.hasobject or (array.dtype.kind == "V" and array.dtype.names is None):
            raise TypeError(f"cannot save {name!r} of type {array.dtype}")
    head = _plain({"round": round_index, "meta": meta})
    head["sha256"] = _digest(head, arrays)
    path = pathlib.Path(folder) / f"state_{round_index}.npz"
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        archive.writestr(zipfile.ZipInfo(_META), json.dumps(head))
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
    return path


def load_last_round(folder: str | os.PathLike[str]) -> RoundState | None:
    """Read the newest intact state; None if there is none.

    Args:
        folder: of the run.

    Raises:
        OSError: a state file exists and cannot be read at all.
    """
    found = ((_STATE.fullmatch(path.name), path) for path in pathlib.Path(folder).iterdir())
    rounds = sorted(((int(match[1]), path) for match, path in found if match), reverse=True)
    skipped: list[str] = []
    for index, path in rounds:
        content = path.read_bytes()
        try:
            arrays, meta = _decode(content, index)
        except _DAMAGE:
            skipped.append(path.name)
        else:
            return RoundState(index, arrays, meta, tuple(skipped))
    return None


def append_line(folder: str | os.PathLike[str], name: str, record: Mapping[str, Any]) -> None:
    """Add one JSON line to a log; half a line left by a killed run is removed first.

    Args:
        folder: of the run.
        name: of the log.
        record: what JSON can hold.
    """
    line = json.dumps(record, default=_jsonable) + "\n"
    with open(pathlib.Path(folder) / name, "a+b") as log:
        size = log.tell()
        log.seek(max(size - 1, 0))
        if log.read(1) not in (b"", b"\n"):
            log.seek(0)
            log.truncate(log.read().rfind(b"\n") + 1)
        log.write(line.encode())
        log.flush()
        os.fsync(log.fileno())


def read_lines(folder: str | os.PathLike[str], name: str) -> list[dict[str, Any]]:
    """The whole lines of a log written by :func:`append_line`; empty if there is no log.

    Args:
        folder: of the run.
        name: of the log.
    """
    path = pathlib.Path(folder) / name
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


# ---------------------------------------------------------------- helpers


def _decode(content: bytes, index: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays and meta data of a state file; one of ``_DAMAGE`` unless all of it is intact."""
    arrays = {}
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        head = json.loads(archive.read(_META))
        for member in archive.namelist():
            if member != _META:
                data = io.BytesIO(archive.read(member))  # checks the CRC before anything is parsed
                array = np.lib.format.read_array(data, allow_pickle=False)
                arrays[member.removesuffix(".npy")] = array
    stated = head.pop("sha256")
    if stated != _digest(head, arrays) or head["round"] != index:
        raise ValueError("the content does not match its checksum")
    return arrays, head["meta"]


def _digest(head: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256(json.dumps(head, sort_keys=True).encode())
    for name in sorted(arrays):
        array = arrays[name]
        description = [name, np.lib.format.dtype_to_descr(array.dtype), array.shape]
        digest.update(json.dumps(description).encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _plain(value: Any) -> Any:
    """As JSON would give it back."""
    return json.loads(json.dumps(value, default=_jsonable))


def _jsonable(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"cannot write {value!r} as JSON")


def _write(path: pathlib.Path, content: bytes) -> None:
    with atomic_path(path) as temporary:
        pathlib.Path(temporary).write_bytes(content)
