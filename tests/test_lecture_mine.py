"""check --mine: a follower's own file or folder, against the tests of a step."""

import lecture_helpers as lecture
import pytest
from lecture_helpers import git

from build_nanogpt.check import command as check
from build_nanogpt.cli import UserError
from build_nanogpt.lecture import build


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    root = lecture.new_repository(tmp_path_factory.mktemp("mine") / "clone")
    build.main(build.Config(), root)
    return root


def hold(root, tmp_path, capsys, program, step=3, name="my file.py"):
    """(exit status, stdout) of check --mine FILE."""
    file = tmp_path / name
    file.write_text(program, encoding="utf-8")
    return call(root, capsys, file, step)


def call(root, capsys, path, step):
    try:
        check.main(check.Config(mine=str(path), step=step, jobs=2), root)
        status = 0
    except SystemExit as stop:
        status = stop.code
    return status, capsys.readouterr().out


def test_mine_is_done(built, tmp_path, capsys):
    assert hold(built, tmp_path, capsys, lecture.PROGRAMS[3]) == (
        0, "step-03 is done: the test of it and 3 of earlier steps pass.\n")


def test_mine_is_not_done(built, tmp_path, capsys):
    program = lecture.PROGRAMS[3].replace("add(a, a)", "add(a, 1)")
    status, said = hold(built, tmp_path, capsys, program)
    assert status == 1 and said.endswith("step-03 is not done: its test fails.\n")
    for words in ("tests/test_03_twice.py::test_twice\n    Twice 4 is 8.\n    line 7: "
                  "`assert twice(4) == 8`\n    assert 5 == 8\n",
                  "my file.py' --step 3\n", "git diff step-02 step-03\n",
                  f"git show step-03:train_gpt2.py > theirs.py && git diff --no-index '{tmp_path}"
                  "/my file.py' theirs.py\n"):
        assert words in said
    program = lecture.PROGRAMS[3].replace("(a, a)", "(a, c)")
    status, said = hold(built, tmp_path, capsys, program)
    assert ("    NameError: name 'c' is not defined\n    at my file.py line 9: "
            "`return add(a, c)`\n") in said


def test_mine_breaks_an_earlier_step(built, tmp_path, capsys):
    status, said = hold(built, tmp_path, capsys, lecture.PROGRAMS[3].replace('"""Adds."""', ""))
    assert status == 1 and "tests/test_00_imports.py::test_imports\n" in said
    assert said.endswith("step-03 is not done: its own tests pass, but 1 test of earlier steps "
                         "fails.\n")


def test_mine_of_the_step_before(built, tmp_path, capsys):
    status, said = hold(built, tmp_path, capsys, lecture.PROGRAMS[2])
    assert status == 1 and "cannot import name 'twice' from 'train_gpt2'" in said
    assert said.endswith("not done: tests/test_03_twice.py does not find what it needs.\n")


@pytest.mark.parametrize("program, words", [
    ("x = 1\ny = = 2\n", "my file.py: line 2: `y = = 2`: SyntaxError: invalid syntax\n"),
    ("x = 1\nimport not_there\n", "my file.py: line 2: `import not_there`: it does not import: "
     "ModuleNotFoundError: No module named 'not_there'\n"),
    ("print('loud')\n", "my file.py: its import prints 'loud'\n")])
def test_mine_does_not_import(built, tmp_path, capsys, program, words):
    status, said = hold(built, tmp_path, capsys, program)
    assert status == 1 and words in said
    assert said.endswith("step-03 is not done: the file does not import.\n")


def test_mine_leaves_slow_tests_of_earlier_steps_out(tmp_path, capsys):
    trees = lecture.small_lecture()
    slow = "import pytest\n\n\n@pytest.mark.slow\ndef test_slow():\n    assert False\n"
    trees[3]["tests/test_02_output.py"] = trees[2]["tests/test_02_output.py"] + slow
    for files in trees:
        files["tests/conftest.py"] += ("\n\ndef pytest_configure(config):\n    config."
                                       "addinivalue_line('markers', 'slow: takes long')\n")
    root = lecture.new_repository(tmp_path / "a", trees)
    assert "::test_slow" in hold(root, tmp_path, capsys, lecture.PROGRAMS[3])[1]  # born here
    trees[2]["tests/test_02_output.py"] = trees[3]["tests/test_02_output.py"]
    root = lecture.new_repository(tmp_path / "b", trees)
    assert hold(root, tmp_path, capsys, lecture.PROGRAMS[3]) == (
        0, "step-03 is done: the test of it and 3 of earlier steps pass. (slow tests of earlier "
        "steps left out: 1)\n")


def test_mine_knows_the_step_that_is_checked_out(built, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="which step"):
        hold(built, tmp_path, capsys, lecture.PROGRAMS[2], None)
    git(built, "worktree", "add", "-q", str(tmp_path / "tree"), "step-02")
    monkeypatch.chdir(tmp_path / "tree")
    assert hold(built, tmp_path, capsys, lecture.PROGRAMS[2], None) == (
        0, "step-02 is done: the test of it and 2 of earlier steps pass.\n")


def test_mine_refuses(built, tmp_path, capsys):
    with pytest.raises(UserError, match="no step 9: the lecture has step-00 ... step-03"):
        hold(built, tmp_path, capsys, "", 9)
    with pytest.raises(UserError, match="--mine nowhere.py: there is no such file or folder"):
        check.main(check.Config(mine="nowhere.py", step=1), built)
    with pytest.raises(UserError, match="--mine takes --step alone"):
        check.main(check.Config(("2",), mine="nowhere.py"), built)


# -----------------------------------------------------------------------------
# files of a lecture in rooms

ADD = '"""Adds."""\n\n\ndef add(a, b):\n    return a + b\n'
TWICE = '"""Doubles."""\nfrom nanogpt.adding import add\n\n\ndef twice(a):\n    return add(a, a)\n'
THRICE = TWICE + "\n\ndef thrice(a):\n    return add(a, twice(a))\n"
MAIN = '"""The program."""\n'
ROOMS = [  # what each step's program holds
    {"train_gpt2.py": MAIN},
    {"train_gpt2.py": MAIN, "nanogpt/__init__.py": '"""Rooms."""\n', "nanogpt/adding.py": ADD},
    {"train_gpt2.py": MAIN + "from nanogpt.doubling import twice  # noqa: F401\n",
     "nanogpt/__init__.py": '"""Rooms."""\n', "nanogpt/adding.py": ADD,
     "nanogpt/doubling.py": TWICE},
    {"train_gpt2.py": MAIN + "from nanogpt.doubling import twice  # noqa: F401\n",
     "nanogpt/__init__.py": '"""Rooms."""\n', "nanogpt/adding.py": ADD,
     "nanogpt/doubling.py": THRICE},
]
IN_ROOMS = ["import train_gpt2\n\n\ndef test_it():\n    assert train_gpt2.__doc__\n",
            "from nanogpt.adding import add\n\n\ndef test_it():\n    assert add(2, 3) == 5\n",
            "from train_gpt2 import twice\n\n\ndef test_it():\n    assert twice(4) == 8\n",
            "from nanogpt.doubling import thrice\n\n\ndef test_it():\n"
            "    assert thrice(4) == 12\n"]


@pytest.fixture(scope="module")
def rooms(tmp_path_factory):
    trees, tests = [], {"tests/conftest.py": lecture.CONFTEST}
    for i, program in enumerate(ROOMS):
        tests = tests | {f"tests/test_{i:02d}_it.py": IN_ROOMS[i]}
        trees.append({**program, **tests, "README.md": lecture.lesson(i, f"Step {i}")})
    return lecture.new_repository(tmp_path_factory.mktemp("rooms") / "clone", trees)


def hold_folder(root, tmp_path, capsys, files, step):
    """(exit status, stdout) of check --mine FOLDER, the folder's name replaced by MINE."""
    folder = tmp_path / "mine"
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8")
    status, said = call(root, capsys, folder, step)
    return status, said.replace(str(folder), "MINE")


DONE = "step-02 is done: the test of it and 2 of earlier steps pass.\n"


@pytest.mark.parametrize("files, status, said", [
    (ROOMS[2], 0, DONE),
    # what was there before need not be copied, and is named
    ({path: ROOMS[2][path] for path in ("train_gpt2.py", "nanogpt/doubling.py")}, 0,
     "not in MINE: nanogpt/__init__.py (taken from step-01), nanogpt/adding.py (taken from "
     f"step-01)\n{DONE.replace('2 of', '1 of')}"),
    # modules of one's own, tests, notes: the first belong to the program, the others do not
    (ROOMS[2] | {"train_gpt2.py": '"""Mine."""\nfrom helping import twice\n',
                 "helping.py": "def twice(a):\n    return 2 * a\n",
                 "tests/test_02_it.py": "1 / 0\n", "notes.py": "not Python\n"}, 0, DONE)],
    ids=["whole", "in part", "with more"])
def test_a_folder_that_is_done(rooms, tmp_path, capsys, files, status, said):
    assert hold_folder(rooms, tmp_path, capsys, files, 2) == (status, said)


def test_a_folder_without_the_steps_own_file(rooms, tmp_path, capsys):
    """The lecture's file is not lent: it is what the follower is to write."""
    status, said = hold_folder(rooms, tmp_path, capsys, ROOMS[1], 2)
    assert status == 1
    assert said.startswith("not in MINE: nanogpt/doubling.py (new in step-02)\n")
    assert said.endswith("step-02 is not done: tests/test_02_it.py does not find what it needs.\n")
    del (files := dict(ROOMS[3]))["nanogpt/doubling.py"]  # nor is what the step changes
    (tmp_path / "other").mkdir()
    status, said = hold_folder(rooms, tmp_path / "other", capsys, files, 3)
    assert status == 1 and said.startswith("not in MINE: nanogpt/doubling.py (taken from step-02)")


def test_a_folder_with_a_mistake(rooms, tmp_path, capsys):
    files = ROOMS[3] | {"nanogpt/adding.py": ADD.replace("a + b", "a + c")}
    status, said = hold_folder(rooms, tmp_path, capsys, files, 3)
    assert status == 1 and said.endswith("step-03 is not done: its test fails.\n")
    for words in ("    NameError: name 'c' is not defined\n    at nanogpt/adding.py line 5: "
                  "`return a + c`\n", "--mine MINE --step 3\n",
                  "git show step-03:nanogpt/doubling.py > theirs.py && git diff --no-index "
                  "MINE/nanogpt/doubling.py theirs.py\n"):
        assert words in said
    assert said.count("git show") == 1  # step-03 changes one file


@pytest.mark.parametrize("path, text, words", [
    ("nanogpt/adding.py", "x = 1\ny = = 2\n",
     "MINE/nanogpt/adding.py: line 2: `y = = 2`: SyntaxError: invalid syntax\n"),
    ("nanogpt/adding.py", "import not_there\n",
     "MINE/nanogpt/adding.py: line 1: `import not_there`: it does not import: "),
    ("nanogpt/doubling.py", TWICE + "print('loud')\n",
     "MINE/nanogpt/doubling.py: its import prints 'loud'\n")])
def test_a_folder_that_does_not_import(rooms, tmp_path, capsys, path, text, words):
    status, said = hold_folder(rooms, tmp_path, capsys, ROOMS[2] | {path: text}, 2)
    assert status == 1 and words in said
    assert said.endswith("step-02 is not done: a file in it does not import.\n")


def test_a_folder_without_a_program(rooms, tmp_path, capsys):
    with pytest.raises(UserError, match="none of nanogpt/__init__.py, nanogpt/adding.py, train_gpt"
                                        "2.py is in this folder"):
        hold_folder(rooms, tmp_path, capsys, {"x.py": "", "nanogpt/readme.txt": ""}, 1)


def test_a_file_stands_for_the_one_of_its_name(rooms, tmp_path, capsys):
    """Any other name stands for train_gpt2.py, if the step changes that."""
    assert hold(rooms, tmp_path, capsys, THRICE, 3, "doubling.py") == (
        0, "step-03 is done: the test of it and 1 of earlier steps pass.\n")
    assert hold(rooms, tmp_path, capsys, ROOMS[2]["train_gpt2.py"], 2) == (
        0, "taken from step-02: nanogpt/doubling.py (give your whole folder to check more)\n"
        + DONE.replace("2 of", "1 of"))
    with pytest.raises(UserError, match="step-03 changes nanogpt/doubling.py, not train_gpt2.py: "
                                        "name your file so, or give your whole folder"):
        hold(rooms, tmp_path, capsys, THRICE, 3, "mine.py")
