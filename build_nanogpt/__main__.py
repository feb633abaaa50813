"""python -m build_nanogpt COMMAND: see --help of each."""

import importlib
import sys
from pathlib import Path

# the program lies in the repository's root, wherever the command is given
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from build_nanogpt.cli import UserError, parse, run  # noqa: E402

# command -> module with Config and main; imported when called, since bench needs torch
COMMANDS = {"bench": "bench.command", "build": "lecture.build", "check": "check.command",
            "export": "lecture.export", "proof": "proof.command", "release": "check.release",
            "steps": "lecture.contents"}


def main():
    args = sys.argv[1:]
    about = f"commands: {', '.join(COMMANDS)}; each has --help"
    if args[:1] in (["--help"], ["-h"]):
        print(f"usage: python -m build_nanogpt COMMAND\n{about}")
        return
    if not args or args[0] not in COMMANDS:
        raise UserError(f"no command {args[0] if args else ''!r}; {about}")
    module = importlib.import_module(f"build_nanogpt.{COMMANDS[args[0]]}")
    command = module.main
    command(parse(module.Config(), args[1:], f"python -m build_nanogpt {args[0]}", command.__doc__))


if __name__ == "__main__":
    run(main)
