"""Which commit a run is of: git's own words are the truth, and without git's files those of CI."""

import subprocess

import pytest

from llmopt.core.commit import commit_here

SHA = "0123456789abcdef0123456789abcdef01234567"


def git(folder, *arguments):
    argv = [
        "git",
        "-c",
        "user.name=n",
        "-c",
        "user.email=e@example.invalid",
        "-c",
        "init.defaultBranch=main",
        *arguments,
    ]
    return subprocess.run(argv, cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path):
    folder = tmp_path / "checkout"
    folder.mkdir()
    git(folder, "init", "-q")
    (folder / "file").write_text("one")
    git(folder, "add", "file")
    git(folder, "commit", "-qm", "first")
    return folder


def test_a_clean_checkout_is_its_commit_also_from_below(checkout):
    (checkout / "below").mkdir()
    assert commit_here(checkout / "below", {}) == git(checkout, "rev-parse", "HEAD")


def test_a_changed_file_adds_a_plus_and_a_new_one_does_not(checkout):
    (checkout / "record.json").write_text("{}")
    assert not commit_here(checkout, {}).endswith("+")
    (checkout / "file").write_text("two")
    assert commit_here(checkout, {}) == git(checkout, "rev-parse", "HEAD") + "+"


def test_packed_branches_are_read(checkout):
    git(checkout, "pack-refs", "--all")
    assert commit_here(checkout, {}) == git(checkout, "rev-parse", "HEAD")


def test_a_detached_head_is_read(checkout):
    git(checkout, "checkout", "-q", "--detach")
    assert commit_here(checkout, {}) == git(checkout, "rev-parse", "HEAD")


def test_a_worktree_has_its_own_commit(checkout, tmp_path):
    git(checkout, "worktree", "add", "-q", "-b", "other", str(tmp_path / "tree"))
    (tmp_path / "tree" / "file").write_text("two")
    git(tmp_path / "tree", "commit", "-qam", "second")
    assert commit_here(tmp_path / "tree", {}) == git(tmp_path / "tree", "rev-parse", "HEAD")
    assert commit_here(tmp_path / "tree", {}) != commit_here(checkout, {})


def test_a_checkout_is_believed_before_ci(checkout):
    assert commit_here(checkout, {"GITHUB_SHA": SHA}) == git(checkout, "rev-parse", "HEAD")


@pytest.mark.parametrize("name", ["GITHUB_SHA", "CI_COMMIT_SHA"])
def test_without_a_checkout_ci_names_the_commit(tmp_path, name):
    assert commit_here(tmp_path, {name: SHA}) == SHA


def test_words_that_are_no_hash_are_no_commit(tmp_path):
    assert commit_here(tmp_path, {"GITHUB_SHA": "$(rm -rf)"}) == ""


def test_before_the_first_commit_there_is_none(tmp_path):
    git(tmp_path, "init", "-q")
    assert commit_here(tmp_path, {}) == ""


@pytest.mark.parametrize("text", ["", "nonsense", "ref: refs/heads/gone", "\xff"])
def test_a_damaged_checkout_has_none(tmp_path, text):
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "HEAD").write_bytes(text.encode("latin1"))
    assert commit_here(tmp_path, {}) == ""


def test_without_the_program_the_commit_is_known_still(checkout, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert len(commit_here(checkout, {})) == 40
