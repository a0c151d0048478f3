"""`cryptfs export` and `import`: places that are not as a path looks, or not as every disk is."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest

from cryptfs.transfer.copying import TreeCopy
from cryptfs.transfer.entrycopy import Copied
from cryptfs.transfer.plainside import PlainDirectory, PlainSide
from tests.commands import Run
from tests.support import crash_in


def test_two_dots_after_a_symlink(vault_dir: Path, tmp_path: Path, run: Run) -> None:
    """As the kernel and cp take them."""
    real, here = tmp_path / "real", tmp_path / "here"
    (real / "sub").mkdir(parents=True)
    here.mkdir()
    (here / "link").symlink_to(real / "sub")
    (real / "file").write_text("that of real")
    (here / "file").write_text("that of here")
    assert run("import", here / "link" / ".." / "file", vault_dir).code == 0
    assert run("cat", vault_dir, "file").out == "that of real"
    assert run("export", f"{vault_dir}:file", here / "link" / ".." / "out").code == 0
    assert (real / "out").read_text() == "that of real"
    assert not (here / "out").exists()
    assert run("import", here / "link" / "..", f"{vault_dir}:all").code == 0
    assert run("ls", vault_dir, "all").out.split() == ["file", "out", "sub"]


@pytest.mark.parametrize("step", [100, 10_000_000, 1_000_000_000, 2_000_000_000])
def test_a_copy_goes_on_where_times_are_coarse(step: int, vault_dir: Path, tmp_path: Path, run: Run) -> None:
    """NTFS and SMB, exFAT, old ext, FAT."""
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    (source / "file").write_text("content")
    time = 1_700_000_001_987_654_321
    os.utime(source / "file", ns=(time, time))
    assert run("import", source, vault_dir).code == 0
    assert run("export", vault_dir, out).code == 0
    os.utime(out / "file", ns=(time, time - time % step))
    again = run("export", vault_dir, out)
    assert (again.code, again.err) == (0, "Exported 2 entries, 1 were there already.\n")
    os.utime(out / "file", ns=(time, time - time % step + 1))
    assert run("export", vault_dir, out).code == 11


@pytest.mark.waits
def test_a_directory_that_only_lets_through() -> None:
    """An ordinary user's own directories in it are within reach, as those in /home on some machines."""
    place, user = Path(tempfile.mkdtemp(prefix="transfer-through-")), 64_001
    for name in ("mine", "out"):
        (place / name).mkdir()
        os.chown(place / name, user, user)
    (place / "mine" / "file").write_text("mine")
    place.chmod(0o711)

    def work() -> None:
        os.setgroups([])
        os.setgid(user)
        os.setuid(user)
        problems: list[object] = []
        top = PlainDirectory.at(str(place))
        plain = PlainSide(top)
        copy = TreeCopy(plain, plain, lambda *problem: problems.append(problem), Copied())
        copy.run(top, b"mine", top, b"out", b"")
        plain.sync()
        assert problems == []

    try:
        crash_in(work)
        assert (place / "out" / "file").read_text() == "mine"
    finally:
        shutil.rmtree(place)


def test_a_directory_with_the_vault_in_it(vault_dir: Path, tmp_path: Path, run: Run) -> None:
    """The copies would be copied as well: without end, if the target is below the root."""
    (tmp_path / "link").symlink_to(tmp_path)
    for source in (tmp_path, tmp_path / "link" / "vault" / ".."):
        told = run("import", source, vault_dir)
        assert told.code == 1
        assert "it would be copied into itself" in told.err
    assert run("ls", vault_dir).out == ""
    assert run("import", tmp_path / "link", vault_dir).code == 0  # the link itself
    assert run("ls", vault_dir).out == "link\n"


@pytest.mark.parametrize("end", ["/", "//", "/."])
def test_a_slash_after_a_symlink(end: str, vault_dir: Path, tmp_path: Path, run: Run) -> None:
    """The directory behind it, as for the kernel and cp; without a slash the symlink itself."""
    real, link = tmp_path / "real", tmp_path / "link"
    real.mkdir()
    (real / "file").write_text("content")
    link.symlink_to("real")
    assert run("import", f"{link}{end}", f"{vault_dir}:photos").code == 0
    assert run("cat", vault_dir, "photos/file").out == "content"
    assert run("import", link, f"{vault_dir}:itself").code == 0
    assert run("export", f"{vault_dir}:itself", tmp_path / "out").code == 0
    assert (tmp_path / "out").readlink() == Path("real")
    (tmp_path / "to file").symlink_to("real/file")
    assert run("import", f"{tmp_path / 'to file'}{end}", f"{vault_dir}:no").code == 11
