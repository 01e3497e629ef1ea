"""References from the particles themselves.

Binary tree, hierarchical ascendant classification and self-symmetry, over the sampling of every
particle. All of them hand over a :class:`Generated` map with the poses of the particles in it.
"""

from ._hac import Dendrogram as Dendrogram
from ._hac import HacSettings as HacSettings
from ._hac import Node as Node
from ._hac import Round as Round
from ._hac import classify_ascending as classify_ascending
from ._hac import hac_reference as hac_reference
from ._maps import Generated as Generated
from ._material import Material as Material
from ._material import Objects as Objects
from ._material import prepare as prepare
from ._merging import Rules as Rules
from ._merging import clusters as clusters
from ._merging import exclusive as exclusive
from ._merging import score_matrix as score_matrix
from ._pairs import Pairs as Pairs
from ._pairs import PairSearch as PairSearch
from ._pairs import align_pairs as align_pairs
from ._pairs import plan_pairs as plan_pairs
from ._self_symmetry import OnAxes as OnAxes
from ._self_symmetry import SymmetrySettings as SymmetrySettings
from ._self_symmetry import Together as Together
from ._self_symmetry import bring_together as bring_together
from ._self_symmetry import in_one_frame as in_one_frame
from ._self_symmetry import on_symmetry_axes as on_symmetry_axes
from ._self_symmetry import put_on_axes as put_on_axes
from ._self_symmetry import symmetry_reference as symmetry_reference
from ._sgd import Descent as Descent
from ._sgd import SgdSettings as SgdSettings
from ._sgd import generate_sgd as generate_sgd
from ._tree import Level as Level
from ._tree import Tree as Tree
from ._tree import TreeSettings as TreeSettings
from ._tree import binary_tree as binary_tree
from ._tree import largest_power_of_two as largest_power_of_two
from ._tree import tree_reference as tree_reference
