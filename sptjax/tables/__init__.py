"""Tables of particles of other programs, read into one record and written from it."""

from ._formats import FORMATS as FORMATS
from ._formats import Format as Format
from ._formats import choose as choose
from ._formats import read as read
from ._formats import write as write
from ._record import Extents as Extents
from ._record import ParticleTable as ParticleTable
from ._record import names as names
from ._relion import read_extents as read_extents
