"""A place that cannot be written to is refused before work begins, and left as it was."""

import errno

import pytest

from actlake.platform.runs import FILE
from actlake.platform.writable import check_writable
from actlake.storage.errors import in_words


@pytest.mark.parametrize("inside", ["", "new", "new/newer"])
def test_a_place_that_can_be_written_to_is_left_as_it_was(tmp_path, inside):
    check_writable(tmp_path / inside)

    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_way_is_named_with_the_place(tmp_path):
    (tmp_path / "file").write_text("")

    with pytest.raises(OSError, match="Not a directory") as refused:
        check_writable(tmp_path / "file" / "out")

    words = in_words(refused.value)
    assert words is not None
    assert words.startswith(f"{tmp_path / 'file' / 'out'}: Not a directory\nhint: ")


def test_a_link_to_nowhere_is_refused_as_what_it_is(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "gone" / "away")

    with pytest.raises(OSError, match="No such file") as refused:
        check_writable(tmp_path / "link" / "out")

    assert refused.value.errno == errno.ENOENT


def test_what_the_file_system_refuses_is_said_about_the_place():
    with pytest.raises(OSError, match=r"/proc/actlake-results") as refused:
        check_writable("/proc/actlake-results")

    assert refused.value.filename == "/proc/actlake-results"


def test_nothing_is_asked_of_a_url():
    check_writable("s3://bucket/store")


def test_a_complete_result_is_not_written_to(tmp_path, monkeypatch):
    (tmp_path / FILE).write_text("{}")
    monkeypatch.setattr("tempfile.TemporaryFile", lambda **_: pytest.fail("it was written to"))

    check_writable(tmp_path)
