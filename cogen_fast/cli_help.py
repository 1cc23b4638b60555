"""The house style of the command line's parsers."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn


class Formatter(argparse.RawDescriptionHelpFormatter):
    """Leaves room for the longest options, so that most fit on the line of their help."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=26)


class Parser(argparse.ArgumentParser):
    """Reports mistakes like everything else here: as an exception that becomes one line."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message.removeprefix('argument ')} (see {self.prog} --help)")


def command(commands: Any, name: str, summary: str, **texts: str) -> argparse.ArgumentParser:
    """One more command of the parser ``commands`` belongs to."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        formatter_class=Formatter,
        allow_abbrev=False,
        **{"description": f"{summary[0].upper()}{summary[1:]}.", **texts},
    )
    return parser
