"""Parameters: typed fields that define a command line and an MLproject entry point.

A frozen pydantic model holds the parameters of a command. A field's name is the command-line flag,
the MLproject parameter and the MLflow param; its default, rule and description are beside it. None
represents "auto".
"""

import argparse
import errno
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from os.path import expanduser
from typing import Annotated, Any, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from experiments.processes.program import PROGRAM
from experiments.processes.terminal import did_you_mean

AUTO = "auto"
STORED = "stored"


class Parameters(BaseModel):
    """The parameters of a command."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


ParametersT = TypeVar("ParametersT", bound=Parameters)

or_auto = BeforeValidator(lambda value: None if value == AUTO else value)
MOST_COUNT = 10**9  # larger counts overflow or lose precision
Positive = Annotated[int, Field(gt=0, le=MOST_COUNT)]
Rate = Annotated[float, Field(gt=0)]
Amount = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, lt=1)]


def _path(text: str) -> str:
    path = expanduser(text)  # noqa: PTH111  # not all shells expand ~; Path changes the spelling
    try:
        pathlib.Path(path).stat()
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise ValueError("must not be a loop of symbolic links") from None
    except ValueError:
        raise ValueError("must not contain a null character or invalid Unicode") from None
    return path


Path = Annotated[str, Field(min_length=1), AfterValidator(_path)]


class UnknownNameError(ValueError):
    """A rule that a name breaks, and the nearest name, if any, as a hint."""

    def __init__(self, rule: str, given: str, names: Iterable[str]) -> None:
        super().__init__(rule)
        self.hint = did_you_mean(given, names)


def one_of(*names: str) -> AfterValidator:
    """Rule: the value is one of `names`, or None."""

    def check(value: str | None) -> str | None:
        if value is not None and value not in names:
            raise UnknownNameError(f"must be one of {', '.join(names)}", value, names)
        return value

    return AfterValidator(check)


def some_of(*names: str) -> AfterValidator:
    """Rule: the value is a comma-separated list of names of `names`, or None."""

    def check(text: str | None) -> str | None:
        if text is None:
            return None
        chosen = [name.strip() for name in text.split(",")]
        if unknown := [name for name in chosen if name not in names]:
            rule = f"must be one or more of {', '.join(names)}, separated by commas"
            raise UnknownNameError(rule, unknown[0], names)
        if len(set(chosen)) < len(chosen):
            raise ValueError("must not contain a name twice")
        return ",".join(chosen)

    return AfterValidator(check)


def readable(read: Callable[[str], object]) -> AfterValidator:
    """Rule: `read` accepts the value, which stays as it is."""

    def check(text: str) -> str:
        read(text)
        return text

    return AfterValidator(check)


def validated(kind: type[ParametersT], values: Mapping[str, Any], context: str = "") -> ParametersT:
    """Validated parameters; `context` is `STORED` for those of a command that has already run.

    Raises:
        ValueError: In one line: each invalid parameter, its rule and its value.
    """
    try:
        return kind.model_validate(dict(values), context=context)
    except ValidationError as error:
        problems = [_message(kind, problem) for problem in error.errors()]
        raise ValueError("; ".join(problems)) from None


def parse(kind: type[ParametersT], command: str, argv: Sequence[str]) -> ParametersT:
    """Parameters from a command line such as `--reinit lottery --prune_rate 0.3`.

    In the names, dashes are the same as underscores.

    Raises:
        ValueError: As `validated`, for an argument that is not a parameter, and for one that is
            given twice.
    """
    parser = _Parser(prog=f"{PROGRAM} {command}", allow_abbrev=False)
    for name, field in kind.model_fields.items():
        required = field.is_required()
        default = " (required)" if required else f" (default: {default_text(field)})"
        help_text = f"{field.description}{default}".replace("%", "%%")
        parser.add_argument(f"--{name}", metavar="...", help=help_text, default=argparse.SUPPRESS)
    words = _joined(argv)
    names = [word[2:].partition("=")[0] for word in words if word.startswith("--")]
    if twice := [name for name in names if names.count(name) > 1]:  # -P prune-rate=... adds one
        flags = [word.partition("=")[0] for word in argv if word.startswith("--")]
        spellings = {flag for flag in flags if _with_underscores(flag) == twice[0]}
        hint = " (mlflow run takes names with underscores)" if len(spellings) > 1 else ""
        parser.error(f"{twice[0]} is given twice{hint}")
    given, unknown = parser.parse_known_args(words)
    if unknown:
        word = unknown[0]
        if not word.startswith("--"):
            parser.error(f"parameters must be given as --name value, got {word}")
        name = word[2:].partition("=")[0]
        parser.error(f"there is no parameter {name}{did_you_mean(name, kind.model_fields)}")
    return validated(kind, vars(given))


def _joined(argv: Sequence[str]) -> list[str]:
    """`--prune-rate 0.3` as `--prune_rate=0.3`, whose value may start with a dash."""
    words: list[str] = []
    for word in argv:
        if word.startswith("--"):
            words.append("--" + _with_underscores(word) + "".join(word.partition("=")[1:]))
        elif words and words[-1] != "--help" and re.fullmatch("--[^=]+", words[-1]):
            words[-1] += f"={word}"
        else:
            words.append(word)
    return words


def _with_underscores(flag: str) -> str:
    """The name in `--prune-rate=0.3`: prune_rate."""
    return flag.partition("=")[0].removeprefix("--").replace("-", "_")


def entry_point(kind: type[Parameters], name: str, command: str) -> str:
    """The text of an MLproject entry point."""
    lines = [f"  {name}:", "    parameters:"]
    for parameter, field in kind.model_fields.items():
        default = "" if field.is_required() else f', default: "{default_text(field)}"'
        lines += [f"      # {field.description}", f"      {parameter}: {{type: string{default}}}"]
    lines += ["    command: >-", f"      python -m experiments {command}"]
    lines += [f"      --{parameter}={{{parameter}}}" for parameter in kind.model_fields]
    return "\n".join(lines) + "\n"


def default_text(field: FieldInfo) -> str:
    """A field's default as on the command line: "auto" for None."""
    return as_text(field.default)


def as_text(value: object) -> str:
    """A field's value as on the command line: "auto" for None."""
    if isinstance(value, bool):
        return str(value).lower()
    return AUTO if value is None else str(value)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise ValueError(f"{message}; {self.prog} --help lists the parameters")


def _message(kind: type[Parameters], problem: Mapping[str, Any]) -> str:
    """A validation error as one phrase: parameter, rule, value."""
    rule = str(problem["msg"]).removeprefix("Value error, ")
    name = problem["loc"][0] if problem["loc"] else ""
    if not name or ", got " in rule or rule.startswith(f"{name}: "):  # ours, and complete
        return rule
    if problem["type"] == "extra_forbidden":
        hint = did_you_mean(str(name), kind.model_fields)
        known = ", ".join(kind.model_fields)
        return f"there is no parameter {name}{hint}; the parameters are {known}"
    if problem["type"] == "missing":
        field = kind.model_fields[str(name)]
        return f"{name} must be given: {field.description}"
    rule = rule.replace("Input should be", "must be").replace("String should", "must")
    if problem["type"] == "bool_parsing":
        rule = "must be true or false"
    value = str(problem["input"])
    shown = value if value.isprintable() and len(value) < 80 else repr(value)[:80]
    hint = _hint(kind.model_fields[str(name)], problem)
    return f"{name} {re.sub(' +', ' ', rule)}, got {shown}{hint}"


def _hint(field: FieldInfo, problem: Mapping[str, Any]) -> str:
    error = problem.get("ctx", {}).get("error")
    if isinstance(error, UnknownNameError):
        return error.hint
    names = {"literal_error": get_args(field.annotation), "bool_parsing": ("true", "false")}
    auto = (AUTO,) if field.default is None else ()
    return did_you_mean(str(problem["input"]), names.get(problem["type"], auto))
