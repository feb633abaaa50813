"""Is every step of the lecture what it claims to be? Trees are built from steps/ as they are."""

from dataclasses import dataclass, field

from build_nanogpt.check.output import compare
from build_nanogpt.check.pool import Pool, slow_imports
from build_nanogpt.check.reuse import key_of
from build_nanogpt.check.tasks import (
    BROKEN,
    RUN_LIMIT,
    UNTESTED,
    chunks,
    commands_task,
    count,
    imports_task,
    says_untested,
    tests_task,
)
from build_nanogpt.cli import UserError
from build_nanogpt.lecture.series import SECTIONS, tag_of
from build_nanogpt.lecture.trees import load_trees, one_step_earlier, program_files, test_files


@dataclass
class Result:
    """The outcome of one step."""

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
# tasks


class Plan:
    """The tasks of a whole check, in the order of the steps, and which step needs which results.

    A test file whose result cannot have changed is not run again: the result of the earlier step's
    task counts.
    """

    def __init__(self, steps, trees, run=False, latest_only=False, quick=False):
        self.steps, self.trees, self.run, self.latest_only = steps, trees, run, latest_only
        self.quick = quick
        self.tasks, self.asked, self.known = [], {}, {}
        self.mistakes = {}

    def add(self, files, task):
        self.tasks.append((files, task))
        return len(self.tasks) - 1

    def add_tests(self, step, files):
        """{test file: task} for a step; only a result not known yet becomes a task."""
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
        asked["imports"] = self.add(tree, imports_task(program_files(tree)))
        files = step.born if self.latest_only else test_files(tree)
        asked["tests"] = self.add_tests(step, files)
        if step.born and not says_untested(step):
            before = self.trees[step.number - 1] if step.number else {}
            asked["before"] = self.add(one_step_earlier(tree, before), tests_task(step.born, 1))
        elif not says_untested(step):
            mistakes.append(f"it adds no test, and its lesson does not say: {UNTESTED}")
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
    """A failed test as one line: its id, the line number, the message."""
    line = f" line {facts['test'][1]}" if facts.get("test") else ""
    return f"{name}{line}: {' '.join(facts['message'].split())[:300]}"


def judge_tests(result, answers, results):
    """Count a step's tests and keep the failures."""
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
    """A step's own tests must not all pass one step earlier."""
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
        command, status = next((command, status) for command, status in zip(
            lesson.commands, answer["statuses"], strict=False) if status not in allowed)
        result.failures.append(f"`{command}` ends with status {status}: {end}")
    if differs and not answer["late"]:
        result.failures.append(f"its output is not the lesson's: {differs}")


def judge(step, plan, results):
    """The Result of a step once all its tasks have ended."""
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
                 quick=False):
    """Check the steps with these numbers, all if None. `report` is called with each Result, in
    order, as soon as it is known. Returns the list of Results.

    quick: tests marked slow run in the step that introduces them and in the last, not in between.
    A patch that does not apply makes its step fail and ends the check.
    """
    trees, error = load_trees(steps)
    plan = Plan(steps, trees, run, latest_only, quick)
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
