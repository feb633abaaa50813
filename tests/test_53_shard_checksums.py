"""The manifest holds the checksum of every shard, whether it was written at once or in parts."""

import hashlib
import json

from helpers import fineweb, make_documents, stopped, write_parquet


def listed(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    return {shard["file"]: shard["sha256"] for shard in manifest["shards"]}


def test_each_shard_has_its_own(tmp_path):
    """hashlib's over the file's bytes, the same as sha256sum's."""
    source = write_parquet(tmp_path / "docs", make_documents(75))
    stopped(2, source, tmp_path / "out", "--shard-size", 4000)
    assert len(listed(tmp_path / "out")) == 2
    assert fineweb(source, tmp_path / "out", "--shard-size", 4000).returncode == 0
    expected = {path.name: hashlib.sha256(path.read_bytes()).hexdigest()
                for path in (tmp_path / "out").glob("*.npy")}
    assert listed(tmp_path / "out") == expected and len(expected) > 4
    assert len(set(expected.values())) == len(expected)


def test_a_manifest_of_before_is_taken_on(tmp_path):
    """Begun without checksums: old shards stay as they are, and new ones have them."""
    source, out = write_parquet(tmp_path / "docs", make_documents(75)), tmp_path / "out"
    stopped(2, source, out, "--shard-size", 4000)
    manifest = json.loads((out / "manifest.json").read_text())
    for shard in manifest["shards"]:
        del shard["sha256"]
    (out / "manifest.json").write_text(json.dumps(manifest))
    assert fineweb(source, out, "--shard-size", 4000).returncode == 0
    shards = json.loads((out / "manifest.json").read_text())["shards"]
    assert ["sha256" in shard for shard in shards] == [False, False] + [True] * (len(shards) - 2)
