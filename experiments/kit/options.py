"""The command line of an experiment, generated from the fields of its preset dataclass."""

from __future__ import annotations

import argparse
import dataclasses
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Generic, TypeVar

import torch

PresetT = TypeVar("PresetT")


@dataclass(frozen=True)
class Options(Generic[PresetT]):
    """One parsed command line.

    ``settings`` is the preset with the overrides applied; ``overrides`` holds only the fields that
    really differ from the preset, so naming a preset's own value changes nothing.
    ``existing`` says what to do with a run folder that is already there: ``"resume"``, ``"again"``
    or ``"fresh"``.
    """

    preset: str
    settings: PresetT
    overrides: dict[str, Any]
    seed: int
    out: Path
    data: Path | None
    device: torch.device
    existing: str


def parse_options(
    presets: Mapping[str, PresetT],
    *,
    prog: str,
    description: str,
    default_preset: str,
    argv: Sequence[str] | None = None,
) -> Options[PresetT]:
    """Read ``argv`` (default: the process's) against ``presets``, a name -> frozen dataclass map.

    Every field of the dataclass is an option of the same name with hyphens; its help text is the
    field's ``metadata["help"]``. An unknown option or value ends the process with status 2 and a
    message that names it, as argparse does.
    """
    parser = argparse.ArgumentParser(prog=prog, description=description, allow_abbrev=False)
    _add_common_options(parser, presets, default_preset)
    group = parser.add_argument_group("overrides of the preset")
    defaults = presets[default_preset]
    types = typing.get_type_hints(type(defaults))
    for field in dataclasses.fields(typing.cast(Any, defaults)):
        _add_field(group, field, types[field.name])
    arguments = vars(parser.parse_args(argv))

    preset = presets[arguments["preset"]]
    given = {f.name: arguments[f.name] for f in dataclasses.fields(typing.cast(Any, preset))}
    overrides = {
        name: value
        for name, value in given.items()
        if value is not _NOT_GIVEN and value != getattr(preset, name)
    }
    try:
        settings = dataclasses.replace(typing.cast(Any, preset), **overrides)
        device = resolve_device(arguments["device"])
    except ValueError as error:
        parser.error(str(error))
    return Options(
        preset=arguments["preset"],
        settings=settings,
        overrides=overrides,
        seed=arguments["seed"],
        out=arguments["out"],
        data=arguments["data"],
        device=device,
        existing=arguments["existing"],
    )


def resolve_device(name: str) -> torch.device:
    """``"auto"`` is a CUDA device where PyTorch finds one, else the CPU; other names are PyTorch's.

    Raises ``ValueError`` for a name PyTorch does not know and for CUDA where there is none.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"--device {name}: expected auto, cpu or cuda[:N]") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"--device {name}: PyTorch {torch.__version__} finds no CUDA device here")
    return device


# None is a legal value of an optional field, so "not given" needs a value of its own.
_NOT_GIVEN: Any = object()


def _add_common_options(
    parser: argparse.ArgumentParser, presets: Mapping[str, Any], default_preset: str
) -> None:
    parser.add_argument(
        "--preset",
        choices=sorted(presets),
        default=default_preset,
        help=f"a named set of settings (default: {default_preset})",
    )
    parser.add_argument("--seed", type=int, default=0, help="(default: 0)")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs"),
        metavar="DIR",
        help="where run folders go: DIR/<experiment>/<preset>/seed<N>/ (default: runs)",
    )
    parser.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="folder of data sets, for the experiments that read one",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda[:N] (default: auto)")
    existing = parser.add_mutually_exclusive_group()
    for flag, text in (
        ("resume", "continue an interrupted run; leave a finished one as it is (default)"),
        ("again", "continue an interrupted run; train a finished one again"),
        ("fresh", "start from step 0 in any case, deleting what the run folder holds"),
    ):
        existing.add_argument(
            f"--{flag}", dest="existing", action="store_const", const=flag, help=text
        )
    parser.set_defaults(existing="resume")


def _add_field(
    group: argparse._ArgumentGroup, field: dataclasses.Field[Any], declared: Any
) -> None:
    flag = "--" + field.name.replace("_", "-")
    text = field.metadata.get("help", "")
    inner, optional = _without_none(declared)
    if typing.get_origin(inner) is typing.Literal:
        group.add_argument(flag, choices=typing.get_args(inner), default=_NOT_GIVEN, help=text)
    elif inner is bool:
        group.add_argument(
            flag, action=argparse.BooleanOptionalAction, default=_NOT_GIVEN, help=text
        )
    elif inner in (int, float, str):
        group.add_argument(
            flag,
            type=_none_or(inner) if optional else inner,
            default=_NOT_GIVEN,
            metavar=inner.__name__.upper(),
            help=text,
        )
    else:
        raise TypeError(
            f"preset field {field.name} is declared {declared}; an option can be made of bool, "
            "int, float, str, Literal and an optional int, float or str"
        )


def _without_none(declared: Any) -> tuple[Any, bool]:
    if typing.get_origin(declared) in (typing.Union, UnionType):
        inner = [kind for kind in typing.get_args(declared) if kind is not NoneType]
        if len(inner) == 1:
            return inner[0], True
    return declared, False


def _none_or(kind: type) -> Any:
    def parse(text: str) -> Any:
        return None if text == "none" else kind(text)

    # argparse names the type in its message: "invalid int value: 'x'".
    parse.__name__ = kind.__name__
    return parse
