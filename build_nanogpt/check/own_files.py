"""A follower's own files: which files of the program they replace, and the tree to test."""

from dataclasses import dataclass
from pathlib import Path

from build_nanogpt.cli import UserError
from build_nanogpt.lecture.series import is_program, tag_of
from build_nanogpt.lecture.trees import program_files

PROGRAM = "train_gpt2.py"  # a file with an unknown name replaces this one


@dataclass(frozen=True)
class Mine:
    """A follower's files at a step, {path: bytes}, and which of the step's files they lack."""

    name: str  # as given
    files: dict
    folder: bool
    lacking: str = ""  # one line

    def where(self, path):
        """What the follower calls the file `path` of the tree."""
        return str(Path(self.name) / path) if self.folder else self.name

    def short(self, path):
        """The same, shorter."""
        return path if self.folder else Path(self.name).name


def read(path, name):
    """The bytes of a follower's file. Raises UserError if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"--mine {name}: it cannot be read ({error.strerror})") from None


def read_mine(name, step, tree, before):
    """The Mine that --mine names, at a step whose trees, its own and the one before, are given.
    Raises UserError."""
    if Path(name).is_dir():
        return read_folder(name, step, tree, before)
    return read_one(name, step, tree)


def read_one(name, step, tree):
    """One file, which replaces the program's file of the same name, else train_gpt2.py."""
    program, written = program_files(tree), changed_files(step, tree)
    place = next((path for path in program if Path(path).name == Path(name).name), PROGRAM)
    source = read(Path(name), name)
    if written and place not in written:
        raise UserError(f"--mine {name}: {step.tag} changes {' and '.join(written)}, not {place}: "
                        "name your file so, or give your whole folder")
    rest = [path for path in written if path != place]
    lacking = f"taken from {step.tag}: {', '.join(rest)} (give your whole folder to check more)"
    return Mine(name, {place: source}, False, lacking if rest else "")


def read_folder(name, step, tree, before):
    """All of a folder's program, including modules that the step does not have."""
    folder, program = Path(name), program_files(tree)
    paths = sorted(path.relative_to(folder).as_posix() for pattern in ("*.py", "nanogpt/*.py")
                   for path in folder.glob(pattern))
    files = {path: read(folder / path, name) for path in paths if is_program(path)}
    if not set(files) & set(program):
        raise UserError(f"--mine {name}: none of {', '.join(program)} is in this folder")
    missing = [path for path in program if path not in files]
    earlier = tag_of(step.number - 1)
    words = [f"{path} (taken from {earlier})" if path in before else f"{path} (new in {step.tag})"
             for path in missing]
    return Mine(name, files, True, f"not in {name}: {', '.join(words)}" if words else "")


def changed_files(step, tree):
    """The program's files that a step adds or changes, train_gpt2.py first."""
    paths = {change.path for change in step.changes}
    return sorted(paths & set(program_files(tree)), key=lambda path: (path != PROGRAM, path))


def tree_of(mine, tree, before):
    """The files to test: the follower's, and the step's for everything else. A program file that
    a folder lacks comes from the step before: the step's change is for the follower to write."""
    lent = {}
    if mine.folder:
        missing = [path for path in program_files(tree) if path not in mine.files]
        lent = {path: before[path] for path in missing if path in before}
        tree = {path: file for path, file in tree.items() if path not in missing}
    return tree | lent | {path: ("100644", source) for path, source in mine.files.items()}


def syntax_error(source):
    """Words for source that is not valid Python, or ""."""
    try:
        compile(source, "<yours>", "exec", dont_inherit=True)
    except SyntaxError as error:  # its own text may be a line of another file of that name
        lines = source.decode(errors="replace").splitlines()
        text = "".join(lines[error.lineno - 1:error.lineno]).strip() if error.lineno else ""
        return f"line {error.lineno}: `{text}`: {type(error).__name__}: {error.msg}"
    except ValueError as error:  # null bytes
        return str(error)
    return ""
