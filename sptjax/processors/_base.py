"""What a processor is: a record of parameters that turns one volume into another."""

import abc
import functools
from typing import ClassVar

import equinox as eqx
from jaxtyping import Array, Float

from .._types import Volume

key = functools.partial(eqx.field, static=True)  # a parameter of the option language


class Processor(eqx.Module):
    """One named processing step with its parameters (EMAN2 *processor*).

    The fields of a subclass are the keys of the option language. Unless ``host`` is true, the
    call can be jitted, mapped over volumes and differentiated as far as the mathematics allows.
    """

    host: ClassVar[bool] = False  # runs in NumPy outside jit

    @abc.abstractmethod
    def __call__(self, volume: Volume, apix: float, *, mask: Volume | None = None) -> Volume:
        """Process one volume.

        Args:
            volume: ``[z, y, x]``, cubic.
            apix: voxel size, angstrom; cut-offs in 1/angstrom are converted with it.
            mask: used by steps that normalise inside a mask.
        """

    def output_box(self, box: int) -> int:
        """Edge of the result for a volume of edge ``box``."""
        return box

    def output_apix(self, apix: float, box: int) -> float:
        """Voxel size of the result for a volume of edge ``box``, angstrom."""
        return apix


class Centring(Processor):
    """A processor that only moves its volume."""

    @abc.abstractmethod
    def shift(self, volume: Volume, apix: float) -> Float[Array, "3"]:
        """Translation ``(x, y, z)`` that it applies, voxels."""
