"""The command line: `python -m cogen_fast` is the same as `cogen-fast`."""

from __future__ import annotations

from cogen_fast.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
