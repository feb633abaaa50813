"""Token shards as one endless stream."""

import functools
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from nanogpt.common import UserError, needs_network
from nanogpt.disk import digest
from nanogpt.manifest import check_manifest, find_tokenizer
from nanogpt.tokenizer import TOKENIZERS, get_tokenizer


@dataclass(frozen=True)
class Shard:
    """uint16 tokens in a file or in memory. `open` makes a new memory map for every read: one that
    stays open would count every page it ever touched as this process's memory."""

    name: str
    n_tokens: int
    open: Callable[[], np.ndarray]
    sha256: str = ""  # of the file, if its manifest lists one


def open_shard(path):
    """A Shard from one of our .npy files or llm.c's .bin files. Raises UserError for any other.

    .bin: 256 int32 (magic 20240520, version 1, number of tokens, zeros), then uint16 tokens.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        if path.suffix == ".bin":
            header = np.fromfile(path, dtype="<i4", count=256)
            offset, shape, dtype = 0, (size // 2,), np.dtype("<u2")
            if len(header) == 256 and (header[0], header[1]) == (20240520, 1):
                offset, shape = 1024, (int(header[2]),)
            elif path.name not in ("train.bin", "val.bin"):
                raise ValueError("no llm.c header")
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # numpy warns of headers that Python 2 wrote
                tokens = np.lib.format.open_memmap(path, mode="r")  # .npy, and never a pickle
            offset, shape, dtype = tokens.offset, tokens.shape, tokens.dtype
        if dtype != np.uint16 or len(shape) != 1:
            raise ValueError(f"{dtype} of shape {shape}, not uint16 in one dimension")
        if size != offset + 2 * shape[0]:
            raise ValueError(f"{size} bytes where {shape[0]} tokens need {offset + 2 * shape[0]}")
    except Exception as error:  # a damaged header fails in numpy in a dozen ways
        reason = str(error).partition("\n")[0]
        if isinstance(error, PermissionError):
            raise UserError(f"cannot read {path}: ask its owner, or choose other shards") from None
        raise UserError(f"{path} is not a complete shard ({reason}): make it again") from None
    return Shard(str(path), shape[0], functools.partial(map_tokens, path, offset, shape[0]))


def map_tokens(path, offset, n_tokens):
    """A shard's tokens, memory-mapped. Raises UserError if the file has become shorter."""
    try:
        return np.memmap(path, np.uint16, "r", offset, (n_tokens,))
    except ValueError as error:
        raise UserError(f"{path} is shorter than it was ({error}): make it again") from None


def find_shards(folder, tokenizer):
    """The train and the validation shards of a folder, in the order of their names.

    Names end in _train_000001.npy, _val_000000.npy, or the same with .bin. If there is a
    manifest.json, it must list these shards and name `tokenizer`. Raises UserError.
    """
    way_out = 'run "python fineweb.py", or try "python train_gpt2.py laptop"'
    shards = {"train": [], "val": []}
    folder = Path(folder)
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if match := re.search(r"_(train|val)(_\d+)?\.(npy|bin)$|^(train|val)\.bin$", path.name):
            shards[match[1] or match[4]].append(open_shard(path))
    if (folder / "manifest.json").exists():
        sums = check_manifest(folder / "manifest.json", tokenizer, shards["train"] + shards["val"])
        shards = {split: [replace(shard, sha256=sums[Path(shard.name).name]) for shard in found]
                  for split, found in shards.items()}
    for split, found in shards.items():
        if not found:
            raise UserError(f"no {split} shards in {folder}: {way_out}")
    return shards["train"], shards["val"]


def split(tokens, end_of_text, share):
    """The validation and the training tokens of a source that fits into one shard. With a share of
    0.1: every tenth document or, if there are fewer than ten, the last tenth. Prints which."""
    number = np.cumsum(tokens == end_of_text, dtype=np.int32)  # of each token's document, from 1
    picked = np.diff(np.floor(np.arange(number[-1] + 1) * share)) > 0
    if picked.any():
        val, said = picked[number - 1], f"{picked.sum()} of {len(picked)} documents, evenly spread"
    else:
        val = np.arange(len(tokens)) >= np.clip(int(len(tokens) * (1 - share)), 1, len(tokens) - 1)
        said = f"the last {val.sum()} of {len(tokens)} tokens"
    tqdm.write(f"validation: {said}")
    return tokens[val], tokens[~val]


def python_manual(T):
    """The text behind Python's help(), half a megabyte, as byte shards in memory: train, val.

    Every tenth stretch of about a thousand characters is for validation. A paragraph that occurs
    twice (topics quote each other) is kept once, so that training has not seen the validation text.
    Documents are excerpts that fill a row of T tokens: shuffled, they make batches of many topics.
    With longer ones a batch would be about one topic, and each step would undo part of the last.
    """
    with needs_network("Python's manual", "this Python has no pydoc_data, install a full one"):
        from pydoc_data.topics import topics
    seen, stretches = set(), []
    for text in topics.values():
        stretches.append("")
        for paragraph in text.strip().split("\n\n"):
            if len(paragraph) >= 40 and paragraph in seen:
                continue
            seen.add(paragraph)
            if len(stretches[-1]) >= 1000:
                stretches.append("")
            stretches[-1] += paragraph + "\n\n"

    enc, shards = get_tokenizer("bytes"), []
    most = max(1, T - 1)
    excerpt = re.compile(rf"(?s).{{1,{most}}}(?=\s|\Z)|.{{1,{most}}}")  # ends before a space
    for split, part in (("train", [text for i, text in enumerate(stretches) if i % 10 != 9]),
                        ("val", stretches[9::10])):
        ids = [id for text in part for document in excerpt.findall(text)
               for id in (enc.eot_token, *enc.encode_ordinary(document))]
        tokens = np.array(ids, dtype=np.uint16)
        shards.append([Shard(f"pydoc_{split}", len(tokens), lambda tokens=tokens: tokens)])
    return shards


class TokenStream:
    """Shards end to end, epoch after epoch: one endless sequence of tokens, read at any position.

    seed: None keeps the order on disk; a number shuffles the shards, and the documents within
    each shard, anew every epoch. The token at a position depends on nothing else.
    """

    CHUNK = 2**22  # tokens searched at a time: 8 MB

    def __init__(self, shards, vocab_size, seed=None, verify=True):
        self.shards, self.vocab_size, self.seed = shards, vocab_size, seed
        self.n_tokens = sum(shard.n_tokens for shard in shards)  # of one epoch
        # what load_data knows better: the tokenizer's key, and the id that ends a text, or None
        self.tokenizer = {n: name for name, n in TOKENIZERS.items()}.get(vocab_size, "unknown")
        self.end_of_text, self.enc = vocab_size - 1, None
        self.row_seed = None  # a number: rows() come from random places
        self.windows = functools.lru_cache(maxsize=2)(self._windows)
        # the next batch is most often in the same shard
        self.documents = functools.lru_cache(maxsize=8)(self._documents)
        self.layout = functools.lru_cache(maxsize=8)(self._layout)
        self.verify = verify  # compare a shard with its checksum when it is first needed
        self.verified = set()  # indices of shards whose checksum was right

    def read(self, position, n):
        """The n tokens from `position` on: int64 (n,)."""
        self.look_at(position, n)
        out, filled = np.empty(n, dtype=np.int64), 0
        while filled < n:
            filled += self._read_shard(*self.place(position + filled), out[filled:])
        return out

    def rows(self, position, B, T):
        """B rows of T tokens from `position` on, and the tokens after each: two int64 (B, T)."""
        if self.row_seed is None:
            tokens = self.read(position, B * T + 1)
            return tokens[:-1].reshape(B, T), tokens[1:].reshape(B, T)
        self.look_at(0, self.n_tokens)
        rows = np.stack([self.read(self.start(position + i * T, T), T + 1) for i in range(B)])
        return rows[:, :-1], rows[:, 1:]

    def start(self, position, T):
        """Where the row at `position` begins. With row_seed, an epoch is all windows of T tokens
        from a random offset on, each once, in random order."""
        if self.row_seed is None:
            return position
        n = max(1, (self.n_tokens - 1) // T - 1)
        epoch, row = divmod(position // T, n)
        offset, order = self.windows(epoch, n, T)
        return offset + T * int(order[row])

    def _windows(self, epoch, n, T):
        rng = np.random.default_rng((self.row_seed, epoch))
        return int(rng.integers(min(T, self.n_tokens - T * n))), rng.permutation(n)

    def place(self, position):
        """A position as (epoch, index of its shard, offset in the shard)."""
        epoch, offset = divmod(position, self.n_tokens)
        for i in self._order(epoch):
            if offset < self.shards[i].n_tokens:
                return epoch, int(i), offset
            offset -= self.shards[i].n_tokens

    def look_at(self, position, n):
        """Check the shards that hold the n tokens from `position` on, each of them once."""
        while n > 0 and self.verify:
            _, i, offset = self.place(position)
            if self.shards[i].sha256 and i not in self.verified:
                self.check(shards=[self.shards[i]])
                self.verified.add(i)
            left = self.shards[i].n_tokens - offset
            position, n = position + left, n - left

    def _order(self, epoch):
        if self.seed is None:
            return range(len(self.shards))
        return np.random.default_rng((self.seed, epoch)).permutation(len(self.shards))

    def check(self, progress=False, shards=None):
        """Check `shards`; None, before a run starts: those without a checksum. Raises UserError
        for an id past the vocabulary, at which the network would stop, and for a file that differs
        from its checksum."""
        shards = shards or [shard for shard in self.shards if not shard.sha256]
        bar = tqdm(shards, desc="reading shards", leave=False, disable=None if progress else True)
        for shard in bar:
            if shard.sha256 and digest(shard.name)[1] != shard.sha256:
                raise UserError(f"{shard.name} is not the file that its manifest lists: fetch it "
                                "again, or make the shards again")
            for begin in range(0, shard.n_tokens, self.CHUNK):
                largest = shard.open()[begin : begin + self.CHUNK].max()
                if largest >= self.vocab_size:
                    raise UserError(f"{shard.name} holds the id {largest}, and the vocabulary ends "
                                    f"at {self.vocab_size - 1}: it is from another tokenizer")

    def _documents(self, i):
        """Positions in shard i where documents begin: 0, and every end-of-text. int64, sorted."""
        shard, starts = self.shards[i], [[0]]
        for begin in range(0, shard.n_tokens, self.CHUNK):
            tokens = shard.open()[begin : begin + self.CHUNK]
            starts.append(begin + np.flatnonzero(tokens == self.end_of_text))
        return np.unique(np.concatenate(starts))

    def _layout(self, epoch, i):
        """The documents of shard i in this epoch's order: their starts and lengths on disk, and
        where each ends once they are laid end to end. In the order on disk, the whole shard counts
        as one document."""
        n_tokens = self.shards[i].n_tokens
        if self.seed is None:
            return [0], [n_tokens], np.array([n_tokens])
        starts = self.documents(i)
        lengths = np.diff(starts, append=n_tokens)
        order = np.random.default_rng((self.seed, epoch, i)).permutation(len(starts))
        return starts[order], lengths[order], np.cumsum(lengths[order])

    def _read_shard(self, epoch, i, offset, out):
        """Fill `out` from shard i. Returns how many tokens it had: the shard may end first."""
        starts, lengths, ends = self.layout(epoch, i)
        tokens, filled = self.shards[i].open(), 0
        document = int(np.searchsorted(ends, offset, side="right"))
        while filled < len(out) and document < len(ends):
            left = ends[document] - offset  # tokens of this document from here on
            stop = starts[document] + lengths[document]
            part = tokens[stop - left : min(stop, stop - left + len(out) - filled)]
            out[filled : filled + len(part)] = part  # to int64: torch has few uses for uint16
            filled, offset = filled + len(part), offset + len(part)
            document += 1
        return filled


def validation_rows(stream, n_tokens, T):
    """The number of whole rows of T in the first n_tokens of the stream, or in all of it if it is
    shorter. At least one."""
    return max(1, min(n_tokens, stream.n_tokens - 1) // T)


def load_data(config, verify=True):
    """The run's training and validation TokenStreams. verify: compare shards with their checksums
    when they are first needed; one rank on a machine is enough. Raises UserError."""
    tokenizer, vocab_size, end_of_text = find_tokenizer(config.data, config.vocab_size)
    if config.data == "pydoc":
        train, val = python_manual(config.T)
    else:
        train, val = find_shards(config.data, tokenizer)
    train = TokenStream(train, vocab_size, config.seed if config.shuffle else None, verify)
    val = TokenStream(val, vocab_size, verify=verify)
    for stream in train, val:
        stream.tokenizer, stream.end_of_text = tokenizer, end_of_text
    train.row_seed = config.seed if config.shuffle_rows else None
    if train.n_tokens <= config.total_batch_size:
        raise UserError(f"{config.data} holds {train.n_tokens} training tokens, less than one "
                        f"batch of {config.total_batch_size} and its last target: "
                        "choose a smaller --total-batch-size")
    if val.n_tokens <= config.T:
        raise UserError(f"{config.data} holds {val.n_tokens} validation tokens, less than one "
                        f"sequence of {config.T} and its last target: choose a smaller --T")
    return train, val


def count_steps(config, stream):
    """The number of updates in a run: --max-steps, or the whole batches in one epoch."""
    return config.max_steps or (stream.n_tokens - 1) // config.total_batch_size
