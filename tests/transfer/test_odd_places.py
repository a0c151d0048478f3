"""`cryptfs export` and `import`: places that are not as a path looks, or not as every disk is."""

from __future__ import annotations

from pathlib import Path

from tests.commands import Run


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
