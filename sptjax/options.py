"""The option language ``name:key=value:key=value`` that names a processor, aligner or averager.

Three steps, each of which can fail with one clear sentence and none of which prints::

    spec = parse("rotate_translate_3d:search=8:delta=12")  # text -> Spec
    format(spec)  # Spec -> text
    aligner = bind(spec, ALIGNERS, "--align")  # Spec -> object

Grammar and typing of values are those of EMAN2's ``parsemodopt``. Where EMAN2 prints a message
and goes on without the step (``a:b``, ``a:b=c=d``, ``a:b=1:``) or drops every key (``a::b=1``),
:func:`parse` raises.
"""

import dataclasses
import difflib
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, overload

from ._errors import InputError

T = TypeVar("T")
Value = int | float | str
Registry = Mapping[str, Callable[..., T]]

_MOST_LISTED = 20  # names in one message; of more, only how they begin

_KINDS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a word",
    types.NoneType: "none",
}


@dataclasses.dataclass(frozen=True)
class Spec:
    """A named object with its parameters, as spelt on the command line.

    Attributes:
        name: such as ``filter.lowpass.gauss``.
        params: typed values in the order given; ``true`` and ``false`` are 1 and 0.
    """

    name: str
    params: Mapping[str, Value] = dataclasses.field(default_factory=dict)


def parse(text: str | None) -> Spec | None:
    """Read ``name[:key=value]...``.

    A value becomes the first of these that fits: ``true``/``false`` in any case (1/0), ``int``,
    ``float``, otherwise a string, less one pair of enclosing double quotes. So ``"12"`` in
    quotes stays a word. Of a key given twice the later value counts.

    Returns:
        The spec, or None (the step is off) for ``None``, an empty text, or ``none`` in any case.

    Raises:
        InputError: a piece without exactly one ``=``, an empty name or key, keys after ``none``.
    """
    if not text:
        return None
    name, *pieces = text.split(":")
    if pieces == [""]:  # "name:" is "name"
        pieces = []
    if name.lower() == "none":
        if pieces:
            raise InputError(f"{text!r}: 'none' switches the step off and takes no keys.")
        return None
    if not name or "=" in name:
        raise InputError(f"{text!r}: expected a name before the first ':', found {name!r}.")
    params: dict[str, Value] = {}
    for piece in pieces:
        key, *values = piece.split("=")
        if not key or len(values) != 1:
            raise InputError(f"{text!r}: the piece {piece!r} is not of the form key=value.")
        params[key] = _typed(values[0])
    return Spec(name, params)


def format(spec: Spec | None) -> str:
    """Write a spec so that :func:`parse` gives it back; None becomes ``none``.

    Raises:
        InputError: a name, key or value that the language cannot spell (it holds ``:`` or ``=``).
    """
    if spec is None:
        return "none"
    pieces = [f"{key}={_spelt(value)}" for key, value in spec.params.items()]
    text = ":".join([spec.name, *pieces])
    unsafe = [spec.name, *spec.params, *(v for v in spec.params.values() if isinstance(v, str))]
    if any(":" in word or "=" in word for word in unsafe) or not all([spec.name, *spec.params]):
        raise InputError(f"{text!r}: a name, key or value is empty or holds ':' or '='.")
    if spec.name.lower() == "none":
        raise InputError(f"{text!r}: 'none' is not a name, it switches the step off.")
    return text


@overload
def bind(spec: Spec, registry: Registry[T], option: str) -> T: ...
@overload
def bind(spec: None, registry: Registry[T], option: str) -> None: ...
@overload
def bind(spec: Spec | None, registry: Registry[T], option: str) -> T | None: ...


def bind(spec: Spec | None, registry: Registry[T], option: str) -> T | None:
    """Build the object that a spec describes.

    The allowed keys are the keyword-only parameters of a function, or the fields of a dataclass
    or Module, whose annotation is ``bool``, ``int``, ``float``, ``str`` or a union of these with
    each other and None (``key=none``). An int serves where a float is asked, a whole float where
    an int is asked, 0 and 1 where a bool is asked. Other parameters keep their defaults.

    Args:
        spec: name and parameters; None gives None.
        registry: name -> constructor.
        option: how the user spelt the option, such as ``--align``; begins every message.

    Returns:
        ``registry[spec.name](**params)``.

    Raises:
        InputError: unknown name or key (with the nearest spelling and the allowed ones), a value
            of the wrong type, a missing key, or a value that the constructor itself refuses.
    """
    if spec is None:
        return None
    if spec.name not in registry:
        raise InputError(_unknown(f"{option}: there is no", spec.name, "names", registry))
    constructor = registry[spec.name]
    keys = _keys(constructor)
    where = f"{option}: {spec.name}"
    values: dict[str, Any] = {}
    for key, value in spec.params.items():
        if key not in keys:
            raise InputError(_unknown(f"{where} has no key", key, "keys", keys))
        values[key] = _fit(value, keys[key].annotation, f"{where}: the key {key!r}")
    missing = [k for k, p in keys.items() if p.default is p.empty and k not in values]
    if missing:
        needs = ", ".join(repr(key) for key in missing)
        raise InputError(f"{where} needs {needs} (allowed keys: {_listed(keys)}).")
    try:
        return constructor(**values)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def _typed(text: str) -> Value:
    lowered = text.lower()
    if lowered in ("true", "false"):
        return int(lowered == "true")
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    quoted = len(text) > 2 and text[0] == text[-1] == '"'
    return text[1:-1] if quoted else text


def _spelt(value: Value) -> str:
    """Text of one value; a word that would read as something else goes into quotes."""
    if isinstance(value, str):
        return value if _typed(value) == value else f'"{value}"'
    return repr(float(value) if isinstance(value, float) else int(value))


def _keys(constructor: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The parameters that the command line can give."""
    kinds = {inspect.Parameter.KEYWORD_ONLY}
    if inspect.isclass(constructor):
        kinds.add(inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(constructor, eval_str=True).parameters.items()
    return {
        key: parameter
        for key, parameter in parameters
        if parameter.kind in kinds and any(m in _KINDS for m in _members(parameter.annotation))
    }


def _members(annotation: Any) -> tuple[Any, ...]:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return typing.get_args(annotation)
    return (annotation,)


def _fit(value: Value, annotation: Any, what: str) -> Any:
    """The value as the first type of the annotation that takes it."""
    asked = [member for member in _members(annotation) if member in _KINDS]
    if types.NoneType in asked and isinstance(value, str) and value.lower() == "none":
        return None
    exact = [kind for kind in asked if type(value) is kind]
    for kind in exact + [kind for kind in asked if kind is not types.NoneType]:
        if kind is str:
            if isinstance(value, str):
                return value
        elif not isinstance(value, str) and (kind is not bool or value in (0, 1)):
            try:
                converted = kind(value)
            except (OverflowError, ValueError):  # int(inf), int(nan), float(10**400)
                continue
            if kind is float or converted == value:
                return converted
    wants = " or ".join(_KINDS[kind] for kind in asked)
    hint = f' (to give a number as a word, quote it: "{value}")' if str in asked else ""
    raise InputError(f"{what} wants {wants}, not {value!r}{hint}.")


def _unknown(message: str, word: str, things: str, allowed: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(word, list(allowed), n=1, cutoff=0.5)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    if len(allowed) > _MOST_LISTED:
        groups = sorted({name.split(".")[0] for name in allowed})
        return f"{message} {word!r}{hint}; allowed {things} begin with {', '.join(groups)}."
    return f"{message} {word!r}{hint}; allowed {things}: {_listed(allowed)}."


def _listed(words: Mapping[str, Any]) -> str:
    return ", ".join(sorted(words)) or "none"
