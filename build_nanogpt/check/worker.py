"""One task of `check`, in its own process: import files, run tests, run a lesson's commands.

`python worker.py --serve MODULE ...` imports the modules once, then for every path of a task.json
on stdin forks a process that has them already, and writes `path status` when that has ended. It
imports nothing of the project, whose modules would stand in for those of a step.
"""

import ast
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
LIMIT = 600  # seconds for one task; after that it counts as hung
CONNECTING = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto")


def clean_paths(paths):
    """`paths` without those that lead to the project's own modules."""
    own = {HERE, HERE.parent, ROOT, ROOT / "tests"}
    return [path for path in paths if path and Path(path).resolve() not in own]


def clean_finders(finders):
    """`finders` without that of `pip install -e .`, which leads to the project's own modules."""
    def mapping(finder):
        return getattr(sys.modules.get(getattr(finder, "__module__", "")), "MAPPING", {})

    return [finder for finder in finders if "build_nanogpt" not in mapping(finder)]


# -----------------------------------------------------------------------------
# within the process of a task


def enter(folder, log):
    """Make the tree in `folder` the only one that can be imported; send all output to `log`."""
    tree, temporary = folder / "tree", folder / "tmp"
    temporary.mkdir()
    os.chdir(tree)
    sys.path[:] = [str(tree), *clean_paths(sys.path)]
    sys.meta_path[:] = clean_finders(sys.meta_path)
    sys.argv[:] = ["check"]
    sys.dont_write_bytecode = True
    for name in [name for name in os.environ if name.startswith("PYTEST_")]:
        del os.environ[name]
    if "PYTHONPATH" in os.environ:
        kept = clean_paths(os.environ["PYTHONPATH"].split(os.pathsep))
        os.environ["PYTHONPATH"] = os.pathsep.join(kept)
    os.environ.update(PYTHONDONTWRITEBYTECODE="1", TMPDIR=str(temporary))
    tempfile.tempdir = None  # the server may have asked for the folder before
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (file, 1), (file, 2)):
        os.dup2(source, target)


def deepest(traceback_entries, tree, files):
    """[file, line number, source line] of the last (path, line number, source) in one of `files`
    of the tree; None if there is none."""
    paths = {str(tree / file): file for file in files}
    found = [[paths[str(name)], line, text.strip()] for name, line, text in traceback_entries
             if str(name) in paths]
    return found[-1] if found else None


def docstring(path):
    """A Python file's docstring, without importing it; "" if it has none or cannot be read."""
    try:
        return ast.get_docstring(ast.parse(path.read_bytes())) or ""
    except (OSError, SyntaxError, ValueError):
        return ""


def import_scripts(folder, task):
    """Import the program's files. Returns {"failures": [{id, message, own}]}."""
    failures, connections, log = [], [], folder / "log.txt"
    sys.addaudithook(lambda event, args: event in CONNECTING and connections.append(event))
    for name in task["scripts"]:
        before, own, wrong = log.stat().st_size, None, ""
        connections.clear()
        try:
            importlib.import_module(name.removesuffix(".py").replace("/", "."))
        except BaseException as error:  # a script may call sys.exit
            frames = [(f.filename, f.lineno, f.line) for f in
                      traceback.extract_tb(error.__traceback__)]
            own = deepest(frames, folder / "tree", task["scripts"])
            wrong = f"it does not import: {type(error).__name__}: {error}"
        sys.stdout.flush()
        sys.stderr.flush()
        torch = sys.modules.get("torch")
        if log.stat().st_size > before:
            said = log.read_bytes()[before:].decode(errors="replace").splitlines()
            wrong = wrong or f"its import prints {said[0]!r}"
        elif connections:
            wrong = wrong or f"its import opens a connection ({connections[0]})"
        elif torch and torch.cuda.is_initialized():
            wrong = wrong or "its import initialises CUDA"
        if wrong:
            failures.append({"id": name, "message": wrong, "own": own})
    return {"failures": failures}


class Recorder:
    """A pytest plugin that keeps what `check` reports about each test."""

    def __init__(self, tree, own, limit):
        self.tree, self.own, self.limit = tree, own, limit
        self.tests, self.left_out = {}, 0
        self.frames = {}

    def pytest_runtest_setup(self, item):
        """An endless loop is reported as such, with its line."""
        if hasattr(signal, "SIGALRM"):
            signal.signal(signal.SIGALRM, self.late)
            signal.alarm(self.limit)

    def pytest_runtest_teardown(self, item):
        if hasattr(signal, "SIGALRM"):
            signal.alarm(0)

    def late(self, number, frame):
        raise TimeoutError(f"no end after {self.limit} s: is there an endless loop?")

    def pytest_deselected(self, items):
        self.left_out += len(items)

    def pytest_exception_interact(self, node, call, report):
        """pytest calls this for a failure, with its traceback: before the report of a file that
        cannot be imported, but after the report of a test."""
        entries = [(frame.filename, frame.lineno, frame.line or "")
                   for frame in traceback.extract_tb(call.excinfo.tb)]
        file = report.nodeid.split("::")[0]
        doc = (getattr(getattr(node, "function", None), "__doc__", None)
               or docstring(self.tree / file))
        self.frames[report.nodeid] = {
            "own": deepest(entries, self.tree, self.own), "doc": doc.strip().split("\n")[0],
            "test": deepest(entries, self.tree, [file])}

    def pytest_collectreport(self, report):
        if report.failed:
            self.keep(report, "failed")

    def pytest_runtest_logreport(self, report):
        if report.when == "call" or report.outcome != "passed":
            self.keep(report, report.outcome)

    def keep(self, report, outcome):
        kept = self.tests.get(report.nodeid, {"outcome": "passed", "seconds": 0.0})
        if outcome != "passed":
            kept["outcome"] = outcome
        kept["seconds"] += getattr(report, "duration", 0.0)
        if outcome == "failed":
            crash = getattr(report.longrepr, "reprcrash", None)
            lines = str(report.longrepr).strip().splitlines()
            seen = [line[1:].strip() for line in lines if line.startswith("E ")]
            message = crash.message if crash else "\n".join(seen or lines[-3:])
            kept["message"] = message.replace(f"{self.tree}{os.sep}", "")
        self.tests[report.nodeid] = kept

    def facts(self):
        """{id: {outcome, seconds}}, of failures also {message, doc, test, own}."""
        return {name: kept | self.frames.get(name, {}) for name, kept in self.tests.items()}


def run_tests(folder, task):
    """Run test files of the tree. Returns {"tests": {id: facts}, "left_out", "status"}."""
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    import pytest

    tree = folder / "tree"
    recorder = Recorder(tree, task["own"], task["limit"])
    options = ["-c", os.devnull, f"--rootdir={tree}", f"--confcutdir={tree}", "-p",
               "no:cacheprovider", f"--basetemp={folder / 'tmp' / 'pytest'}",
               "--continue-on-collection-errors", f"--maxfail={task['maxfail']}", "-m",
               task["marks"]]
    status = pytest.main([*options, *task["files"]], plugins=[recorder])
    return {"tests": recorder.facts(), "left_out": recorder.left_out, "status": int(status)}


def run_commands(folder, task):
    """Run a lesson's commands. Returns {"statuses", "output", "seconds", "late"}."""
    environment = {**os.environ, **task["env"]}
    start, statuses, late = time.monotonic(), [], False
    with open(folder / "output.txt", "wb") as output:
        for command in task["commands"]:
            left = task["limit"] - (time.monotonic() - start)
            try:
                statuses.append(subprocess.run(command, env=environment, stdout=output,
                                               stderr=output, timeout=max(left, 0.1)).returncode)
            except subprocess.TimeoutExpired:
                late = True
                break
            if statuses[-1] not in (0, 2):  # 2: refused, as a lesson may want to show
                break
    said = (folder / "output.txt").read_bytes().decode(errors="replace")
    return {"statuses": statuses, "output": said, "seconds": time.monotonic() - start, "late": late}


KINDS = {"imports": import_scripts, "tests": run_tests, "commands": run_commands}


def work(path):
    """Do the task in the file `path`; write result.json next to it if all went well."""
    path = Path(path)
    task = json.loads(path.read_text(encoding="utf-8"))
    enter(path.parent, path.parent / "log.txt")
    result = KINDS[task["kind"]](path.parent, task)
    whole = path.parent / "result.tmp"
    whole.write_text(json.dumps(result), encoding="utf-8")
    whole.replace(path.parent / "result.json")


# -----------------------------------------------------------------------------
# the server


def supervise(path):
    """Fork a process for the task, wait for it, and kill what it left running."""
    child = os.fork()
    if child == 0:
        os.setsid()
        try:
            work(path)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(0)

    def stop(number=None, frame=None):
        try:
            os.killpg(child, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass
        if number == signal.SIGTERM:
            os._exit(1)

    for number in signal.SIGALRM, signal.SIGTERM:
        signal.signal(number, stop)
    signal.alarm(LIMIT)
    _, status = os.waitpid(child, 0)
    stop()
    os.write(1, f"{path} {os.waitstatus_to_exitcode(status)}\n".encode())


def serve(modules):
    """Import the `modules` that are installed, then fork a process for every line of stdin."""
    for name in modules:
        try:
            importlib.import_module(name)
        except ImportError:
            pass
    if not hasattr(os, "fork"):  # Windows: one after another, each with its own imports
        for line in sys.stdin:
            done = subprocess.run([sys.executable, __file__, line.strip()], stdout=sys.stderr)
            print(line.strip(), done.returncode, flush=True)
        return
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # supervisors are not waited for
    while line := sys.stdin.readline():
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            supervise(line.strip())
            os._exit(0)


if __name__ == "__main__":
    sys.path[:] = clean_paths(sys.path)
    serve(sys.argv[2:]) if sys.argv[1] == "--serve" else work(sys.argv[1])
