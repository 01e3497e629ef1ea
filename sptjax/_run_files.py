"""What the files of a run folder are, by their names."""

import re

# Patterns and what a file that matches is; {0}, {1} are the groups of the pattern. The first that
# matches counts. "it" is a round, "c" a class.
_IT = r"(\d+)"
_WHAT: tuple[tuple[str, str], ...] = (
    (r"class_avgs\.hdf", "class averages of the last round, unfiltered, one image per class"),
    (r"final_avg\.hdf", "the average, unfiltered"),
    (r"final_avg_(even|odd)\.hdf", "average of the {0} particles"),
    (r"final_avg_ali2ref\.hdf", "the average, moved onto the given reference"),
    (r"final_avg_mirror\.hdf", "mirror image of the average"),
    (r"final_nodes\.hdf", "all nodes of the last level of the tree"),
    (r"recomp_avg\.hdf", "averages with the classes and poses given"),
    (r"recomp_avg_(even|odd)\.hdf", "the same of the {0} particles"),
    (r".*_postproc(_iter\d+)?\.hdf", "averages after --postprocess"),
    (rf"class_avgs_iter{_IT}\.hdf", "class averages of round {0}"),
    (r"class_(\d+)\.hdf", "averages of class {0}, one image per round"),
    (r"avgs_(even|odd)\.hdf", "averages of the {0} particles, one image per round"),
    (r"avgs_ali2ref\.hdf", "averages moved onto the given reference, one image per round"),
    (rf"classmx_{_IT}\.hdf", "class matrix of round {0}: class, weight and pose of every particle"),
    (r"(class\d+_)?classmx_msa\.hdf", "class matrix: class and pose of every particle"),
    (r"(class\d+_)?class_avgs_msa\.hdf", "class averages, one image per class"),
    (r"(class\d+_)?msa_basis\.hdf", "mean of the particles, then the eigenvolumes"),
    (r"(class\d+_)?msa_projection\.txt", "coordinates of every particle along the eigenvolumes"),
    (r"sptali_r[mi]_coarse_allpeaks_.*\.json", "all coarse poses of the particles"),
    (r"sptali_ir_.*_oddali2even\.json", "how the odd half was moved onto the even one"),
    (r"sptali_.*_ext\.json", "class, weight, half and margin of every particle"),
    (
        rf"sptali_rm_{_IT}_(\d+)\.json",
        "pose and score of every particle against class {1}, round {0}",
    ),
    (rf"sptali_ir_{_IT}\.json", "pose and score of every particle, round {0}"),
    (r"sptali_.*\.json", "pose and score of every particle"),
    (r".*\.star", "particles with their poses, for RELION 4 and 5"),
    (rf"fsc_{_IT}.*\.txt", "FSC of round {0}: frequency in 1/Å, correlation"),
    (r"recompute_fsc.*\.txt", "FSC: frequency in 1/Å, correlation"),
    (rf"uncertainty_{_IT}\.(hdf|json)", "error bars of the poses of round {0}"),
    (r"resolution\.json", "resolution in Å at FSC 0.143 and 0.5, by round, class and curve"),
    (rf"spt_cccs_{_IT}_(\w+)\.txt", "scores of round {0}, {1}, best first"),
    (r"spt_meanccc\.txt", "mean score of every round"),
    (r"class_membership\.txt", "particles of every class, by round; an asterisk marks newcomers"),
    (r"stability\.(txt|json)", "how far the runs with several seeds agree"),
    (r"class\d+_ptcl.*\.hdf|aliptcls.*\.hdf|final_ali_stack\.hdf", "particles, aligned"),
    (r"class(\d+)_varmap\.hdf", "variance over the aligned particles of class {0}"),
    (r"class(\d+)_boot(mean|var)\.hdf", "{1} over resampled averages of class {0}"),
    (r"ref.*_preproc(fine)?\.hdf", "references as the alignment sees them"),
    (r".*_preproc(fine)?\.hdf", "particles as the alignment sees them"),
    (r"ref_?(\d+|even|odd)\.hdf", "reference made from the particles ({0})"),
    (r"bt_poses\.json", "pose of every particle of the average"),
    (r"seedtree_(\d+)\.hdf", "nodes of level {0} of the tree"),
    (r"symxform\.json", "pose and score of every particle on the axes of the symmetry"),
    (r"final_xform\.json", "poses of the particles of the average"),
    (r"kept_ptcls_(\d+)\.json", "particles kept in round {0} of averaging"),
    (r"hac_final\.json", "poses of the particles in what is left of the tree"),
    (r"ali_info_(\d+)\.json", "poses of the members of the averages of round {0}"),
    (r"ranking(\d+)\.txt", "pairs of round {0}, best first"),
    (r"simmx_(\d+)\.hdf", "scores and poses of all pairs of round {0}"),
    (r"simmx_(\d+)_PLOT_info\.txt", "names of the rows of the matrix of round {0}"),
    (r"simmx_(\d+)_PLOT\.(txt|png)", "scores of the pairs of round {0}"),
    (r"round(\d+)_averages\.hdf", "averages made in round {0}"),
    (r"clusters\.json", "particles in clusters along the ranking"),
    (r"me_class(\d+)_s(\d+)\.hdf", "mutually exclusive average {0}, of {1} particles"),
    (r"dendrogram\.txt", "what merged with what, in order"),
    (r"slices\.png", "central slices of the averages"),
    (r"projections\.png", "projections of the averages"),
    (rf"fsc_{_IT}\.png", "FSC curves of round {0}"),
    (rf"spt_cccs_{_IT}\.png", "scores of round {0}"),
    (r"margins\.png", "how clear the classes of the particles are"),
    (r"class_occupancy\.png", "class sizes by round"),
    (r"class_flow\.png", "particles that move between classes"),
    (r"directions\.png", "viewing directions"),
    (r"coverage\.png", "sampling of Fourier space"),
    (r"dendrogram\.png", "tree of merged particles"),
    (r"(class\d+_)?msa_scatter\.png", "particles along the first two eigenvolumes"),
    (r"(class\d+_)?class_avgs_msa\.png", "central slices of the class averages"),
    (r".*\.png", "central slices of the map of the same name"),
    (r"manifest\.json", "command, options, versions, seed and device"),
    (r"parameters_\w+\.txt", "the same as text"),
    (r"log\.jsonl", "one line per round: changes of class, score, resolution, time"),
    (r"messages\.log", "everything that the run printed"),
    (rf"state_{_IT}\.npz", "what --resume needs to go on after {0} rounds"),
    (r"report\.html", "report of the run in this folder"),
)


def describe(name: str) -> str:
    """What a file of a run folder is; empty if the name is none of those that runs write.

    Args:
        name: without its folder.
    """
    for pattern, text in _WHAT:
        match = re.fullmatch(pattern, name)
        if match:
            return text.format(*match.groups())
    return ""
