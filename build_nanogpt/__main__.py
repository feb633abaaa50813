"""python -m build_nanogpt COMMAND: see --help of each."""

import difflib
import importlib
import sys
from pathlib import Path

# the program lies in the repository's root, wherever the command is given
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from build_nanogpt.cli import UserError, parse, run  # noqa: E402

# command -> (module with Config and main, what it does); imported when called: bench needs torch
COMMANDS = {
    "steps": ("lecture.contents", "list the steps; --video: the moments of the video"),
    "build": ("lecture.build", "make the branch lecture and the tags step-NN"),
    "check": ("check.command", "check steps, or with --mine your own work"),
    "export": ("lecture.export", "write the edited branch lecture back to steps/"),
    "release": ("check.release", "check everything, tag a version, join its history to main"),
    "bench": ("bench.command", "measure the program, its choices and its relatives"),
    "proof": ("proof.command", "ten minutes on one GPU: does all of it work, and how fast?"),
    "tools": ("tools.command", "open a checkpoint in other tools, and compare"),
}
USAGE = "\n".join(["usage: python -m build_nanogpt COMMAND [--help]", "", *(
    f"  {name:9} {about}" for name, (_, about) in COMMANDS.items())])


def main():
    args = sys.argv[1:]
    if not args or args[0] in ("--help", "-h"):
        print(USAGE)
        sys.exit(0 if args else 2)
    if args[0] not in COMMANDS:
        near = difflib.get_close_matches(args[0], COMMANDS, n=1)
        meant = f" (did you mean {near[0]}?)" if near else ""
        raise UserError(f"no command {args[0]!r}{meant}: choose {', '.join(COMMANDS)}")
    module = importlib.import_module(f"build_nanogpt.{COMMANDS[args[0]][0]}")
    command = module.main
    command(parse(module.Config(), args[1:], f"python -m build_nanogpt {args[0]}", command.__doc__))


if __name__ == "__main__":
    run(main)
