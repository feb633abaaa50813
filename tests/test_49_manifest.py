"""Shards must be the ones that their manifest lists, and of the run's tokenizer."""

import json

import pytest
from helpers import load_streams, write_shards

from nanogpt.common import UserError
from nanogpt.shards import find_shards


def test_the_runs_tokenizer_is_the_manifests(tmp_path):
    """Ids of one tokenizer mean nothing to another: load_data hands find_shards the run's."""
    load_streams(write_shards(tmp_path / "bytes"))
    folder = write_shards(tmp_path / "gpt2", tokenizer="gpt2")
    with pytest.raises(UserError, match="with tokenizer gpt2, but the run uses bytes"):
        load_streams(folder)


def test_shards_from_elsewhere_have_no_manifest(tmp_path):
    folder = write_shards(tmp_path / "shards", manifest=False)
    for tokenizer in "bytes", "gpt2":
        train, val = find_shards(folder, tokenizer)
        assert [shard.n_tokens for shard in train + val] == [20_000, 20_000, 6_000]


def test_manifest_must_agree(tmp_path):
    folder = write_shards(tmp_path / "shards")
    find_shards(folder, "bytes")
    with pytest.raises(UserError, match="with tokenizer bytes, but the run uses gpt2"):
        find_shards(folder, "gpt2")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["shards"][1]["tokens"] += 1
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="holds 20000 tokens, and the manifest lists 20001"):
        find_shards(folder, "bytes")
    manifest["shards"][1]["tokens"] -= 1
    last = manifest["shards"].pop()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="000002.npy holds 20000 tokens, and the manifest lists no"):
        find_shards(folder, "bytes")
    manifest["shards"].append(last)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / last["file"]).unlink()
    with pytest.raises(UserError, match="000002.npy holds no tokens, and the manifest lists 20000"):
        find_shards(folder, "bytes")


@pytest.mark.parametrize("broken", ["", "{}", "[]", "{", '{"tokenizer": [], "shards": [1]}',
                                    '{"tokenizer": "bytes", "shards": [{"file": "a"}]}'])
def test_a_broken_manifest_is_named(broken, tmp_path):
    folder = write_shards(tmp_path / "shards")
    (folder / "manifest.json").write_text(broken)
    with pytest.raises(UserError, match="manifest.json is not a valid manifest"):
        find_shards(folder, "bytes")


@pytest.mark.parametrize("text", ["[" * 10**5, '{"tokenizer": "bytes", "shards": [{"file": "x", '
                                  '"tokens": 1e999}]}'])
def test_a_manifest_beyond_numbers_and_depths_is_none(text, tmp_path):
    folder = write_shards(tmp_path / "shards")
    (folder / "manifest.json").write_text(text)
    with pytest.raises(UserError, match="manifest.json is not a valid manifest"):
        find_shards(folder, "bytes")
