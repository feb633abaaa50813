"""The branch `lecture` and the tags step-NN, replayed from steps/ by git itself.

Commits are a pure function of steps/: fixed names, the day of the lecture's version, one minute
apart. So git finds the newest version of a step by its subject: `git checkout ':/^step-07:'`.
Everything is made in a scratch repository; only then are the objects brought to the user's, and the
refs moved at once.
"""

import re
from dataclasses import dataclass

from build_nanogpt.cli import UserError
from build_nanogpt.lecture.git import ROOT, GitError, Repository, Scratch
from build_nanogpt.lecture.series import day_of, read_series, read_version

IDENTITY = "build_nanogpt <lecture@build-nanogpt.invalid>"
BRANCH = "refs/heads/lecture"
STEP_TAG = re.compile(r"refs/tags/(step-\d{2,3})")


@dataclass(frozen=True)
class Config:
    pass


class PatchError(UserError):
    """The patch of `step` does not apply."""

    def __init__(self, step, message):
        super().__init__(message)
        self.step = step


@dataclass(frozen=True)
class Built:
    """A series as git objects: {ref: id}, and the ids of each step's commit and tree."""

    refs: dict
    commits: list
    trees: list


@dataclass(frozen=True)
class Ref:
    """A ref of the user's repository, the commit it leads to, and that commit's subject."""

    name: str
    id: str
    commit: str
    tagger: str
    author: str
    committer: str
    date: str
    worktree: str
    subject: str

    @property
    def own_tag(self):
        return self.tagger == IDENTITY

    @property
    def own_commit(self):
        """Whether `build` made the commit at a branch's tip."""
        number = re.match(r"step-(\d+): ", self.subject)
        return (self.author == self.committer == IDENTITY and number is not None
                and int(self.date) % 86400 == 60 * int(number[1]))  # the day may be another


# -----------------------------------------------------------------------------
# objects


def apply_patch(scratch, step):
    """Apply a step's patch to the scratch index. Raises PatchError naming step, file and hunk."""
    try:
        scratch.git("apply", "--cached", "--whitespace=nowarn", "-", data=step.patch)
    except GitError as error:
        said = [line.removeprefix("error: ") for line in str(error).splitlines()]
        place = re.fullmatch(r"patch failed: (.*):(\d+)", said[0])
        what = (f"{place[1]}, the hunk at line {place[2]}, does not fit what step "
                f"{step.number - 1:02d} leaves" if place else said[0].split(" (allow")[0])
        raise PatchError(step, f"{step.tag} does not apply (steps/{step.stem}.patch): {what}"
                         ) from None


def plain_trees(scratch, steps):
    """Yield the id of each step's tree without lesson. Raises PatchError."""
    scratch.git("read-tree", "--empty")
    for step in steps:
        apply_patch(scratch, step)
        yield scratch.line("write-tree")


def data_of(text):
    """Bytes as fast-import reads them."""
    return b"data %d\n%s\n" % (len(text), text)


def import_commit(step, tree, day):
    """fast-import commands for a step's commit and tag; the step before is mark :NN."""
    date = day + 60 * step.number
    when = f"{IDENTITY} {date} +0000"
    commit = f"commit {BRANCH}\nmark :{step.number + 1}\nauthor {when}\ncommitter {when}\n"
    parent = f"from :{step.number}\n" if step.number else ""
    return b"".join([
        commit.encode(), data_of(f"{step.subject}\n\n{step.lesson.summary}\n".encode()),
        f'{parent}M 040000 {tree} ""\nM 100644 inline README.md\n'.encode(),
        data_of(step.readme),
        import_tag(step.tag, f":{step.number + 1}", date, step.title_and_time)])


def import_tag(name, commit, date, message):
    """fast-import commands for an annotated tag on a commit, given as an id or a mark."""
    head = f"tag {name}\nfrom {commit}\ntagger {IDENTITY} {date} +0000\n"
    return head.encode() + data_of(f"{message}\n".encode())


def fast_import(scratch, stream):
    """Run fast-import on `stream`. Returns all refs of `scratch`, {name: id}."""
    scratch.git("fast-import", "--quiet", "--done", data=stream + b"done\n")
    said = scratch.line("for-each-ref", "--format=%(refname) %(objectname)")
    return dict(line.split() for line in said.splitlines())


def build_series(scratch, steps, date):
    """Make every step's commit and tag in `scratch`, on the day `date` (YYYY-MM-DD). Returns Built.
    Raises PatchError."""
    trees, day = list(plain_trees(scratch, steps)), day_of(date)
    stream = b"".join(import_commit(step, tree, day)
                      for step, tree in zip(steps, trees, strict=True))
    refs = fast_import(scratch, stream)
    logged = scratch.line("log", "--reverse", "--format=%H %T", BRANCH).split()
    return Built(refs, logged[0::2], logged[1::2])


def bring(scratch, repository):
    """Copy into the user's repository the objects of scratch's refs that it lacks."""
    names = scratch.git("rev-list", "--objects", "--no-object-names", "--all")
    known = repository.git("cat-file", "--batch-check=%(objectname)", data=names)
    missing = [line.split()[0] for line in known.splitlines() if line.endswith(b" missing")]
    if missing:
        pack = scratch.git("pack-objects", "-q", "--stdout", data=b"\n".join(missing) + b"\n")
        repository.git("index-pack", "--stdin", data=pack)


# -----------------------------------------------------------------------------
# refs


def read_refs(repository):
    """{name: Ref} of the branch, the step tags and the releases in the user's repository."""
    fields = ("refname", "objectname", "*objectname", "taggername) %(taggeremail",
              "authorname) %(authoremail", "committername) %(committeremail", "committerdate:unix",
              "worktreepath", "subject")
    said = repository.git("for-each-ref", "--format=" + "%00".join(f"%({f})" for f in fields),
                          "refs/tags/step-*", "refs/tags/lecture-v*", BRANCH)
    refs = {}
    for line in said.decode(errors="replace").splitlines():
        name, own, peeled, *rest = line.split("\0")
        refs[name] = Ref(name, own, peeled or own, *rest)
    return refs


def moves(refs, wanted):
    """[(name, new, old)] that turn `refs` into `wanted`; "" means that there is no such ref.

    Step tags that build made and that are not wanted go; others past the last step stay.
    """
    gone = {name: "" for name, ref in refs.items()
            if name not in wanted and STEP_TAG.fullmatch(name) and ref.own_tag}
    return [(name, new, refs[name].id if name in refs else "")
            for name, new in {**wanted, **gone}.items()
            if new != (refs[name].id if name in refs else "")]


def check_tags(refs, changes):
    """Raises UserError for a tag that would have to move but is somebody else's."""
    for name, _, _ in changes:
        if name in refs and name != BRANCH and not refs[name].own_tag:
            tag = name.removeprefix("refs/tags/")
            raise UserError(f"the tag {tag} is not build's own: rename it, or delete it with "
                            f"git tag -d {tag}")


def check_branch(repository, refs, changes, trees):
    """Raises UserError if `lecture` has to move but holds other work or is checked out."""
    branch = refs.get(BRANCH)
    if branch is None or BRANCH not in [name for name, _, _ in changes]:
        return
    exported = repository.git("log", "--reverse", "--first-parent", "--format=%T", branch.id
                              ).decode().split() == trees
    if not branch.own_commit and not exported:
        raise UserError("the branch lecture holds commits that are not in steps/: run python -m "
                        "build_nanogpt export, or delete it with git branch -D lecture")
    if branch.worktree:
        raise UserError(f"the branch lecture is checked out in {branch.worktree} and would have to "
                        f"move: git -C {branch.worktree} switch --detach")


def plan(repository, built):
    """The moves() that bring the user's refs to what was built. Raises UserError if one of them is
    not allowed."""
    refs = read_refs(repository)
    changes = moves(refs, built.refs)
    check_tags(refs, changes)
    check_branch(repository, refs, changes, built.trees)
    return changes


def publish(scratch, repository, built):
    """Copy a series into the user's repository and move its refs in one transaction.

    Returns moves(). Raises UserError if nothing was moved.
    """
    changes = plan(repository, built)
    if changes:
        bring(scratch, repository)
        zero = "0" * len(built.commits[0])
        lines = [f"update {name} {new or zero} {old or zero}\n" for name, new, old in changes]
        try:
            repository.git("update-ref", "--stdin", "-m", "build_nanogpt", data="".join(
                lines).encode())
        except GitError as error:
            raise UserError(f"git moved nothing: {error}") from None
    return changes


def spans(tags):
    """Tags in order, runs shortened: step-00 ... step-03, step-07."""
    numbers, runs = sorted(int(tag.removeprefix("step-")) for tag in tags), []
    for number in numbers:
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(" ... ".join(f"step-{n:02d}" for n in sorted({run[0], run[-1]}))
                     for run in runs)


def describe(changes, built):
    """What moved, in lines."""
    tip = f"the branch lecture is at {built.commits[-1][:12]}, step-{len(built.commits) - 1:02d}"
    if not changes:
        return f"nothing moved: {tip}"
    lines = []
    for verb, kind in (("added", lambda new, old: not old), ("moved", lambda new, old: new and old),
                       ("removed, past the last step", lambda new, old: not new)):
        tags = [match[1] for name, new, old in changes
                if kind(new, old) and (match := STEP_TAG.fullmatch(name))]
        if tags:
            lines.append(f"{verb}: {spans(tags)}")
    return "\n".join([*lines, tip])


def main(config, root=ROOT):
    """Build the branch lecture and the tags step-NN from steps/; git tag -n lists them."""
    steps = read_series(root)
    _, date = read_version(root)
    repository = Repository(root)
    with Scratch(repository.object_format) as scratch:
        built = build_series(scratch, steps, date)
        changes = publish(scratch, repository, built)
    print(describe(changes, built))
