"""Does a program print what its lesson shows?

The expected lines must be printed in this order, without gaps, from the first line printed to the
last; a line `...` matches any lines, also at the block's beginning or end. Empty lines are ignored,
and any run of blanks equals any other. Within a line the text must be equal and
`...` matches any text. Numbers: integers must be equal; numbers with a decimal point or an exponent
may differ by the lesson's tolerance (relative; exact if there is none). Timings are ignored: a
number followed by ms, s, tok/s, tok/sec, GB or TFLOPS; h:mm:ss and m:ss; `ETA` and what follows it.
"""

import difflib
import re

ANY = "..."
NUMBER = r"(?:[-+]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?)"
UNIT = r"(?:ms|tok/sec|tok/s|s|GB|TFLOPS)(?![\w/])"
CLOCK = r"\d+:\d\d(?::\d\d)?(?![\d:])"
PIECES = re.compile(rf"(?P<any>\.\.\.)|(?P<eta>ETA\s+\S+)|(?P<clock>{CLOCK})|"
                    rf"(?P<timing>(?P<value>{NUMBER}) ?(?P<unit>{UNIT}))|(?P<number>{NUMBER})|"
                    r"(?P<blank>\s+)")


def pattern_of(line):
    """(compiled pattern, [numbers as text]) for an expected line."""
    parts, numbers, at = [], [], 0
    for match in PIECES.finditer(line):
        parts.append(re.escape(line[at:match.start()]))
        at = match.end()
        kind = match.lastgroup
        if kind == "timing":
            parts.append(rf"{NUMBER}\s*{re.escape(match['unit'])}")
        elif kind == "number":
            parts.append(f"({NUMBER})")
            numbers.append(match[0])
        else:
            parts.append({"any": ".*?", "eta": r"ETA\s+\S+", "clock": CLOCK, "blank": r"\s+"}[kind])
    parts.append(re.escape(line[at:]))
    return re.compile("".join(parts)), numbers


def same_number(expected, seen, tolerance):
    """Whether two numbers, given as text, are equal by the rules above."""
    a, b = (float(text.replace(",", "")) for text in (expected, seen))
    if re.search(r"[.eE]", expected):
        return abs(a - b) <= tolerance * abs(a)
    return a == b


def same_line(expected, seen, tolerance):
    pattern, numbers = pattern_of(expected.strip())
    match = pattern.fullmatch(seen.strip())
    return match is not None and all(
        same_number(a, b, tolerance) for a, b in zip(numbers, match.groups(), strict=True))


def find(segment, seen, start, tolerance, anchored):
    """(index of `segment` in `seen` from `start` on, or None; the most lines that matched)."""
    best = 0
    for at in range(start, start + 1 if anchored else len(seen) + 1):
        fitting = 0
        for expected, line in zip(segment, seen[at:], strict=False):
            if not same_line(expected, line, tolerance):
                break
            fitting += 1
        if fitting == len(segment):
            return at, fitting
        best = max(best, fitting)
    return None, best


def segments_of(expected):
    """Expected lines, split at every `...`; an empty list at an end allows any lines there."""
    segments = [[]]
    for line in expected:
        if line.strip() == ANY:
            segments.append([])
        elif line.strip():
            segments[-1].append(line.strip())
    return segments


def missing(line, seen):
    """A message for an expected line that is missing."""
    near = difflib.get_close_matches(line, seen, n=1, cutoff=0.0)
    return f"expected {line!r}, nearest seen {near[0]!r}" if near else (
        f"expected {line!r}, but nothing was printed")


def compare(expected, output, tolerance=0.0):
    """None if `output` (str) matches the lines `expected`, else the difference, as one line."""
    seen = [line.strip() for line in output.splitlines() if line.strip()]
    segments, at = segments_of(expected), 0
    for i, segment in enumerate(segments):
        last = i == len(segments) - 1
        start = max(at, len(seen) - len(segment)) if last and i and segment else at
        found, fitting = find(segment, seen, start, tolerance, anchored=i == 0 or start > at)
        if found is None:
            return missing(segment[fitting], seen)
        at = found + len(segment)
        if last and (segment or i == 0) and at < len(seen):
            return f"printed after the last expected line: {seen[at]!r} (a line ... allows it)"
    return None
