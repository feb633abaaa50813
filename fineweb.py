"""Text to tokens: documents in parquet files become shards that train_gpt2.py reads.

    python fineweb.py --source FOLDER               # any folder of .parquet files

The files of FOLDER need a column named text.
"""

# imported first, so that Ctrl-C ends the program without a traceback from here on
from nanogpt.common import parse, run

import sys
from dataclasses import dataclass

from nanogpt.sources import find_source, open_parquet, read_texts


@dataclass(frozen=True)
class Config:
    source: str = "parquet"
    """folder of .parquet files with a text column"""


# -----------------------------------------------------------------------------
# the source


def windows(source):
    """Row groups in the source's order, each as a list of one pair (file, group)."""
    for file in range(len(source.files)):
        for group in range(open_parquet(source.path(file)).num_row_groups):
            yield [(file, group)]


def main():
    config = parse(Config(), sys.argv[1:], "fineweb.py", __doc__)
    source = find_source(config.source)
    documents = characters = 0
    for [(file, group)] in windows(source):
        texts = read_texts(source.path(file), group)
        documents, characters = documents + len(texts), characters + sum(map(len, texts))
    print(f"{config.source}: {documents:,} documents, {characters:,} characters")


if __name__ == "__main__":
    run(main)
