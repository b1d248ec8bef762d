"""From a frozen dataclass to a command line, for recipes.

One dataclass is the whole configuration of a recipe. `parse` turns its fields into options, its
docstring into the help text, and refuses what it does not know. `run` adds one-line errors, and
`load_function` takes Python functions from the command line.
"""

import argparse
import dataclasses
import difflib
import importlib
import importlib.util
import inspect
import os
import pathlib
import re
import sys
import types
import typing

_SWITCH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
_SECTION = re.compile(r"^(?:Args|Attributes):\s*$")
_ENTRY = re.compile(r"^(\w+)\s*(?:\([^)]*\))?:\s*(.*)$")


def parse(config_class, argv=None):
    """Builds a dataclass instance from command-line options.

    Every field becomes `--field-name VALUE` (underscores work too). The annotation gives the
    type: `int`, `float`, `str`, `pathlib.Path`, `Literal[...]`, `bool` (`--flag`, `--no-flag`,
    `--flag true`), tuples and lists of those (`--sizes 1,2,3`) and unions of those; the word
    `none` stands for `None` where the annotation allows it. A class variable `presets`, a
    dictionary from a name to field values (or a callable that returns one), adds `--preset NAME`:
    the values of the preset come first and explicit options override them.

    Help texts are read from the section `Args:` or `Attributes:` of the class docstring.

    Args:
        config_class: A dataclass, usually frozen.
        argv: List of `str`, without the program's name. `None` means `sys.argv[1:]`.

    Returns:
        An instance of `config_class`.

    Raises:
        ValueError: `config_class` is not a dataclass, has a field whose type no option can
            express, or has a preset that names an unknown field.
        SystemExit: With code 2 for an unknown option, a value that does not fit its field or that
            the class itself refuses, or a field without default that was not given; with code 0
            after `--help`.

    Example:

    >>> import dataclasses
    >>> from typing import ClassVar
    >>> @dataclasses.dataclass(frozen=True)
    ... class Config:
    ...     '''A recipe.
    ...
    ...     Args:
    ...         iterations: How many batches of prompts.
    ...     '''
    ...     iterations: int = 100
    ...     sizes: tuple[int, ...] = (1, 2)
    ...     presets: ClassVar[dict] = {"smoke": {"iterations": 1}}
    >>> parse(Config, ["--preset", "smoke", "--sizes", "3,4"])
    Config(iterations=1, sizes=(3, 4))
    """
    fields = _fields(config_class)
    presets = _presets(config_class, fields)
    parser = _parser(config_class, fields, presets)
    argv = sys.argv[1:] if argv is None else argv
    given, unknown = parser.parse_known_args(_normalise(argv))
    if unknown:
        parser.error(_unknown_message(unknown[0], parser))
    given = vars(given)
    values = dict(presets.get(given.pop("preset", None), {}) if presets else {}) | given
    missing = [n for n, (_, default) in fields.items() if default is _REQUIRED and n not in values]
    if missing:
        parser.error(f"missing: {', '.join(_option(name) for name in missing)}")
    try:
        return config_class(**values)
    except ValueError as error:
        parser.error(str(error))


def run(main, config_class, argv=None):
    """Parses the command line, runs a recipe, and reports wrong input in one line.

    A `ValueError` that this package or the recipe itself raises says what to mend, so it is shown
    without a traceback. Errors from inside other libraries keep theirs.

    Args:
        main: Function of one `config_class`.
        config_class: A dataclass, see `parse`.
        argv: List of `str`, without the program's name. `None` means `sys.argv[1:]`.

    Returns:
        What `main` returns.

    Raises:
        SystemExit: With code 2 for wrong input, as `parse`.

    Example:

    >>> import dataclasses
    >>> @dataclasses.dataclass(frozen=True)
    ... class Config:
    ...     count: int = 1
    >>> run(lambda config: config.count + 1, Config, ["--count", "2"])
    3
    """
    config = parse(config_class, argv)
    try:
        return main(config)
    except ValueError as error:
        if not _is_ours(error, main):
            raise
        program = pathlib.Path(sys.argv[0]).name
        sys.stderr.write(f"{program}: error: {' '.join(str(error).split())}\n")
        raise SystemExit(2) from None


def _is_ours(error, main):
    """Whether the innermost frame of an error stands in this package or beside `main`."""
    traceback = error.__traceback__
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    module = traceback.tb_frame.f_globals.get("__name__", "")
    return module.partition(".")[0] == __package__ or module == main.__module__


def load_function(name):
    """Finds a Python function by a name such as `package.module:function`.

    Args:
        name: `str`, `module:function` with a module that Python can import (the working directory
            included), or `path/to/file.py:function`.

    Returns:
        The function.

    Raises:
        ValueError: No such file, module or function.

    Example:

    >>> load_function("math:sqrt")(9.0)
    3.0
    """
    place, colon, attribute = name.rpartition(":")
    if not (colon and place and attribute.isidentifier()):
        raise ValueError(
            "Expected a function as 'package.module:function' or 'path/to/file.py:function'. "
            f"Received: {name!r}"
        )
    module = _load_file(pathlib.Path(place)) if place.endswith(".py") else _load_module(place)
    function = getattr(module, attribute, None)
    if not callable(function):
        names = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        raise ValueError(
            f"{place!r} has no function {attribute!r}.{_nearest(attribute, names)} "
            f"Found: {sorted(names)}"
        )
    return function


def _load_file(path):
    if not path.is_file():
        raise ValueError(f"There is no file {str(path)!r}. (Working directory: {os.getcwd()!r}.)")
    spec = importlib.util.spec_from_file_location(f"{path.stem}_of_{__package__}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for the names of their annotations
    spec.loader.exec_module(module)
    return module


def _load_module(name):
    sys.path.insert(0, os.getcwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ValueError(f"Cannot import the module {name!r}: {error}") from error
    finally:
        sys.path.remove(os.getcwd())


class _Required:
    def __str__(self):
        return "required"


_REQUIRED = _Required()


def _fields(config_class):
    """Name -> (type, default) of the fields that the constructor takes."""
    if not (isinstance(config_class, type) and dataclasses.is_dataclass(config_class)):
        raise ValueError(f"`config_class` must be a dataclass. Received: {config_class!r}")
    hints = typing.get_type_hints(config_class)
    fields = dataclasses.fields(config_class)
    return {field.name: (hints[field.name], _default(field)) for field in fields if field.init}


def _default(field):
    if field.default is not dataclasses.MISSING:
        return field.default
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return _REQUIRED


def _presets(config_class, fields):
    presets = getattr(config_class, "presets", None) if "presets" not in fields else None
    presets = (presets() if callable(presets) else presets) or {}
    if presets and "preset" in fields:
        raise ValueError(
            f"{config_class.__name__} has both `presets` and a field `preset`, which would share "
            "the option --preset. Rename the field."
        )
    for name, values in presets.items():
        for field in values:
            if field not in fields:
                raise ValueError(
                    f"Preset {name!r} of {config_class.__name__} sets {field!r}, which is not a "
                    f"field.{_nearest(field, fields)}"
                )
    return presets


def _parser(config_class, fields, presets):
    doc = inspect.getdoc(config_class) or ""
    parser = argparse.ArgumentParser(
        description=None if doc.startswith(f"{config_class.__name__}(") else doc.split("\n\n")[0],
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=_preset_lines(presets),
    )
    if presets:
        parser.add_argument("--preset", choices=list(presets), help="values to start from")
    texts = _help_texts(doc)
    for name, (kind, default) in fields.items():
        _add_option(parser, name, kind, default, texts.get(name, ""))
    return parser


def _preset_lines(presets):
    if not presets:
        return None
    lines = [
        f"  {name}: " + (", ".join(f"{k}={v!r}" for k, v in values.items()) or "the defaults")
        for name, values in presets.items()
    ]
    return "\n".join(["presets:", *lines])


def _add_option(parser, name, kind, default, text):
    option, switch = _option(name), _is_switch(kind)
    notes = f"default: {default}" + (f"; --no-{option[2:]} for false" if switch else "")
    parser.add_argument(
        option,
        dest=name,
        type=_converter(name, kind),
        metavar=_describe(kind),
        help=f"{text} ({notes})".strip().replace("%", "%%"),
        **({"nargs": "?", "const": True} if switch else {}),
    )
    if switch:
        parser.add_argument(
            f"--no-{option[2:]}",
            dest=name,
            action="store_const",
            const=False,
            help=argparse.SUPPRESS,
        )


def _help_texts(doc):
    """Name -> text from the section `Args:` or `Attributes:` of a docstring."""
    texts, name, indent = {}, None, None
    lines = iter(doc.splitlines())
    for line in lines:
        if _SECTION.match(line):
            break
    for line in lines:
        depth = len(line) - len(line.lstrip())
        if line.strip() and depth == 0:
            break
        indent = depth if indent is None and line.strip() else indent
        entry = _ENTRY.match(line.strip()) if depth == indent else None
        if entry:
            name, texts[entry.group(1)] = entry.group(1), entry.group(2)
        elif name and line.strip():
            texts[name] = f"{texts[name]} {line.strip()}".strip()
    return texts


def _normalise(argv):
    """Dashes in option names, and `--name value` joined to `--name=value`.

    Joined, a negative number such as `-1e-5` is not taken for an option.
    """
    joined = []
    for token in argv:
        token = str(token)
        if token.startswith("--"):
            name, equals, value = token.partition("=")
            joined.append(name.replace("_", "-") + equals + value)
        elif joined and joined[-1].startswith("--") and "=" not in joined[-1] and token != "-h":
            joined[-1] = f"{joined[-1]}={token}"
        else:
            joined.append(token)
    return joined


def _option(name):
    return "--" + name.replace("_", "-")


def _unknown_message(token, parser):
    name = token.partition("=")[0]
    if not name.startswith("--"):
        return f"unexpected argument {token!r}: every value needs its option, as in --name value"
    return f"unknown option {name}.{_nearest(name, parser._option_string_actions)}"


def _nearest(name, names):
    nearest = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f" Did you mean {nearest[0]}?" if nearest else ""


def _is_switch(kind):
    return kind is bool or (_is_union(kind) and bool in typing.get_args(kind))


def _is_union(kind):
    return typing.get_origin(kind) in (typing.Union, types.UnionType)


def _converter(name, kind):
    """A function from `str` to `kind` that argparse can call."""
    _check_kind(name, kind)

    def convert(text):
        try:
            return _convert(kind, text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected {_describe(kind)}, got {text!r}") from None

    return convert


def _check_kind(name, kind):
    members = typing.get_args(kind)
    if _is_union(kind) or typing.get_origin(kind) in (tuple, list):
        for member in members:
            if member is not Ellipsis:
                _check_kind(name, member)
    elif typing.get_origin(kind) is not typing.Literal and kind not in _SCALARS:
        raise ValueError(
            f"Field {name!r} has the type {kind}, which no option can express. Use one of int, "
            "float, str, bool, pathlib.Path, Literal, a tuple, list or union of those."
        )


def _switch(text):
    if text.lower() not in _SWITCH:
        raise ValueError(text)
    return _SWITCH[text.lower()]


def _none(text):
    if text.lower() != "none":
        raise ValueError(text)


_SCALARS = {
    int: int,
    float: float,
    str: str,
    pathlib.Path: pathlib.Path,
    bool: _switch,
    type(None): _none,
}


def _convert(kind, text):
    origin, members = typing.get_origin(kind), typing.get_args(kind)
    if _is_union(kind):
        return _first_that_fits(members, text)
    if origin is typing.Literal:
        return _choice(members, text)
    if origin in (tuple, list):
        return origin(_items(origin, members, text))
    return _SCALARS[kind](text)


def _first_that_fits(members, text):
    # None first: "none" is also a str. str last: it takes anything.
    for member in sorted(members, key=lambda m: (m is str) - (m is type(None))):
        try:
            return _convert(member, text)
        except ValueError:
            continue
    raise ValueError(text)


def _choice(choices, text):
    for choice in choices:
        if str(choice).lower() == text.lower():
            return choice
    raise ValueError(text)


def _items(origin, members, text):
    parts = [part.strip() for part in text.split(",")] if text.strip() else []
    if origin is list or Ellipsis in members:
        members = members[:1] * len(parts)
    if len(parts) != len(members):
        raise ValueError(text)
    return [_convert(member, part) for member, part in zip(members, parts, strict=True)]


def _describe(kind):
    """How the help text calls a type."""
    members = [_describe(m) for m in typing.get_args(kind) if m is not Ellipsis and m != ()]
    if _is_union(kind):
        return "|".join(members)
    if typing.get_origin(kind) is typing.Literal:
        return "{" + ",".join(str(choice) for choice in typing.get_args(kind)) + "}"
    if typing.get_origin(kind) in (tuple, list):
        variable = typing.get_origin(kind) is list or Ellipsis in typing.get_args(kind)
        return ",".join([*members, "..."] if variable else members)
    return {type(None): "none", pathlib.Path: "path"}.get(kind, getattr(kind, "__name__", kind))
