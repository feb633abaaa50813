"""Tools that open the folder as it is: our sample.py, transformers, lm-eval, CTranslate2."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

import nanogpt

ROOT = Path(nanogpt.__file__).parent.parent


def sample(case, scratch):
    """sample.py itself, as a program: what its user reads at temperature 0."""
    done = subprocess.run(
        [sys.executable, ROOT / "sample.py", case.folder, case.prompt, "--temperature", "0",
         "--max-tokens", str(max(1, len(case.new_ids))), "--device", "cpu"],
        capture_output=True, check=True)
    written = done.stdout.decode().removeprefix(case.prompt).removesuffix(os.linesep)
    half = len(case.written) - len(case.written.rstrip("\ufffd"))  # of a character: not shown
    return {"version": nanogpt.__version__, "written": written + "\ufffd" * half}


def transformers(case, scratch):
    """AutoTokenizer, AutoModelForCausalLM and pipeline, all from the folder."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

    tokenizer = AutoTokenizer.from_pretrained(case.folder)
    model = AutoModelForCausalLM.from_pretrained(case.folder, dtype=torch.float32)
    ids = tokenizer(case.text, split_special_tokens=True)["input_ids"]
    write = pipeline("text-generation", model=case.folder, dtype=torch.float32)
    [written] = write(case.prompt, max_new_tokens=max(1, len(case.new_ids)), do_sample=False,
                      return_full_text=False)
    with torch.no_grad():
        logits = model(torch.tensor([case.prompt_ids])).logits[0].numpy()
    return {"ids": ids, "back": tokenizer.decode(ids), "written": written["generated_text"],
            "logits": logits}


# its own HellaSwag, of a file
TASK = """include: {own}
task: ours
dataset_path: json
dataset_kwargs: {{data_files: {{validation: {file}}}}}
training_split: null
"""


def fitting(case, path, most=100):
    """(rows, encoded) of the first examples of a HellaSwag file that this network can read: as
    lm-eval's own task asks them, and as hellaswag.py encodes that."""
    from lm_eval.tasks.hellaswag.utils import preprocess

    import hellaswag
    from nanogpt.common import UserError
    from nanogpt.tokenizer import folder_key, get_tokenizer

    enc, rows, encoded = get_tokenizer(folder_key(case.folder)), [], []
    lines = filter(str.strip, Path(path).read_text("utf-8").splitlines())
    for row in map(json.loads, lines) if hellaswag.load_examples(path, most) else []:
        row = {"activity_label": "", "ctx_a": row["ctx"], "ctx_b": ""} | row
        context = f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}"
        example = {"ctx": preprocess(context), "label": int(row["label"]),
                   "endings": [preprocess(ending) for ending in row["endings"]]}
        with contextlib.suppress(UserError):  # a character that the network has never seen
            [found] = hellaswag.encode([example], enc, case.block_size)
            if max(found.n_ending) < case.block_size:  # lm-eval wants endings that fit
                rows.append(row | {"label": str(row["label"]), "n": list(
                    map(len, example["endings"]))})
                encoded.append(found)
        if len(rows) == most:
            break
    if not rows:
        raise NotImplementedError(f"no example of {path} fits this network")
    return rows, encoded


def lm_eval(case, scratch):
    """lm-eval's own HellaSwag, on --hellaswag's examples: its log-likelihoods and accuracies
    against those of hellaswag.py. Its acc_norm divides by an ending's characters."""
    import torch
    from lm_eval import simple_evaluate, tasks
    from lm_eval.models.huggingface import HFLM

    import hellaswag
    from train_gpt2 import GPT

    if not case.hellaswag:
        raise NotImplementedError("needs --hellaswag FILE.jsonl")
    rows, encoded = fitting(case, case.hellaswag)
    sums, _ = hellaswag.score(GPT.from_pretrained(case.folder).eval(), encoded,
                              torch.device("cpu"))

    (scratch / "examples.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    own = Path(tasks.__file__).parent / "hellaswag" / "hellaswag.yaml"
    (scratch / "ours.yaml").write_text(TASK.format(own=own, file=scratch / "examples.jsonl"),
                                       "utf-8")
    model = HFLM(pretrained=case.folder, device="cpu", dtype="float32", batch_size=4,
                 prefix_token_id=case.eot or 0)  # for empty contexts alone; it asks for one
    found = simple_evaluate(
        model, tasks=["ours"], log_samples=True, bootstrap_iters=0,
        task_manager=tasks.TaskManager(include_path=str(scratch), include_defaults=False))
    theirs = torch.tensor([[-choice[0] for choice in sample["filtered_resps"]]
                           for sample in found["samples"]["ours"]])
    labels = torch.tensor([int(row["label"]) for row in rows])
    said, failed = [], False
    for name, scores in (("acc", sums), ("acc_norm", sums / torch.tensor(
            [row["n"] for row in rows]))):
        ours = (scores.argmin(1) == labels).double().mean().item()
        its = found["results"]["ours"][f"{name},none"]
        said.append(f"{name} {its:.4f} and {ours:.4f}")
        failed |= abs(its - ours) > 1e-4
    return {"difference": (theirs - sums).abs().max().item(), "of": "log-likelihood",
            "note": f"{', '.join(said)} of {len(rows)} examples"
                    + ", prefix_token_id=0" * (case.eot is None), "failed": failed}


def ctranslate2(case, scratch):
    """Converted from the folder; the converter reads the tokenizer, too."""
    from ctranslate2 import Generator
    from ctranslate2.converters import TransformersConverter
    from transformers import AutoTokenizer

    TransformersConverter(case.folder).convert(str(scratch / "model"))
    config = Path(scratch, "model", "config.json")
    facts, note = json.loads(config.read_text("utf-8")), ""
    if facts["eos_token"] is None:  # without end of text; it asks for names all the same
        facts |= dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<unk>")
        config.write_text(json.dumps(facts), encoding="utf-8")
        note = "with <unk> for null in its own config.json"
    tokens = AutoTokenizer.from_pretrained(case.folder).convert_ids_to_tokens(case.prompt_ids)
    generator = Generator(str(scratch / "model"), compute_type="float32")
    [out] = generator.generate_batch([tokens], max_length=max(1, len(case.new_ids)),
                                     sampling_topk=1, include_prompt_in_result=False)
    logits = np.array(generator.forward_batch([tokens]))[0]
    return {"new": out.sequences_ids[0], "logits": logits, "note": note}
