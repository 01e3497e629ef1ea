"""The written word is true: options, links and commands of README.md and docs/."""

import functools
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest
import script_runs
from absl import flags
from test_options import NAMES

from sptjax import io, tables

ROOT = pathlib.Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
OPTIONS = ROOT / "docs" / "options.md"
EMAN2 = ROOT / "docs" / "from-eman2.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
PROGRAMS = sorted(p.stem for p in script_runs.EXPERIMENTS.glob("[a-z]*.py"))


def own_flags(program):
    """The flags of a program, the script freshly loaded."""
    script = script_runs.load(program)
    values = script.FLAGS if program == "compress" else flags.FLAGS
    table = values.flags_by_module_dict().items()
    return {flag.name: flag for module, own in table if "absl" not in module for flag in own}


@functools.cache
def flag_names(program):
    if program == "demo":
        return frozenset({"path", "verbose"})
    return frozenset(own_flags(program))


def sections(path):
    """Text under every heading of the second level, by its heading."""
    parts = re.split(r"^## (.+)$", path.read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2]))


# ---------------------------------------------------------------- options


def explained():
    """Sections of the option tables: in README.md for the two main programs."""
    main = {k: v for k, v in sections(README).items() if k.startswith("Options of")}
    return main | sections(OPTIONS)


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_option_is_explained(program):
    """In the section of its program."""
    (text,) = [body for head, body in explained().items() if program in head]
    missing = [name for name in flag_names(program) if not re.search(f"`--{name}[`=]", text)]
    assert not sorted(missing)


@pytest.mark.parametrize("program", PROGRAMS)
def test_no_option_is_made_up(program):
    """What the first column of a table names exists, in one of the programs of the section."""
    (head,) = [head for head in explained() if program in head]
    known = set().union(*(flag_names(name) for name in PROGRAMS if name in head))
    rows = re.findall(r"^\| (`--[^|]*)\|", explained()[head], re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`--(\w+)", row)}
    assert not sorted(named - known - {f"no{name}" for name in known})


# What the programs of EMAN2 take.
CALLED = """
goldstandardoff filterbyfsc recompute resume saveallpeaks translateonly matchimgs donotaverage
""".split()
PAIRS = """
input path npeakstorefine parallel ppid verbose plots subset preavgproc1 preavgproc2
weighbytiltaxis weighbyscore align aligncmp averager shrink shrinkfine threshold mask maskfile
normproc clip preprocess preprocessfine lowpass lowpassfine highpass highpassfine matchimgs
filterbyfsc radius precision search searchfine iterstop savesteps saveali saveallalign sym
postprocess procfinelikecoarse falign faligncmp breaksym randomizewedge savepreproc autocenter
autocentermask autocenterpreprocess tweak
""".split()
MERGING = "notmatchimgs groups clusters exclusive_class_min minscore maxmergenum".split()
OF_EMAN2 = {
    "refinemulti and classaverage": [*NAMES, *CALLED],
    "binarytree": [*PAIRS, "nseedlimit"],
    "hac": [*PAIRS, *MERGING],
    "symsearch3d": """
input ref mirror path plots sym shrink mask maskfile normproc threshold preprocess lowpass highpass
clip savepreproc average averager keep keepsig avgiter subset steps symmetrize cmp parallel ppid
verbose nopath nolog saveali savesteps preavgproc1 preavgproc2 weighbytiltaxis weighbyscore
reconsiderbad
""".split(),
    "compress": """
help version bits compresslevel nooutliers range sigrange outpath threads verbose ppid
""".split(),
}


def verdicts(section):
    """What the page says of every option of a program: same, better, left out or new."""
    found = {}
    for names, verdict in re.findall(
        r"^\| (`--[^|]*?) \| ([^|]*?) \|", sections(EMAN2)[section], re.MULTILINE
    ):
        for name in re.findall(r"`--(\w+)`", names):
            assert name not in found, f"--{name} is judged twice"
            found[name] = verdict
    return found


@pytest.mark.parametrize("section", OF_EMAN2)
def test_every_option_of_eman2_is_judged(section):
    """Kept options are flags here, left out ones are not, and new ones EMAN2 has not."""
    here = set().union(*(flag_names(name) for name in PROGRAMS if name in section))
    there, said = set(OF_EMAN2[section]), verdicts(section)
    wanted = {name: {"same", "better"} if name in here else {"left out"} for name in there}
    wanted |= {name: {"new"} for name in here - there}
    assert set(said) == set(wanted)
    assert not {name: said[name] for name in said if said[name] not in wanted[name]}


def test_what_is_left_out_or_new_has_a_reason():
    for line in EMAN2.read_text().splitlines():
        if line.startswith("| `--") and ("| left out |" in line or "| better |" in line):
            assert len(line.split("|")[3].strip()) > 5, line


# ---------------------------------------------------------------- links


def anchors(path):
    """What GitHub makes of headings."""
    found = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in found}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), f"{page.name}: {target}"
        if anchor:
            assert anchor in anchors(file), f"{page.name}: {target}"


def test_every_page_is_linked_from_the_readme():
    text = README.read_text()
    assert not [p.name for p in PAGES[1:] if f"(docs/{p.name})" not in text]


# ---------------------------------------------------------------- commands


def commands(text):
    """Every command line of the text, in blocks or between backticks."""
    text = text.replace("\\\n", " ")
    lines = re.findall(r"^ *(sptjax [a-z].*)$", text, re.MULTILINE)
    lines += re.findall(r"`(sptjax [a-z][^`]*)`", text)
    return [re.sub(r"\s{2,}#.*| …", "", line).strip() for line in lines]


def test_commands_are_found():
    assert len(commands(README.read_text())) >= 18


SOURCES = [*PAGES, *(script_runs.EXPERIMENTS / f"{name}.py" for name in PROGRAMS)]


@pytest.mark.parametrize("source", SOURCES, ids=lambda p: p.name)
def test_commands_make_sense(source):
    """Every program exists and takes every option with the value that is written."""
    text = source.read_text()
    if source.suffix == ".py":
        text = text.split('"""')[1]
        assert commands(text), "the docstring of a program shows how it is called"
    for line in commands(text):
        program, *words = shlex.split(line)[1:]
        if program == "PROGRAM":
            continue
        own = own_flags(program)
        for word in words:
            found = re.fullmatch(r"--(\w+?)(?:=(.*))?", word)
            if found:
                name, value = found.groups()
                if name not in own and name.startswith("no"):
                    name, value = name[2:], "false"
                assert name in flag_names(program), line
                own[name].parse("true" if value is None else value)


# Files that the commands of README.md name, made once.


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """A folder with what a reader has: particles, maps, a table, tomograms, an old run."""
    folder = tmp_path_factory.mktemp("desk")
    small = script_runs.small_set(folder)
    maps = {"map.hdf": small.maps.mean(0), "a.hdf": small.maps[0], "b.hdf": small.maps[1]}
    for name, volume in maps.items():
        io.write_hdf(folder / name, volume, script_runs.APIX)
    io.write_mrc(folder / "map.mrc", small.maps[0], script_runs.APIX)
    ones = np.ones((script_runs.BOX,) * 3, np.float32)
    io.write_hdf(folder / "ctf_squared.hdf", ones, script_runs.APIX)
    plant(folder, small)
    words = "--input=particles.hdf --ref=a.hdf,b.hdf --path=old --noplots --wedge=-60,60"
    run("sptjax refinemulti " + words, folder)
    (old,) = folder.glob("old_01/classmx_*.hdf")
    shutil.copy(old, old.with_name("classmx_9.hdf"))
    return folder


def plant(folder, small):
    """The particles side by side in a tomogram, and where they are."""
    stack = io.open_stack(small.particles)
    count, box = len(stack), script_runs.BOX
    side = 3
    volume = np.zeros((side * box,) * 3, np.float32)
    corners = np.stack(np.unravel_index(np.arange(count), (side,) * 3), 1)[:, ::-1] * box
    for (x, y, z), particle in zip(corners, stack.read(np.arange(count))):
        volume[z : z + box, y : y + box, x : x + box] = particle
    (folder / "tomograms").mkdir()
    io.write_mrc(folder / "tomograms" / "TS_01.mrc", volume, script_runs.APIX)
    apix = np.full(count, script_runs.APIX)
    table = tables.ParticleTable(
        small.matrices[:, :, :3],
        small.matrices[:, :, 3],
        coordinate=corners + box / 2,
        coordinate_apix=apix,
        apix=apix,
        tomogram=tables.names(["TS_01"] * count),
        box=box,
    )
    for name in ("run_data.star", "picks.star"):
        tables.write(folder / name, table, "relion4")


def run(line, folder):
    """One command line, as a shell would run it."""
    command = re.sub(r"^sptjax", f"{shlex.quote(sys.executable)} -m sptjax", line)
    return subprocess.run(
        ["bash", "-c", command], cwd=folder, capture_output=True, text=True, check=True
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "line", [c for c in dict.fromkeys(commands(README.read_text())) if "PROGRAM" not in c]
)
def test_the_commands_of_the_readme_run(line, desk, tmp_path):
    """Each in a copy of the desk; commands of one block build on those before."""
    folder = tmp_path / "desk"
    shutil.copytree(desk, folder)
    for needed in before(line):
        run(needed, folder)
    present = written(folder)
    done = run(line, folder)
    assert "Traceback" not in done.stderr
    assert written(folder) - present or "--help" in line


def written(folder):
    """All files and when they were written: a compressed map.mrc takes the place of map.hdf."""
    return {(path, path.stat().st_mtime_ns) for path in folder.rglob("*")}


def before(line):
    """The commands of the same block that come before this one."""
    for block in re.findall(r"```sh\n(.*?)```", README.read_text(), re.DOTALL):
        lines = commands(block)
        if line in lines and "extract" in block:
            return lines[: lines.index(line)]
    return []
