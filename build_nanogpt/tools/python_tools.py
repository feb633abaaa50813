"""Tools that open the folder as it is: transformers, lm-eval, CTranslate2."""

import json
from pathlib import Path

import numpy as np


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


TASK = """task: ours
dataset_path: json
dataset_kwargs: {{data_files: {{validation: {file}}}}}
validation_split: validation
output_type: multiple_choice
doc_to_text: "{{{{ctx}}}}"
doc_to_choice: "{{{{endings}}}}"
doc_to_target: "{{{{label}}}}"
metric_list: [{{metric: acc}}]
"""


def lm_eval(case, scratch):
    """A local task of four endings, on --hellaswag's examples: log-likelihoods and accuracy against
    those of hellaswag.py."""
    import torch
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    import hellaswag
    from nanogpt.tokenizer import folder_key, get_tokenizer
    from train_gpt2 import GPT

    if not case.hellaswag:
        raise NotImplementedError("needs --hellaswag FILE.jsonl")
    enc = get_tokenizer(folder_key(case.folder))
    examples = [example for example in hellaswag.load_examples(case.hellaswag, 1000) if max(
        len(enc.encode_ordinary(" " + ending)) for ending in example["endings"]
        ) < case.block_size][:100]  # lm-eval wants endings that fit
    encoded = hellaswag.encode(examples, enc, case.block_size)
    device = torch.device("cpu")
    sums, means = hellaswag.score(GPT.from_pretrained(case.folder).eval(), encoded, device)
    labels = torch.tensor([example["label"] for example in examples])

    rows = [example | {"label": example["label"]} for example in examples]
    (scratch / "examples.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (scratch / "ours.yaml").write_text(TASK.format(file=scratch / "examples.jsonl"), "utf-8")
    tasks = TaskManager(include_path=str(scratch), include_defaults=False)
    model = HFLM(pretrained=case.folder, device="cpu", dtype="float32", batch_size=4)
    found = simple_evaluate(model, tasks=["ours"], task_manager=tasks, log_samples=True,
                            bootstrap_iters=0)
    theirs = torch.tensor([[-choice[0] for choice in sample["filtered_resps"]]
                           for sample in found["samples"]["ours"]])
    n_ending = torch.tensor([example.n_ending for example in encoded])
    acc = found["results"]["ours"]["acc,none"]
    ours = (sums.argmin(1) == labels).double().mean().item()
    norm, ours_norm = (((each.argmin(1)) == labels).double().mean().item()
                       for each in (theirs / n_ending, means))
    return {"difference": (theirs - sums).abs().max().item(), "of": "log-likelihood",
            "note": f"acc {acc:.4f} and {ours:.4f}, acc_norm {norm:.4f} and {ours_norm:.4f}, "
                    f"{len(examples)} examples",
            "failed": abs(acc - ours) > 1e-4 or abs(norm - ours_norm) > 1e-4}


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
