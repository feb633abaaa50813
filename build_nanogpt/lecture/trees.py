"""The files of every step, from the patches in steps/; nothing is checked out."""

from build_nanogpt.lecture.build import PatchError, plain_trees
from build_nanogpt.lecture.git import Scratch, list_tree, read_blobs
from build_nanogpt.lecture.series import BORN, is_program


def load_trees(steps):
    """([{path: (mode, bytes)}] of the steps' trees, None or the PatchError that ended the list)."""
    names, error = [], None
    with Scratch() as scratch:
        try:
            for tree in plain_trees(scratch, steps):
                names.append(list_tree(scratch, tree))
        except PatchError as failed:
            error = failed
        blobs = read_blobs(scratch, [name for files in names for _, name in files.values()])
    trees = [{path: (mode, blobs[name]) for path, (mode, name) in files.items()}
             | {"README.md": ("100644", step.readme)}
             for step, files in zip(steps, names, strict=False)]
    return trees, error


def test_files(tree):
    """The test files of a tree, in order."""
    return sorted(path for path in tree if BORN.fullmatch(path))


def program_files(tree):
    """The program's files in a tree, in order: what a follower writes."""
    return sorted(path for path in tree if is_program(path))


def one_step_earlier(tree, before):
    """The program of the tree `before` with the tests of `tree`."""
    return ({path: file for path, file in before.items() if not path.startswith("tests/")}
            | {path: file for path, file in tree.items() if path.startswith("tests/")})
