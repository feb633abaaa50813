"""manifest.json, compared with its shards and with the files they were made from."""

import json

import numpy as np
import pytest
from helpers import contents, expected_tokens, fineweb, make_documents, refused, write_parquet


def test_manifest_says_what_the_shards_are_made_of(tmp_path):
    documents = make_documents(75)
    source, out = write_parquet(tmp_path / "docs", documents), tmp_path / "out"
    done = fineweb(source, out, "--shard-size", 4000)
    assert done.returncode == 0, done.stderr
    manifest = json.loads((out / "manifest.json").read_text())
    files = sorted((path.name for path in out.glob("*.npy")), key=lambda file: file[-10:])
    assert [shard["file"] for shard in manifest["shards"]] == files
    assert manifest["shards"][0]["file"] == "docs_val_000000.npy"
    assert manifest["shards"][1]["file"] == "docs_train_000001.npy"
    shards = [np.load(out / file) for file in files]
    assert [shard["tokens"] for shard in manifest["shards"]] == [len(shard) for shard in shards]
    # a document counts where it begins
    assert [shard["documents"] for shard in manifest["shards"]] == [
        shard.tolist().count(256) for shard in shards]
    assert (manifest["tokens"], manifest["documents"]) == (len(expected_tokens(documents)), 75)
    assert (manifest["tokenizer"], manifest["vocab_size"], manifest["end_of_text"],
            manifest["complete"]) == ("bytes", 257, 256, True)
    assert (manifest["source"], manifest["shard_size"]) == (str(source), 4000)
    assert manifest["files"] == {path.name: path.stat().st_size for path in source.iterdir()}
    assert f" {manifest['tokens']:,} tokens of 75 documents in {len(files)} shards" in done.stdout


def test_the_manifest_grows_with_the_shards(tmp_path, monkeypatch):
    """Stopped after the first two shards, it lists these and says that it is not complete."""
    import fineweb as program

    source, out = write_parquet(tmp_path / "docs", make_documents(75)), tmp_path / "out"
    write_shard = program.write_shard

    def stop_after_two(config, manifest, *args, **kwargs):
        write_shard(config, manifest, *args, **kwargs)
        if len(manifest["shards"]) == 2:
            raise OSError("the power is gone")

    monkeypatch.setattr(program, "write_shard", stop_after_two)
    assert fineweb(source, out, "--shard-size", 4000).returncode == 2
    manifest = json.loads((out / "manifest.json").read_text())
    assert not manifest["complete"] and manifest["tokens"] == 8000
    assert sorted(contents(out)) == [
        "docs_train_000001.npy", "docs_val_000000.npy", "manifest.json"]


@pytest.mark.parametrize("name", ["docs_val_000000.npy", "docs_train_000001.npy", "a.bin"])
def test_shards_without_a_manifest_are_not_overwritten(name, tmp_path):
    """fineweb.py leaves alone what it did not make, including another program's shards."""
    source, out = write_parquet(tmp_path / "docs", make_documents(50)), tmp_path / "out"
    out.mkdir()
    (out / name).write_bytes(b"old")
    refused(fineweb(source, out, "--shard-size", 2000), f"holds {name}", "choose another --out")
    assert contents(out) == {name: b"old"}


def test_a_folder_with_other_files_is_used(tmp_path):
    source, out = write_parquet(tmp_path / "docs", make_documents(50)), tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_bytes(b"old")
    assert fineweb(source, out, "--shard-size", 2000).returncode == 0
    assert contents(out)["notes.txt"] == b"old" and len(contents(out)) > 3
