"""check finds what is wrong with a step, says it in words, and takes over only what it may."""

import subprocess
import sys
import time

import lecture_helpers as lecture
import pytest
from helpers import ROOT
from lecture_helpers import git

from build_nanogpt.check import command
from build_nanogpt.check import steps as check_steps
from build_nanogpt.check.output import compare
from build_nanogpt.check.reuse import closure, key_of
from build_nanogpt.cli import UserError
from build_nanogpt.lecture.series import read_series
from build_nanogpt.lecture.trees import load_trees


def check_trees(tmp_path, trees, **options):
    """{tag: Result} of a check of the trees."""
    lecture.write_steps(tmp_path, trees)
    results = check_steps.check_series(read_series(tmp_path), **options)
    return {result.step.tag: result for result in results}


def change(trees, first, path, old, new):
    """The trees, with `old` replaced by `new` in a file from step `first` on."""
    assert old in trees[first][path]
    return [files | {path: files[path].replace(old, new)} if i >= first else files
            for i, files in enumerate(trees)]


# -----------------------------------------------------------------------------
# a whole check


def test_a_lecture_that_is_well(tmp_path, capsys):
    root = lecture.new_repository(tmp_path)
    before = git(root, "for-each-ref"), git(root, "status", "--porcelain")
    command.main(command.Config(run=True, jobs=2), root)
    said = capsys.readouterr().out.splitlines()
    for i, line in enumerate(said[:4]):
        on = f"step-{i - 1:02d}" if i else "an empty folder"
        assert line.startswith(f"step-{i:02d}  {lecture.TITLES[i]:14}  ok   ")
        assert f"ok   {i + 1} test{'s' * (i > 0)}, 1 of them new, fail on {on}; ran in 0." in line
    assert said[4:] == ["4 steps checked: all are well",
                        "program lines that a step adds: median 4, at most 5 (step-03)",
                        "main does not hold this lecture's history yet: python -m build_nanogpt "
                        "release 1.0.0"]
    assert (git(root, "for-each-ref"), git(root, "status", "--porcelain")) == before
    command.main(command.Config(("1", "step-02-03"), latest_only=True), root)
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in said[:3]] == ["step-01", "step-02", "step-03"]
    assert all("1 test, 1 of them new" in line for line in said[:3])


def test_failures_are_told_and_make_status_1(tmp_path, capsys):
    trees = change(lecture.small_lecture(), 2, "train_gpt2.py", "return a + b", "return a - b")
    root = lecture.new_repository(tmp_path, trees)
    with pytest.raises(SystemExit) as stop:
        command.main(command.Config(("0-2",)), root)
    assert stop.value.code == 1
    said = capsys.readouterr().out.splitlines()
    assert said[2].split()[-1] == "FAILED"
    assert said[3].strip() == ("tests/test_01_add.py::test_add line 7: assert -1 == 5 + where -1 = "
                               "add(2, 3)")
    assert said[-1] == "1 of 3 steps failed: step-02"


def test_an_empty_test_is_found(tmp_path):
    trees = change(lecture.small_lecture(), 1, "tests/test_01_add.py", "from train_gpt2 import add",
                   "import train_gpt2")
    trees = change(trees, 1, "tests/test_01_add.py", "assert add(2, 3) == 5", "assert True")
    results = check_trees(tmp_path, trees)
    assert results["step-01"].failures == [
        "tests of step-01 pass on step-00 too: they do not test it"]
    assert [tag for tag, result in results.items() if not result.ok] == ["step-01"]
    trees[1]["README.md"] = trees[1]["README.md"].replace(
        "passes.", "passes. No test of this\nstep fails one step earlier.")
    assert all(result.ok for result in check_trees(tmp_path, trees).values())


def test_a_step_without_tests_and_a_lesson_without_parts(tmp_path):
    trees = lecture.small_lecture()
    for files in trees[2:]:
        del files["tests/test_02_output.py"]
    trees[3]["README.md"] = trees[3]["README.md"].replace("## If it goes wrong", "## Else")
    results = check_trees(tmp_path, trees)
    assert results["step-02"].failures[0].startswith("it adds no test, and its lesson does")
    assert results["step-03"].failures == ["its lesson lacks '## If it goes wrong'"]


@pytest.mark.parametrize("line, words", [
    ("print('hello')", "its import prints 'hello'"),
    ("import os; os.write(2, b'low')", "its import prints 'low'"),
    ("import socket; socket.getaddrinfo('localhost', 80)", "its import opens a connection"),
    ("1 / 0", "it does not import: ZeroDivisionError: division by zero")])
def test_a_script_that_is_not_silent(tmp_path, line, words):
    trees = lecture.small_lecture(2)
    trees[1]["fineweb.py"] = f"{line}\n"
    results = check_trees(tmp_path, trees)
    assert results["step-00"].ok
    assert [words in failure for failure in results["step-01"].failures] == [True]
    assert results["step-01"].failures[0].startswith("fineweb.py: ")


def test_a_patch_that_does_not_apply_ends_the_check(tmp_path):
    folder = lecture.write_steps(tmp_path, lecture.small_lecture())
    patch = folder / "02-output.patch"
    patch.write_bytes(patch.read_bytes().replace(b" def add", b" def subtract"))
    results = check_steps.check_series(read_series(tmp_path))
    assert [result.ok for result in results] == [True, True, False]
    assert "step-02 does not apply" in results[2].failures[0]
    assert check_steps.check_series(read_series(tmp_path), {0})[0].ok


def test_the_tree_is_alone(tmp_path):
    """Neither the project's own modules nor an outer configuration reach a step's tests."""
    trees = lecture.small_lecture(1)
    trees[0]["tests/test_00_imports.py"] = (
        "import importlib.util\nimport os\nimport sys\n\nimport pytest\n\n\n"
        "@pytest.mark.parametrize('name', ['nanogpt', 'hellaswag', "
        "'build_nanogpt', 'build_nanogpt.cli', 'worker'])\n"
        "def test_alone(name):\n"
        "    assert name not in sys.modules\n"
        "    if '.' not in name:\n        assert importlib.util.find_spec(name) is None\n\n\n"
        "def test_program(pytestconfig):\n    import train_gpt2\n"
        "    assert os.path.dirname(train_gpt2.__file__) == os.getcwd()\n"
        "    assert str(pytestconfig.rootpath) == os.getcwd()\n"
        "    assert not pytestconfig.pluginmanager.has_plugin('xdist')\n")
    assert check_trees(tmp_path, trees)["step-00"].failures == []


def test_a_process_that_dies_is_a_failure(tmp_path):
    trees = lecture.small_lecture(2)
    trees[1]["tests/test_01_add.py"] = (
        "import os\n\n\ndef test_dies():\n    os.kill(os.getpid(), 9)\n")
    failures = check_trees(tmp_path, trees)["step-01"].failures
    words = "tests/test_01_add.py: its process ended with signal 9: tests/test_01_add.py"
    assert any(words in failure for failure in failures)


def test_a_file_that_cannot_be_collected_hides_no_other(tmp_path):
    trees = change(lecture.small_lecture(), 2, "train_gpt2.py", '"""Adds."""\n', "")
    trees = change(trees, 2, "train_gpt2.py", "def add", "def subtract")
    failures = check_trees(tmp_path, trees, numbers={2})["step-02"].failures
    assert [failure.split(":")[0] for failure in failures] == [
        "tests/test_00_imports.py", "tests/test_01_add.py"]


@pytest.mark.parametrize("words, says", [
    (["9"], "no step 9: the lecture has step-00 ... step-03"), (["2-9"], "no step 2-9"),
    (["3-2"], "no step 3-2"), (["x"], "no step 'x': give numbers")])
def test_steps_that_are_not_there(tmp_path, words, says):
    lecture.write_steps(tmp_path, lecture.small_lecture())
    with pytest.raises(UserError, match=says):
        command.read_numbers(words, read_series(tmp_path))
    with pytest.raises(UserError, match="--step 2 belongs to --mine"):
        command.main(command.Config(step=2), tmp_path)
    with pytest.raises(UserError, match="--jobs -1"):
        command.main(command.Config(jobs=-1), tmp_path)


def test_the_command_line(tmp_path):
    def call(*args):
        return subprocess.run([sys.executable, "-m", "build_nanogpt", "check", *args], cwd=tmp_path,
                              env={"PYTHONPATH": str(ROOT), "PATH": ""}, capture_output=True,
                              text=True)

    said = call("--help").stdout
    assert all(flag in said for flag in ("--run", "--mine", "--step", "--latest-only", "--jobs"))
    done = call("--runs")
    assert done.returncode == 2 and "Unrecognized options: --runs" in done.stderr


# -----------------------------------------------------------------------------
# taking over results


def as_files(texts):
    return {path: ("100644", text.encode()) for path, text in texts.items()}


def test_a_test_depends_on_what_it_names():
    files = as_files({
        "train_gpt2.py": "from nanogpt import common\n", "fineweb.py": "'train_gpt2.py'\n",
        "hellaswag.py": "from nanogpt.common import run\n", "nanogpt/__init__.py": "",
        "nanogpt/common.py": "", "nanogpt/other.py": "", "README.md": "x", "tests/conftest.py": "",
        "tests/helpers.py": "import hellaswag\n", "tests/test_a.py": "import helpers\n",
        "tests/test_b.py": "start('fineweb.py')\n", "tests/test_c.py": "read('README.md')\n",
        "tests/test_d.py": "def f():\n    from train_gpt2 import x\n",
        "tests/test_e.py": "# check: always\n"})
    own, room = {"tests/conftest.py"}, {"nanogpt/__init__.py", "nanogpt/common.py"}
    assert set(closure("tests/test_a.py", files)) == own | room | {
        "tests/test_a.py", "tests/helpers.py", "hellaswag.py"}
    assert set(closure("tests/test_b.py", files)) == own | {"tests/test_b.py", "fineweb.py"}
    assert set(closure("tests/test_c.py", files)) == own | {"tests/test_c.py", "README.md"}
    assert set(closure("tests/test_d.py", files)) == own | room | {
        "tests/test_d.py", "train_gpt2.py"}
    assert key_of("tests/test_e.py", files) is None
    key = key_of("tests/test_a.py", files)
    assert key_of("tests/test_a.py", files | as_files({"train_gpt2.py": "y"})) == key
    for path in "tests/conftest.py", "tests/test_a.py":
        assert key_of("tests/test_a.py", files | as_files({path: "z = 1\n"})) != key
    broken = files | as_files({"tests/helpers.py": "import\n"})
    assert set(closure("tests/test_a.py", broken)) == set(broken)


PARTS = {
    "train_gpt2.py": "from nanogpt.common import a, b\n\n\nclass GPT:\n    size = 1\n\n"
                     "    def f(self):\n        return a()\n\n\n"
                     "@twice\ndef train():\n    return b\n\n\n"
                     "def main():\n    train()\n\n\nif __name__ == '__main__':\n    main()\n",
    "nanogpt/__init__.py": "",
    "nanogpt/common.py": "C = 1\n\n\ndef a():\n    return C\n\n\ndef b():\n    return 2\n\n\n"
                         "def twice(f):\n    return f\n",
    "tests/conftest.py": "", "tests/helpers.py": "import runpy\n\nimport train_gpt2\n\n\n"
    "def small():\n    return train_gpt2.GPT()\n\n\ndef start(name):\n    runpy.run_path(name)\n",
    "tests/test_gpt.py": "from helpers import small\n",
    "tests/test_run.py": "from helpers import start\nstart('train_gpt2.py')\n",
    "tests/test_patch.py": "import train_gpt2\nsetattr(train_gpt2, 'train', 1)\n"}


@pytest.mark.parametrize("path, old, new, counts_for", [
    ("train_gpt2.py", "size = 1", "size = 2", "gpt"),
    ("train_gpt2.py", "return b", "return 3", "run patch"),
    ("train_gpt2.py", "@twice", "@a", "run patch"),
    ("nanogpt/common.py", "C = 1", "C = 2", "gpt"),
    ("nanogpt/common.py", "return 2", "return 3", "run patch"),
    # a statement that defines nothing
    ("nanogpt/common.py", "C = 1", "C = 1\nprint()", "gpt run patch"),
    ("tests/helpers.py", "run_path(name)", "run_path(name, {})", "run"),
    ("train_gpt2.py", "    train()", "    train(), 1", "run"),
    ("nanogpt/common.py", "def a():", "def a():  # comment", "gpt")])
def test_a_test_depends_on_the_statements_it_can_reach(path, old, new, counts_for):
    before, after = as_files(PARTS), as_files(PARTS | {path: PARTS[path].replace(old, new)})
    assert before != after
    changed = {name for name in ("gpt", "run", "patch") if key_of(f"tests/test_{name}.py", before)
               != key_of(f"tests/test_{name}.py", after)}
    assert changed == set(counts_for.split())


def test_results_are_taken_over_where_nothing_changed(tmp_path):
    trees = lecture.small_lecture()
    for i, files in enumerate(trees):
        files["train_gpt2.py"] = lecture.PROGRAMS[min(i, 1)]
    trees[2]["tests/test_02_output.py"] = "import fineweb\n\n\ndef test_it():\n    pass\n"
    trees[2]["fineweb.py"] = ""
    lecture.write_steps(tmp_path, trees[:3])
    steps = read_series(tmp_path)
    files, _ = load_trees(steps)
    plan = check_steps.Plan(steps, files)
    for step in steps:
        plan.add_step(step)
    ran = [[tree is files[0], task["files"]] for tree, task in plan.tasks
           if task["kind"] == "tests" and task["maxfail"] == 0]
    assert ran == [[True, ["tests/test_00_imports.py"]],
                   [False, ["tests/test_01_add.py"]],  # the other uses the docstring alone
                   [False, ["tests/test_02_output.py"]]]
    results = check_steps.check_series(steps)
    assert [result.tests for result in results] == [1, 2, 3] and all(r.ok for r in results)


# -----------------------------------------------------------------------------
# what a lesson's command prints


@pytest.mark.parametrize("expected, seen, tolerance", [
    ("loss 5.7213", "loss 5.7213", 0), ("loss 5.7213", "loss 5.75", 0.02),
    ("loss -5.7e-3 | x", "loss -5.71e-3 | x", 0.02), ("n 1,234 ok", "n 1234 ok", 0),
    ("a  b", "  a b", 0), ("12.5 ms | 3s | 1,000 tok/s", "9 ms | 14.25s | 7.5 tok/s", 0),
    ("took 0:01:02", "took 1:23:45", 0), ("ETA 5m x", "ETA 12:30 x", 0),
    ("saved ... now", "saved /tmp/x.pt, 3 files now", 0),
    ("1.5 GB, 3.0 TFLOPS", "9 GB, 1 TFLOPS", 0),
    ("...\nb\n...", "a\nb\nc", 0), ("a\n...\nd", "a\nb\nc\nd", 0), ("a\n\nb", "a\nb\n\n", 0),
    ("...\nd", "d\nc\nd", 0), ("...\na\nb\n...\nd", "a\nc\na\nb\nd", 0), ("a\n...", "a", 0)])
def test_outputs_that_match(expected, seen, tolerance):
    assert compare(expected.splitlines(), seen, tolerance) is None


@pytest.mark.parametrize("expected, seen, tolerance, words", [
    ("loss 5.7213", "loss 5.7214", 0, "expected 'loss 5.7213', nearest seen 'loss 5.7214'"),
    ("loss 5.7", "loss 5.9", 0.02, "nearest seen 'loss 5.9'"),
    ("step 100", "step 101", 0.02, "expected 'step 100'"), ("3 steps", "4 steps", 0, "3 steps"),
    ("vocabulary 257", "vocab 257", 0, "nearest seen 'vocab 257'"),
    ("12 ms", "twelve ms", 0, "12 ms"), ("b", "a\nb", 0, "expected 'b'"), ("a", "", 0, "nothing"),
    ("a", "a\nb", 0, "printed after the last expected line: 'b'"),
    ("a\nc", "a\nb\nc", 0, "expected 'c', nearest seen 'c'"), ("a\n...\nb", "a\nb\nc", 0, "'b'"),
    ("...\nb\na\n...", "a\nb", 0, "expected 'a'")])
def test_outputs_that_do_not(expected, seen, tolerance, words):
    assert words in compare(expected.splitlines(), seen, tolerance)


def run_lesson(tmp_path, program, **lesson):
    """The failures of a lecture of one step with this program and this lesson."""
    files = lecture.small_lecture(1)[0] | {
        "train_gpt2.py": f'"""A program."""\nif __name__ == "__main__":\n    {program}\n',
        "README.md": lecture_lesson(**lesson)}
    return check_trees(tmp_path, [files], run=True)["step-00"].failures


def lecture_lesson(**parts):
    return lecture.lesson(0, "Start", **parts)


def test_a_lessons_output(tmp_path):
    see = "    loss 5.70\n\nNumbers within 2%."
    assert run_lesson(tmp_path, "print('loss 5.75')", see=see) == []
    assert run_lesson(tmp_path, "print('loss 5.95')", see=see) == [
        "its output is not the lesson's: expected 'loss 5.70', nearest seen 'loss 5.95'"]
    assert run_lesson(tmp_path, "print('loss 5.75')", see=see.split("\n")[0]) != []


def test_a_lessons_commands(tmp_path):
    both = "    python train_gpt2.py \\\n        --x 1\n    pytest -q --co tests"
    see = "    ['--x', '1']\n    ..."
    assert run_lesson(tmp_path, "import sys; print(sys.argv[1:])", run=both, see=see) == []
    assert run_lesson(tmp_path, "pass", run="    rm -r x") == [
        "its command 'rm -r x' does not begin with python, torchrun or pytest"]
    assert run_lesson(tmp_path, "pass", run="Nothing.") == [
        "its lesson has no command under '## Run it'"]
    assert run_lesson(tmp_path, "raise SystemExit('bad')") == [
        "`python train_gpt2.py` ends with status 1: bad"]
    refusal = "import sys; print('error: no such thing'); sys.exit(2)"
    assert run_lesson(tmp_path, refusal, see="    error: no such thing") == []
    assert len(run_lesson(tmp_path, refusal)) == 1


def test_a_lesson_runs_offline_on_a_cpu(tmp_path, monkeypatch):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    names = ["HF_HUB_OFFLINE", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "HTTPS_PROXY"]
    program = (f"import os; print([os.environ[n] for n in {names}], "
               "os.path.exists(os.environ['TIKTOKEN_CACHE_DIR']))")
    assert run_lesson(tmp_path, program, see="    ['1', '', '1', 'http://127.0.0.1:9'] False") == []


def test_a_lesson_that_takes_too_long(tmp_path, monkeypatch):
    task = check_steps.commands_task
    monkeypatch.setattr(check_steps, "commands_task", lambda step: task(step) | {"limit": 1})
    start = time.monotonic()
    failures = run_lesson(tmp_path, "import time; time.sleep(30)")
    assert "takes longer than" in failures[0] and time.monotonic() - start < 20
