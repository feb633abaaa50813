"""Text to tokens: documents in parquet files become shards that train_gpt2.py reads.

    python fineweb.py --source FOLDER               # any folder of .parquet files

The files of FOLDER need a column named text. Every document is an end-of-text token followed by
its GPT-2 tokens.
"""

# imported first, so that Ctrl-C ends the program without a traceback from here on
from nanogpt.common import UserError, parse, run

import sys
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow
import pyarrow.parquet as pq

from nanogpt.sources import find_source, open_parquet
from nanogpt.tokenizer import encode, encoding


@dataclass(frozen=True)
class Config:
    source: str = "parquet"
    """folder of .parquet files with a text column"""
    tokenizer: Literal["gpt2", "bytes"] = "gpt2"
    """bytes needs no vocabulary, for trying things without a network"""


# -----------------------------------------------------------------------------
# tokens


def windows(source):
    """Row groups in the source's order, each as a list of one pair (file, group)."""
    for file in range(len(source.files)):
        for group in range(open_parquet(source.path(file)).num_row_groups):
            yield [(file, group)]


def tokenise(path, group, tokenizer):
    """Read one row group and return a uint16 array for each of its documents."""
    enc = encoding(tokenizer)
    try:
        texts = pq.ParquetFile(path).read_row_group(group, columns=["text"])["text"].to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"{path} is damaged in row group {group} ({type(error).__name__}): "
                        "fetch it again") from None
    return [np.array(encode(enc, text), dtype=np.uint16) for text in texts if text is not None]


def tokenised(config, source):
    """One uint16 array per row group, in order: its documents end to end."""
    for [(file, group)] in windows(source):
        documents = tokenise(source.path(file), group, config.tokenizer)
        yield np.concatenate(documents or [np.empty(0, np.uint16)])


def main():
    config = parse(Config(), sys.argv[1:], "fineweb.py", __doc__)
    source = find_source(config.source)
    encoding(config.tokenizer)  # here first: one download, and one error if it fails
    n_tokens = sum(len(tokens) for tokens in tokenised(config, source))
    print(f"{config.source}: {n_tokens:,} tokens")


if __name__ == "__main__":
    run(main)
