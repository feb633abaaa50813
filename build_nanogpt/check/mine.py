"""A follower's own work, one file or a whole folder, against the tests of a step."""

import shlex
import time
from pathlib import Path

from build_nanogpt.check.own_files import changed_files, read_mine, syntax_error, tree_of
from build_nanogpt.check.pool import Pool, slow_imports
from build_nanogpt.check.reuse import key_of
from build_nanogpt.check.tasks import BROKEN, chunks, count, imports_task, tests_task
from build_nanogpt.cli import UserError
from build_nanogpt.lecture.contents import tag_here
from build_nanogpt.lecture.git import Repository
from build_nanogpt.lecture.trees import load_trees, program_files, test_files

PATIENCE = 60  # seconds for one test: a mistake may be an endless loop
HURRY = 15  # seconds for the tests of earlier steps
LOT = 8  # test files in one process
ENOUGH = 5  # failures of earlier steps' tests to show


def find_step(config, steps, root, cwd):
    """The Step that --step names or the current folder has checked out. Raises UserError."""
    number = config.step
    if number is None:
        tag = tag_here(Repository(root), cwd)
        if not tag:
            raise UserError(f"which step? Add it, as in check --mine {config.mine} --step 7; it is "
                            "known by itself only in a checkout of a step")
        number = int(tag.removeprefix("step-"))
    if not 0 <= number < len(steps):
        raise UserError(f"no step {number}: the lecture has {steps[0].tag} ... {steps[-1].tag}")
    return steps[number]


# -----------------------------------------------------------------------------
# tests


def plan_tasks(step, tree, mine):
    """(first, later) tasks: the import and the step's own tests; then the tests of earlier steps,
    newest first, without those that none of the follower's files can affect."""
    program = [path for path in program_files(tree) if path in mine.files]
    without = tree | {path: (tree[path][0], b"") for path in program}
    earlier = [file for file in test_files(tree) if file not in step.born
               and (key_of(file, tree) is None or key_of(file, tree) != key_of(file, without))]
    own = list(mine.files)
    born = [tests_task([file], own=own, limit=PATIENCE) for file in step.born]
    return ([imports_task(program), *born],
            [tests_task(lot, ENOUGH, "not slow", own, PATIENCE)
             for lot in chunks(earlier[::-1], LOT)])


class Tally:
    """What is known of the follower's files so far."""

    def __init__(self, step, mine):
        self.step, self.mine, self.left_out, self.broken = step, mine, 0, []
        self.unreached = 0  # test files
        self.passed = {True: 0, False: 0}  # by: is it this step's own test?
        self.skipped = {True: 0, False: 0}
        self.failed = {True: {}, False: {}}

    def add(self, born, task, answer):
        """Count the answer of one task."""
        if task["kind"] == "imports":
            self.broken = [f"{self.mine.name}: {answer['died']}"] if "died" in answer else [
                words_of_import(failure, self.mine) for failure in answer["failures"]]
            return
        if "died" in answer:
            self.failed[born][task["files"][0]] = {"message": answer["died"]}
            return
        self.left_out += answer["left_out"]
        for name, facts in answer["tests"].items():
            if facts["outcome"] == "failed":
                self.failed[born][name] = facts
            else:
                (self.passed if facts["outcome"] == "passed" else self.skipped)[born] += 1
        if answer["status"] in BROKEN:
            self.failed[born][task["files"][0]] = {
                "message": f"pytest stopped with status {answer['status']}"}

    @property
    def done(self):
        return not (self.broken or self.failed[True] or self.failed[False])


def run_tests(step, original, tree, mine, jobs):
    """Run the tests, and stop when more of them would tell nothing new. Returns a Tally."""
    first, later = plan_tasks(step, original, mine)
    tasks, tally, waiting = first + later, Tally(step, mine), len(first)
    own_ended, left = None, set(range(len(tasks)))
    modules = slow_imports([data for path, (_, data) in tree.items() if path.endswith(".py")])
    with Pool(modules, jobs) as pool:
        for number, answer in pool.run([(tree, task) for task in tasks]):
            tally.add(number < len(first), tasks[number], answer)
            waiting -= number < len(first)
            left.discard(number)
            if not waiting and own_ended is None:
                own_ended = time.monotonic()
            elif not waiting and time.monotonic() - own_ended > HURRY:
                tally.unreached = sum(len(tasks[n]["files"]) for n in left)
                break
            if tally.broken or not waiting and (
                    tally.failed[True] or len(tally.failed[False]) >= ENOUGH):
                break
    return tally


# -----------------------------------------------------------------------------
# words


def words_of_import(failure, mine):
    if failure["own"]:
        path, line, text = failure["own"]
        return f"{mine.where(path)}: line {line}: `{text}`: {failure['message']}"
    return f"{mine.where(failure['id'])}: {failure['message']}"


def words_of_failure(name, facts, mine):
    """What a follower needs to know of a failed test, in lines."""
    yield f"\n{name}"
    if facts.get("doc"):
        yield f"    {facts['doc']}"
    if facts.get("test"):
        yield f"    line {facts['test'][1]}: `{facts['test'][2]}`"
    said = [line for line in facts["message"].splitlines() if not line.strip().startswith("+ ")]
    yield from (f"    {line}" for line in said[:6])
    if facts.get("own"):
        path, line, text = facts["own"]
        yield f"    at {mine.short(path)} line {line}: `{text}`"


def words_of_failures(failed, mine):
    """words_of_failure() of each; tests that fail with the same message are counted instead."""
    same, lines = {}, []
    for name, facts in failed.items():
        same.setdefault(facts["message"].partition("\n")[0], []).append(name)
    for names in same.values():
        lines += words_of_failure(names[0], failed[names[0]], mine)
        if names[1:]:
            lines.append(f"    and {count(len(names) - 1)} more with the same message")
    return lines


def verdict(tally):
    """One line: done or not."""
    tag, born, earlier = tally.step.tag, tally.failed[True], tally.failed[False]
    skipped = sum(tally.skipped.values())
    more = [f"{skipped} skipped here"] * bool(skipped)
    more += [f"slow tests of earlier steps left out: {tally.left_out}"] * bool(tally.left_out)
    more += [f"files of earlier steps' tests not reached in {HURRY} s: {tally.unreached}"
             ] * bool(tally.unreached)
    more = f" ({'; '.join(more)})" if more else ""
    if tally.broken:
        what = "a file in it" if tally.mine.folder else "the file"
        return f"{tag} is not done: {what} does not import."
    unread = [name for name in born if "::" not in name]
    if unread:
        return f"{tag} is not done: {unread[0]} does not find what it needs.{more}"
    if born:
        n = len(born) + tally.passed[True] + tally.skipped[True]
        fail = "fails" if len(born) == 1 else "fail"
        which = "its test" if n == 1 else f"{len(born)} of its {count(n)}"
        return f"{tag} is not done: {which} {fail}.{more}"
    if earlier:
        n = len(earlier)
        least = "at least " if n >= ENOUGH else ""
        return (f"{tag} is not done: its own tests pass, but {least}"
                f"{count(n)} of earlier steps {'fails' if n == 1 else 'fail'}.{more}")
    all_of = "the test" if tally.passed[True] == 1 else f"all {count(tally.passed[True])}"
    return f"{tag} is done: {all_of} of it and {tally.passed[False]} of earlier steps pass.{more}"


def way_on(step, tree, mine):
    """What to do next, in lines."""
    yield (f"\nagain:    python -m build_nanogpt check --mine {shlex.quote(mine.name)} "
           f"--step {step.number}")
    if step.number:
        yield f"the step: git diff step-{step.number - 1:02d} {step.tag}"
    for path in changed_files(step, tree):
        if path in mine.files:
            yield (f"compare:  git show {step.tag}:{path} > theirs.py && git diff --no-index "
                   f"{shlex.quote(mine.where(path))} theirs.py")


def check_mine(config, steps, jobs, root, cwd=None):
    """Report whether the file or folder config.mine passes a step's tests. Returns True if so."""
    if config.steps or config.run or config.latest_only:
        raise UserError("--mine takes --step alone, no other steps and neither --run nor "
                        "--latest-only")
    if not Path(config.mine).exists():
        raise UserError(f"--mine {config.mine}: there is no such file or folder")
    step = find_step(config, steps, root, cwd or Path.cwd())
    trees, error = load_trees(steps[:step.number + 1])
    if error:
        raise error
    original, before = trees[-1], trees[-2] if step.number else {}
    mine = read_mine(config.mine, step, original, before)
    wrong = {path: syntax_error(source) for path, source in mine.files.items()
             if path in original}
    if any(wrong.values()):
        tally = Tally(step, mine)
        tally.broken = [f"{mine.where(path)}: {words}" for path, words in wrong.items() if words]
    else:
        tally = run_tests(step, original, tree_of(mine, original, before), mine, jobs)
    lines = [mine.lacking] * bool(mine.lacking) + tally.broken
    for failed in tally.failed[True], dict(list(tally.failed[False].items())[:ENOUGH]):
        lines += words_of_failures(failed, mine) if not tally.broken else []
    if not tally.done:
        lines += [*way_on(step, original, mine), ""]
    print("\n".join([*lines, verdict(tally)]))
    return tally.done
