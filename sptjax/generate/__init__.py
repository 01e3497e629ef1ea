"""References from the particles themselves.

Binary tree, hierarchical ascendant classification and self-symmetry, over the sampling of every
particle. All of them hand over a :class:`Generated` map with the poses of the particles in it.
"""

from ._maps import Generated as Generated
from ._material import Material as Material
from ._material import Objects as Objects
from ._material import prepare as prepare
from ._pairs import Pairs as Pairs
from ._pairs import PairSearch as PairSearch
from ._pairs import align_pairs as align_pairs
from ._pairs import plan_pairs as plan_pairs
from ._tree import Tree as Tree
from ._tree import TreeSettings as TreeSettings
from ._tree import binary_tree as binary_tree
from ._tree import largest_power_of_two as largest_power_of_two
from ._tree import tree_reference as tree_reference
