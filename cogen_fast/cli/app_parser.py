"""The parser of `cogen-fast app`."""

from __future__ import annotations

from typing import Any

from cogen_fast.cli.help import GENERATOR_HELP, add_latent_shape, command

_HELP = """\
Serve a page on which one opens or draws a picture, paints over what is hidden,
and watches how completions appear; on a second tab a small picture is enlarged.
Open the address that is printed in a browser; Ctrl-C ends the server. The runs
of several pages take place one after another. The command needs Gradio
(pip install 'cogen-fast[app]').
"""
_EPILOG = """\
examples:
  cogen-fast app
  cogen-fast app --generator fashion-32 --generator faces.safetensors

The page offers the generators of the command line and no others. One on the hub
(hf://) is downloaded before the page is served; a visitor can have nothing
downloaded. The page loads nothing from the network, and shows no file of this
machine. It has no passwords: with --host 0.0.0.0 everybody who reaches this
machine can use it.

"""


def add_app(commands: Any) -> None:
    """Add the command ``app``."""
    parser = command(
        commands,
        "app",
        "serve a page to paint a mask and watch completions",
        description=_HELP,
        epilog=_EPILOG + GENERATOR_HELP,
    )
    add = parser.add_argument
    add(
        "--generator",
        action="append",
        metavar="WHAT",
        help="a trained generator of images (see below); can be given several times (default: "
        "fashion-32)",
    )
    add(
        "--host",
        default="127.0.0.1",
        metavar="H",
        help="address to listen at (default: 127.0.0.1, which only this machine reaches)",
    )
    add(
        "--port",
        type=int,
        default=7860,
        metavar="P",
        help="port to listen at; 0: any free one (default: 7860)",
    )
    add_latent_shape(add)
    add("--device", metavar="D", help="cpu, cuda or cuda:N (default: the GPU, if there is one)")
    add(
        "--max-pixels",
        type=int,
        default=2**24,
        metavar="N",
        help="largest number of pixels of an opened picture (default: 16777216)",
    )
    add(
        "--time-limit",
        type=float,
        default=600.0,
        metavar="SECONDS",
        help="a run ends unfinished after so long, so that others get their turn (default: 600)",
    )
