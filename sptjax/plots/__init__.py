"""Figures of a run. Each function takes NumPy arrays and returns a ``matplotlib`` Figure.

Figures are made without pyplot, so nothing needs a display and nothing stays in memory. Colours
are those of Okabe and Ito (distinct to colour-blind readers); past eight the line style changes.
"""

from ._classes import class_flow as class_flow
from ._classes import class_occupancy as class_occupancy
from ._compression import compression as compression
from ._coverage import fourier_coverage as fourier_coverage
from ._coverage import viewing_directions as viewing_directions
from ._maps import central_slices as central_slices
from ._maps import projections as projections
from ._resolution import fsc_curves as fsc_curves
from ._scores import margins as margins
from ._scores import ranked_scores as ranked_scores
from ._scores import score_histogram as score_histogram
from ._sorting import coordinates as coordinates
from ._sorting import dendrogram as dendrogram
from ._style import OKABE_ITO as OKABE_ITO
from ._style import save as save
