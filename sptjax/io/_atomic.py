"""Files appear whole or not at all: write beside the target, flush to disk, rename."""

import contextlib
import os
import pathlib
import secrets
from collections.abc import Iterator

from sptjax._errors import InputError


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """Yield a temporary path in the folder of `path`; rename it to `path` on success.

    A reader sees the old file or the new one, never a part. If the block raises, the
    temporary file is removed and an existing `path` is untouched. A symbolic link is
    followed, so the file behind it is replaced.

    Args:
        path: The file to create or replace.

    Yields:
        The path to write to. It does not exist yet; it lies in the same folder (so the
        rename cannot cross file systems).

    Raises:
        InputError: The folder is missing or not writable, or `path` is a folder.
    """
    target = pathlib.Path(os.path.realpath(path))
    if target.is_dir():
        raise InputError(f"{path} is a folder, so no file can be written there.")
    if not target.parent.is_dir():
        raise InputError(f"Cannot write {path}: the folder {target.parent} does not exist.")
    if not os.access(target.parent, os.W_OK):
        raise InputError(f"Cannot write {path}: the folder {target.parent} is not writable.")
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        _flush(temporary)
        os.replace(temporary, target)
        with contextlib.suppress(OSError):  # some file systems cannot flush a folder
            _flush(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _flush(path: pathlib.Path) -> None:
    """Force a file or a folder entry to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
