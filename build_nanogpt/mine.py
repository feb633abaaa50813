"""A follower's own train_gpt2.py, held against the tests of a step."""

import shlex
import time
from pathlib import Path

from build_nanogpt.check import BROKEN, chunks, count, load_trees, test_files, tests_task
from build_nanogpt.contents import tag_here
from build_nanogpt.git import Repository
from build_nanogpt.pool import Pool, slow_imports
from build_nanogpt.reuse import key_of
from common import UserError

PROGRAM = "train_gpt2.py"
PATIENCE = 60  # seconds of one test: a mistake may be a loop that never ends
HURRY = 15  # seconds after which no more of the earlier steps' tests are awaited
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


def read_program(name):
    """The bytes of a follower's file. Raises UserError for a file that is not there."""
    try:
        return Path(name).read_bytes()
    except OSError as error:
        raise UserError(f"--mine {name}: it cannot be read ({error.strerror})") from None


def syntax_error(source, name):
    """Words for source that is no Python, or ""."""
    try:
        compile(source, name, "exec", dont_inherit=True)
    except SyntaxError as error:
        text = (error.text or "").strip()
        return f"line {error.lineno}: `{text}`: {type(error).__name__}: {error.msg}"
    except ValueError as error:  # null bytes
        return str(error)
    return ""


def plan_tasks(step, tree):
    """Tasks: the import, the tests born in the step, then those of earlier steps, newest first,
    but for the ones that cannot touch the program: they are about the other scripts."""
    without = tree | {PROGRAM: (tree[PROGRAM][0], b"")}
    earlier = [file for file in test_files(tree) if file not in step.born
               and (key_of(file, tree) is None or key_of(file, tree) != key_of(file, without))]
    born = [tests_task([file], limit=PATIENCE) for file in step.born]
    return ([{"kind": "imports", "scripts": [PROGRAM]}, *born],
            [tests_task(lot, ENOUGH, "not slow", limit=PATIENCE)
             for lot in chunks(earlier[::-1], LOT)])


class Tally:
    """What is known of the follower's file so far."""

    def __init__(self, step):
        self.step, self.left_out, self.broken = step, 0, []
        self.unreached = 0  # test files
        self.passed = {True: 0, False: 0}  # by: born in this step?
        self.skipped = {True: 0, False: 0}
        self.failed = {True: {}, False: {}}

    def add(self, born, task, answer):
        """Count the answer of one task."""
        if task["kind"] == "imports":
            self.broken = [answer["died"]] if "died" in answer else [
                words_of_import(failure) for failure in answer["failures"]]
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


def words_of_import(failure):
    place = f"line {failure['own'][0]}: `{failure['own'][1]}`: " if failure["own"] else ""
    return f"{place}{failure['message']}"


def words_of_failure(name, facts, file):
    """What a follower needs to know of a failed test, in lines."""
    yield f"\n{name}"
    if facts.get("doc"):
        yield f"    {facts['doc']}"
    if facts.get("test"):
        yield f"    line {facts['test'][0]}: `{facts['test'][1]}`"
    yield from (f"    {line}" for line in facts["message"].splitlines()[:6])
    if facts.get("own"):
        yield f"    at {Path(file).name} line {facts['own'][0]}: `{facts['own'][1]}`"


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
        return f"{tag} is not done: the file does not import."
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


def way_on(step, file):
    """What to do next, in lines."""
    file = shlex.quote(file)
    yield f"\nagain:    python -m build_nanogpt check --mine {file} --step {step.number}"
    if step.number:
        yield f"the step: git diff step-{step.number - 1:02d} {step.tag}"
    yield (f"compare:  git show {step.tag}:{PROGRAM} > theirs.py && git diff --no-index {file} "
           "theirs.py")


def run_tests(step, original, tree, modules, jobs):
    """Run what --mine asks for, no longer than there is something to learn. Returns a Tally."""
    first, later = plan_tasks(step, original)
    tasks, tally, waiting = first + later, Tally(step), len(first)
    began, left = time.monotonic(), set(range(len(tasks)))
    with Pool(modules, jobs) as pool:
        for number, answer in pool.run([(tree, task) for task in tasks]):
            tally.add(number < len(first), tasks[number], answer)
            waiting -= number < len(first)
            left.discard(number)
            if not waiting and time.monotonic() - began > HURRY:
                tally.unreached = sum(len(tasks[n]["files"]) for n in left)
                break
            if tally.broken or not waiting and (
                    tally.failed[True] or len(tally.failed[False]) >= ENOUGH):
                break
    return tally


def check_mine(config, steps, jobs, root, cwd=None):
    """Say whether the file config.mine does what a step does. Returns True if so."""
    if config.steps or config.run or config.latest_only:
        raise UserError("--mine takes --step alone, no other steps and neither --run nor "
                        "--latest-only")
    source, file = read_program(config.mine), config.mine
    step = find_step(config, steps, root, cwd or Path.cwd())
    trees, error = load_trees(steps[:step.number + 1])
    if error:
        raise error
    tree = trees[step.number] | {PROGRAM: ("100644", source)}
    wrong = syntax_error(source, Path(file).name)
    if wrong:
        tally = Tally(step)
        tally.broken = [wrong]
    else:
        texts = [data for path, (_, data) in tree.items() if path.endswith(".py")]
        tally = run_tests(step, trees[step.number], tree, slow_imports(texts), jobs)
    lines = [f"{file}: {words}" for words in tally.broken]
    for failed in tally.failed[True], dict(list(tally.failed[False].items())[:ENOUGH]):
        for name, facts in failed.items() if not tally.broken else ():
            lines += words_of_failure(name, facts, file)
    if not tally.done:
        lines += [*way_on(step, file), ""]
    print("\n".join([*lines, verdict(tally)]))
    return tally.done
