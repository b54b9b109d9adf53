"""Folders are opened by no link that a kernel could have made."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from isolated_python.engine import folders
from isolated_python.errors import LaunchError


def opened(path: object) -> str:
    """Where the folder lies that was opened."""
    descriptor = folders.open_folder(str(path), "the workspace")
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """course/week is a folder, secret another, and a kernel was granted course."""
    for name in ("course/week", "secret"):
        (tmp_path / name).mkdir(parents=True)
    descriptor = folders.open_folder(str(tmp_path / "course"), "the workspace")
    folders.may_be_written(descriptor)
    os.close(descriptor)
    return tmp_path.resolve()


def test_links_of_the_owner_are_followed(place: Path) -> None:
    """Absolute and relative, in the middle and at the end, also into what a kernel may write."""
    (place / "far").symlink_to(place)
    (place / "near").symlink_to("far/course/../course")
    assert opened(place / "far" / "secret") == str(place / "secret")
    assert opened(place / "near" / "week") == str(place / "course" / "week")


@pytest.mark.parametrize("target", ["{}/secret", "../secret", "week"])
def test_links_in_what_a_kernel_may_write_are_refused(place: Path, target: str) -> None:
    """Wherever they lead."""
    (place / "course" / "link").symlink_to(target.format(place))
    for path in (place / "course" / "link", place / "secret" / ".." / "course" / "link"):
        with pytest.raises(LaunchError, match="a kernel may have made"):
            opened(path)


def test_a_link_to_such_a_link_is_refused(place: Path) -> None:
    (place / "course" / "link").symlink_to(place / "secret")
    (place / "mine").symlink_to("course/link")
    with pytest.raises(LaunchError, match="a kernel may have made"):
        opened(place / "mine")


def test_links_that_never_end_are_told_so(place: Path) -> None:
    (place / "round").symlink_to("round")
    with pytest.raises(LaunchError, match="Too many levels"):
        opened(place / "round")


@pytest.mark.parametrize(("name", "said"), [("missing", "No such file"), ("file", "Not a directory")])
def test_what_is_no_folder_is_told_so(place: Path, name: str, said: str) -> None:
    (place / "file").touch()
    with pytest.raises(LaunchError, match=said):
        opened(place / name)


def test_nothing_stays_open(place: Path) -> None:
    (place / "course" / "link").symlink_to(place / "secret")
    before = os.listdir("/proc/self/fd")
    for path in (place / "course" / "link", place / "missing", place / "course"):
        try:
            opened(path)
        except LaunchError:
            pass
    assert os.listdir("/proc/self/fd") == before
