"""When does a test file give the same result on two trees? If everything it can depend on is equal.

That is: the file itself, conftest.py, the modules of tests/ that they import (transitively), every
other file of the tree that one of these names in its text, and every module that those import.

A module does not count as a whole. Its top-level statements count if they define a name that the
test, conftest.py or another counting statement uses, as an identifier or within a string, in the
same file or in one that imports it; statements that define nothing always count. Names are not
resolved, so too much counts and nothing is missed. A test that reads the tree in another way says
`# check: always` in a comment and always runs.
"""

import ast
import functools
import hashlib
import re

ALWAYS = b"# check: always"


@functools.cache
def imported(source):
    """Names of the modules that Python source (bytes) imports anywhere, and of their packages; None
    if it is not valid Python."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return None
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
            names |= {f"{node.module or ''}.{alias.name}".strip(".") for alias in node.names}
    packages = {name.rsplit(".", n)[0] for name in names for n in range(1, name.count(".") + 1)}
    return frozenset(names | packages)


@functools.cache
def words(source):
    """The words of a text (bytes), file names among them."""
    return frozenset(re.findall(rb"[\w.-]*\w", source)) | frozenset(re.findall(rb"\w+", source))


def modules(path, files):
    """The files of the tree that the Python file `path` imports; all files if it cannot be read."""
    names = imported(files[path][1])
    if names is None:
        return set(files)
    places = ("", "tests/")
    parts = {name.replace(".", "/") for name in names if name}
    return {file for part in parts for place in places
            for file in (f"{place}{part}.py", f"{place}{part}/__init__.py") if file in files}


def named(path, files):
    """The files outside tests/test_*.py whose name is in the text of `path`."""
    said = words(files[path][1])
    found = set()
    for file in files:
        name = file.rsplit("/", 1)[-1]
        if not file.startswith("tests/test_") and (
                name.encode() in said or name.endswith(".py") and name[:-3].encode() in said):
            found.add(file)
    return found


def sees(file, files):
    """The files of the tree that `file` can use: those it imports and, in tests, those it names."""
    if not file.endswith(".py"):
        return set()
    tests = file.startswith("tests/") or file.endswith("conftest.py")
    return modules(file, files) | (named(file, files) if tests else set())


def closure(path, files):
    """{file: what it sees} of all that the test file `path` can depend on in the tree {path: (mode,
    bytes)}."""
    waiting = [path, *(name for name in ("conftest.py", "tests/conftest.py") if name in files)]
    found = {}
    while waiting:
        file = waiting.pop()
        if file not in found:
            found[file] = sees(file, files)
            waiting += found[file]
    return found


# Identifiers that start a script as a program, so that what is under its main guard counts.
READING = {"read_text", "read_bytes", "open"}  # identifiers that read the text of a named script
STARTING = frozenset({"main", "runpy", "subprocess"})


def defined(node):
    """The names that a top-level statement defines; None if it may do anything."""
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return {node.name}
    if isinstance(node, (ast.Assign, ast.AnnAssign)):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        return {part.id for target in targets for part in ast.walk(target)
                if isinstance(part, ast.Name)}
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return {"__doc__"}
    if isinstance(node, ast.If) and "__name__" in ast.dump(node.test):
        return STARTING
    return None


def used(node):
    """The identifiers in a piece of syntax, and the words of its strings, since tests keep code in
    strings. Docstrings do not count."""
    parts, found = list(ast.walk(node)), set()
    docs = {id(part.value) for part in parts if isinstance(part, ast.Expr)}
    for part in parts:
        for field in "id", "attr", "arg", "name", "asname", "module":
            if isinstance(value := getattr(part, field, None), str):
                found |= set(value.split("."))
        if (isinstance(part, ast.Constant) and isinstance(part.value, str)
                and id(part) not in docs):
            found |= set(re.findall(r"\w+", part.value))
    return found


@functools.cache
def used_in(source):
    """used() of a whole module (bytes)."""
    return frozenset(used(ast.parse(source)))


@functools.cache
def statements(source):
    """[(names it defines or None, names it uses, its text)] of a module's source (bytes)."""
    lines, found = source.splitlines(), []
    for node in ast.parse(source).body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):  # one for each of its names
            module = getattr(node, "module", None) or ""
            found += [({alias.asname or alias.name.split(".")[0]},
                       set(f"{module}.{alias.name}".split(".")),
                       f"import {module} {alias.name} {alias.asname}".encode())
                      for alias in node.names]
            continue
        first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
        text = b"\n".join(lines[first - 1:node.end_lineno])
        found.append((defined(node), used(node), text))
    return found


def needed_of(parts, whole, seen, files):
    """[(file, text)] of the statements that count in the modules `parts`; the files `whole` count
    entirely, and `seen` is a closure()."""
    waiting = [(file, *statement) for file in parts for statement in statements(files[file][1])]
    said = {file: set() for file in parts} | {
        file: set(used_in(files[file][1])) for file in whole}
    counting = []
    while True:
        usable = {file: said[file].union(*(said[other] for other in said if file in seen[other]))
                  for file in parts}
        more, rest = [], []
        for entry in waiting:
            file, names = entry[:2]
            counts = names is None or names & usable[file]
            (more if counts else rest).append(entry)
        if not more:
            return counting
        for file, _, names, text in more:
            counting.append((file, text))
            said[file] |= names
        waiting = rest


def key_of(path, files):
    """A hash of all that the test file depends on; None if it must run every time."""
    seen = closure(path, files)
    if any(ALWAYS in files[file][1] for file in seen if file.startswith("tests/")):
        return None
    read = all(imported(files[file][1]) is not None for file in seen if file.endswith(".py"))
    reads = imported(files[path][1]) is not None and used_in(files[path][1]) & READING
    parts = [file for file in seen if read and file.endswith(".py") and file != path
             and not file.endswith("conftest.py")
             and not (reads and file.encode() in words(files[path][1]))]
    whole = [file for file in seen if file not in parts]
    digest = hashlib.sha256()
    for file in sorted(whole):
        mode, data = files[file]
        digest.update(f"{file}\0{mode}\0{hashlib.sha256(data).hexdigest()}\n".encode())
    if parts:
        scripts = [file for file in whole if file.endswith(".py")]
        for file, text in sorted(needed_of(parts, scripts, seen, files)):
            digest.update(f"{file}\0{hashlib.sha256(text).hexdigest()}\n".encode())
    return digest.hexdigest()
