"""What the parsers of all commands have in common."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

GENERATOR_HELP = """\
what --generator takes:
  FILE    a checkpoint: saved by cogen_fast (.safetensors); a progressive GAN of
          the PyTorch GAN Zoo, of pro-gan-pth or converted from Karras et al.;
          or a StyleGAN2 of rosinality/stylegan2-pytorch (.pt) or of NVIDIA's
          PyTorch programs (.pkl). Code in a file is never run. The generator
          is put on the GPU, if there is one.
  NAME    a generator that comes with the package: fashion-32 (32 x 32 grey
          garments), or an earlier stage of its training: fashion-32-480000,
          fashion-32-600000 or fashion-32-1000000
  hf://owner/name/file.safetensors
          a file saved by cogen_fast in a repository of the Hugging Face Hub, which
          is downloaded once; of a branch, tag or commit
          hf://owner/name@revision/file.safetensors
          (needs pip install 'cogen-fast[hub]')
  package.module:name
          your own code, in the current folder or installed: an nn.Module
          instance, or a function from latents (n, d) to images (n, C, H, W) in
          [-1, 1], where C is 1 or 3
  'package.module:name()'
          with parentheses (and quotes, for the shell): a function or class that
          is called without arguments and returns such a generator

"""


class Formatter(argparse.RawDescriptionHelpFormatter):
    """Indents help so far that most options fit on the same line as their help."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=26)


class Parser(argparse.ArgumentParser):
    """Raises ValueError for mistakes, as the rest of the package does; it is shown as one line.

    ``--help`` leaves out the groups which `rare_group` has added; ``--help-all`` shows them. Where
    there are none, both show the same.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._rare: list[Any] = []
        self._help_all = self.add_argument(
            "--help-all", action=_HelpAll, nargs=0, help=argparse.SUPPRESS
        )

    def rare_group(self, title: str, description: str | None = None) -> Any:
        """Add a group of rarely needed options; with the first one, help names ``--help-all``."""
        self._help_all.help = "show all options, also rarely used ones, and exit"
        group = self.add_argument_group(title, description)
        self._rare.append(group)
        return group

    def format_help(self) -> str:
        """The help without the rare groups."""
        groups, rare = self._action_groups, self._rare
        helps = [(action, action.help) for group in rare for action in group._group_actions]
        for action, _ in helps:
            action.help = argparse.SUPPRESS
        self._action_groups = [group for group in groups if group not in rare]
        try:
            return super().format_help()
        finally:
            self._action_groups = groups
            for action, text in helps:
                action.help = text

    def format_all_help(self) -> str:
        """The help with the rare groups."""
        return super().format_help()

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message.removeprefix('argument ')} (see {self.prog} --help)")


class _HelpAll(argparse.Action):
    """Shows the help of all options."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        assert isinstance(parser, Parser)
        print(parser.format_all_help(), end="")
        parser.exit()


def command(commands: Any, name: str, summary: str, **texts: str) -> Parser:
    """Add a command to ``commands``; its description is ``summary`` unless one is given."""
    parser: Parser = commands.add_parser(
        name,
        help=summary,
        formatter_class=Formatter,
        allow_abbrev=False,
        **{"description": f"{summary[0].upper()}{summary[1:]}.", **texts},
    )
    return parser


def add_device(add: Any) -> None:
    """Add ``--device``, for commands which may run as several processes."""
    add("--device", metavar="D", help="cpu or cuda (default: the GPU, if there is one)")


def add_quiet(add: Any) -> None:
    """Add ``--quiet``."""
    add("--quiet", action="store_true", help="show no progress bar and no summary")


def add_seed(add: Any) -> None:
    """Add ``--seed``."""
    add(
        "--seed",
        type=int,
        default=0,
        metavar="S",
        help="random seed: equal inputs and seeds give equal results (default: 0)",
    )


def add_latent_shape(add: Any) -> None:
    """Add ``--latent-shape``."""
    add(
        "--latent-shape",
        type=int,
        nargs="+",
        metavar="D",
        help="shape of one latent, such as 512 or 100 1 1 (default: inferred from the generator)",
    )
