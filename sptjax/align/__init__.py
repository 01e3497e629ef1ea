"""Search over orientations and shifts: prepare references once, align many particles."""

from ._plan import SearchPlan as SearchPlan
from ._plan import Stage as Stage
from ._plan import information as information
from ._plan import particle_radius as particle_radius
from ._plan import plan_search as plan_search
from ._search import Search as Search
from ._search import align as align
from ._search import prepare as prepare
from ._search import reference_spectrum as reference_spectrum
