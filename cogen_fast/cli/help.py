"""The house style of the command line's parsers."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

GENERATOR_HELP = """\
what --generator takes:
  FILE    a checkpoint: saved by cogen_fast (.safetensors), or a progressive GAN
          of the PyTorch GAN Zoo, of pro-gan-pth 3.x or converted from Karras et
          al. No code in it is run. It goes to the GPU if there is one.
  NAME    of a generator that comes with the package: fashion-32 (32 x 32 grey
          garments), or fashion-32-480000, -600000, -1000000: earlier in training
  package.module:name
          from your own code, in the current folder or installed: an nn.Module
          instance, or a function from latents (n, d) to images (n, C, H, W) in
          [-1, 1], C = 1 or 3
  'package.module:name()'
          with parentheses (and quotes, for the shell): a function or class that
          is called without arguments and returns such a generator

"""


class Formatter(argparse.RawDescriptionHelpFormatter):
    """Leaves room for the longest options, so that most fit on the line of their help."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=26)


class Parser(argparse.ArgumentParser):
    """Reports mistakes like everything else here: as an exception that becomes one line.

    ``--help`` leaves out the groups made by `rare_group`, which ``--help-all`` tells.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._rare: list[Any] = []

    def rare_group(self, title: str, description: str | None = None) -> Any:
        """A group of options that few people need; the first brings ``--help-all``."""
        if not self._rare:
            self.add_argument(
                "--help-all", action=_HelpAll, nargs=0, help="show rarer options too, and exit"
            )
        group = self.add_argument_group(title, description)
        self._rare.append(group)
        return group

    def format_help(self) -> str:
        """Without the rare groups."""
        told, rare = self._action_groups, self._rare
        helps = [(action, action.help) for group in rare for action in group._group_actions]
        for action, _ in helps:
            action.help = argparse.SUPPRESS
        self._action_groups = [group for group in told if group not in rare]
        try:
            return super().format_help()
        finally:
            self._action_groups = told
            for action, text in helps:
                action.help = text

    def format_all_help(self) -> str:
        """With the rare groups."""
        return super().format_help()

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message.removeprefix('argument ')} (see {self.prog} --help)")


class _HelpAll(argparse.Action):
    """Tells every option."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        assert isinstance(parser, Parser)
        print(parser.format_all_help(), end="")
        parser.exit()


def command(commands: Any, name: str, summary: str, **texts: str) -> Parser:
    """One more command of the parser ``commands`` belongs to."""
    parser: Parser = commands.add_parser(
        name,
        help=summary,
        formatter_class=Formatter,
        allow_abbrev=False,
        **{"description": f"{summary[0].upper()}{summary[1:]}.", **texts},
    )
    return parser


def add_device(add: Any) -> None:
    """``--device`` of commands that start several processes."""
    add("--device", metavar="D", help="cpu or cuda (the GPU, if there is one)")


def add_quiet(add: Any) -> None:
    """``--quiet``."""
    add("--quiet", action="store_true", help="no progress bar and no summary")
