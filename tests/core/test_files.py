"""Files that cannot be written are told with what is wrong, and before the work where that is asked."""

import errno
import os
from pathlib import Path

import pytest

from scene_distill.core.errors import UserError
from scene_distill.core.files import check_folder_writable, check_writable, write_atomically, write_error, write_json


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_only_a_full_disk_speaks_of_space(number):
    assert "free some space" in str(write_error(Path("a/b"), OSError(number, os.strerror(number))))


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.EACCES, "Permission denied; choose a folder that you may write to"),
        (errno.EROFS, "Read-only file system; choose a folder that you may write to"),
        (errno.ENOENT, "there is no such folder"),
        (errno.EISDIR, "a folder of that name exists"),
        (errno.EIO, "Input/output error"),
    ],
)
def test_other_errors_say_what_is_wrong(number, words):
    said = str(write_error(Path("a/b"), OSError(number, os.strerror(number))))
    assert said.startswith("cannot write a/b: ") and words in said and "space" not in said
    assert "None" not in str(write_error(Path("a/b"), OSError("strange")))


def test_a_file_where_a_folder_should_be_is_named(tmp_path):
    (tmp_path / "note").write_text("mine")
    for path in (tmp_path / "note" / "x.json", tmp_path / "note" / "deep" / "x.json"):
        for act in (check_writable, lambda path: write_json(path, 1)):
            with pytest.raises(UserError, match="note exists and is no folder") as told:
                act(path)
            assert "space" not in str(told.value)
    with pytest.raises(UserError, match="a folder of that name exists"):
        check_writable(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["note"]
    assert (tmp_path / "note").read_text() == "mine"


def test_a_check_leaves_nothing_behind(tmp_path):
    check_writable(tmp_path / "a" / "b" / "page.html")
    check_folder_writable(tmp_path / "c" / "d")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "old.json").write_text("1")
    check_writable(tmp_path / "old.json")
    assert (tmp_path / "old.json").read_text() == "1"


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc, where nobody can write")
def test_a_folder_that_nobody_can_make_is_found_out():
    with pytest.raises(UserError, match=r"/nope/x\.html: there is no such folder and none can be made"):
        check_writable(Path("/proc/nope/x.html"))


def test_a_file_has_the_permissions_of_any_new_file(tmp_path):
    (tmp_path / "any").touch()

    def for_the_owner_alone(path: Path) -> None:
        path.write_text("weights")
        path.chmod(0o600)

    write_atomically(tmp_path / "made", for_the_owner_alone)
    assert (tmp_path / "made").stat().st_mode == (tmp_path / "any").stat().st_mode
