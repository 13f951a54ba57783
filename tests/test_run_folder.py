"""A run folder belongs to one run: finished, unfinished, another's, in use."""

import fcntl
import json
import re
from dataclasses import asdict

import pytest

from tests.conftest import SCRIPTS, SMALL

script = SCRIPTS["ppo"]


def small(tmp_path, **options):
    return script.Args(**(SMALL["ppo"] | {"runs_dir": str(tmp_path), "run_name": "r", "cuda": False} | options))


def finished(tmp_path):
    folder, _, lock = script.open_run(small(tmp_path))
    (folder / "summary.json").write_text("{}")
    lock.close()
    return folder


def test_a_finished_run_says_so_and_what_has_changed_since_and_is_left_as_it_is(tmp_path, capsys):
    folder = finished(tmp_path)
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    assert script.train(small(tmp_path)) == folder
    assert capsys.readouterr().out == f"{folder} is finished; --overwrite starts anew\n"
    assert script.train(small(tmp_path, prune_rate=0.5, track=True)) == folder
    assert "(since then: prune_rate 0.3 -> 0.5)" in capsys.readouterr().out
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_overwrite_starts_anew(tmp_path):
    folder = finished(tmp_path)
    _, config, _ = script.open_run(small(tmp_path, overwrite=True, prune_rate=0.5))
    assert config["options"]["prune_rate"] == 0.5
    assert {p.name for p in folder.iterdir()} == {".lock", "config.json", "source.py"}


def test_an_unfinished_run_starts_again_with_its_own_options_and_is_refused_by_name_with_others(tmp_path):
    folder, _, lock = script.open_run(small(tmp_path))
    lock.close()
    with pytest.raises(script.UserError, match=r"started otherwise, got gamma 0\.99 -> 0\.9$"):
        script.open_run(small(tmp_path, gamma=0.9))
    config = json.loads((folder / "config.json").read_text())
    config["resolved"]["source_sha256"] = "another script"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(script.UserError, match="source_sha256 another script -> "):
        script.open_run(small(tmp_path))
    config["resolved"]["source_sha256"] = script.resolve(small(tmp_path), {})["source_sha256"]
    (folder / "config.json").write_text(json.dumps(config))
    assert script.open_run(small(tmp_path, capture_video=True))[1] is not None


@pytest.mark.parametrize("overwrite", [True, False])
@pytest.mark.parametrize(
    "name, text", [("thesis.tex", "years of work"), ("config.json", '{"model": "a"}'), ("config.json", "[")]
)
def test_a_folder_of_something_else_is_never_touched(tmp_path, name, text, overwrite):
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / name).write_text(text)
    with pytest.raises(script.UserError, match="--run-name must not name a folder that holds something else than a run"):
        script.open_run(small(tmp_path, overwrite=overwrite))
    assert [p.name for p in (tmp_path / "r").iterdir()] == [name] and (tmp_path / "r" / name).read_text() == text


def test_a_fork_is_held_against_its_parent_until_it_has_a_checkpoint_of_its_own_and_then_needs_it_no_more(tmp_path):
    parent, config, _ = script.open_run(small(tmp_path, run_name="dense", prune_type="none"))
    fork = small(tmp_path, fork_from=str(parent))
    with pytest.raises(script.UserError, match="--fork-from must be the folder of a dense run that has reached its cut"):
        script.open_run(fork)
    (parent / "prune_point.pt").touch()
    folder, _, lock = script.open_run(fork)
    lock.close()
    config["resolved"]["torch"] = "1.0"  # the parent was trained anew elsewhere while the fork had nothing yet
    (parent / "config.json").write_text(json.dumps(config))
    with pytest.raises(script.UserError, match=r"--fork-from must be a run of the same .*torch 1\.0 -> "):
        script.open_run(fork)
    (folder / "checkpoint.pt").touch(), (parent / "prune_point.pt").unlink()
    assert script.open_run(fork)[1] is not None
    (folder / "summary.json").touch()
    assert script.open_run(fork)[1] is None


def test_a_name_too_long_for_the_disk_is_refused(tmp_path):
    with pytest.raises(script.UserError, match=r"--runs-dir must be a folder that can be written.*File name too long"):
        script.open_run(small(tmp_path, run_name="x" * 300))


def test_a_run_folder_in_use_is_refused_with_exit_code_75(tmp_path, monkeypatch, capsys):
    folder, _, _lock = script.open_run(small(tmp_path))
    with open(folder / ".lock") as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    words = ["--runs-dir", str(tmp_path), "--run-name", "r", "--no-cuda", "--num-envs", "2", "--total-timesteps", "1536"]
    monkeypatch.setattr("sys.argv", ["ppo_atari_prune.py", *words])
    with pytest.raises(SystemExit) as caught:
        script.main()
    assert caught.value.code == 75 and capsys.readouterr().err == f"error: {folder} is in use by another process\n"


def test_the_default_name_says_every_option_that_shapes_the_result_and_no_other(tmp_path):
    name = lambda **options: script.default_run_name(script.Args(**options))  # noqa: E731
    assert name() == "SpaceInvadersNoFrameskip-v4__ppo_atari_prune__l1-0.3__s1"
    assert name(prune_type="none", prune_rate=0.5) == "SpaceInvadersNoFrameskip-v4__ppo_atari_prune__none__s1"
    assert name(env_id="ALE/Pong-v5", seed=7, gamma=0.9) == "ALE-Pong-v5__ppo_atari_prune__l1-0.3__s7__gamma-0.9"
    told = {"track": True, "save_model": False, "overwrite": True, "runs_dir": "x", "capture_video": True}
    assert name(**told) == name()
    assert re.fullmatch(r"[A-Za-z0-9_.-]+", name(prune_scope="global", prune_bias=False, target_kl=0.02))


def test_config_json_alone_explains_the_run(tmp_path):
    args = small(tmp_path)
    folder, config, _ = script.open_run(args)
    written = json.loads((folder / "config.json").read_text())
    assert written == config and written["options"] == asdict(args) and written["algorithm"] == "ppo"
    assert written["resolved"].keys() == {"device", "precision", "num_threads", "torch", "ale_py", "source_sha256"}
    assert len(written["git"]["commit"]) == 40 and written["git"]["dirty"] in (True, False)


def test_a_write_that_is_cut_short_leaves_the_old_file(tmp_path, monkeypatch):
    file = tmp_path / "model.pt"
    script.write_atomically(file, b"old")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("power cut")))
    with pytest.raises(OSError, match="power cut"):
        script.write_atomically(file, b"new")
    assert file.read_bytes() == b"old"
