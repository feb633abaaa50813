"""transformers.js: the ids that a browser would make."""

import json
import subprocess
from pathlib import Path

from build_nanogpt.tools.case import settled

SCRIPT = """
import { AutoTokenizer, env } from "@huggingface/transformers";
import { readFileSync } from "node:fs";
env.allowRemoteModels = false;
env.localModelPath = process.argv[2];
const tokenizer = await AutoTokenizer.from_pretrained(process.argv[3]);
const texts = JSON.parse(readFileSync(process.argv[4], "utf-8"));
const ids = texts.map(t => Array.from(tokenizer.encode(t, { add_special_tokens: false })));
console.log(JSON.stringify({ version: env.version, ids }));
"""
# there <|endoftext|> in a text is the special token, and a space in an expression includes U+FEFF
# and not U+0085
OTHER = "<|endoftext|>", "\u0085", "\ufeff"


def transformers_js(case, scratch):
    """Ids of the hard text by transformers.js, on Node."""
    if not case.node:
        raise NotImplementedError("needs --node FOLDER, with npm install --ignore-scripts "
                                  "@huggingface/transformers done in it")
    script = Path(case.node, "ids.mjs")
    script.write_text(SCRIPT, encoding="utf-8")
    text = settled(case.text, *OTHER)
    (scratch / "texts.json").write_text(json.dumps([text]), encoding="utf-8")
    folder = Path(case.folder).resolve()
    done = subprocess.run(["node", script.name, f"{folder.parent}/", folder.name,
                           scratch / "texts.json"], cwd=case.node, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    found = json.loads(done.stdout.splitlines()[-1])
    return {"text": text, "ids": found["ids"][0], "version": found["version"],
            "note": "without new characters, <|endoftext|>, U+0085, U+FEFF"}
