"""The command line: the fields of a config are its flags."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from photo_classifier.runtime.console import print_error
from photo_classifier.runtime.errors import UserError, did_you_mean

# flags that people know from other tools
OTHER_NAMES = {
    "learning_rate": "--lr",
    "epochs": "--n_epochs",
    "num_epochs": "--n_epochs",
    "workers": "--n_workers",
    "num_workers": "--n_workers",
    "arch": "--model_name",
    "data": "--data_dir",
    "pretrained": "--use_pretrained",
    "device": "--gpu_id",
    "weight": "--weights",
    "checkpoint": "--model_fn",
    "source": "--input",
    "output": "--result",
}


def flag(
    default: Any,
    help: str,
    metavar: str | None = None,
    type: Callable = str,
    many: bool = False,
    bare: bool = False,
) -> Any:
    """Returns a field of a config dataclass that is also a flag; this is the only place of its default.

    The default is appended to `help`, unless the text gives one. With `many` the flag takes several values. `bare`
    values, of which there may be any number, have no flag before them.
    """
    metadata = {"help": help, "metavar": metavar, "type": type, "many": many, "bare": bare}
    return dataclasses.field(default=default, metadata=metadata)


def parse_flags(config: type, argv: list[str] | None, **options: Any) -> dict:
    """Parses a command line and returns only the flags that were given: fields of `config` made by `flag`."""
    parser, groups = Parser(**options), {}
    for field in dataclasses.fields(config):
        metadata = field.metadata
        if not metadata:
            continue
        title, help_text = group_of(config, field.name), metadata["help"]
        group = groups[title] = groups.get(title) or parser.add_argument_group(title)
        if "(default: " not in help_text:
            shown = f"{field.default:g}" if isinstance(field.default, float) else field.default
            help_text += f" (default: {'off' if field.default is False else shown})"
        if metadata["bare"]:  # a default of its own: argparse would take an empty list for given
            group.add_argument(
                field.name, nargs="*", default=list(field.default), metavar=metadata["metavar"], help=help_text
            )
        elif field.default is False:
            group.add_argument(f"--{field.name}", action="store_true", help=help_text)
        else:
            options = {"nargs": "+"} if metadata["many"] else {}
            options |= {"metavar": metadata["metavar"], "type": metadata["type"]}
            group.add_argument(f"--{field.name}", help=help_text, **options)
    return vars(parser.parse_args(argv))


def group_of(config: type, name: str) -> str:
    """Returns the title of the class that defines a flag: `config` inherits from one class per group."""
    return next(base.title for base in config.__mro__ if name in inspect.get_annotations(base))


def check_values(config: type, values: Mapping[str, object], source: object) -> None:
    """Checks values from a file, `source`, as strictly as those from the command line; raises UserError."""
    for field in dataclasses.fields(config):
        value = values.get(field.name, field.default)
        if not (field.default is None if value is None else _is_value_of(field, value)):
            raise UserError(f"{source} cannot be used: --{field.name} does not accept its value of {field.name}")


def _is_value_of(field: dataclasses.Field, value: object) -> bool:
    if isinstance(field.default, bool) or not field.metadata:
        return type(value) is (bool if isinstance(field.default, bool) else int)
    if type(value) not in (str, int, float):
        return False
    try:
        return field.metadata["type"](str(value)) == value
    except argparse.ArgumentTypeError:
        return False


class Parser(argparse.ArgumentParser):
    """An argparse parser that reports a wrong command line in one line, with the nearest known flag.

    Args:
        paths_flag: the flag that a value without a flag was probably meant for.
    """

    def __init__(self, paths_flag: str | None = None, **options: Any) -> None:
        self.paths_flag = paths_flag
        super().__init__(
            formatter_class=argparse.RawDescriptionHelpFormatter,
            argument_default=argparse.SUPPRESS,  # only what was given: defaults live in the config
            allow_abbrev=False,
            **options,
        )

    def parse_args(self, args=None, namespace=None):
        """Parses like argparse, with one-line errors, and refuses empty values."""
        known, unknown = self.parse_known_args(args, namespace)
        if unknown and not unknown[0].startswith("-"):
            self.error(f"{unknown[0]!r} has no flag before it{self._meant(unknown[0], args, known)}")
        if unknown:
            flag, flags = unknown[0].partition("=")[0], list(self._option_string_actions)
            usual = OTHER_NAMES.get(flag.lstrip("-").replace("-", "_").lower(), "")
            begun = [name for name in flags if name.startswith(flag) and len(flag) > 3]
            longer = [usual] if usual in flags else begun
            hint = f"; did you mean {' or '.join(longer)}?" if longer else did_you_mean(flag, flags)
            self.error(f"{flag} is not a flag of {self.prog}{hint}")
        for name, value in vars(known).items():
            if value == "" or (isinstance(value, list) and "" in value):
                self.error(f"--{name} was given an empty value; give one, or leave the flag out")
        return known

    def _meant(self, word: str, args: list[str] | None, known: argparse.Namespace) -> str:
        """Returns a hint at what a value without a flag was meant for."""
        words = list(sys.argv[1:] if args is None else args)
        before = words[words.index(word) - 1] if word in words[1:] else ""
        if os.path.exists(f"{before} {word}"):
            return f'; put a name with spaces in quotes: "{before} {word}"'
        action = self._option_string_actions.get(before)
        if action is not None and action.nargs == 0:
            return f"; {action.option_strings[0]} takes no value: leave it out"
        if not self.paths_flag or hasattr(known, self.paths_flag.removeprefix("--")):
            return "; leave it out, or add its flag"
        return f"; did you mean {self.paths_flag} {word}?"

    def error(self, message: str) -> NoReturn:
        """Prints argparse's message in one line that names the flag, and exits with status 2."""
        flag, _, reason = message.removeprefix("argument ").partition(": ")
        action = self._option_string_actions.get(flag)
        if action is not None and reason.startswith("expected "):
            message = f"{flag} needs a value; type {flag} {action.metavar}"
        elif action is not None:
            message = f"{flag} {reason}"
        print_error(f"{message}; see python {self.prog} --help")
        raise SystemExit(2)


def number(
    kind: type, at_least: float = float("-inf"), at_most: float = float("inf"), above: float | None = None
) -> Callable[[str], float]:
    """Returns an argparse type for a number within bounds; its error names the bounds."""
    most = 2**63 if kind is int else float("inf")

    def parse(text: str) -> float | int:
        """Returns the number, or raises argparse's error."""
        bounds = f"above {above:g}" if above is not None else f"at least {at_least:g}"
        if at_most < float("inf"):
            bounds += f" and at most {at_most:g}"
        try:
            value = kind(text)
        except ValueError:
            value = float("nan")
        if not (at_least <= value <= at_most and abs(value) < most) or (above is not None and value <= above):
            what = "a whole number" if kind is int else "a number"
            hint = f"; write a dot: {text.replace(',', '.')}" if text.count(",") == 1 and kind is float else ""
            raise argparse.ArgumentTypeError(f"needs {what} {bounds}, not {text!r}{hint}")
        return value

    return parse
