"""Turns the fields of a dataclass into options, and options into an instance."""

import argparse
import dataclasses
import inspect
import re
import shutil
import sys
import textwrap
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

from kerasrlhf.cli import kinds
from kerasrlhf.cli.kinds import nearest

_Config = TypeVar("_Config")
_Fields: TypeAlias = dict[str, tuple[Any, Any]]

_SECTION = re.compile(r"^(?:Args|Attributes):\s*$")
_ENTRY = re.compile(r"^(\w+)\s*(?:\([^)]*\))?:\s*(.*)$")


def parse(
    config_class: type[_Config], argv: Sequence[str] | None = None, program: str | None = None
) -> _Config:
    """Builds a dataclass instance from command-line options.

    Every field becomes `--field-name VALUE` (underscores work too). The annotation determines the
    type: `int`, `float`, `str`, `pathlib.Path`, `Literal[...]`, `bool` (`--flag`, `--no-flag`,
    `--flag true`), tuples and lists of those (`--sizes 1,2,3`) and unions of those; the word `none`
    means `None` where the annotation allows it. A class variable `presets`, a dict from a name to
    field values (or a callable that returns one), adds `--preset NAME`: the values of the preset
    come first and explicit options override them.

    Help texts come from the section `Args:` or `Attributes:` of the class docstring.

    Args:
        config_class: dataclass, usually frozen.
        argv: list of str, without the program's name. Defaults to None: `sys.argv[1:]`.
        program: str. Its name in messages. Defaults to None: the name of the script.

    Returns:
        An instance of `config_class`.

    Raises:
        ValueError: If `config_class` is not a dataclass, has a field whose type no option can
            express, or has a preset that names an unknown field.
        SystemExit: With code 2 for an unknown option, a value that its field or the class itself
            rejects, or a missing field without default; with code 0 after `--help`.

    Example:
        >>> import dataclasses
        >>> from typing import ClassVar
        >>> @dataclasses.dataclass(frozen=True)
        ... class Config:
        ...     '''A recipe.
        ...
        ...     Args:
        ...         iterations: Number of batches of prompts.
        ...     '''
        ...     iterations: int = 100
        ...     sizes: tuple[int, ...] = (1, 2)
        ...     presets: ClassVar[dict] = {"smoke": {"iterations": 1}}
        >>> rlhf.cli.parse(Config, ["--preset", "smoke", "--sizes", "3,4"])
        Config(iterations=1, sizes=(3, 4))
    """
    fields = _fields(config_class)
    presets = _presets(config_class, fields)
    parser = _parser(config_class, fields, presets, program)
    argv = sys.argv[1:] if argv is None else argv
    namespace, unknown = parser.parse_known_args(_normalize(argv))
    # Checked here, not by argparse: its message names no similar option.
    if unknown:
        parser.error(_unknown_message(unknown[0], fields, presets))
    given = vars(namespace)
    # Explicit options come last and override the preset; defaults are the dataclass's.
    values = dict(presets.get(given.pop("preset", None), {}) if presets else {}) | given
    missing = [n for n, (_, default) in fields.items() if default is _REQUIRED and n not in values]
    if missing:
        parser.error(f"missing: {', '.join(option(name) for name in missing)}")
    try:
        return config_class(**values)
    except ValueError as error:
        parser.error(str(error))


_REQUIRED = object()


def _fields(config_class: Any) -> _Fields:
    """Returns name -> (type, default) of the fields that the constructor takes."""
    if not (isinstance(config_class, type) and dataclasses.is_dataclass(config_class)):
        raise ValueError(f"`config_class` must be a dataclass. Received: {config_class!r}")
    hints = typing.get_type_hints(config_class)
    fields = dataclasses.fields(config_class)
    return {field.name: (hints[field.name], _default(field)) for field in fields if field.init}


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return _REQUIRED


def _presets(config_class: Any, fields: _Fields) -> dict[str, dict[str, Any]]:
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
                    f"field.{nearest(field, fields)}"
                )
    return presets


def _parser(
    config_class: Any,
    fields: _Fields,
    presets: dict[str, dict[str, Any]],
    program: str | None,
) -> argparse.ArgumentParser:
    doc = inspect.getdoc(config_class) or ""
    needed = [
        f"{option(name)} {kinds.describe(kind).upper()}"
        for name, (kind, default) in fields.items()
        if default is _REQUIRED
    ]
    parser = argparse.ArgumentParser(
        prog=program,
        usage=" ".join(["%(prog)s", *needed, "[options]"]),
        # A dataclass without a docstring has its signature as one.
        description=None if doc.startswith(f"{config_class.__name__}(") else doc.split("\n\n")[0],
        allow_abbrev=False,
        # Options that were not given are absent, so that they do not override the preset.
        argument_default=argparse.SUPPRESS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=_preset_lines(presets),
    )
    if presets:
        parser.add_argument(
            "--preset",
            type=_preset_of(presets),
            metavar="{" + ",".join(presets) + "}",
            help="values to start from",
        )
    # A dataclass that derives from another one has its fields, and their texts.
    texts: dict[str, str] = {}
    for kind in reversed(config_class.__mro__):
        texts |= help_texts(inspect.cleandoc(kind.__doc__ or ""))
    for name, (kind, default) in fields.items():
        _add_option(parser, name, kind, default, texts.get(name, ""))
    return parser


def _preset_of(presets: Mapping[str, Any]) -> Callable[[str], str]:
    def convert(name: str) -> str:
        if name not in presets:
            raise argparse.ArgumentTypeError(
                f"expected one of {', '.join(presets)}, got {name!r}.{nearest(name, presets)}"
            )
        return name

    return convert


def _preset_lines(presets: dict[str, dict[str, Any]]) -> str | None:
    if not presets:
        return None
    width = shutil.get_terminal_size().columns - 2
    lines = ["presets:"]
    for preset, values in presets.items():
        options = [f"{option(name)}\0{kinds.show(value)}" for name, value in values.items()]
        text = f"{preset}: {' '.join(options) or 'the defaults'}"
        # A break between an option and its value would be hard to read.
        lines.append(
            textwrap.fill(
                text, width, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False
            ).replace("\0", " ")
        )
    return "\n".join(lines)


def _add_option(
    parser: argparse.ArgumentParser, name: str, kind: Any, default: Any, text: str
) -> None:
    typed, switch = option(name), kinds.is_switch(kind)
    without_value: dict[str, Any] = {"nargs": "?", "const": True} if switch else {}
    notes = "required" if default is _REQUIRED else f"default: {kinds.show(default)}"
    notes += f"; --no-{typed[2:]} for false" if switch else ""
    parser.add_argument(
        typed,
        dest=name,
        type=kinds.converter(name, kind),
        metavar=kinds.describe(kind),
        help=f"{text} ({notes})".strip().replace("%", "%%"),
        **without_value,
    )
    if switch:
        parser.add_argument(
            f"--no-{typed[2:]}",
            dest=name,
            action="store_const",
            const=False,
            help=argparse.SUPPRESS,
        )


def help_texts(doc: str) -> dict[str, str]:
    """Returns name -> text from the section `Args:` or `Attributes:` of a docstring."""
    texts: dict[str, str] = {}
    name: str | None = None
    indent: int | None = None
    lines = iter(doc.splitlines())
    for line in lines:
        if _SECTION.match(line):
            break
    for line in lines:
        depth = len(line) - len(line.lstrip())
        # The section ends with the first line that is not indented.
        if line.strip() and depth == 0:
            break
        indent = depth if indent is None and line.strip() else indent
        # Deeper lines continue the text of the entry before.
        entry = _ENTRY.match(line.strip()) if depth == indent else None
        if entry:
            name, texts[entry.group(1)] = entry.group(1), entry.group(2)
        elif name and line.strip():
            texts[name] = f"{texts[name]} {line.strip()}".strip()
    return texts


def _normalize(argv: Sequence[Any]) -> list[str]:
    """Uses dashes in option names, and joins `--name value` to `--name=value`.

    When joined, a negative number such as `-1e-5` is not mistaken for an option.
    """
    joined: list[str] = []
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


def option(name: str) -> str:
    """Returns the option of a field, such as `--learning-rate`."""
    return "--" + name.replace("_", "-")


def _unknown_message(token: str, fields: _Fields, presets: Mapping[str, Any]) -> str:
    name = token.partition("=")[0]
    if not name.startswith("--"):
        return f"unexpected argument {token!r}: every value needs its option, as in --name value"
    switches = [option(name) for name, (kind, _) in fields.items() if kinds.is_switch(kind)]
    known = [*map(option, fields), *(f"--no-{switch[2:]}" for switch in switches), "--help"]
    known += ["--preset"] if presets else []
    return f"unknown option {name}.{nearest(name, known)}"
