"""A damaged checkpoint is named and passed over; the run resumes from the one before."""

import builtins
import errno
import io
import json
import os
import shutil

import pytest
from helpers import TINY, main_here, refusal, write_shards

import train_gpt2
from nanogpt.disk import digest
from nanogpt.report import read_log

pytestmark = pytest.mark.slow

RUN = [*TINY, "--max-steps", 6, "--eval-every", 6, "--val-tokens", 512, "--sample-tokens", 0,
       "--checkpoint-every", 2]
FILES = ("config.json", "model.safetensors", "state.json", "state.safetensors", "manifest.json")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of 6 steps whose checkpoints are at 2, 4 and 6, and its shards."""
    folder = tmp_path_factory.mktemp("damaged")
    with pytest.MonkeyPatch.context() as monkeypatch:
        main_here(monkeypatch, *RUN, "--data", write_shards(folder / "shards"), "--out-dir",
                  folder / "run")
    shutil.rmtree(folder / "run" / "checkpoint_000006")
    return folder


def sign(folder, but=None):
    """A manifest that agrees with the files as they are now, and does not list one of them."""
    files = {path.name: digest(path) for path in folder.iterdir()
             if path.name not in ("manifest.json", but)}
    (folder / "manifest.json").write_text(json.dumps(files))


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def other_facts(folder, **facts):
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps({k: v for k, v in (state | facts).items()
                                                   if v is not None}))
    sign(folder)


def from_elsewhere(folder):
    shutil.copytree(folder.with_name("checkpoint_000002"), folder, dirs_exist_ok=True)


def empty(folder):
    for path in folder.iterdir():
        path.unlink()


def to_nothing(folder):
    shutil.rmtree(folder)
    folder.symlink_to("somewhere else")


def a_file(folder):
    shutil.rmtree(folder)
    folder.write_text("no folder")


DAMAGES = {
    **{f"cut {name}": lambda f, name=name: cut(f / name) for name in FILES},
    **{f"flip {name}": lambda f, name=name: flip(f / name) for name in FILES},
    **{f"no {name}": lambda f, name=name: (f / name).unlink() for name in FILES},
    "empty folder": empty, "no folder": a_file,
    "another step": from_elsewhere,
    "a manifest without model.safetensors": lambda f: sign(f, "model.safetensors"),
    "a link to nothing": to_nothing,
    "manifest is a list": lambda f: (f / "manifest.json").write_text("[]"),
    "position is text": lambda f: other_facts(f, position="1024"),
    "no position": lambda f: other_facts(f, position=None),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_one_before_is_taken_and_the_damage_is_named(damage, folder, tmp_path, monkeypatch,
                                                         capsys):
    shutil.copytree(folder / "run", tmp_path / "run")
    newest = tmp_path / "run" / "checkpoint_000004"
    DAMAGES[damage](newest)
    main_here(monkeypatch, *RUN, "--data", folder / "shards", "--out-dir", tmp_path / "run",
              "--resume", "--max-steps", 4)
    said = capsys.readouterr().out
    [passed] = [line for line in said.splitlines() if line.startswith("passed over ")]
    assert f"{newest}" in passed
    for name in FILES:
        if name in damage and not damage.startswith("flip manifest"):
            assert name in passed
    assert "resumed    | at step 2 of" in said


@pytest.mark.parametrize("change", [
    lambda f: (f / ".DS_Store").write_bytes(b"x"), lambda f: (f / "README.md").write_text("notes"),
    lambda f: (f / "pytorch_model.bin").write_bytes(b"x"), lambda f: (f / "samples").mkdir(),
    lambda f: (f / "notes").symlink_to("nothing"),
    lambda f: f.rename(f.parent.parent / "big") and f.symlink_to("../big"),
    lambda f: [os.utime(path, (0, 0)) for path in (f, *f.iterdir())],
    lambda f: [os.utime(path, (2**32, 2**32)) for path in (f.parent, *f.parent.iterdir())]])
def test_the_newest_is_taken_if_it_is_whole(change, folder, tmp_path, monkeypatch, capsys):
    """Files that somebody put into it are no damage, a link to another disk is none, and no time
    of day counts: clocks are set back, and copies have new times."""
    shutil.copytree(folder / "run", tmp_path / "run")
    change(tmp_path / "run" / "checkpoint_000004")
    main_here(monkeypatch, *RUN, "--data", folder / "shards", "--out-dir", tmp_path / "run",
              "--resume", "--max-steps", 4)
    said = capsys.readouterr().out
    assert "passed over" not in said and "resumed    | at step 4 of" in said


def test_none_whole_starts_anew(folder, tmp_path, monkeypatch, capsys):
    shutil.copytree(folder / "run", tmp_path / "run")
    for checkpoint in (tmp_path / "run").glob("checkpoint_*"):
        flip(checkpoint / "model.safetensors")
    main_here(monkeypatch, *RUN, "--data", folder / "shards", "--out-dir", tmp_path / "run",
              "--resume", "--max-steps", 1)
    said = capsys.readouterr().out
    assert said.count("passed over") == 2 and "resumed" not in said
    assert "step     0 | loss" in said


@pytest.mark.parametrize("flags", [[], ["--resume"]])
def test_a_log_that_cannot_be_read_is_refused_before_the_first_step(flags, tmp_path, monkeypatch,
                                                                    capsys):
    """Its curves are drawn at the end: hours later is too late to say so."""
    args = [*RUN, "--data", write_shards(tmp_path / "shards"), "--out-dir", tmp_path / "run"]
    main_here(monkeypatch, *args)
    log = tmp_path / "run" / "log.txt"
    log.write_text(log.read_text().replace("2 train", "2 tram"))
    before = log.read_text()
    capsys.readouterr()
    said = refusal(train_gpt2.main, *args, *flags, monkeypatch=monkeypatch, capsys=capsys)
    assert "log.txt, line 5 is not a log line: '2 tram" in said
    assert log.read_text() == before


@pytest.mark.parametrize("change", [lambda text: "\0" * len(text),
                                    lambda text: text.replace("vocab_size", "vocab_sighs"),
                                    lambda text: text.replace("hella", "hellas", 1)])
def test_a_log_that_is_not_its_own_is_refused_before_the_first_step(change, tmp_path, monkeypatch,
                                                                   capsys):
    args = [*RUN, "--data", write_shards(tmp_path / "shards"), "--out-dir", tmp_path / "run"]
    main_here(monkeypatch, *args)
    log = tmp_path / "run" / "log.txt"
    log.write_text(change(log.read_text()))
    before = log.read_text()
    capsys.readouterr()
    said = refusal(train_gpt2.main, *args, "--resume", monkeypatch=monkeypatch, capsys=capsys)
    assert "log line" in said or "has no line" in said or "is not the log" in said
    assert log.read_text() == before
    log.unlink()
    main_here(monkeypatch, *args, "--resume", "--max-steps", 8)
    assert read_log(log)["train"][0] == [6, 7]


@pytest.mark.parametrize("number, passed_over", [
    (errno.EIO, True), (errno.ENOENT, True), (errno.EACCES, False), (errno.ESTALE, False)])
@pytest.mark.parametrize("name", ["manifest.json", "model.safetensors", "state.json"])
def test_what_cannot_be_read_now_may_be_whole(name, number, passed_over, folder, tmp_path,
                                              monkeypatch, capsys):
    """Lost: the one before is taken. Rights, or a network disk that is away: nothing begins anew,
    since days of work may be there."""
    shutil.copytree(folder / "run", tmp_path / "run")
    newest = tmp_path / "run" / "checkpoint_000004"

    def fails(path, *args, original=open, **more):
        if str(path) == str(newest / name):
            raise OSError(number, os.strerror(number), str(path))
        return original(path, *args, **more)

    args = [*RUN, "--data", folder / "shards", "--out-dir", tmp_path / "run", "--resume",
            "--max-steps", 4]
    for module in builtins, io:
        monkeypatch.setattr(module, "open", fails)
    if passed_over:
        main_here(monkeypatch, *args)
        said = capsys.readouterr().out
        assert f"passed over {newest}" in said and "resumed    | at step 2 of" in said
    else:
        said = refusal(train_gpt2.main, *args, monkeypatch=monkeypatch, capsys=capsys)
        assert f"cannot read {newest} ({os.strerror(number)}): fix that" in said
        assert len(list((tmp_path / "run").glob("checkpoint_*"))) == 2
