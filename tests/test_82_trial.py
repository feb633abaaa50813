"""A trial chooses the library for products; a run keeps its choice, and so its bits."""

import json
import shutil

import pytest
import torch
from helpers import TINY, lively_gpt, main_here, write_shards

from nanogpt import trial
from nanogpt.checkpoints import read_facts
from nanogpt.disk import digest
from nanogpt.trial import least_seconds, machine, quickest, try_products

CPU = torch.device("cpu")
RUN = [*TINY, "--max-steps", 4, "--eval-every", 4, "--checkpoint-every", 2, "--val-tokens", 512,
       "--sample-tokens", 0]
ONEDNN = {"forward": "onednn", "backward": "onednn", "few rows": "inner"}


@pytest.mark.parametrize("plain, other, chosen", [
    (1.0, 2.0, "plain"), (1.0, 1.0, "plain"), (1.0, 0.96, "plain"), (1.0, 0.94, "other")])
def test_plain_stays_unless_another_is_ahead(plain, other, chosen):
    assert quickest({"plain": plain, "other": other}) == chosen


def test_the_least_of_turns(monkeypatch):
    """With a clock that only the actions advance: the first call of each is not counted."""
    clock, durations = [0.0], {"a": [9.0, 3.0, 2.0], "b": [1.0, 7.0, 8.0]}
    order = []

    def action(name):
        order.append(name)
        clock[0] += durations[name].pop(0)

    monkeypatch.setattr(trial.time, "perf_counter", lambda: clock[0])
    took = least_seconds({name: lambda name=name: action(name) for name in "ab"}, repeats=2)
    assert took == {"a": 2.0, "b": 7.0} and order == list("ababab")


@pytest.fixture
def slow(monkeypatch):
    """A machine on which each library takes as long as the dict says; and a list of all trials."""
    speeds, asked = {}, []

    def least(actions):
        asked.append(list(actions))
        for action in actions.values():
            action()
        return {name: speeds.get(name, 1.0) for name in actions}

    monkeypatch.setattr(trial, "least_seconds", least)
    monkeypatch.setattr(trial, "keeps_fp32", lambda: True)
    return speeds, asked


def large_gpt():
    return lively_gpt(n_layer=1, n_embd=512, block_size=64)


def test_the_quicker_library_is_chosen(slow):
    speeds, _ = slow
    found = try_products(large_gpt(), 256)
    assert (found["forward"], found["backward"]) == ("plain", "plain")
    speeds |= {"onednn": 0.5}
    found = try_products(large_gpt(), 256)
    assert (found["forward"], found["backward"]) == ("onednn", "onednn")


def test_shapes_count_as_often_as_they_come(monkeypatch):
    """oneDNN loses on a small shape and wins on a larger one that occurs twice."""
    def least(actions):
        tensors = actions["plain"].args[1:]
        slower = tensors[1].size(0) == 257
        return {"plain": 1.0, "onednn": 1.5 if slower else 0.6}

    monkeypatch.setattr(trial, "least_seconds", least)
    monkeypatch.setattr(trial, "keeps_fp32", lambda: True)
    net = torch.nn.ModuleList([torch.nn.Linear(512, 257)])
    assert trial.try_shapes([p for p in net.parameters() if p.dim() == 2], 256,
                            trial.forward) == "plain"
    net.extend([torch.nn.Linear(512, 512), torch.nn.Linear(512, 512)])
    assert trial.try_shapes([p for p in net.parameters() if p.dim() == 2], 256,
                            trial.forward) == "onednn"


def test_where_onednn_would_round_it_is_not_tried(slow, monkeypatch):
    monkeypatch.setattr(trial, "keeps_fp32", lambda: False)
    slow[0]["onednn"] = 0.1
    assert try_products(large_gpt(), 256)["forward"] == "plain"
    assert not any("onednn" in names for names in slow[1])


def test_small_networks_are_not_tried(slow):
    assert set(try_products(lively_gpt(), 64).values()) == {"plain"} and not slow[1]


def test_a_trial_leaves_no_trace():
    """Random numbers, gradients and weights are unchanged."""
    model = large_gpt()
    before, state = [p.clone() for p in model.parameters()], torch.get_rng_state()
    try_products(model, 256)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) and b.grad is None
               for a, b in zip(before, model.parameters(), strict=True))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of 4 steps with oneDNN, which a trial of its small network would not choose."""
    folder = tmp_path_factory.mktemp("trial")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("nanogpt.trial.try_products", lambda model, rows: ONEDNN)
        main_here(monkeypatch, *RUN, "--data", write_shards(folder / "shards"), "--out-dir",
                  folder / "run")
    return folder


def resume(run, folder, monkeypatch, *flags):
    """Resume from the checkpoint of step 2. Returns the facts of the last checkpoint."""
    shutil.copytree(run / "run", folder)
    shutil.rmtree(folder / "checkpoint_000004")
    main_here(monkeypatch, *RUN, "--data", run / "shards", "--out-dir", folder, "--resume", *flags)
    return json.loads((folder / "checkpoint_000004" / "state.json").read_text())


def same_bits(run, folder):
    return all((folder / "checkpoint_000004" / file).read_bytes()
               == (run / "run" / "checkpoint_000004" / file).read_bytes()
               for file in ("model.safetensors", "state.safetensors"))


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
def test_a_run_keeps_its_library_and_its_bits(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("nanogpt.trial.try_products", lambda *args: pytest.fail("tried again"))
    facts = resume(run, tmp_path / "run", monkeypatch)
    assert facts["chosen"] == {"machine": machine(CPU), "products": ONEDNN}
    assert same_bits(run, tmp_path / "run")
    said = capsys.readouterr().out
    assert "products   | forward onednn, backward onednn" in said
    assert "may differ" not in said


def test_another_machine_is_asked_anew_and_told(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("nanogpt.trial.machine", lambda device: "A newer CPU, AVX9, 64 threads")
    facts = resume(run, tmp_path / "run", monkeypatch)
    assert facts["chosen"]["products"]["forward"] == "plain"
    said = capsys.readouterr().out
    assert (f"machine    | A newer CPU, AVX9, 64 threads now, {machine(CPU)} before: the last bits "
            "of results may differ\n") in said


def test_a_flag_overrules(run, tmp_path, monkeypatch):
    monkeypatch.setattr("nanogpt.trial.try_products", lambda *args: pytest.fail("it was tried"))
    facts = resume(run, tmp_path / "run", monkeypatch, "--products", "plain")
    assert set(facts["chosen"]["products"].values()) == {"plain"}


def test_a_checkpoint_of_before_has_no_choices(run, tmp_path, monkeypatch, capsys):
    """The run resumes, with what a trial finds."""
    monkeypatch.setattr("nanogpt.checkpoints.read_facts", lambda *args, read=read_facts: {
        key: value for key, value in read(*args).items() if key != "chosen"})
    facts = resume(run, tmp_path / "run", monkeypatch)
    assert set(facts["chosen"]["products"].values()) == {"plain"}
    assert "may differ" not in capsys.readouterr().out


def test_a_machine_is_what_bits_depend_on(monkeypatch):
    here = machine(CPU)
    assert f"{torch.get_num_threads()} threads" in here
    assert torch.backends.cpu.get_cpu_capability() in here
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"A card, {device}")
    assert machine(torch.device("cuda", 1)) == "A card, cuda:1"
    assert machine(torch.device("mps")) == "mps"


def edit(checkpoint, **facts):
    """Change state.json and the manifest that lists it."""
    path = checkpoint / "state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | facts))
    listed = json.loads((checkpoint / "manifest.json").read_text())
    (checkpoint / "manifest.json").write_text(json.dumps(listed | {path.name: digest(path)}))


@pytest.mark.parametrize("chosen, passed_over", [
    (None, True), ("plain", True), ({}, False), ({"products": None}, False),
    ({"products": {"forward": "plain"}}, False), ({"muon": ["x"]}, False),
    ({"products": {"forward": [], "backward": [], "few rows": []}}, False)])
def test_choices_that_are_none_are_made_anew(chosen, passed_over, tmp_path, monkeypatch, capsys):
    """Somebody edited them, or an earlier version of the program made fewer."""
    args = [*RUN, "--data", write_shards(tmp_path / "shards"), "--out-dir", tmp_path / "run"]
    main_here(monkeypatch, *args)
    shutil.rmtree(tmp_path / "run" / "checkpoint_000004")
    newest = tmp_path / "run" / "checkpoint_000002"
    before = json.loads((newest / "state.json").read_text())["chosen"]
    edit(newest, chosen=chosen if passed_over else {"machine": before["machine"]} | chosen)
    main_here(monkeypatch, *args, "--resume")
    said = capsys.readouterr().out
    assert (f"passed over {newest}" in said) == passed_over
    assert ("resumed    | at step 2 of" in said) != passed_over
    facts = json.loads((tmp_path / "run" / "checkpoint_000004" / "state.json").read_text())
    assert facts["chosen"] == before
