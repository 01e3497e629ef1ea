"""From the text of the flags to checked settings; what is wrong is said before work starts."""

import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import _inputs
import numpy as np
from absl import flags

from sptjax import io, options
from sptjax._errors import InputError
from sptjax._messages import warning
from sptjax.averagers import AVERAGERS, Averager, Mean, MeanTomo
from sptjax.averaging import Averaging
from sptjax.centring import Autocentre
from sptjax.copies import Pipelines
from sptjax.msa import MsaSettings
from sptjax.preprocess import Pipeline
from sptjax.processors import PROCESSORS, Centring, Processor
from sptjax.products import Extras
from sptjax.references import ReferenceSettings
from sptjax.selection import Selection, tilt_axis_weights

Values = Mapping[str, Any]
Say = Callable[[str], None]


def given(name: str) -> bool:
    """Whether the user stated a flag on the command line."""
    return flags.FLAGS[name].present > 0


def processor(values: Values, name: str, *, group: str = "") -> Processor | None:
    """The processor that a flag names, or None.

    Args:
        values: every flag by name.
        name: of the flag.
        group: what the processor's name must start with.
    """
    spec = options.parse(values[name])
    if spec is not None and not spec.name.startswith(group):
        raise InputError(f"--{name}={values[name]}: a processor of the group {group}* is needed")
    return options.bind(spec, PROCESSORS, f"--{name}")


# ---------------------------------------------------------------- preprocessing


def pipelines(values: Values, box: int, apix: float, *, fine: bool, say: Say) -> Pipelines:
    """Preprocessing of the coarse, fine and full copies.

    Args:
        values: every flag by name.
        box: of the raw particles.
        apix: their voxel size.
        fine: whether there is a fine stage.
        say: prints one line.
    """
    shrink, shrink_fine = max(values["shrink"], 1), max(values["shrinkfine"], 1)
    if shrink < shrink_fine:
        say(
            f"--shrink={values['shrink']} is less than --shrinkfine: {shrink_fine} is used for both"
        )
        shrink = shrink_fine
    if values["clip"] % 2:
        say(f"--clip={values['clip']} is odd: {values['clip'] + 1} is used")
    if values["clip"] > box:
        say(f"--clip={values['clip']}: the copies are padded, the particles have {box} voxels")
    on_particles = values["maskfile"] and values["maskfile_target"] in ("particles", "both")
    shared: dict[str, Any] = {
        "mask": processor(values, "mask", group="mask."),
        "mask_volume": (_inputs.read_mask(values["maskfile"], box, apix) if on_particles else None),
        "normalise": processor(values, "normproc", group="normalize"),
        "threshold": processor(values, "threshold"),
        "clip": values["clip"],
    }
    steps = ("lowpass", "highpass", "preprocess")
    coarse: dict[str, Any] = {name: processor(values, name) for name in steps}
    own: dict[str, Any] = {name: processor(values, f"{name}fine") for name in steps}
    if values["procfinelikecoarse"]:
        own = {name: coarse[name] if own[name] is None else own[name] for name in steps}
    try:
        made = Pipelines(
            Pipeline(**shared, **coarse, shrink=shrink),
            Pipeline(**shared, **own, shrink=shrink_fine) if fine else None,
            Pipeline(**shared, **own) if values["tweak"] else None,
        )
        for pipeline in (made.coarse, made.fine, made.full):
            if pipeline is not None:
                pipeline.check(box, apix)
    except InputError as error:
        raise InputError(f"preprocessing: {error}") from error
    last = shrink_fine if fine else shrink
    if values["tweak"] and last == 1:
        say(warning("--tweak: the last stage is not shrunk, there is nothing to do"))
    return made


def reference_settings(values: Values, box: int, apix: float, *, match: bool) -> ReferenceSettings:
    """How references are prepared.

    Args:
        values: every flag by name.
        box: of the raw particles.
        apix: their voxel size.
        match: the comparator's scores depend on the radial power of the reference, which nothing
            else fits to the particles.
    """
    on_reference = values["maskfile"] and values["maskfile_target"] in ("reference", "both")
    return ReferenceSettings(
        preprocess=values["refpreprocess"],
        match=match and not values["notmatchimgs"],
        mask=_inputs.read_mask(values["maskfile"], box, apix) if on_reference else None,
        automask=values["automask"],
    )


# ---------------------------------------------------------------- averaging


def selection(values: Values, stack: io.Stack) -> Selection:
    """Who is averaged, with what weight."""
    keep = values["keep"]
    if not values["keepsig"] and not 0 < keep <= 1:
        raise InputError(
            f"--keep={keep:g}: a fraction above 0 and up to 1 is needed (or --keepsig)"
        )
    return Selection(
        keep=keep,
        in_sigma=values["keepsig"],
        by_score=values["weighbyscore"],
        keep_known=values["keepbyuncertainty"],
        by_uncertainty=values["weighbyuncertainty"],
        prior_weight=_tilt_axis(values["weighbytiltaxis"], stack),
    )


def _tilt_axis(text: str, stack: io.Stack) -> np.ndarray | None:
    if not text:
        return None
    try:
        axis, least = (float(x) for x in text.split(","))
    except ValueError as error:
        raise InputError(f"--weighbytiltaxis={text}: two numbers A,B are needed") from error
    if not axis > 0 or not 0 <= least <= 1:
        raise InputError(f"--weighbytiltaxis={text}: A > 0 voxels and B in 0 ... 1 are needed")
    return tilt_axis_weights(_inputs.tomogram_x(stack), axis, least)


def averaging(values: Values) -> Averaging:
    """The averager and what comes before it."""
    averager: Averager | None = options.bind(
        options.parse(values["averager"]), AVERAGERS, "--averager"
    )
    if averager is None:
        raise InputError("--averager: an averager is needed")
    if values.get("weighbyscale") and not isinstance(averager, MeanTomo):
        raise InputError("--weighbyscale: frequencies are weighed by --averager=mean.tomo alone")
    before = [processor(values, name) for name in ("preavgproc1", "preavgproc2")]
    for name, step in zip(("preavgproc1", "preavgproc2"), before):
        if step is not None and (step.output_box(64) != 64 or step.host):
            raise InputError(f"--{name}={values[name]}: the box of the particles must stay")
    kept = tuple(step for step in before if step is not None)
    return Averaging(averager, kept, values["breaksym"])


def autocentre(values: Values) -> Autocentre | None:
    """``--autocenter`` and the two options that go with it."""
    centring = processor(values, "autocenter")
    if centring is None:
        for name in ("autocentermask", "autocenterpreprocess"):
            if values[name]:
                raise InputError(f"--{name} does nothing without --autocenter")
        return None
    known = ("xform.centerofmass", "xform.centeracf")
    if not isinstance(centring, Centring) or not values["autocenter"].startswith(known):
        raise InputError(f"--autocenter={values['autocenter']}: {' or '.join(known)} is needed")
    mask = processor(values, "autocentermask", group="mask.")
    return Autocentre(centring, mask, values["autocenterpreprocess"], values["automask"])


def extras(
    values: Values, averager: Averager, coarse: Pipeline, stack: io.Stack, apix: float
) -> Extras:
    """What is written besides the averages.

    Args:
        values: every flag by name.
        averager: of the class averages.
        coarse: preprocessing of the coarse copies.
        stack: raw particles.
        apix: their voxel size, angstrom.
    """
    if values["varmap"] and not isinstance(averager, Mean | MeanTomo):
        raise InputError(f"--varmap: there is none for --averager={values['averager']}")
    return Extras(
        postprocess=processor(values, "postprocess"),
        normalise=processor(values, "normproc", group="normalize"),
        variance=values["varmap"] or isinstance(averager, Mean),
        bootstrap=values["nboot"] if values["resample"] else 0,
        prepared=values["savepreproc"],
        msa=msa_settings(values, coarse, stack, apix),
    )


def msa_settings(
    values: Values, coarse: Pipeline, stack: io.Stack, apix: float
) -> MsaSettings | None:
    """``--ncls`` and ``--nbasis``, in the mask and band of the coarse copies."""
    if values["ncls"] is None and values["nbasis"] is None:
        return None
    stated = {"classes": values["ncls"], "components": values["nbasis"]}
    settings = MsaSettings(
        **{name: value for name, value in stated.items() if value is not None},
        seed=values["seed"],
        mask=coarse.mask_image(stack.box, apix),
        lowpass=coarse.lowpass,
    )
    settings.check(len(stack))
    return settings


def check_names(values: Values) -> None:
    """Names of files, and numbers that belong to no other group."""
    for name in ("output", "resultmx"):
        value = values[name]
        if value and (not value.endswith(".hdf") or pathlib.Path(value).name != value):
            raise InputError(f"--{name}={value}: a file name ending in .hdf, without a folder")
    if values["refrandphase"] < 0:
        raise InputError(f"--refrandphase={values['refrandphase']:g}: angstrom, not negative")
    tag = values["refinemultireftag"]
    if not re.fullmatch(r"[A-Za-z0-9_-]*", tag):
        raise InputError(f"--refinemultireftag={tag}: letters, digits, _ and - only")
