"""The lecture's source: steps/NN-slug.patch and steps/NN-slug.md, read and taken apart."""

import calendar
import re
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path

from build_nanogpt.cli import UserError

SECTIONS = ("What changes", "Run it", "You should see", "Check yourself", "If it goes wrong")
NAME = re.compile(r"(\d{2,3})-([a-z0-9]+(?:-[a-z0-9]+)*)\.(patch|md)")
HEAD = re.compile(r"# step-(\d{2,3}): (\S.*)")
INTRO = re.compile(r"(?:Video \[(\d+:\d\d:\d\d)\]\(https?://[^)\s]+\)|Past the video)\. (\S.*)")
VERSION = re.compile(r"^Lecture (\d+\.\d+\.\d+), (\d{4}-\d\d-\d\d)\.", re.MULTILINE)
TOLERANCE = re.compile(r"within (\d+(?:\.\d+)?) ?%")
HUNK = re.compile(rb"@@ -(\d+)(?:,(\d+))? \+\d+(?:,(\d+))? @@")
BORN = re.compile(r"tests/test_\w+\.py")


def tag_of(number):
    return f"step-{number:02d}"


def is_program(path):
    """Whether a file of a step's tree is of the program: Python at the root or in nanogpt/."""
    return re.fullmatch(r"(nanogpt/)?\w+\.py", path) is not None and path != "conftest.py"


def named_steps(text):
    """The tags that a part of the changelog names: step-04, step-85 to step-91, step-27 (30, 33).
    """
    numbers = set()
    for first, last, later in re.findall(
            r"\bstep-(\d+)\b(?:`? to `?step-(\d+)\b)?(?:`? \((\d+(?:, \d+)*)\))?", text):
        numbers |= {*range(int(first), int(last or first) + 1)}
        numbers |= {*map(int, re.findall(r"\d+", later))}
    return {tag_of(number) for number in numbers}


@dataclass(frozen=True)
class FileChange:
    """What a patch does to one file: its modes, and its `+`, `-` and `\\` lines in order."""

    path: str
    modes: tuple
    lines: tuple

    @property
    def deleted(self):
        return any(mode.startswith(b"deleted") for mode in self.modes)

    def count(self, sign):
        return sum(line.startswith(sign) for line in self.lines)


def parse_patch(patch):
    """The FileChanges of `git diff` text (bytes). Lines of hunks are counted, so a changed line
    that looks like a header is not taken for one."""
    changes, old, new = [], 0, 0
    for line in patch.split(b"\n"):
        if old > 0 or new > 0:
            old -= line[:1] in (b" ", b"-", b"")
            new -= line[:1] in (b" ", b"+", b"")
            if line[:1] in (b"+", b"-", b"\\"):
                changes[-1][2].append(line)
        elif line.startswith(b"diff --git "):
            names = line[len(b"diff --git "):]  # a/NAME b/NAME: renames are not used
            changes.append((names[2:(len(names) - 1) // 2].decode(errors="replace"), [], []))
        elif changes and (match := HUNK.match(line)):
            old, new = (int(n) if n is not None else 1 for n in match.group(2, 3))
        elif changes and line.startswith((b"new ", b"old ", b"deleted ")):
            changes[-1][1].append(line)
        elif changes and line.startswith(b"\\"):  # after a hunk's last line
            changes[-1][2].append(line)
    return [FileChange(path, tuple(modes), tuple(lines)) for path, modes, lines in changes]


@dataclass(frozen=True)
class Lesson:
    """A lesson's head and its whole text (str); the other parts are taken from the text."""

    title: str
    video: str  # h:mm:ss, or "" past the video
    summary: str
    text: str

    @cached_property
    def sections(self):
        """{title: text} of its `## ` parts."""
        found, fenced, lines = {}, False, None
        for line in self.text.splitlines():
            fenced ^= line.startswith("```")
            if line.startswith("## ") and not fenced:
                lines = found.setdefault(line[3:].strip(), [])
            elif lines is not None:
                lines.append(line)
        return {title: "\n".join(lines) for title, lines in found.items()}

    @property
    def commands(self):
        """The lines of the first code block under "Run it"; a backslash at the end joins two."""
        lines = first_block(self.sections.get("Run it", ""))
        joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
        return [line.strip() for line in joined.splitlines() if line.strip()]

    @property
    def expected(self):
        """The lines of the first code block under "You should see"."""
        return first_block(self.sections.get("You should see", ""))

    @property
    def tolerance(self):
        """Relative tolerance of numbers, 0.02 for "within 2%"; 0.0 where the lesson gives none."""
        match = TOLERANCE.search(self.sections.get("You should see", ""))
        return float(match[1]) / 100 if match else 0.0


def first_block(text):
    """The lines of the first indented (four spaces) or fenced block of Markdown; [] if none."""
    block, fenced = [], False
    for line in text.splitlines():
        if line.startswith("```"):
            if fenced or block:
                break
            fenced = True
        elif fenced or line.startswith("    "):
            block.append(line if fenced else line[4:])
        elif block and line.strip():
            break
        elif block:
            block.append("")
    while block and not block[-1].strip():
        block.pop()
    return block


def parse_lesson(text, number, name):
    """A Lesson from the text (str) of step `number`. Raises UserError naming `name`."""
    lines = text.splitlines()
    head = HEAD.fullmatch(lines[0].rstrip()) if lines else None
    if not head or head[1] != f"{number:02d}":
        raise UserError(f"{name}: its first line must be '# {tag_of(number)}: Title', not "
                        f"{lines[0] if lines else ''!r}")
    paragraph = []
    for line in lines[1:]:
        if line.strip():
            paragraph.append(line.strip())
        elif paragraph:
            break
    intro = INTRO.fullmatch(" ".join(paragraph))
    if not intro:
        raise UserError(f"{name}: the paragraph below its head must be 'Video [h:mm:ss](address). "
                        f"A sentence.' or 'Past the video. A sentence.', not {paragraph[:1]}")
    return Lesson(head[2], intro[1] or "", intro[2], text)


@dataclass(frozen=True)
class Step:
    """One step of the lecture. `patch` and `readme` are bytes with plain line ends."""

    number: int
    slug: str
    patch: bytes
    readme: bytes
    lesson: Lesson

    @property
    def tag(self):
        return tag_of(self.number)

    @property
    def subject(self):
        return f"{self.tag}: {self.lesson.title}"

    @property
    def title_and_time(self):
        """Its line in the table of contents."""
        return f"{self.lesson.title} ({self.lesson.video or 'past the video'})"

    @property
    def stem(self):
        """The name of its two files, without the ending."""
        return f"{self.number:02d}-{self.slug}"

    @cached_property
    def changes(self):
        return parse_patch(self.patch)

    @property
    def born(self):
        """Paths of the test files that this step adds or changes."""
        return [c.path for c in self.changes if BORN.fullmatch(c.path) and not c.deleted]

    def program_lines(self):
        """(added, removed) lines of the program's files."""
        program = [change for change in self.changes if is_program(change.path)]
        return tuple(sum(change.count(sign) for change in program) for sign in (b"+", b"-"))


def read_plain(path):
    """A file's bytes, with the line ends of a Windows checkout made plain."""
    return path.read_bytes().replace(b"\r\n", b"\n")


def list_series(folder):
    """[(number, slug)] of the steps in `folder`, in order.

    Raises UserError for a bad name, a gap, a duplicate, or a step with only one of its two files.
    """
    found = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.suffix in (".patch", ".md") and path.name != "README.md":
            match = NAME.fullmatch(path.name)
            if not match or match[1] != f"{int(match[1]):02d}":
                raise UserError(f"steps/{path.name}: the name must be NN-slug.{path.suffix[1:]}, "
                                "as in 07-cross-entropy.patch")
            found.setdefault((int(match[1]), match[2]), set()).add(match[3])
    if not found:
        raise UserError(f"no steps in {folder}: the lecture's patches and lessons belong there")
    for i, ((number, slug), kinds) in enumerate(sorted(found.items())):
        name = f"steps/{number:02d}-{slug}"
        for kind in {"patch", "md"} - kinds:
            raise UserError(f"{name}.{kind} is missing: a step has a patch and a lesson")
        if number < i:
            raise UserError(f"{name}.patch: there are two steps {number:02d}")
        if number > i:
            raise UserError(f"steps/{i:02d}-*.patch is missing: after {i - 1:02d} comes {name}"
                            if i else f"steps/00-*.patch is missing: the first is {name}.patch")
    return sorted(found)


def read_step(folder, number, slug):
    """A Step. Raises UserError for a malformed lesson, or a patch that touches README.md."""
    name = f"{number:02d}-{slug}"
    readme = read_plain(folder / f"{name}.md")
    try:
        lesson = parse_lesson(readme.decode("utf-8"), number, f"steps/{name}.md")
    except UnicodeDecodeError as error:
        raise UserError(f"steps/{name}.md is not UTF-8 (byte {error.start}): save it so") from None
    step = Step(number, slug, read_plain(folder / f"{name}.patch"), readme, lesson)
    if any(change.path == "README.md" for change in step.changes):
        raise UserError(f"steps/{name}.patch touches README.md: a step's README.md is its lesson, "
                        f"steps/{name}.md")
    return step


def day_of(date):
    """Seconds since 1970 at the beginning of a day given as YYYY-MM-DD; None if there is none."""
    try:
        return calendar.timegm(datetime.strptime(date, "%Y-%m-%d").timetuple())
    except ValueError:
        return None


def read_version(root):
    """(X.Y.Z, YYYY-MM-DD) of the lecture, as the syllabus says. Raises UserError if it does not."""
    path = Path(root) / "steps" / "README.md"
    match = VERSION.search(path.read_text(encoding="utf-8")) if path.is_file() else None
    if not match or day_of(match[2]) is None:
        raise UserError("steps/README.md has no line that begins 'Lecture X.Y.Z, YYYY-MM-DD.': "
                        "write it; the commits of the steps bear that day")
    return match.groups()


def read_series(root):
    """The Steps in `root`/steps, in order. Raises UserError that names the wrong file."""
    folder = Path(root) / "steps"
    return [read_step(folder, number, slug) for number, slug in list_series(folder)]
