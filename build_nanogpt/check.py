"""Is every step of the lecture what it claims to be? Trees are built from steps/ as they are."""

import os
import re
import shlex
import sys
from dataclasses import dataclass, field
from typing import Annotated

import tyro
from tqdm import tqdm

from build_nanogpt.build import PatchError, plain_trees
from build_nanogpt.git import ROOT, Scratch, list_tree, read_blobs
from build_nanogpt.output import compare
from build_nanogpt.pool import Pool, slow_imports
from build_nanogpt.reuse import key_of
from build_nanogpt.series import BORN, SECTIONS, read_series, tag_of
from common import UserError

CHUNK = 24  # test files in one process: more share fixtures, fewer keep all cores busy
TEST_LIMIT = 300  # seconds of one test, after which it is taken to hang
RUN_LIMIT = 60  # seconds of a lesson's commands
BROKEN = (3, 4)  # pytest's exit status for an error of its own, and for a wrong option
UNTESTED = "No test of this step fails one step earlier"
# What a follower without a network and without a GPU sees, also on a machine that has both.
OFFLINE = {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "COLUMNS": "100",
           **{name: "http://127.0.0.1:9" for name in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY",
                                                      "http_proxy")},
           "PYTHONUNBUFFERED": "1"}


@dataclass(frozen=True)
class Config:
    steps: Annotated[tuple[str, ...], tyro.conf.Positional,
                     tyro.conf.arg(metavar="[STEPS ...]")] = ()
    """which steps, as in `7` or `20-31`; all if none is given"""
    run: tyro.conf.FlagCreatePairsOff[bool] = False
    """also run each lesson's command, and hold its output against the lesson"""
    latest_only: tyro.conf.FlagCreatePairsOff[bool] = False
    """of each step's tests run only those born in it"""
    mine: Annotated[str, tyro.conf.arg(metavar="FILE")] = ""
    """a file of your own, to be held against the tests of one step"""
    step: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """the step of --mine; not needed where the current folder is a checkout of one"""
    jobs: int = 0
    """processes side by side; 0 for one a core"""


def count(n):
    return f"{n} test{'' if n == 1 else 's'}"


@dataclass
class Result:
    """What became of one step."""

    step: object
    failures: list = field(default_factory=list)
    tests: int = 0
    skipped: int = 0
    new: int = 0
    untested: bool = False  # as its lesson says
    seconds: float = None  # of the lesson's commands

    @property
    def ok(self):
        return not self.failures

    def line(self, width=0):
        """One line, and one more for each failure."""
        head = f"{self.step.tag}  {self.step.lesson.title:{width}}  "
        if self.failures:
            return "\n".join([f"{head}FAILED", *(f"    {failure}" for failure in self.failures)])
        before = tag_of(self.step.number - 1) if self.step.number else "an empty folder"
        fail = "as its lesson says not failing on" if self.untested else "fail on"
        skipped = f" ({self.skipped} skipped)" if self.skipped else ""
        ran = "" if self.seconds is None else f"; ran in {self.seconds:.1f} s"
        return (f"{head}ok   {count(self.tests)}{skipped}, {self.new} of them new, {fail} {before}"
                f"{ran}")


# -----------------------------------------------------------------------------
# trees


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
    return sorted(path for path in tree if BORN.fullmatch(path))


def one_step_earlier(tree, before):
    """The program of the tree `before` with the tests of `tree`."""
    return ({path: file for path, file in before.items() if not path.startswith("tests/")}
            | {path: file for path, file in tree.items() if path.startswith("tests/")})


# -----------------------------------------------------------------------------
# tasks


def tests_task(files, maxfail=0, marks="", own="train_gpt2.py", limit=TEST_LIMIT):
    return {"kind": "tests", "files": files, "maxfail": maxfail, "marks": marks, "own": own,
            "limit": limit}


def chunks(files, size=CHUNK):
    return [files[i:i + size] for i in range(0, len(files), size)]


def says_untested(step):
    return UNTESTED in " ".join(step.lesson.sections.get("Check yourself", "").split())


def arguments(line):
    """A lesson's command as a list. Raises UserError for one that is not Python's."""
    try:
        words = shlex.split(line, comments=True)
    except ValueError as error:
        raise UserError(f"its command {line!r} cannot be read ({error})") from None
    starts = {"python": [], "torchrun": ["-m", "torch.distributed.run"], "pytest": ["-m", "pytest"]}
    if not words or words[0] not in starts:
        raise UserError(f"its command {line!r} does not begin with python, torchrun or pytest")
    return [sys.executable, *starts[words[0]], *words[1:]]


def commands_task(step):
    """The task that runs a lesson. Raises UserError for a lesson that cannot be run."""
    commands = [arguments(line) for line in step.lesson.commands]
    if not commands:
        raise UserError("its lesson has no command under '## Run it'")
    nowhere = {"TIKTOKEN_CACHE_DIR": "../no-tiktoken", "HF_HOME": "../no-hub"}
    return {"kind": "commands", "commands": commands, "env": OFFLINE | nowhere,
            "limit": RUN_LIMIT}


class Plan:
    """The tasks of a whole check, in the order of the steps, and who asks for their results.

    A test file that can give nothing new is not run: the task that ran it for an earlier step
    answers.
    """

    def __init__(self, steps, trees, run, latest_only, quick, every):
        self.steps, self.trees, self.run, self.latest_only = steps, trees, run, latest_only
        self.quick, self.every = quick, every
        self.tasks, self.asked, self.known = [], {}, {}
        self.mistakes = {}

    def add(self, files, task):
        self.tasks.append((files, task))
        return len(self.tasks) - 1

    def add_tests(self, step, files):
        """{test file: task} for a step; only what is not known yet becomes a task."""
        tree, answers, new = self.trees[step.number], {}, {"": [], "not slow": []}
        for file in files:
            again = file not in step.born and step is not self.steps[-1]
            marks = "not slow" if self.quick and again else ""
            key = (file, marks, key_of(file, tree) or step.tag)
            answers[file] = self.known.get(key)
            if answers[file] is None:
                new[marks].append((file, key))
        for marks, found in new.items():
            for chunk in chunks(found):
                number = self.add(tree, tests_task([file for file, _ in chunk], marks=marks))
                for file, key in chunk:
                    answers[file] = self.known[key] = number
        return answers

    def add_step(self, step):
        """Plan all of one step."""
        tree, asked, mistakes = self.trees[step.number], {}, []
        mistakes += [f"its lesson lacks '## {title}'" for title in SECTIONS
                     if title not in step.lesson.sections]
        scripts = sorted(path for path in tree if path.endswith(".py") and "/" not in path)
        asked["imports"] = self.add(tree, {"kind": "imports", "scripts": scripts})
        files = test_files(tree)
        if self.latest_only or ((step.number + 1) % self.every and step is not self.steps[-1]):
            files = step.born
        asked["tests"] = self.add_tests(step, files)
        if step.born and not says_untested(step):
            before = self.trees[step.number - 1] if step.number else {}
            asked["before"] = self.add(one_step_earlier(tree, before), tests_task(step.born, 1))
        elif not says_untested(step):
            mistakes.append(f"no test is born in it, and its lesson does not say: {UNTESTED}")
        if self.run:
            try:
                asked["commands"] = self.add(tree, commands_task(step))
            except UserError as error:
                mistakes.append(str(error))
        self.asked[step.number], self.mistakes[step.number] = asked, mistakes

    def needs(self, step):
        """Numbers of the tasks that a step's result waits for."""
        asked = dict(self.asked[step.number])
        return {*asked.pop("tests").values(), *asked.values()}


# -----------------------------------------------------------------------------
# results


def words_of(name, facts):
    """A failed test: its id, the line, the message."""
    line = f" line {facts['test'][0]}" if facts.get("test") else ""
    return f"{name}{line}: {' '.join(facts['message'].split())[:300]}"


def judge_tests(result, answers, results):
    """Count a step's tests and keep those that failed."""
    for file, number in answers.items():
        answer = results[number]
        if "died" in answer:
            result.failures.append(f"{file}: {answer['died']}")
            continue
        tests = {name: facts for name, facts in answer["tests"].items()
                 if name.split("::")[0] == file}
        result.tests += len(tests)
        result.new += len(tests) if file in result.step.born else 0
        result.skipped += sum(facts["outcome"] == "skipped" for facts in tests.values())
        result.failures += [words_of(name, facts) for name, facts in tests.items()
                            if facts["outcome"] == "failed"]
        if answer["status"] in BROKEN:
            result.failures.append(f"{file}: pytest stopped with status {answer['status']}")


def judge_before(result, answer):
    """The tests born in a step must not all pass one step earlier."""
    tag, number = result.step.tag, result.step.number
    failed = "died" in answer or any(facts["outcome"] == "failed"
                                     for facts in answer["tests"].values())
    if not failed and answer["status"] in BROKEN:
        result.failures.append(f"one step earlier pytest stopped with status {answer['status']}")
    elif not failed:
        before = tag_of(number - 1) if number else "an empty folder"
        result.failures.append(f"tests of {tag} pass on {before} too: they do not test it")


def judge_commands(result, answer):
    """A lesson's output must be what it says; status 2 is right where it shows an `error:`."""
    lesson = result.step.lesson
    if "died" in answer:
        result.failures.append(f"its command: {answer['died']}")
        return
    result.seconds = answer["seconds"]
    differs = compare(lesson.expected, answer["output"], lesson.tolerance) if (
        lesson.expected) else None
    allowed = {0, 2} if any(line.startswith("error:") for line in lesson.expected) else {0}
    if answer["late"]:
        result.failures.append(f"its command takes longer than {RUN_LIMIT} s")
    elif not set(answer["statuses"]) <= allowed:
        end = (answer["output"].strip().splitlines() or ["nothing"])[-1]
        command = lesson.commands[len(answer["statuses"]) - 1]
        result.failures.append(f"`{command}` ends with status {answer['statuses'][-1]}: {end}")
    if differs and not answer["late"]:
        result.failures.append(f"its output is not the lesson's: {differs}")


def judge(step, plan, results):
    """The Result of a step all of whose tasks have ended."""
    asked, result = plan.asked[step.number], Result(step, list(plan.mistakes[step.number]))
    imports = results[asked["imports"]]
    result.failures += [imports["died"]] if "died" in imports else [
        f"{failure['id']}: {failure['message']}" for failure in imports["failures"]]
    judge_tests(result, asked["tests"], results)
    if "before" in asked:
        judge_before(result, results[asked["before"]])
    result.untested = says_untested(step)
    if "commands" in asked:
        judge_commands(result, results[asked["commands"]])
    return result


def check_series(steps, numbers=None, run=False, latest_only=False, jobs=2, report=None,
                 quick=False, every=1):
    """Check the steps with these numbers, all if None; `report` is called with each Result in
    order, as soon as it is known. Returns the list of Results.

    quick: tests marked slow run in the step that bears them and in the last, not in between.
    every: the tests of earlier steps run in each `every`-th step and in the last.
    A patch that does not apply is the failure of its step, and the last Result.
    """
    trees, error = load_trees(steps)
    plan = Plan(steps, trees, run, latest_only, quick, every)
    wanted = [step for step in steps[:len(trees)] if numbers is None or step.number in numbers]
    for step in wanted:
        plan.add_step(step)
    texts = {data for tree in trees for path, (_, data) in tree.items() if path.endswith(".py")}
    done, results = [], {}

    def tell(result):
        done.append(result)
        if report:
            report(result)

    with Pool(slow_imports(texts), jobs) as pool:
        for number, answer in pool.run(plan.tasks):
            results[number] = answer
            while len(done) < len(wanted) and plan.needs(wanted[len(done)]) <= results.keys():
                tell(judge(wanted[len(done)], plan, results))
    if error and (numbers is None or max(numbers) >= error.step.number):
        tell(Result(error.step, [str(error)]))
    return done


# -----------------------------------------------------------------------------
# the command


def read_numbers(words, steps):
    """The set of steps that `7`, `07`, `step-07`, `20-31` name. Raises UserError."""
    numbers = set()
    for word in words:
        match = re.fullmatch(r"(?:step-)?(\d+)(?:-(?:step-)?(\d+))?", word)
        if not match:
            raise UserError(f"no step {word!r}: give numbers, as in 7 or 20-31")
        first, last = int(match[1]), int(match[2] or match[1])
        if not first <= last < len(steps):
            raise UserError(f"no step {word}: the lecture has {steps[0].tag} ... {steps[-1].tag}")
        numbers |= set(range(first, last + 1))
    return numbers


def summary(results):
    failed = [result.step.tag for result in results if not result.ok]
    if failed:
        return f"{len(failed)} of {len(results)} steps failed: {', '.join(failed)}"
    return f"{len(results)} steps checked: all are well"


def check_aloud(steps, numbers, run, latest_only, jobs, quick=False):
    """check_series with a progress bar and a line a step. Returns True if all is well."""
    width = max(len(step.lesson.title) for step in steps)
    with tqdm(total=len(numbers or steps), disable=None, leave=False, unit="step") as bar:

        def report(result):
            tqdm.write(result.line(width))
            sys.stdout.flush()
            bar.update()

        results = check_series(steps, numbers, run, latest_only, jobs, report, quick)
    print(summary(results))
    return all(result.ok for result in results)


def main(config, root=ROOT):
    """Check steps of the lecture: patches, imports, tests, and that tests fail one step earlier."""
    if config.jobs < 0:
        raise UserError(f"--jobs {config.jobs}: give 1 or more")
    steps, jobs = read_series(root), config.jobs or os.cpu_count() or 1
    if config.mine:
        from build_nanogpt.mine import check_mine

        well = check_mine(config, steps, jobs, root)
    elif config.step is not None:
        raise UserError(f"--step {config.step} belongs to --mine FILE; a step to check is given "
                        f"plainly: check {config.step}")
    else:
        numbers = read_numbers(config.steps, steps) or None
        well = check_aloud(steps, numbers, config.run, config.latest_only, jobs)
    if not well:
        sys.exit(1)
