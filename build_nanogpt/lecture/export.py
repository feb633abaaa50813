"""Write the branch `lecture`, edited with git, back to steps/ and to the repository's top."""

import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

from build_nanogpt.cli import UserError, whole
from build_nanogpt.lecture.build import BRANCH, apply_patch, build_series, read_refs
from build_nanogpt.lecture.git import (
    ROOT,
    GitError,
    Repository,
    Scratch,
    bare_tree,
    diff_patch,
    empty_tree,
    list_tree,
    read_blobs,
)
from build_nanogpt.lecture.series import named_steps, parse_patch, read_plain, read_series, tag_of
from build_nanogpt.lecture.trees import load_trees


@dataclass(frozen=True)
class Config:
    pass


@dataclass(frozen=True)
class Commit:
    """A commit of the branch, and its tree with and without README.md (ids)."""

    id: str
    tree: str
    bare: str
    subject: str

    def __str__(self):
        return f"commit {self.id[:10]} {self.subject!r}"


@dataclass(frozen=True)
class Written:
    """A step as the branch has it. `old` is the Step of steps/, None for a new one."""

    number: int
    stem: str
    patch: bytes
    readme: bytes
    old: object

    def changed_files(self):
        """Paths whose + and - lines differ from those in steps/."""
        if self.old and self.patch == self.old.patch:
            return []
        before = {c.path: c for c in self.old.changes} if self.old else {}
        after = {c.path: c for c in parse_patch(self.patch)}
        return sorted(path for path in before.keys() | after.keys()
                      if before.get(path) != after.get(path))

    def words(self):
        """What changed in the step, as one line; "" if nothing did."""
        tag = tag_of(self.number)
        if not self.old:
            return f"{tag}: new: steps/{self.stem}"
        if self.changed_files():
            return f"{tag}: its lines changed: {', '.join(self.changed_files())}"
        if self.patch != self.old.patch:
            return f"{tag}: its patch was refreshed, its lines are the same"
        return f"{tag}: its lesson changed" if self.readme != self.old.readme else ""


# -----------------------------------------------------------------------------
# from the branch


def read_branch(repository, scratch):
    """The Commits of the branch lecture, first to last.

    Raises UserError for a branch that is not one line of step-00, step-01, ...
    """
    if BRANCH not in read_refs(repository):
        raise UserError("there is no branch lecture: python -m build_nanogpt build")
    said = repository.git("log", "--reverse", "--topo-order", "--format=%H%x00%P%x00%T%x00%s",
                          BRANCH)
    commits = []
    for line in said.decode(errors="replace").splitlines():
        name, parents, tree, subject = line.split("\0")
        commit = Commit(name, tree, bare_tree(scratch, tree), subject)
        number = re.match(r"step-(\d{2,3}): \S", subject)
        if len(parents.split()) > 1:
            raise UserError(f"the {commit} is a merge: rebase the branch lecture into one line")
        if not number:
            raise UserError(f"the {commit} is not a step: finish with git rebase -i --autosquash, "
                            f"or call it '{tag_of(len(commits))}: Title'")
        if int(number[1]) != len(commits):
            raise UserError(f"the {commit} is where {tag_of(len(commits))} belongs: steps are "
                            "never renumbered, new ones go to the end")
        commits.append(commit)
    return commits


def fits(scratch, before, step, after):
    """Whether the step's patch, unchanged, leads from one tree to the other."""
    scratch.git("read-tree", before)
    try:
        apply_patch(scratch, step)
    except UserError:
        return False
    return scratch.line("write-tree") == after


def new_stem(commit, number, patch):
    """NN-slug of a new step, after the test file that it adds. Raises UserError if it adds none."""
    for change in parse_patch(patch):
        match = re.fullmatch(rf"tests/test_{number:02d}_(\w+)\.py", change.path)
        if match and any(mode.startswith(b"new") for mode in change.modes):
            return f"{number:02d}-{match[1].replace('_', '-').lower()}"
    raise UserError(f"the {commit} adds no tests/test_{number:02d}_slug.py: a new step is named "
                    "after its test")


def read_lessons(scratch, commits):
    """The README.md (bytes) of every commit; None where there is none."""
    names = [list_tree(scratch, commit.tree).get("README.md", (None, None))[1]
             for commit in commits]
    blobs = read_blobs(scratch, [name for name in names if name])
    return [blobs.get(name) for name in names]


def rewrite(scratch, steps, commits):
    """A list of Written: the old patch where it still leads to the commit's tree, else the diff."""
    written, before = [], empty_tree(scratch)
    lessons = read_lessons(scratch, commits)
    for number, (commit, readme) in enumerate(zip(commits, lessons, strict=True)):
        old = steps[number] if number < len(steps) else None
        if readme is None or number and readme == lessons[number - 1]:
            raise UserError(f"the {commit} has no lesson of its own: write it as README.md")
        if old and fits(scratch, before, old, commit.bare):
            patch = old.patch
        else:
            patch = diff_patch(scratch, before, commit.bare)
        if not patch:
            raise UserError(f"the {commit} changes no file but its lesson: join it to another step")
        stem = old.stem if old else new_stem(commit, number, patch)
        written.append(Written(number, stem, patch, readme, old))
        before = commit.bare
    return written


def verify(object_format, written, commits):
    """Build what will be written, in a repository without the branch's objects. Raises UserError if
    the result differs from the branch."""
    with (tempfile.TemporaryDirectory(prefix="build_nanogpt-") as folder,
          Scratch(object_format) as scratch):
        for step in written:
            for path, data in step_files(step).items():
                (Path(folder) / path).parent.mkdir(exist_ok=True)
                (Path(folder) / path).write_bytes(data)
        trees = build_series(scratch, read_series(folder), "1970-01-01").trees
    for commit, tree in zip(commits, trees, strict=True):
        if commit.tree != tree:
            raise UserError(f"the {commit} cannot be written as patch and lesson: is one of its "
                            "files binary, or README.md not a plain file?")


# -----------------------------------------------------------------------------
# to the work tree


def step_files(step):
    return {f"steps/{step.stem}.patch": step.patch, f"steps/{step.stem}.md": step.readme}


def top_files(files):
    """{path: (mode, bytes)} of a tree's files that are also at the repository's top."""
    return {path: file for path, file in files.items() if path != "README.md"}


def differs(path, mode, data):
    """Whether the file at `path` differs. The line ends of a Windows checkout do not count."""
    if not path.is_file() or read_plain(path) != data.replace(b"\r\n", b"\n"):
        return True
    return os.name == "posix" and (mode == "100755") != os.access(path, os.X_OK)


def to_write(root, written, files):
    """{path: (mode, bytes)} of the files that have to change under `root`."""
    wanted = {path: ("100644", data) for step in written
              for path, data in step_files(step).items()} | top_files(files)
    return {path: file for path, file in wanted.items() if differs(Path(root) / path, *file)}


def to_remove(root, steps, files):
    """Paths still under `root` that the last step of steps/ has and the branch's last has not."""
    trees, error = load_trees(steps)
    known = top_files(trees[-1]) if trees and not error else {}
    return sorted(path for path in known if path not in files and (Path(root) / path).exists())


def write(root, files, gone):
    """Write and remove files under `root`; each is written completely or not at all."""
    for path, (mode, data) in files.items():
        target = Path(root) / path
        target.parent.mkdir(parents=True, exist_ok=True)
        with whole(target) as temporary:
            temporary.write_bytes(data)
            if mode == "100755":
                temporary.chmod(temporary.stat().st_mode | 0o111)
    for path in gone:
        (Path(root) / path).unlink()


def unnamed(root, tags):
    """Those of `tags` that the changelog's part Unreleased does not name."""
    changelog = Path(root) / "CHANGELOG.md"
    text = changelog.read_text(encoding="utf-8") if changelog.is_file() else ""
    part = re.search(r"^## \[?Unreleased\b.*?(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    return [tag for tag in tags if not part or tag not in named_steps(part[0])]


def describe(root, written, files, gone):
    """What was written, in lines."""
    lines = [step.words() for step in written if step.words()]
    for verb, paths in (("written", files), ("removed", gone)):
        paths = sorted(path for path in paths if not path.startswith("steps/"))
        if paths:
            lines.append(f"{verb}: {', '.join(paths)}")
    changed = [tag_of(step.number) for step in written if step.changed_files()]
    missing = unnamed(root, changed)
    if missing:
        lines.append(f"CHANGELOG.md's part Unreleased does not name {', '.join(missing)}")
    return "\n".join(lines + ["next: python -m build_nanogpt check, then build"])


def main(config, root=ROOT):
    """Write the branch lecture, as edited with git, back to steps/ and the top-level files."""
    repository, steps = Repository(root), read_series(root)
    with Scratch(repository.object_format, repository.objects) as scratch:
        commits = read_branch(repository, scratch)
        if len(commits) < len(steps):
            raise UserError(f"the branch lecture ends with {tag_of(len(commits) - 1)}, steps/ with "
                            f"{steps[-1].tag}: delete steps/{steps[-1].stem}.* first if that step "
                            "is to go")
        written = rewrite(scratch, steps, commits)
        verify(repository.object_format, written, commits)
        files = list_tree(scratch, commits[-1].bare)
        blobs = read_blobs(scratch, [name for _, name in files.values()])
    files = {path: (mode, blobs[name]) for path, (mode, name) in files.items()}
    new, gone = to_write(root, written, files), to_remove(root, steps, files)
    try:
        changed = repository.changed([*new, *gone])
    except GitError as error:
        raise UserError(f"git cannot say what is not committed: {error}") from None
    if changed:
        raise UserError(f"{changed[0]} has changes that are not committed and would be overwritten:"
                        " commit them, or git stash them")
    write(root, new, gone)
    print(describe(root, written, new, gone) if new or gone else "nothing to write")
