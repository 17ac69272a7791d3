"""Logs of servers: one of each start, and no more than a folder can bear."""

import os
from dataclasses import replace

from llmopt.core.domain import ServeOptions
from llmopt.serve import logs
from unit.make import artifact

GONE = 999_999_999  # no process has that number


def put(folder, *names):
    """Empty files, each written a second after the last."""
    for number, name in enumerate(names, 1):
        (folder / name).touch()
        os.utime(folder / name, (number, number))


def test_each_start_has_a_log_of_its_own_and_the_last_few_are_kept(tmp_path):
    made = []
    for _ in range(logs.KEPT_OF_EACH + 3):
        made.append(logs.own_log(tmp_path / "q on hf"))
        made[-1].write_text("what it died of")
        os.utime(made[-1], (len(made), len(made)))
    assert len(set(made)) == len(made)
    logs.own_log(tmp_path / "q on hf")
    assert sorted(tmp_path.iterdir()) == sorted(made[-logs.KEPT_OF_EACH :])


def test_the_log_of_a_server_that_runs_is_not_tidied_away(tmp_path):
    others = tmp_path / f"x-{os.getppid()}-1.log"
    for number in range(logs.KEPT_OF_EACH + 1):
        file = others if number == 0 else tmp_path / f"x-999999999-{number}.log"
        file.touch()
        os.utime(file, (number, number))
    logs.own_log(tmp_path / "x")
    assert others.exists()


def test_those_of_another_stem_that_begins_alike_stay(tmp_path):
    put(tmp_path, *(f"x-y-{GONE}-{n}.log" for n in range(logs.KEPT_OF_EACH + 1)))
    logs.own_log(tmp_path / "x")
    assert len(list(tmp_path.iterdir())) == logs.KEPT_OF_EACH + 1


def test_a_folder_keeps_the_last_hundred_and_what_is_no_log_of_a_server(tmp_path):
    put(tmp_path, "env-vllm.log", "quantize-gguf-q4_0.log", *(f"s{n}-{GONE}-1.log" for n in range(logs.KEPT + 9)))
    logs.own_log(tmp_path / "new")
    left = {file.name for file in tmp_path.iterdir()}
    assert {"env-vllm.log", "quantize-gguf-q4_0.log", f"s9-{GONE}-1.log"} < left
    assert len(left) == logs.KEPT + 2


def test_logs_of_older_names_are_tidied_away_with_them(tmp_path):
    put(tmp_path, f"serve-hf-0123abcd4567-{GONE}.log", *(f"serve-hf-0123abcd4567-{GONE}-{n}.log" for n in range(5)))
    logs.own_log(tmp_path / "serve-hf-0123abcd4567")
    assert not (tmp_path / f"serve-hf-0123abcd4567-{GONE}.log").exists()


def test_a_stem_is_of_the_artifact_and_the_options(tmp_path):
    made, options = artifact(tmp_path / "model"), ServeOptions(backend="hf")
    assert logs.log_stem(made, options) == logs.log_stem(made, ServeOptions(backend="hf"))
    assert logs.log_stem(made, options) != logs.log_stem(made, replace(options, max_model_len=64))
