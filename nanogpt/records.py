"""Records: JSON values and rows of tables, and the texts in them."""

import csv
import json


def values(lines):
    """JSON values, one per line, or the elements of an array, which is read whole."""
    for line in lines:
        if line.lstrip().startswith("["):
            yield from json.loads(line + "".join(lines))
        elif line.strip():
            yield json.loads(line)


def rows(lines, kind):
    csv.field_size_limit(2**31 - 1)  # the first row has the names
    return csv.DictReader(lines, restval=0, delimiter="," if kind == "csv" else "\t", strict=True)


def texts(records, find):
    """The texts of records: texts, or dictionaries of which find(keys) is the key. null is none."""
    found = None
    for record in records:
        if isinstance(record, dict):
            found = found or find([key for key in record if isinstance(record[key], str | None)])
            if None in record:
                raise ValueError("more fields than names")
            record = record.get(found, 0)
        if isinstance(record, str):  # half of a pair, as in "\ud83d", becomes U+FFFD
            yield record.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        elif record is not None:
            raise ValueError(f"no text named {found or 'text'}")
