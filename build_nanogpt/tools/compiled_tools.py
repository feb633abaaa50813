"""Tools that run the network after an export: ONNX Runtime, OpenVINO, MLX, llama.cpp."""

import json
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np

from build_nanogpt.tools.case import settled


def greedy(case, logits_of):
    """The likeliest id again and again, by a function (1, T) ids -> (1, T, V) logits."""
    ids = list(case.prompt_ids)
    while len(ids) < len(case.prompt_ids) + len(case.new_ids):
        ids.append(int(logits_of(np.array([ids]))[0, -1].argmax()))
    return ids[len(case.prompt_ids):]


def export(case, scratch):
    """The folder's network as transformers has it, as an ONNX file for any number of tokens."""
    import torch
    from transformers import AutoModelForCausalLM

    class Logits(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = AutoModelForCausalLM.from_pretrained(
                case.folder, dtype=torch.float32, attn_implementation="eager")

        def forward(self, idx):
            return self.model(input_ids=idx, use_cache=False).logits

    idx = torch.zeros(1, min(8, case.block_size), dtype=torch.long)
    length = torch.export.Dim("length", min=2, max=case.block_size)
    torch.onnx.export(Logits().eval(), (idx,), scratch / "model.onnx", dynamo=True, verbose=False,
                      input_names=["idx"], dynamic_shapes=({1: length},))
    return str(scratch / "model.onnx")


def onnxruntime(case, scratch):
    """Through torch.onnx.export(dynamo=True), which needs onnxscript."""
    import onnxruntime as ort

    session = ort.InferenceSession(export(case, scratch), providers=["CPUExecutionProvider"])

    def logits_of(idx):
        return session.run(None, {"idx": idx})[0]

    return {"new": greedy(case, logits_of), "logits": logits_of(np.array([case.prompt_ids]))[0]}


def openvino(case, scratch):
    """The same ONNX file, in 32 bits."""
    from openvino import Core

    model = Core().compile_model(export(case, scratch), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def logits_of(idx):
        return model([idx])[0]

    return {"new": greedy(case, logits_of), "logits": logits_of(np.array([case.prompt_ids]))[0]}


def mlx_lm(case, scratch):
    """From a copy whose tensors lack the prefix transformer., as OpenAI's files do."""
    import shutil

    import mlx.core as mx
    from mlx_lm.utils import load_model

    copy = scratch / "copy"
    shutil.copytree(case.folder, copy)
    weights = mx.load(str(copy / "model.safetensors"))
    mx.save_safetensors(str(copy / "model.safetensors"),
                        {name.removeprefix("transformer."): t for name, t in weights.items()})
    (copy / "state.safetensors").unlink(missing_ok=True)  # MLX loads model*.safetensors alone
    mx.set_default_device(mx.cpu)
    model, _ = load_model(copy)

    def logits_of(idx):
        return np.array(model(mx.array(idx)))

    return {"new": greedy(case, logits_of), "logits": logits_of(np.array([case.prompt_ids]))[0],
            "note": "of a copy, tensors without transformer."}


def llama_cpp(case, scratch):
    """llama.cpp's own converter, then its server within this process (xllamacpp)."""
    import xllamacpp

    if not case.llama_cpp:
        raise NotImplementedError("needs --llama-cpp FOLDER with convert_hf_to_gguf.py")
    converter, gguf = Path(case.llama_cpp, "convert_hf_to_gguf.py"), scratch / "model.gguf"
    done = subprocess.run([sys.executable, converter, case.folder, "--outfile", gguf, "--outtype",
                           "f32"], capture_output=True, text=True)
    if done.returncode:
        raise NotImplementedError(f"its converter: {done.stderr.strip().splitlines()[-1]}")
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel = str(gguf), case.block_size, 1
    params.warmup, params.fit_params, params.port = False, False, 0
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    server = xllamacpp.Server(params)

    def ask(path, **what):
        request = urllib.request.Request(server.listening_address + path, json.dumps(what).encode(),
                                         {"Content-Type": "application/json"})
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)

    common = {"prompt": case.prompt_ids, "temperature": 0, "return_tokens": True,
              "cache_prompt": False}
    text = settled(case.text)
    ids = ask("/tokenize", content=text, parse_special=False)["tokens"]
    n_ids = case.logits.shape[1]
    first = ask("/completion", n_predict=1, n_probs=n_ids, **common)
    top = first["completion_probabilities"][0]["top_logprobs"]
    log_p = np.full(n_ids, np.nan)
    log_p[[each["id"] for each in top]] = [each["logprob"] for each in top]
    new = ask("/completion", n_predict=max(1, len(case.new_ids)), **common)["tokens"]
    return {"text": text, "ids": ids, "new": new, "log_p": log_p,
            "note": "without new characters"}
