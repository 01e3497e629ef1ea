"""Files: EMAN2 HDF, MRC and EM images, EMAN2's JSON dictionaries and class matrices."""

from ._atomic import atomic_path as atomic_path
from .classmx import ClassMatrix as ClassMatrix
from .classmx import read_classmx as read_classmx
from .classmx import write_classmx as write_classmx
from .em import EmReader as EmReader
from .em import write_em as write_em
from .eman_json import read_alignments as read_alignments
from .eman_json import read_extras as read_extras
from .eman_json import read_json as read_json
from .eman_json import transform_from_json as transform_from_json
from .eman_json import transform_to_json as transform_to_json
from .eman_json import write_alignments as write_alignments
from .eman_json import write_json as write_json
from .hdf import HdfReader as HdfReader
from .hdf import HdfWriter as HdfWriter
from .hdf import read_hdf as read_hdf
from .hdf import write_hdf as write_hdf
from .lst import LstEntry as LstEntry
from .lst import read_lst as read_lst
from .mrc import MrcReader as MrcReader
from .mrc import read_mrc as read_mrc
from .mrc import write_mrc as write_mrc
from .stack import Stack as Stack
from .stack import open_reader as open_reader
from .stack import open_stack as open_stack
from .stack import read_volume as read_volume
