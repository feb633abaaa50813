"""The hub's dataset is its parquet file, from the hub or from its cache, or one line of refusal."""

import huggingface_hub
import pyarrow
import pyarrow.parquet
import pytest
from helpers import four_endings, offline, refusal

import hellaswag


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub of one file. What is asked of it, as keywords."""
    asked = []
    rows = [row | {"label": str(row["label"]), "ind": i, "activity_label": "Cooking"}
            for i, row in enumerate(four_endings(9))]  # the hub's labels are strings
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "0000.parquet")

    def download(repo_id, filename, **asked_for):
        asked.append({"repo_id": repo_id, "filename": filename, **asked_for})
        return str(tmp_path / "0000.parquet")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr("nanogpt.common.hub_offline", lambda repo_id, repo_type="model": False)
    return asked


def test_the_hubs_examples_are_the_default(hub):
    """All of them, labels as numbers, and nothing but context, endings and label."""
    assert hellaswag.load_examples() == four_endings(9)
    assert hellaswag.load_examples("Rowan/hellaswag", limit=4) == four_endings(4)
    assert hellaswag.Config().data == "Rowan/hellaswag"


def test_the_validation_split_is_asked_for(hub):
    """The parquet copy that the hub keeps of every dataset: the test split has no labels."""
    hellaswag.load_examples()
    assert hub == [dict(repo_id="Rowan/hellaswag", filename="default/validation/0000.parquet",
                        repo_type="dataset", revision="refs/convert/parquet",
                        local_files_only=False)]


def test_without_network_the_cache_is_read(hub, monkeypatch):
    """The hub is asked once whether it is there, as a dataset; then only the cache is."""
    probed = []

    def hub_offline(*args, **kwargs):
        probed.append((args, kwargs))
        return True

    monkeypatch.setattr("nanogpt.common.hub_offline", hub_offline)
    assert hellaswag.load_examples() == four_endings(9)
    assert hub[0]["local_files_only"] is True
    assert [[*args, *kwargs.values()] for args, kwargs in probed] == [["Rowan/hellaswag",
                                                                       "dataset"]]


def test_neither_network_nor_cache_is_one_line(tmp_path, monkeypatch, capsys):
    offline(monkeypatch, tmp_path / "empty")
    said = refusal(hellaswag.main, "--device", "cpu", monkeypatch=monkeypatch, capsys=capsys)
    assert "cannot get Rowan/hellaswag" in said and "go online once" in said
