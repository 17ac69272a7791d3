"""A deployment's folder: whole or not there, never over somebody's work, and with a way back."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from llmopt.core.errors import LlmoptError, UsageError
from llmopt.core.files import locked
from llmopt.deploy.plan import File
from llmopt.deploy.writing import EditedFiles, former_of, is_unchanged, require_unedited, rollback_script, write


def files(**texts: str) -> dict[str, File]:
    return {name.replace("_", "."): File(text=text, executable=name.endswith("_sh")) for name, text in texts.items()}


def written(folder: Path, **texts: str) -> Path:
    return put_there(folder, files(**texts))


def put_there(folder: Path, made: dict[str, File]) -> Path:
    more = {
        "README.md": File(text=" ".join(file.text for file in made.values())),
        "rollback.sh": rollback_script([*made, "README.md"], stop="stop it"),
    }
    write(folder, made, lambda staged: (more, {"schema": 1, "created_at": "now"}))
    return folder


def there(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()}


def test_the_document_names_every_file_with_its_hash(tmp_path):
    folder = written(tmp_path / "out", a_txt="one", run_sh="echo")
    named = json.loads((folder / "deployment.json").read_text())["files"]
    assert set(named) == {"a.txt", "run.sh", "README.md", "rollback.sh"}
    assert is_unchanged(
        folder,
        former_of(folder),
        {p: File(text=t, executable=p.endswith(".sh")) for p, t in there(folder).items() if p in named},
    )


def test_a_script_may_be_run(tmp_path):
    folder = written(tmp_path / "out", run_sh="#!/bin/sh\necho hello")
    assert subprocess.run([folder / "run.sh"], capture_output=True, text=True).stdout == "hello\n"


def test_nothing_is_left_beside_the_folder(tmp_path):
    written(tmp_path / "out", a_txt="one")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_the_former_files_are_kept(tmp_path):
    folder = written(written(tmp_path / "out", a_txt="one", b_txt="gone"), a_txt="two")
    assert there(folder)["a.txt"] == "two"
    assert not (folder / "b.txt").exists()
    assert {p: t for p, t in there(folder).items() if p.endswith("txt")} == {
        "a.txt": "two",
        "previous/a.txt": "one",
        "previous/b.txt": "gone",
    }


def test_only_the_last_one_is_kept(tmp_path):
    folder = tmp_path / "out"
    for text in ("one", "two", "three"):
        written(folder, a_txt=text)
    assert there(folder)["previous/a.txt"] == "two"
    assert not (folder / "previous" / "previous").exists()


@pytest.mark.parametrize("after", range(5))
def test_whatever_cuts_a_write_short_the_same_again_keeps_the_former_one(tmp_path, monkeypatch, after):
    folder = written(tmp_path / "out", a_txt="one", b_txt="one", c_txt="one")
    before, moved, replace = there(folder), [], Path.replace

    def cut(self: Path, target: Path) -> Path:
        if Path(target).parent == folder:
            moved.append(target)
            if len(moved) > after:
                raise KeyboardInterrupt
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", cut)
    with pytest.raises(KeyboardInterrupt):
        written(folder, a_txt="two", b_txt="two", c_txt="two")
    monkeypatch.undo()
    written(folder, a_txt="two", b_txt="two", c_txt="two")
    assert {p.removeprefix("previous/"): t for p, t in there(folder).items() if p.startswith("previous/")} == before
    assert there(folder)["c.txt"] == "two"


def test_where_only_the_page_changes_the_former_one_stays_what_it_was(tmp_path):
    folder = written(written(tmp_path / "out", a_txt="one"), a_txt="two")
    write(
        folder,
        files(a_txt="two"),
        lambda staged: (
            {"README.md": File(text="booted"), "rollback.sh": rollback_script([], stop="stop it")},
            {"schema": 1},
        ),
    )
    assert there(folder)["README.md"] == "booted"
    assert there(folder)["previous/a.txt"] == "one"


def test_an_edited_file_is_never_overwritten(tmp_path):
    folder = written(tmp_path / "out", a_txt="one\n")
    (folder / "a.txt").write_text("mine\n")
    with pytest.raises(EditedFiles, match=r"a\.txt was changed by hand") as caught:
        written(folder, a_txt="two\n")
    assert there(folder)["a.txt"] == "mine\n"
    assert "-mine\n+two\n" in caught.value.diff


def test_an_edit_that_says_what_would_be_written_is_none(tmp_path):
    folder = written(tmp_path / "out", a_txt="one")
    (folder / "a.txt").write_text("two")
    assert there(written(folder, a_txt="two"))["a.txt"] == "two"


def test_a_file_that_was_removed_comes_back(tmp_path):
    folder = written(tmp_path / "out", a_txt="one")
    (folder / "a.txt").unlink()
    assert there(written(folder, a_txt="two"))["a.txt"] == "two"


def test_a_file_of_somebody_else_is_not_taken(tmp_path):
    folder = written(tmp_path / "out", a_txt="one")
    (folder / "b.txt").write_text("theirs")
    with pytest.raises(EditedFiles, match=r"b\.txt"):
        written(folder, a_txt="one", b_txt="ours")
    assert there(folder)["b.txt"] == "theirs"


def test_what_lies_beside_the_files_stays(tmp_path):
    folder = written(tmp_path / "out", a_txt="one")
    (folder / ".env").write_text("KEY=secret")
    assert there(written(folder, a_txt="two"))[".env"] == "KEY=secret"


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("years")
    with pytest.raises(UsageError, match="something else"):
        written(tmp_path, a_txt="one")


def test_an_empty_folder_is_taken(tmp_path):
    (tmp_path / "out").mkdir()
    assert there(written(tmp_path / "out", a_txt="one"))["a.txt"] == "one"


def test_a_damaged_document_is_refused(tmp_path):
    folder = written(tmp_path / "out", a_txt="one")
    (folder / "deployment.json").write_text("{")
    with pytest.raises(UsageError, match="no whole document"):
        written(folder, a_txt="two")


def test_a_document_that_names_files_elsewhere_is_refused(tmp_path):
    folder = written(tmp_path / "out", a_txt="one")
    (folder / "deployment.json").write_text(json.dumps({"schema": 1, "files": {"../elsewhere": "0"}}))
    with pytest.raises(UsageError, match="no whole document"):
        written(folder, a_txt="two")


def test_links_are_not_followed(tmp_path):
    folder = written(tmp_path / "out", a_txt="one")
    (tmp_path / "elsewhere").mkdir()
    (folder / "sub").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="links are not followed"):
        write(folder, {"sub/a.txt": File(text="x")}, lambda staged: ({}, {"schema": 1}))
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_where_a_check_refuses_nothing_is_changed(tmp_path):
    folder = written(tmp_path / "out", a_txt="one")
    before = there(folder)

    def refuse(staged: Path) -> tuple[dict[str, File], dict[str, object]]:
        assert (staged / "a.txt").read_text() == "two"
        raise LlmoptError("nginx does not take it")

    with pytest.raises(LlmoptError, match="nginx"):
        write(folder, files(a_txt="two"), refuse)
    assert there(folder) == before
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_the_same_files_are_unchanged_until_one_differs(tmp_path):
    folder = written(tmp_path / "out", a_txt="one")
    same = {p: File(text=t, executable=p.endswith(".sh")) for p, t in there(folder).items() if p != "deployment.json"}
    assert is_unchanged(folder, former_of(folder), same)
    assert not is_unchanged(folder, former_of(folder), same | {"a.txt": File(text="two")})


def test_a_file_that_may_no_longer_be_run_is_a_change(tmp_path):
    folder = written(tmp_path / "out", run_sh="echo")
    same = {p: File(text=t, executable=p.endswith(".sh")) for p, t in there(folder).items() if p != "deployment.json"}
    (folder / "run.sh").chmod(0o644)
    assert not is_unchanged(folder, former_of(folder), same)


def test_two_do_not_write_at_once(tmp_path):
    with locked(tmp_path / ".out.lock", wait=lambda: None), pytest.raises(UsageError, match="another llmopt deploy"):
        written(tmp_path / "out", a_txt="one")


def test_what_a_killed_one_left_beside_it_goes(tmp_path):
    (tmp_path / ".out.partial-1234").mkdir()
    written(tmp_path / "out", a_txt="one")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_link_to_a_folder_is_that_folder(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    written(tmp_path / "link", a_txt="one")
    assert there(tmp_path / "real")["a.txt"] == "one"


# --- the way back ------------------------------------------------------------------------------------------------------


def roll_back(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([folder / "rollback.sh"], capture_output=True, text=True, timeout=20)


def test_rollback_puts_the_former_files_back_and_can_be_undone(tmp_path):
    folder = written(tmp_path / "a folder", a_txt="one", old_txt="only then")
    first = there(folder)
    written(folder, a_txt="two", new_txt="only now")
    second = there(folder)
    assert roll_back(folder).returncode == 0
    assert {p: t for p, t in there(folder).items() if not p.startswith("previous/")} == first
    assert roll_back(folder).returncode == 0
    assert there(folder) == second


def test_a_deployment_that_was_rolled_back_can_be_deployed_over(tmp_path):
    folder = written(written(tmp_path / "out", a_txt="one"), a_txt="two")
    roll_back(folder)
    require_unedited(folder, former_of(folder), files(a_txt="two"))


def test_rollback_leaves_what_is_not_ours(tmp_path):
    folder = written(written(tmp_path / "out", a_txt="one"), a_txt="two")
    (folder / ".env").write_text("KEY=secret")
    roll_back(folder)
    assert there(folder)[".env"] == "KEY=secret"


def test_rollback_without_a_former_one_says_so(tmp_path):
    done = roll_back(written(tmp_path / "out", a_txt="one"))
    assert done.returncode == 1
    assert "nothing to roll back to" in done.stderr


def test_who_asks_rollback_for_help_rolls_nothing_back(tmp_path):
    folder = written(written(tmp_path / "out", a_txt="one"), a_txt="two")
    done = subprocess.run([folder / "rollback.sh", "--help"], capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stderr) == (2, "usage: ./rollback.sh\n")
    assert there(folder)["a.txt"] == "two"


def test_a_signal_leaves_no_half_of_a_rollback(tmp_path):
    folder = written(written(tmp_path / "out", a_txt="one", b_txt="one"), a_txt="two", b_txt="two")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "mv").write_text('#!/bin/sh\n/bin/mv "$@"\nkill -INT $PPID\nkill -TERM $PPID\n')
    (tmp_path / "bin" / "mv").chmod(0o755)
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    done = subprocess.run([folder / "rollback.sh"], env={"PATH": path}, capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stderr) == (0, "")
    assert [there(folder)[name] for name in ("a.txt", "b.txt", "previous/a.txt")] == ["one", "one", "two"]


def test_what_a_rollback_that_was_killed_left_is_said_first(tmp_path):
    """By then the former document may lie in its place already."""
    folder = written(written(tmp_path / "out", a_txt="one"), a_txt="two")
    (folder / ".rollback").mkdir()
    (folder / "previous" / "deployment.json").unlink()
    assert roll_back(folder).stderr.startswith("error: .rollback is there")


def test_rollback_overwrites_nothing_of_somebody_else(tmp_path):
    folder = written(written(tmp_path / "out", a_txt="one", only_then="then"), a_txt="two")
    (folder / "only.then").write_text("mine")
    before = there(folder)
    done = roll_back(folder)
    assert done.returncode == 1
    assert "only.then" in done.stderr
    assert there(folder) == before


@pytest.mark.parametrize("link", [False, True])
def test_rollback_puts_no_folder_where_somebody_else_has_a_file_or_a_link(tmp_path, link):
    folder = put_there(tmp_path / "out", files(a_txt="one") | {"grafana/board.json": File(text="then")})
    written(folder, a_txt="two")
    if link:
        (tmp_path / "elsewhere").mkdir()
        (folder / "grafana").symlink_to(tmp_path / "elsewhere")
    else:
        (folder / "grafana").write_text("mine")
    done = roll_back(folder)
    assert (done.returncode, done.stderr.splitlines()[1]) == (1, "grafana")
    assert not (folder / ".rollback").exists()
    assert (folder / "a.txt").read_text() == "two"


def test_rollback_keeps_what_somebody_put_into_previous(tmp_path):
    folder = written(written(tmp_path / "out", a_txt="one"), a_txt="two")
    (folder / "previous" / "ends in a space ").write_text("mine")
    (folder / "previous" / "link").symlink_to("a.txt")
    assert roll_back(folder).returncode == 0
    assert (folder / "ends in a space ").read_text() == "mine"
    assert (folder / "link").is_symlink()


def test_what_was_edited_and_rolled_back_is_not_lost_by_the_next_one(tmp_path):
    folder = written(written(tmp_path / "out", a_txt="one\n"), a_txt="two\n")
    (folder / "a.txt").write_text("mine\n")
    roll_back(folder)
    before = there(folder)
    with pytest.raises(EditedFiles, match=r"previous/a\.txt was changed by hand") as caught:
        written(folder, a_txt="three\n")
    assert "-mine\n" in caught.value.diff
    assert there(folder) == before


def move_aside(hint: str | None) -> None:
    """As the hint says."""
    command = (hint or "").partition(": ")[2].partition(";")[0]
    subprocess.run(["sh", "-c", command], check=True, timeout=20)


@pytest.mark.parametrize("name", ["out", "a folder"])
def test_what_was_edited_and_moved_aside_as_the_hint_says_comes_back_with_a_rollback(tmp_path, name):
    folder = written(tmp_path / name, a_txt="one", run_sh="echo one")
    for path in ("a.txt", "run.sh"):
        (folder / path).write_text("mine")
    with pytest.raises(EditedFiles) as caught:
        written(folder, a_txt="two", run_sh="echo two")
    move_aside(caught.value.hint)
    written(folder, a_txt="two", run_sh="echo two")
    assert roll_back(folder).returncode == 0
    assert [there(folder)[path] for path in ("a.txt", "run.sh")] == ["mine", "mine"]
    assert os.access(folder / "run.sh", os.X_OK)


def test_what_lies_aside_may_be_replaced_in_previous(tmp_path):
    folder = written(tmp_path / "out", a_txt="one")
    (folder / "a.txt").rename(folder / "a.txt.mine")
    (folder / "a.txt.mine").write_text("mine")
    written(written(folder, a_txt="two"), a_txt="three")
    assert there(folder)["previous/a.txt"] == "two"
    assert there(folder)["a.txt.mine"] == "mine"


def test_what_was_moved_aside_of_an_earlier_configuration_does_not_come_back_with_this_one(tmp_path):
    folder = written(tmp_path / "out", a_txt="one")
    (folder / "a.txt").rename(folder / "a.txt.mine")
    written(folder, a_txt="two")
    (folder / "a.txt").unlink()
    written(folder, a_txt="three")
    assert "previous/a.txt" not in there(folder)
    assert "lacks:\na.txt" in roll_back(folder).stderr


@pytest.mark.parametrize("lost", ["a.txt", "README.md"])
def test_a_rollback_to_a_configuration_that_is_not_whole_is_refused(tmp_path, lost):
    folder = written(tmp_path / "out", a_txt="one", b_txt="one")
    (folder / lost).unlink()
    written(folder, a_txt="two", b_txt="two")
    before = there(folder)
    done = roll_back(folder)
    assert done.returncode == 1
    assert f"previous/ lacks:\n{lost}\n" in done.stderr
    assert there(folder) == before


def test_a_rollback_by_a_document_that_names_no_file_is_refused(tmp_path):
    folder = written(written(tmp_path / "out", a_txt="one"), a_txt="two")
    (folder / "previous" / "deployment.json").write_text("{}")
    assert "lacks:\nthe names of its files" in roll_back(folder).stderr
    assert there(folder)["a.txt"] == "two"


def test_what_somebody_put_into_previous_is_not_lost(tmp_path):
    folder = written(written(tmp_path / "out", a_txt="one"), a_txt="two")
    (folder / "previous" / "notes.txt").write_text("mine")
    with pytest.raises(EditedFiles, match=r"previous/notes\.txt"):
        written(folder, a_txt="three")


def test_rollback_to_another_name_says_how_to_stop_this_one(tmp_path):
    folder = written(written(tmp_path / "out", a_txt="one"), a_txt="two")
    assert "stop it" not in roll_back(folder).stdout
    write(
        folder,
        files(a_txt="three"),
        lambda staged: (
            {"rollback.sh": rollback_script(["a.txt"], stop="docker compose -p other down")},
            {"schema": 1},
        ),
    )
    assert "until it is stopped: docker compose -p other down" in roll_back(folder).stdout
