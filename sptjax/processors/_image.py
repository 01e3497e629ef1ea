"""Parameters that are volumes: given as an array, or by the name of a file."""

import jax.numpy as jnp
import numpy as np

from .._errors import InputError
from .._types import Volume
from ..io.stack import read_volume

Image = str | np.ndarray | Volume


def load(image: Image) -> Volume:
    """The volume itself, float32 ``[z, y, x]``; a name (``file`` or ``file:n``) is read.

    Raises:
        InputError: the file cannot be read, or the array is not of rank 3.
    """
    values = read_volume(image)[0] if isinstance(image, str) else image
    if values.ndim != 3:
        raise InputError(f"A volume is needed, not an array of shape {values.shape}.")
    return jnp.asarray(values, jnp.float32)


def load_optional(image: Image | None) -> Volume | None:
    """As :func:`load`; None stays None."""
    return None if image is None else load(image)


def check_same_shape(what: str, image: Volume, volume: Volume) -> None:
    """Raise InputError unless both have the same box."""
    if image.shape != volume.shape:
        raise InputError(f"{what} has the shape {image.shape}, but the volume {volume.shape}.")
