"""The hub's sample: against a hub of our own, and against one that does not answer."""

import huggingface_hub
import pytest
from helpers import (
    FakeHub,
    expected_tokens,
    fineweb,
    make_documents,
    refused,
    start,
    tokens_of,
    write_parquet,
)

from fineweb import Config
from nanogpt.sources import Source, find_source

HUB = "HuggingFaceFW/fineweb-edu"


@pytest.fixture
def downloads(tmp_path, monkeypatch):
    """The files that were downloaded from a hub whose ten files hold 300 documents."""
    folder, names = write_parquet(tmp_path / "hub", make_documents(300), files=10), []

    def download(repo, file, repo_type):
        assert (repo, repo_type) == (HUB, "dataset")
        names.append(file)
        return str(folder / file.removeprefix("sample/10BT/"))

    monkeypatch.setattr(huggingface_hub, "HfApi", FakeHub)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    Source.path.cache_clear()  # the paths of another test's download
    return names


def test_the_hubs_sample_in_order(monkeypatch):
    """In the order of the names, whatever the hub's; nothing but its .parquet files."""
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeHub)
    source = find_source(HUB)
    assert source.files == tuple(f"sample/10BT/{i:03d}.parquet" for i in range(10))
    assert source.sizes == (2 * 10**9,) * 10
    assert Config().source == HUB


def test_shards_of_the_sample(downloads, tmp_path):
    """They are called edufineweb, and a file is asked for once, when it is needed."""
    n = 30_000  # of about 73,000: the last files are not needed
    args = ["--shard-size", 10_000, "--max-tokens", n]
    done = fineweb(HUB, tmp_path / "out", *args)
    assert done.returncode == 0, done.stderr
    assert tokens_of(tmp_path / "out").tolist() == expected_tokens(make_documents(300))[:n]
    assert sorted(path.name for path in (tmp_path / "out").glob("*.npy")) == [
        "edufineweb_train_000001.npy", "edufineweb_train_000002.npy", "edufineweb_val_000000.npy"]
    assert downloads == [f"sample/10BT/{i:03d}.parquet" for i in range(len(downloads))]
    assert 4 <= len(downloads) <= 7


def test_a_download_that_fails_is_one_line(downloads, tmp_path, monkeypatch):
    def no_network(repo, file, repo_type):
        raise ConnectionError("the line is dead")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", no_network)
    done = fineweb(HUB, tmp_path / "out", "--max-tokens", 3000)
    last = done.stderr.splitlines()[-1]  # under the progress bar, when there is one
    assert done.returncode == 2 and last.startswith("error: cannot get sample/10BT/000.parquet")
    assert "run the same command again" in last
    assert not list((tmp_path / "out").iterdir())


def test_a_folder_needs_no_hub(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "HfApi", None)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", None)
    source = write_parquet(tmp_path / "docs", make_documents(5))
    assert fineweb(source, tmp_path / "out").returncode == 0
    refused(fineweb(tmp_path / "nowhere", tmp_path / "out"), "nothing to read")


def test_no_network_is_one_line(tmp_path):
    """The hub is where the documents come from when no --source is given."""
    done = start("fineweb.py", "--out", tmp_path / "out", "--tokenizer", "bytes",
                 env={"HF_HUB_OFFLINE": "1"})
    refused(done, "cannot reach the hub for HuggingFaceFW/fineweb-edu", "--source")
    assert not (tmp_path / "out").exists()
