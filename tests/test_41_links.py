"""Nothing is deleted that we did not write: the target of a link, and files of others."""

import os

import pytest
from helpers import lively_gpt, training

import train_gpt2
from nanogpt.checkpoints import save_checkpoint
from nanogpt.disk import remove, whole


def contents(folder):
    """The bytes of all files under a folder, links to folders not followed."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*")
            if path.is_file()}


def save(folder):
    save_checkpoint(folder, training(lively_gpt(), train_gpt2.DataLoader(None, 1, 16), step=3),
                    train_gpt2.TrainConfig())


@pytest.fixture
def elsewhere(tmp_path):
    """A folder on another disk, say."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "file").write_text("mine")
    return tmp_path / "elsewhere"


@pytest.mark.parametrize("name", ["folder", "file", "nothing"])
def test_of_a_link_only_the_link_is_removed(name, elsewhere, tmp_path):
    target = elsewhere / {"folder": "", "file": "file", "nothing": "none"}[name]
    (tmp_path / "link").symlink_to(target)
    remove(tmp_path / "link")
    assert not os.path.lexists(tmp_path / "link") and contents(elsewhere) == {"file": b"mine"}


@pytest.mark.parametrize("name", ["", "file", "none"])
def test_a_checkpoint_takes_the_place_of_a_link(name, elsewhere, tmp_path):
    """It was moved to another disk, where it may be damaged: it stays there."""
    (tmp_path / "c").symlink_to(elsewhere / name)
    save(tmp_path / "c")
    assert not (tmp_path / "c").is_symlink() and (tmp_path / "c" / "state.json").is_file()
    assert contents(elsewhere) == {"file": b"mine"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c", "elsewhere"]


def test_a_file_never_takes_the_place_of_a_folder(elsewhere):
    with pytest.raises(OSError), whole(elsewhere) as path:
        path.write_text("a picture")
    assert contents(elsewhere.parent) == {"elsewhere/file": b"mine"}


def test_what_somebody_put_into_a_checkpoint_stays(elsewhere, tmp_path, capsys):
    """It is replaced, and its files are. A link to a folder, and a folder with a name of ours, are
    not what we wrote."""
    folder = tmp_path / "c"
    save(folder)
    for name in "README.md", ".DS_Store", "tmp.txt":
        (folder / name).write_text(name)
    (folder / "state.json").unlink()
    (folder / "state.json").mkdir()
    (folder / "state.json" / "more").write_text("more")
    (folder / "notes").symlink_to(elsewhere)
    save(folder)
    left = tmp_path / "leftover_1"
    assert contents(left) == {"README.md": b"README.md", ".DS_Store": b".DS_Store",
                              "tmp.txt": b"tmp.txt", "state.json/more": b"more"}
    assert os.readlink(left / "notes") == str(elsewhere)
    assert contents(elsewhere) == {"file": b"mine"}
    assert (folder / "state.json").is_file() and not (folder / "README.md").exists()
    assert str(left) in capsys.readouterr().out


def test_a_file_with_a_checkpoints_name_stays(tmp_path, capsys):
    """In leftover_2, if a file or a link of nothing is called leftover_1."""
    (tmp_path / "c").write_text("a file")
    (tmp_path / "leftover_1").symlink_to(tmp_path / "none")
    save(tmp_path / "c")
    assert (tmp_path / "c").is_dir() and (tmp_path / "leftover_2").read_text() == "a file"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
@pytest.mark.parametrize("umask", [0o002, 0o077])
def test_all_of_a_checkpoint_has_the_mode_of_the_umask(umask, tmp_path):
    before = os.umask(umask)
    try:
        save(tmp_path / "c")
    finally:
        os.umask(before)
    for path in [tmp_path / "c", *(tmp_path / "c").iterdir()]:
        whole_mode = 0o777 if path.is_dir() else 0o666
        assert path.stat().st_mode & 0o777 == whole_mode & ~umask, path.name
