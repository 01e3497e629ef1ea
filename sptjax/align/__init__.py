"""Search over orientations and shifts: prepare references once, align many particles."""

from ._aligners import ALIGNERS as ALIGNERS
from ._aligners import FINE_ALIGNERS as FINE_ALIGNERS
from ._aligners import Aligner as Aligner
from ._aligners import Refine3D as Refine3D
from ._aligners import RotateTranslate3D as RotateTranslate3D
from ._aligners import RotateTranslate3DTree as RotateTranslate3DTree
from ._drive import AlignmentSettings as AlignmentSettings
from ._drive import Found as Found
from ._drive import align_particles as align_particles
from ._drive import make_plan as make_plan
from ._grid import grid_search as grid_search
from ._plan import SearchPlan as SearchPlan
from ._plan import Stage as Stage
from ._plan import information as information
from ._plan import particle_radius as particle_radius
from ._plan import plan_search as plan_search
from ._refine import refine_pose as refine_pose
from ._search import Search as Search
from ._search import align as align
from ._search import coarse_candidates as coarse_candidates
from ._search import prepare as prepare
from ._search import reference_spectrum as reference_spectrum
from ._search import refine_candidates as refine_candidates
from ._search import stack_tables as stack_tables
from ._symmetry_align import align_to_symmetry as align_to_symmetry
from ._symmetry_align import best_symmetry_copy as best_symmetry_copy
