"""The command line's flags. They are Hydra's, but may stand anywhere among the overrides."""
from __future__ import annotations

from argparse import Namespace

from mamba_mi.config import UserError, did_you_mean

FLAGS = {  # those worth listing; --hydra-help has the others
    "-m": "a sweep: one run for each combination of the values listed",
    "--cfg job": "print the settings and stop",
    "--help": "this page",
    "--version": "the version",
}
COMMANDS = ("run", "multirun", "cfg", "info", "shell_completion")


def parse(argv: list[str]) -> Namespace:
    """Hydra's flags, and in `.overrides` and `.flags` the two kinds of words, each in the order given."""
    from hydra._internal.utils import get_args_parser

    parser = get_args_parser()
    parser.error = _refuse
    parser.allow_abbrev = False  # --experiment= is a slip for experiment=, not for --experimental-rerun
    asked, unknown = parser.parse_known_intermixed_args(argv)
    if unknown:
        _refuse_flag(unknown[0])
    given = [command for command in COMMANDS if getattr(asked, command)]
    if len(given) > 1:
        raise UserError(f"--{given[0]} and --{given[1]} are two different commands: give one of them")
    if asked.resolve and not asked.cfg:
        raise UserError("--resolve belongs to --cfg: write --cfg job --resolve")
    asked.flags = list(argv)
    for word in asked.overrides:
        asked.flags.remove(word)
    return asked


def is_about_hydra(asked: Namespace) -> bool:
    """Whether the question is for Hydra alone, with no run in it."""
    return bool(asked.hydra_help or asked.info or asked.shell_completion or asked.experimental_rerun)


def _refuse(message: str) -> None:
    raise UserError(f"{message}; the flags are {', '.join(FLAGS)} (all of them: --hydra-help)")


def _refuse_flag(word: str) -> None:
    name, _, value = word.partition("=")
    known = [*(flag.split()[0] for flag in FLAGS), "--multirun", "--info", "--resolve", "--hydra-help"]
    hint = "" if value else did_you_mean(name, [flag for flag in known if flag[:3] == name[:3]])
    setting = f"; a setting has no dashes: {name.lstrip('-')}={value or 'VALUE'}"
    _refuse(f"{name}: no such flag{hint or setting}")
