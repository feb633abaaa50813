"""What several tests need."""

import contextlib
import copy
import io
import json
import multiprocessing
import os
import random
import runpy
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pytest
import torch
import tqdm

import train_gpt2
from nanogpt.common import run
from nanogpt.disk import digest
from nanogpt.ranks import Ranks
from nanogpt.shards import Shard, TokenStream, python_manual
from nanogpt.sources import find_source
from nanogpt.tokenizer import get_tokenizer

# no thread beside this one to watch the bars: a process with threads is not forked by start()
tqdm.tqdm.monitor_interval = 0
ROOT = Path(__file__).resolve().parent.parent
CPU = Ranks(torch.device("cpu"))


def small_gpt(seed=0, block_size=16, vocab_size=257, n_layer=2, n_head=2, n_embd=32):
    """A network of a few thousand parameters, random but the same every time."""
    torch.manual_seed(seed)
    config = train_gpt2.GPTConfig(block_size, vocab_size, n_layer, n_head, n_embd)
    return train_gpt2.GPT(config)


def lively_gpt(**sizes):
    """small_gpt with weights large enough that its logits differ enough to compare."""
    model = small_gpt(**sizes)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.mul_(5) if "ln_" in name else p.normal_(0.0, 0.1)
    return model


def letters_gpt(**sizes):
    """A lively_gpt that writes nothing but the letters a to z, without end."""
    model = lively_gpt(**sizes)
    with torch.no_grad():
        weight, ln_f = model.lm_head.weight, model.transformer.ln_f
        weight[:, 0], ln_f.weight[0], ln_f.bias[0] = -5, 0, 10
        weight[97:123, 0] = 5
    return model


def no_scaler():
    return torch.amp.GradScaler("cpu", enabled=False)


def first_batch(tokens, B, T):
    """x, y of the first B T tokens."""
    return train_gpt2.DataLoader(stream_of(tokens), B, T).next_batch()


def stream_of(tokens, vocab_size=257, seed=None, parts=1):
    """A TokenStream over tokens in memory, cut into `parts` shards."""
    arrays = np.array_split(np.asarray(tokens, dtype=np.uint16), parts)
    shards = [Shard(f"part {i}", len(a), lambda a=a: a) for i, a in enumerate(arrays)]
    return TokenStream(shards, vocab_size, seed)


def learn_by_heart(model, tokens, B, T, updates, lr):
    """The losses of `updates` updates on a single batch, made of B T `tokens`."""
    loader = train_gpt2.DataLoader(stream_of(tokens), B, T)
    optimizer = train_gpt2.configure_optimizer(model, 0.0, lr)
    return [update(model, loader, optimizer, lr)[0] for _ in range(updates)]


def training(model, loader=None, steps=1, optimizer=None, scaler=None, ranks=CPU, **more):
    """A Training of `model`, on the CPU by default, with `steps` micro-steps."""
    optimizer = optimizer or train_gpt2.configure_optimizer(model, 0.1, 1e-3)
    net = getattr(model, "module", model)  # DDP's
    return train_gpt2.Training(net, model, optimizer, scaler or no_scaler(), loader, steps, ranks,
                               **more)


def update(model, loader, optimizer, lr, steps=1, dtype=torch.float32, scaler=None):
    """One train_step of the program on the CPU, of `steps` micro-steps."""
    ranks = Ranks(torch.device("cpu"), dtype=dtype)
    return train_gpt2.train_step(training(model, loader, steps, optimizer, scaler, ranks), lr)


def text_tokens(n, seed=0):
    """`n` byte tokens that a network can learn something from: words of a small set, documents."""
    rng = np.random.default_rng(seed)
    words = [bytes(rng.integers(97, 123, size=rng.integers(2, 7)).tolist()) for _ in range(30)]
    tokens = []
    while len(tokens) < n:
        tokens.append(256)
        for _ in range(rng.integers(5, 60)):
            tokens.extend(words[min(29, int(rng.exponential(6)))] + b" ")
    return np.array(tokens[:n], dtype=np.uint16)


def write_data(folder):
    """Something for --data: a folder of byte shards."""
    return write_shards(folder)


def write_shards(folder, n_train=40_000, n_val=6_000, shards=2, tokenizer="bytes", manifest=True):
    """A folder of byte shards as fineweb.py writes them."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays = [text_tokens(n_val, seed=1), *np.array_split(text_tokens(n_train, seed=2), shards)]
    listed = []
    for i, array in enumerate(arrays):
        name = f"text_{'train' if i else 'val'}_{i:06d}.npy"
        np.save(folder / name, array)
        listed.append({"file": name, "tokens": len(array), "documents": 1})
    if manifest:
        facts = {"tokenizer": tokenizer, "vocab_size": 257, "shards": listed}
        (folder / "manifest.json").write_text(json.dumps(facts), encoding="utf-8")
    return folder


def sign_shards(folder):
    """Put the checksums of a folder's shards into its manifest, as fineweb.py does."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for shard in manifest["shards"]:
        shard["sha256"] = digest(folder / shard["file"])[1]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def load_streams(folder, *flags, shuffle=False, **more):
    """The two TokenStreams of a run on `folder`, of bytes and of 8 tokens a step."""
    small = ["--vocab-size", "257", "--B", "1", "--T", "8", "--total-batch-size", "8"]
    small.append("--shuffle" if shuffle else "--no-shuffle")
    config = train_gpt2.parse_args(["--data", str(folder), *small, *flags])
    return train_gpt2.load_data(config, **more)


def manual_documents(T=10**6):
    """The documents of Python's manual for rows of T tokens: two lists of text, train and val."""
    splits = python_manual(T)
    documents = []
    for [shard] in splits:
        tokens = shard.open()
        assert tokens[0] == 256, f"{shard.name} does not begin with an end-of-text"
        ends = [*np.flatnonzero(tokens == 256), len(tokens)]
        documents.append([bytes(tokens[a + 1 : b].astype(np.uint8)).decode()
                          for a, b in zip(ends, ends[1:], strict=False)])
    return documents


READING = """
import re, sys
path, seed, step, root = sys.argv[1:]
sys.path.insert(0, root)
from nanogpt.shards import TokenStream, open_shard

def peak():
    with open("/proc/self/status") as status:
        return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", status.read())[1])

open("/proc/self/clear_refs", "w").write("5")  # the peak begins anew
before = peak()
seed = None if seed == "None" else int(seed)
stream = TokenStream([open_shard(path)], 50257, seed)
for position in range(0, stream.n_tokens, int(step)):
    stream.read(position, 64 * 1024 + 1)
print(peak() - before)
"""
CAN_MEASURE = os.access("/proc/self/clear_refs", os.W_OK)  # Linux alone has it


def memory_of_reading(path, step, seed=None):
    """Bytes by which a process's memory grows at most while a shard is read every `step` tokens."""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "reading.py"
        script.write_text(READING, encoding="utf-8")
        done = start(script, path, seed, step, ROOT)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


# A network that trains in seconds, as flags.
TINY = [
    "--vocab-size", "257", "--n-layer", "2", "--n-head", "2", "--n-embd", "32", "--device", "cpu",
    "--B", "8", "--T", "32",
    "--total-batch-size", "512",
    "--max-lr", "3e-3",
    "--min-lr", "3e-4", "--warmup-steps", "2",
    "--weight-decay", "0.1",
    "--no-shuffle",
    "--prompt", "Hello, I'm a language model,", "--sample-tokens", "8", "--temperature", "1.0",
    "--hellaswag", "none",
]


def four_endings(n=30):
    """HellaSwag examples of random letters, the same every time."""
    rng = np.random.default_rng(0)

    def text(low, high):
        return bytes(rng.integers(97, 123, rng.integers(low, high)).tolist()).decode()

    return [{"ctx": text(1, 30), "endings": [text(1, 20) for _ in range(4)], "label": i % 4}
            for i in range(n)]


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def refusal(main, *args, monkeypatch, capsys):
    """main() is refused with one line and status 2, in this process, for speed. The line."""
    monkeypatch.setattr(sys, "argv", ["program", *map(str, args)])
    with pytest.raises(SystemExit) as stop:
        run(main)
    said = capsys.readouterr().err
    assert stop.value.code == 2, said
    assert said.startswith("error: ") and said.count("\n") == 1, said
    return said


def offline(monkeypatch, cache):
    """The hub does not answer, and nothing of it is cached."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(cache))


def bytes_encoded(examples, block_size=64):
    """Examples as hellaswag.py's byte tokens."""
    import hellaswag

    return hellaswag.encode(examples, get_tokenizer("bytes"), block_size)


def one_row_at_a_time(model, example, block_size=64):
    """Sum and mean of -log p over each ending's bytes, by the definition, in float64."""
    model, sums, means = copy.deepcopy(model).double(), [], []
    for ending in example["endings"]:
        end = list(b" " + ending.encode())
        tokens = [*example["ctx"].encode(), *end][-(block_size + 1):]
        n = min(len(end), len(tokens) - 1)
        with torch.no_grad():
            out = model(torch.tensor([tokens[:-1]]))
        logits = out[0] if isinstance(out, tuple) else out.logits
        log_p = logits[0].log_softmax(dim=-1)
        losses = [-log_p[i - 1, tokens[i]].item() for i in range(len(tokens) - n, len(tokens))]
        sums.append(sum(losses))
        means.append(sum(losses) / n)
    return sums, means


def count_by_hand(model, examples):
    """How many examples the sums choose rightly, and how many the means."""
    scores = [one_row_at_a_time(model, example) for example in examples]
    return [sum(min(range(4), key=kind.__getitem__) == example["label"]
                for kind, example in zip(kinds, examples, strict=True))
            for kinds in zip(*scores, strict=True)]


def main_here(monkeypatch, *args):
    """Run train_gpt2.py in this process, where a test can replace its clock."""
    monkeypatch.setattr(sys, "argv", ["train_gpt2.py", *map(str, args)])
    precision = torch.get_float32_matmul_precision()
    try:
        train_gpt2.main()
    finally:
        torch.set_float32_matmul_precision(precision)


def context():
    """How to begin processes: forked from this one, with all that it has imported, if that is safe
    (one thread, no GPU in use); else forked from a server that has torch; else anew (Windows)."""
    methods = multiprocessing.get_all_start_methods()
    torch = sys.modules.get("torch")
    if ("fork" in methods and threading.active_count() == 1
            and not (torch and torch.cuda.is_initialized())):
        return multiprocessing.get_context("fork")
    if "forkserver" not in methods:
        return multiprocessing.get_context("spawn")
    server = multiprocessing.get_context("forkserver")
    # every optimizer imports torch._dynamo, which takes two seconds
    server.set_forkserver_preload(["torch._dynamo", "numpy", "tiktoken", "tyro", "tqdm",
                                   "matplotlib.backends.backend_agg", "matplotlib.figure"])
    return server


def _child(script, args, environment, cwd, out, err):
    """In a fresh process: the script as its user starts it, what it says into two files."""
    for name, number in (out, 1), (err, 2):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.stdout, sys.stderr = (open(n, "w", encoding="utf-8", closefd=False) for n in (1, 2))
    os.environ.update(environment)
    os.chdir(cwd)
    sys.argv = [str(script), *args]
    sys.path[0:0] = [str(Path(script).parent)]
    runpy.run_path(str(script), run_name="__main__")


def start(script, *args, ranks=None, env=None, timeout=300):
    """Run a script of the project as its user would. Returns a CompletedProcess with its text.

    ranks: so many processes with the environment that torchrun gives them, text of all together.
    """
    environments = [{"OMP_NUM_THREADS": "1", **(env or {})}]
    if ranks:
        port = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        environments = [environments[0] | port | dict(RANK=str(r), LOCAL_RANK=str(r),
                                                      WORLD_SIZE=str(ranks)) for r in range(ranks)]
    if "train" in str(script):  # slow imports that every run needs: once, before forking
        import torch._dynamo  # noqa: F401 (its optimizer does)
        import matplotlib.backends.backend_agg  # noqa: F401
        import matplotlib.figure  # noqa: F401
    args, script = [str(arg) for arg in args], ROOT / script
    with tempfile.TemporaryDirectory() as folder:
        files = [(f"{folder}/{i}.out", f"{folder}/{i}.err") for i in range(len(environments))]
        processes = [
            context().Process(target=_child, args=(script, args, each, os.getcwd(), *names))
            for each, names in zip(environments, files, strict=True)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(timeout)
            if process.is_alive():
                process.kill()
                raise TimeoutError(f"{script} {args} took more than {timeout} s")
        out, err = ("".join(Path(name).read_text(encoding="utf-8", errors="replace")
                            for name in names if os.path.exists(name))
                    for names in zip(*files, strict=True))
    codes = [process.exitcode for process in processes]
    return subprocess.CompletedProcess([str(script), *args], max(codes, key=abs), out, err)


def free_port():
    """A port that nobody has now, and that no connection will get by chance before it is used."""
    while True:
        port = random.SystemRandom().randrange(10_000, 32_000)  # below the ephemeral ones
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def together(function, world, *args, timeout=300):
    """function(rank, world, *args) in `world` processes at once, all of which must end well, and
    in `timeout` seconds: one that has not ends with this process."""
    processes = [context().Process(target=function, args=(rank, world, *args), daemon=True)
                 for rank in range(world)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout)
    assert [process.exitcode for process in processes] == [0] * world


def gpt2_vocabulary_missing():
    """A reason to skip, or an empty string: GPT-2's vocabulary is not downloaded by tests."""
    import tiktoken.load

    def no_network(url):
        raise OSError("tests do not download")

    original, tiktoken.load.read_file = tiktoken.load.read_file, no_network
    try:
        tiktoken.get_encoding("gpt2")
        return ""
    except OSError:
        return "GPT-2's vocabulary is not cached (set TIKTOKEN_CACHE_DIR)"
    finally:
        tiktoken.load.read_file = original


def fineweb(source, out, *args, tokenizer="bytes"):
    """fineweb.py in this process. Returns a CompletedProcess with its text.

    Its workers are threads here: a process takes half a second to begin.
    """
    from concurrent.futures import ThreadPoolExecutor

    import fineweb as program

    flags = ["--source", source]
    flags += ["--tokenizer", tokenizer]
    flags += ["--out", out]
    flags += ["--workers", 2]
    argv = ["fineweb.py", *map(str, flags), *map(str, args)]
    said = [io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2)]
    code = 0
    with (patch.object(sys, "argv", argv), contextlib.redirect_stdout(said[0]),
          contextlib.redirect_stderr(said[1]),
          patch.object(program, "ProcessPoolExecutor", lambda n, *how: ThreadPoolExecutor(n))):
        try:
            run(program.main)
        except SystemExit as stop:
            code = stop.code
    texts = []
    for stream in said:
        stream.flush()
        texts.append(stream.buffer.getvalue().decode())
    return subprocess.CompletedProcess(argv, code, *texts)


def refused(done, *words):
    """It ended with one line on stderr that has all of `words`, and status 2."""
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    assert all(word in done.stderr for word in words), done.stderr


def make_documents(n, seed=0):
    """`n` texts of up to 400 characters, of one to three bytes each."""
    rng = np.random.default_rng(seed)
    letters = np.array(list("abcdefghij \n.,äß→"))
    return ["".join(rng.choice(letters, size=rng.integers(0, 400))) for _ in range(n)]


def write_parquet(folder, documents, files=2, row_group_size=10):
    """A folder of parquet files that hold the documents in order."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True, exist_ok=True)
    for i, part in enumerate(np.array_split(np.array(documents, dtype=object), files)):
        table = pa.table({"id": list(range(len(part))), "text": pa.array(list(part), pa.string())})
        pq.write_table(table, folder / f"{i:03d}.parquet", row_group_size=row_group_size)
    return folder


def windows_of(folder):
    """fineweb.py's lists of row groups, in the order of the folder's files."""
    import fineweb as program

    return list(program.windows(program.Config(), find_source(str(folder))))


def texts_of(folder):
    """The documents of a folder as fineweb.py reads them."""
    import fineweb as program

    source = find_source(str(folder))
    groups = [program.tokenise(source.path(file), group, "bytes")
              for [(file, group)] in windows_of(folder)]
    documents = [part for tokens, lengths in groups
                 for part in np.split(tokens, np.cumsum(lengths))[:-1]]
    return [bytes(tokens[1:].tolist()).decode() for tokens in documents]


def expected_tokens(documents, tokenizer="bytes"):
    """An end-of-text before every document, by the tokenizer itself."""

    enc = get_tokenizer(tokenizer)
    return [id for text in documents for id in (enc.eot_token, *enc.encode_ordinary(text))]


def stream_from(folder, tokenizer="bytes"):
    """All tokens that fineweb.py makes of a folder of parquet files."""
    import fineweb as program

    config = program.Config(source=str(folder), tokenizer=tokenizer)
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(2) as pool:
        parts = list(program.tokenised(config, find_source(str(folder)), pool))
    return np.concatenate([tokens for _, tokens in parts])


def tokens_of(folder):
    """The tokens of a folder's shards end to end."""
    paths = sorted(folder.glob("*.npy"), key=lambda path: path.stem[-6:])  # val is number 0
    return np.concatenate([np.load(path) for path in paths])


def may_not_be_listed(monkeypatch, folder):
    """Listing the folder fails, as without the right to read it (which root always has)."""
    for name in "listdir", "scandir":
        original = getattr(os, name)

        def fails(path=".", original=original):
            if str(path) == str(folder):
                raise PermissionError(13, "Permission denied", str(path))
            return original(path)

        monkeypatch.setattr(os, name, fails)


def contents(folder):
    """The bytes of a folder's files by their names."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def stopped(n, source, out, *args):
    """Run fineweb(...) and let it fail once it has written `n` shards."""
    import fineweb as program

    write_shard = program.write_shard

    def write_and_stop(config, manifest, *args, **kwargs):
        write_shard(config, manifest, *args, **kwargs)
        if len(manifest["shards"]) == n:
            raise OSError("stopped by the test")

    with patch.object(program, "write_shard", write_and_stop):
        done = fineweb(source, out, *args)
    assert done.returncode == 2 and "stopped by the test" in done.stderr, done.stderr
    assert len(list(out.glob("*.npy"))) == n


def killed(source, out, *args):
    """Run fineweb.py in a separate process and kill it after three shards of many."""
    process = subprocess.Popen(
        [sys.executable, ROOT / "fineweb.py", "--source", source, "--out", out, "--tokenizer",
         "bytes", "--workers", "1", *map(str, args)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and len(list(out.glob("*.npy"))) < 3:
        time.sleep(0.005)
    process.kill()
    process.wait()


class FakeHub:
    """huggingface_hub.HfApi with ten files of 2 GB, and one that is none of the sample's."""

    def list_repo_tree(self, repo, folder, repo_type):
        assert (repo, folder, repo_type) == ("HuggingFaceFW/fineweb-edu", "sample/10BT", "dataset")
        return [SimpleNamespace(path=f"{folder}/{i:03d}.parquet", size=2 * 10**9)
                for i in reversed(range(10))] + [SimpleNamespace(path="x.md", size=9)]

    def repo_info(self, *args, **kwargs):
        return None
