"""A folder with the name of a file that the run will write is refused before the first step."""

import pytest
from helpers import TINY, main_here, may_not_be_listed, refusal, write_shards

import train_gpt2


@pytest.mark.parametrize("name", ["log.txt", "curves.png"])
def test_it_is_not_replaced(name, tmp_path, monkeypatch, capsys):
    (tmp_path / "run" / name).mkdir(parents=True)
    (tmp_path / "run" / name / "mine").write_text("mine")
    said = refusal(train_gpt2.main, *TINY, "--data", write_shards(tmp_path / "shards"), "--out-dir",
                   tmp_path / "run", monkeypatch=monkeypatch, capsys=capsys)
    assert f"{tmp_path / 'run' / name} is a folder: move it away" in said
    assert (tmp_path / "run" / name / "mine").read_text() == "mine"
    assert len(list((tmp_path / "run").iterdir())) == 1


def test_a_folder_that_may_not_be_listed_does_not_begin_anew(tmp_path, monkeypatch, capsys):
    """glob takes it for an empty one."""
    args = [*TINY, "--data", write_shards(tmp_path / "shards"), "--out-dir", tmp_path / "run",
            "--max-steps", 1, "--val-tokens", 512, "--sample-tokens", 0]
    main_here(monkeypatch, *args)
    may_not_be_listed(monkeypatch, tmp_path / "run")
    said = refusal(train_gpt2.main, *args, "--resume", monkeypatch=monkeypatch, capsys=capsys)
    assert "Permission denied" in said and str(tmp_path / "run") in said
