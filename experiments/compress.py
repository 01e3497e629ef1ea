"""Compress image files to HDF that keeps only the bits that matter.

Options and results are those of e2compress.py.

sptjax compress --bits=5 --nooutliers --outpath=../micrographs_5bit *.mrc
sptjax compress tomogram.hdf                      # replaced, once verified
sptjax compress --decompress --format=mrc tomogram.hdf

Reads HDF, MRC, TIFF, EM, SPIDER and LST. Output is <outpath>/<stem>.hdf, or the input with the
extension .hdf; an HDF input is replaced. Exit status 0, 1 if a file failed (the others are
done), 2 for a command line that makes no sense (nothing is done).
"""

import dataclasses
import functools
import glob
import importlib.metadata
import json
import math
import os
import pathlib
import re
import sys
import time
from collections.abc import Callable, Sequence

import _help
from _argv import take_back_v
from absl import flags
from tqdm import tqdm

from sptjax import fidelity
from sptjax._errors import InputError
from sptjax.console import say
from sptjax.io._atomic import atomic_path
from sptjax.io._pieces import usable_cores
from sptjax.io.compress import Compression, Outcome, compress_file, decompress_mrc

FLAGS = flags.FlagValues()
_UNREADABLE = {
    **dict.fromkeys((".dm3", ".dm4"), "Gatan Digital Micrograph files: save them as MRC or TIFF"),
    ".eer": "EER movies: sum them into frames first, as MRC or TIFF",
    ".hed": "IMAGIC files: convert them to HDF or MRC",
    ".img": "IMAGIC files: convert them to HDF or MRC",
    **dict.fromkeys((".png", ".jpg", ".jpeg", ".pgm"), "pictures: convert them to TIFF"),
}
_MAGIC_CHARACTERS = re.compile(r"[*?\[]")


class UsageError(InputError):
    """The command line makes no sense; nothing was done."""


def _define() -> None:
    number = functools.partial(flags.DEFINE_integer, flag_values=FLAGS)
    text = functools.partial(flags.DEFINE_string, flag_values=FLAGS)
    switch = functools.partial(flags.DEFINE_bool, flag_values=FLAGS)
    choice = functools.partial(flags.DEFINE_enum, flag_values=FLAGS)
    within = functools.partial(_help.group, values=FLAGS)
    with within("input"):
        switch("split", None, "sections of an MRC file are images; by default those of .mrcs are")
        switch("mrc_unsigned", False, "bytes of MRC files go from 0 to 255")
        switch("strict", False, "refuse files with values that are not finite")
    with within("compression"):
        number("bits", 10, "bits to keep: 2 to 16, 0 = the floats as they are, < 0 = plain")
        number("compresslevel", 1, "0 to 9: size and time only, no influence on the values")
        switch("nooutliers", False, "cut off the most extreme values, 1 of 20,000 at each end")
        text("range", None, "MIN,MAX: smallest and largest value to keep")
        text("sigrange", None, "A,B: keep A standard deviations below the mean and B above")
        switch("eman_compat", False, "choose limits as EMAN2 does, its defects included")
        switch("decompress", False, "write plain floats, for programs that show the codes")
    with within("output"):
        text(
            "outpath",
            None,
            "folder for the results, which must exist; beside the input if not given",
        )
        choice("format", "hdf", ["hdf", "mrc"], "of --decompress")
        switch("report", False, "errors and FSC: <output stem>_report.json and .png")
        switch("verify", False, "read every output back; one that replaces its input always is")
        number("verbose", 0, "0 quiet, 1 and more: a line and a progress bar per file")
    with within("compute"):
        number("threads", usable_cores(), "threads that compress", lower_bound=1)
        number("ppid", -1, "accepted and not used")
        switch("version", False, "print the version")
        switch("help", False, "print this help")


_define()


def pair(name: str) -> tuple[float, float] | None:
    """The two numbers of a flag."""
    given = FLAGS[name].value
    if given is None:
        return None
    try:
        low, high = (float(word) for word in given.split(","))
    except ValueError:
        raise UsageError(f"--{name}={given}: two numbers are needed, as in -3,3") from None
    return low, high


def settings() -> Compression:
    """Bits, level and limits; of several limits the first of outliers, range, sigmas counts."""
    limits, sigmas = pair("range"), pair("sigrange")
    if sum((FLAGS.nooutliers, limits is not None, sigmas is not None)) > 1:
        say("several of --nooutliers, --range, --sigrange are given: the first of them counts")
    if FLAGS.report and (FLAGS.decompress or FLAGS.bits < 0):
        raise UsageError("--report: plain floats have no errors to report")
    try:
        return Compression(
            bits=-1 if FLAGS.decompress else FLAGS.bits,
            level=FLAGS.compresslevel,
            no_outliers=FLAGS.nooutliers,
            limits=None if FLAGS.nooutliers else limits,
            sigmas=None if FLAGS.nooutliers or limits else sigmas,
            eman_compat=FLAGS.eman_compat,
        )
    except InputError as error:
        raise UsageError(str(error)) from error


def expanded(names: Sequence[str]) -> list[pathlib.Path]:
    """Files, shell patterns expanded unless a file has that very name."""
    out: dict[pathlib.Path, None] = {}
    for name in names:
        found = [name]
        if not os.path.exists(name) and _MAGIC_CHARACTERS.search(name):
            found = sorted(glob.glob(name)) or [name]
        out |= dict.fromkeys(map(pathlib.Path, found))
    return list(out)


def target(source: pathlib.Path) -> pathlib.Path:
    """Where the result of a file goes."""
    suffix = f".{FLAGS.format}" if FLAGS.decompress else ".hdf"
    folder = pathlib.Path(FLAGS.outpath) if FLAGS.outpath else source.parent
    return folder / f"{source.stem}{suffix}"


def plan(names: Sequence[str]) -> list[tuple[pathlib.Path, pathlib.Path]]:
    """Every input with its output, no two with one output."""
    jobs = [(source, target(source)) for source in expanded(names)]
    seen: dict[str, pathlib.Path] = {}
    for source, output in jobs:
        other = seen.setdefault(os.path.realpath(output), source)
        if other != source:
            raise UsageError(f"{other} and {source} would both be written to {output}")
    if not jobs:
        raise UsageError("no files are given; --help lists the options")
    return jobs


def convert(
    source: pathlib.Path,
    output: pathlib.Path,
    chosen: Compression,
    progress: Callable[[float], object],
) -> Outcome:
    """One file, with its report if one is wanted."""
    reason = _UNREADABLE.get(source.suffix.lower())
    if reason:
        raise InputError(f"{source} cannot be read. {reason}.")
    reading = {"split": FLAGS.split, "unsigned": FLAGS.mrc_unsigned}
    if FLAGS.decompress and FLAGS.format == "mrc":
        if output.exists():
            raise InputError(f"{output} exists and is not replaced; --outpath names a folder.")
        return decompress_mrc(source, output, progress, **reading)
    before = fidelity.crops(str(source), **reading) if FLAGS.report else []
    outcome = compress_file(
        source,
        output,
        chosen,
        threads=FLAGS.threads,
        verify=FLAGS.verify,
        strict=FLAGS.strict,
        **reading,
        measure=FLAGS.report,
        progress=progress,
    )
    if FLAGS.report:
        report(source, output, outcome, before)
    return outcome


def report(source: pathlib.Path, output: pathlib.Path, outcome: Outcome, before: list) -> None:
    """Write the fidelity of a file as JSON and as a picture."""
    from sptjax import plots  # matplotlib is slow to load

    fsc = fidelity.correlation(before, fidelity.crops(str(output)))
    by_bits = list(fidelity.tradeoffs(before, range(2, 17)))
    values = {
        "source": str(source),
        "output": str(output),
        "ratio_to_source": outcome.bytes_in / outcome.bytes_out,
        "ratio_to_float32": 4 * outcome.values / outcome.bytes_out,
        **dataclasses.asdict(outcome),
        "fsc": [None if math.isnan(x) else x for x in fsc.tolist()],
        "by_bits": [row._asdict() for row in by_bits],
    }
    text, drawing = (output.with_name(f"{output.stem}_report.{kind}") for kind in ("json", "png"))
    with atomic_path(text) as temporary:
        temporary.write_text(json.dumps(values, indent=1) + "\n")
    columns = {name: [getattr(row, name) for row in by_bits] for name in fidelity.Tradeoff._fields}
    errors = {"largest error": columns["worst_sigma"], "rms error": columns["rms_sigma"]}
    picture = plots.compression(columns["bits"], columns["ratio"], errors, fsc, FLAGS.bits)
    plots.save(picture, drawing)
    say(
        f"{output}: {values['ratio_to_float32']:.2f} times smaller than floats; errors in sigma:"
        f" largest {outcome.worst_sigma:.3g}, rms {outcome.rms_sigma:.3g};"
        f" lowest FSC {min((x for x in fsc if not math.isnan(x)), default=math.nan):.6f}"
    )


def describe(source: pathlib.Path, output: pathlib.Path, outcome: Outcome, seconds: float) -> None:
    """Lines about a finished file."""
    if outcome.not_finite:
        say(f"{source}: {outcome.not_finite} values were NaN or infinite and are replaced")
    if outcome.lost:
        say(f"{source}: header items that EMAN2 cannot hold: {', '.join(outcome.lost)}")
    if FLAGS.verbose < 1:
        return
    count = "1 image" if outcome.images == 1 else f"{outcome.images} images"
    cut = f", {outcome.outside} values cut off" if outcome.outside else ""
    time_taken = f", {seconds:.1f} s" if FLAGS.verbose > 1 else ""
    say(
        f"{source} -> {output}: {count}, {outcome.bytes_in / 1e6:.1f} MB ->"
        f" {outcome.bytes_out / 1e6:.1f} MB{cut}{time_taken}"
    )


def run(names: Sequence[str]) -> int:
    """All files; returns the exit status."""
    chosen = settings()
    jobs = plan(names)
    if FLAGS.outpath and not os.path.isdir(FLAGS.outpath):
        raise InputError(f"--outpath: the folder {FLAGS.outpath} does not exist")
    failed: list[str] = []
    hidden = FLAGS.verbose < 1 or not sys.stderr.isatty()
    with tqdm(total=len(jobs), unit="file", disable=hidden or len(jobs) < 2) as whole:
        for source, output in jobs:
            begun = time.perf_counter()
            replaced = output.exists() and not (source.exists() and output.samefile(source))
            try:
                form = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"
                bar = tqdm(
                    total=1.0, desc=source.name, bar_format=form, leave=False, disable=hidden
                )
                with bar:
                    outcome = convert(source, output, chosen, bar.update)
            except InputError as error:
                failed.append(str(source))
                print(f"compress.py: {error}", file=sys.stderr)
            else:
                if replaced and FLAGS.verbose >= 1:
                    say(f"{output} existed and was replaced")
                describe(source, output, outcome, time.perf_counter() - begun)
            whole.update()
    if failed:
        print(f"compress.py: {len(failed)} failed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


def normal(argv: Sequence[str]) -> list[str]:
    """``-h`` is ``--help``, dashes inside the name of an option are underscores."""
    return [
        "--help"
        if word == "-h"
        else re.sub(r"^--[a-z_-]+", lambda m: "--" + m[0][2:].replace("-", "_"), word)
        for word in take_back_v(argv)
    ]


def main(argv: Sequence[str]) -> int:
    """Run a command line, the script's name first; returns the exit status."""
    FLAGS.unparse_flags()
    for name in FLAGS:
        FLAGS[name].unparse()
    FLAGS.set_gnu_getopt()
    try:
        names = FLAGS(normal(argv))[1:]
        if FLAGS.help:
            print(_help.text(__doc__ or "", FLAGS))
            return 0
        if FLAGS.version:
            print(f"sptjax {importlib.metadata.version('sptjax')}")
            return 0
        return run(names)
    except (flags.Error, UsageError) as error:
        print(f"compress.py: {error}", file=sys.stderr)
        return 2
    except InputError as error:
        print(f"compress.py: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv))
