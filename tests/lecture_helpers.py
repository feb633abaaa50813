"""A small lecture in a repository of its own, to try the tools on."""

import os
import subprocess
from pathlib import Path

from build_nanogpt.lecture.git import Scratch, diff_patch, empty_tree

PROGRAMS = [
    '"""Adds."""\n',
    '"""Adds."""\n\n\ndef add(a, b):\n    return a + b\n',
    '"""Adds."""\n\n\ndef add(a, b):\n    return a + b\n\n\n'
    'if __name__ == "__main__":\n    print(f"sum {add(2, 0.5):.4f} | 12.5 ms")\n',
    '"""Adds."""\n\n\ndef add(a, b):\n    return a + b\n\n\ndef twice(a):\n    return add(a, a)'
    '\n\n\nif __name__ == "__main__":\n    print(f"sum {add(2, 0.5):.4f} | 12.5 ms")\n'
    '    print("end")\n',
]
TESTS = [
    ("test_00_imports.py", '"""The program imports."""\n\n\ndef test_imports():\n'
     '    import train_gpt2\n    assert train_gpt2.__doc__\n'),
    ("test_01_add.py", '"""Sums."""\nfrom train_gpt2 import add\n\n\ndef test_add():\n'
     '    """2 and 3 are 5."""\n    assert add(2, 3) == 5\n'),
    ("test_02_output.py", '"""The program prints."""\nimport pathlib\n\n\ndef test_prints():\n'
     '    program = pathlib.Path(__file__).parent.parent / "train_gpt2.py"\n'
     '    assert "print" in program.read_text()\n'),
    ("test_03_twice.py", '"""Doubles."""\nfrom train_gpt2 import twice\n\n\ndef test_twice():\n'
     '    """Twice 4 is 8."""\n    assert twice(4) == 8\n'),
]
CONFTEST = ("import pathlib\nimport sys\n\n"
            "sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))\n")
TITLES = ["The empty file", "Sums", "Output", "Doubles"]
SEEN = ["Nothing is printed.", "Nothing is printed.", "    sum 2.5000 | 3 ms",
        "    sum 2.4800 | 3 ms\n    ...\n\nNumbers within 2%."]


def lesson(number, title, see="Nothing is printed.", run="    python train_gpt2.py", more=""):
    """A lesson's text."""
    video = f"Video [0:0{number}:00](https://www.youtube.com/watch?v=l8pRSuU81PU&t={60 * number}s)"
    return (f"# step-{number:02d}: {title}\n\n{video}. One sees {title.lower()}.\n\n"
            f"## What changes\n\nA little.\n\n## Run it\n\n{run}\n\n## You should see\n\n{see}\n\n"
            f"## Check yourself\n\n`pytest` passes. {more}\n\n## If it goes wrong\n\nAsk.\n")


def small_lecture(n=4):
    """[{path: text}] of `n` steps; README.md is the lesson."""
    files, trees = {".gitattributes": "README.md -diff\n", "tests/conftest.py": CONFTEST}, []
    for i in range(n):
        name, test = TESTS[i]
        files = files | {"train_gpt2.py": PROGRAMS[i], f"tests/{name}": test,
                         "README.md": lesson(i, TITLES[i], SEEN[i])}
        trees.append(files)
    return trees


def write_tree(scratch, files):
    """Id of the tree of {path: text}."""
    scratch.git("read-tree", "--empty")
    for path, text in files.items():
        blob = scratch.line("hash-object", "-w", "--stdin", data=text.encode())
        scratch.git("update-index", "--add", "--cacheinfo", f"100644,{blob},{path}")
    return scratch.line("write-tree")


def write_steps(root, trees, slugs=("start", "add", "output", "twice", "more"),
                version="Lecture 1.0.0, 2026-01-02."):
    """Write root/steps/ for the trees; the files of an earlier call are gone."""
    folder = Path(root) / "steps"
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    (folder / "README.md").write_bytes(f"# Syllabus\n\n{version}\n".encode())
    with Scratch() as scratch:
        before = empty_tree(scratch)
        for i, files in enumerate(trees):
            after = write_tree(scratch, files)
            stem = f"{i:02d}-{slugs[i] if i < len(slugs) else f's{i}'}"
            (folder / f"{stem}.patch").write_bytes(diff_patch(scratch, before, after))
            (folder / f"{stem}.md").write_bytes(files["README.md"].encode())
            before = after
    return folder


def git(folder, *args, env=None, check=True):
    """git as a user calls it, with a name and no other configuration. Returns stdout."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    clean |= {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    for role in "AUTHOR", "COMMITTER":
        clean |= {f"GIT_{role}_NAME": "A Lecturer", f"GIT_{role}_EMAIL": "lecturer@example.org"}
    done = subprocess.run(["git", *args], cwd=folder, env=clean | (env or {}), capture_output=True,
                          text=True, encoding="utf-8")
    assert done.returncode == 0 or not check, done.stderr
    return done.stdout


def new_repository(root, trees=None):
    """A repository on branch main with steps/, the last step's files, and a changelog."""
    trees = trees or small_lecture()
    root.mkdir(parents=True, exist_ok=True)
    git(root, "init", "-q", "-b", "main")
    write_steps(root, trees)
    for path, text in trees[-1].items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes((text if path != "README.md" else "# adds\n").encode())
    (root / "CHANGELOG.md").write_bytes(b"# Changelog\n\n## Unreleased\n")
    commit(root, "All of it")
    return root


def commit(root, message):
    git(root, "add", "-A")
    git(root, "commit", "-q", "-m", message)


def refs(root, pattern="refs"):
    """{ref: id}."""
    return dict(line.split() for line in git(
        root, "for-each-ref", "--format=%(refname) %(objectname)", pattern).splitlines())
