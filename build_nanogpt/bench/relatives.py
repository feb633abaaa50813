"""The relatives' networks with the program's weights: from the user's own clones, as they are."""

import ast
import contextlib
import inspect
import io
import sys
import types
from dataclasses import asdict, fields
from pathlib import Path

from build_nanogpt.cli import UserError
from nanogpt.weights import TRANSPOSED

PLACES = {"nanoGPT": "nanoGPT/model.py", "build-nanogpt": "build-nanogpt/train_gpt2.py"}


def transformers_gpt2(ours):
    """transformers' GPT2LMHeadModel with the weights of `ours`, without dropout."""
    from transformers import GPT2Config, GPT2LMHeadModel
    from transformers.utils import logging

    logging.set_verbosity_error()
    c = ours.config
    model = GPT2LMHeadModel(GPT2Config(
        n_positions=c.block_size, vocab_size=c.vocab_size, n_layer=c.n_layer, n_head=c.n_head,
        n_embd=c.n_embd, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=None,
        eos_token_id=None))
    model.load_state_dict({k: v.t() if k.endswith(TRANSPOSED) else v
                           for k, v in ours.state_dict().items()})
    return model.to(ours.lm_head.weight.device)


def find_relatives(folder):
    """{name: path of the file with its network} of the clones in a folder. Raises UserError."""
    if not folder:
        return {}
    if not Path(folder).is_dir():
        raise UserError(f"--relatives {folder}: no such folder; name one that holds your clones of "
                        f"{' or '.join(PLACES)}")
    found = {name: Path(folder, place) for name, place in PLACES.items()
             if Path(folder, place).is_file()}
    if not found:
        raise UserError(f"--relatives {folder}: neither {' nor '.join(PLACES.values())} is there; "
                        "clone one of them into it")
    return found


@contextlib.contextmanager
def foreign(path):
    """What others' code prints is not shown; what it raises is one line that names its file."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    except Exception as error:
        raise UserError(f"{path} cannot be used ({type(error).__name__}: {error}): clone the "
                        "repository again, or leave it out") from error


def defines(node, folder):
    """Is a statement a definition, or an import from elsewhere than the file's own folder?"""
    if isinstance(node, ast.Import | ast.ImportFrom):
        names = [alias.name for alias in node.names]
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else names
        return not any((folder / f"{name}.py").exists() for name in names)
    return isinstance(node, ast.ClassDef | ast.FunctionDef)


def definitions(path):
    """A module with a file's imports, classes and functions, and nothing else of it.

    build-nanogpt's script has no main(): the code between its definitions trains. Its imports
    from its own folder would find this program's files of the same names."""
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    tree.body = [node for node in tree.body if defines(node, path.parent)]
    module = types.ModuleType(f"relative_{path.parent.name.replace('-', '_')}")
    module.master_process = False  # build-nanogpt's network asks for it, and is quiet then
    sys.modules[module.__name__] = module
    exec(compile(tree, str(path), "exec"), vars(module))
    return module


def relative(path, ours):
    """The GPT of a clone, with the sizes and weights of `ours`, biases and no dropout."""
    with foreign(path):
        module = definitions(path)
        sizes = asdict(ours.config) | {"dropout": 0.0, "bias": True}
        names = {field.name for field in fields(module.GPTConfig)}
        config = module.GPTConfig(**{k: v for k, v in sizes.items() if k in names})
        model = module.GPT(config)
        model.load_state_dict(ours.state_dict())
        return model.to(ours.lm_head.weight.device)


def relatives_optimizer(path, model, device_type):
    """What a clone's configure_optimizers() makes, with learning rate 0; told that the device is
    "cuda" both fuse AdamW's kernels, which they do not do on a CPU."""
    known = {"weight_decay": 0.1, "learning_rate": 0.0, "betas": (0.9, 0.95),
             "device_type": device_type}
    with foreign(path):
        wanted = inspect.signature(model.configure_optimizers).parameters
        return model.configure_optimizers(**{name: known[name] for name in wanted})
