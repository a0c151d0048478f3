"""`cryptfs import` and `export` beside `cp -a` into and out of a mount: the same trees."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.commands import Run, runner
from tests.e2e.conftest import require_fuse
from tests.e2e.mounting import PASSPHRASE, MountSpec, mounted
from tests.transfer.trees import make_tree, seen


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    passfile = tmp_path / "passfile"
    passfile.touch(mode=0o600)
    passfile.write_text(PASSPHRASE)
    plain = runner(capsys)
    return lambda *args: plain(*args, "--passfile", passfile)


def difference(one: dict[str, object], other: dict[str, object]) -> dict[str, object]:
    return {
        path: (one.get(path), other.get(path)) for path in {*one, *other} if one.get(path) != other.get(path)
    }


@pytest.mark.parametrize("engine", ["native", "fusepy"])
def test_copies_are_those_of_cp(engine: str, tmp_path: Path, run: Run) -> None:
    spec = MountSpec(engine, tmpfs=False)
    require_fuse(spec)
    make_tree(tmp_path / "source")
    with mounted(spec) as mount:
        vault, mountpoint = mount.vault_dir, mount.mountpoint
        subprocess.run(["cp", "-a", tmp_path / "source", mountpoint / "cp"], check=True)
        told = run("ls", vault)
        assert told.code == 40
        assert f"is mounted on {mountpoint}" in told.err
        assert run("import", tmp_path / "source", f"{vault}:import").code == 40
        told = run("path", vault, "cp/d/inner")
        assert (vault / told.out.rstrip("\n")).is_file()
        mount.unmount()
        told = run("import", tmp_path / "source", f"{vault}:import", "--verify")
        assert told.code == 0, told.err
        assert "cannot keep" not in told.err
        for path in ("cp", "import"):
            told = run("export", f"{vault}:{path}", tmp_path / f"export of {path}", "--verify")
            assert told.code == 0, told.err
        mount.start()
        holes = engine == "native"  # mfusepy has no lseek
        source = seen(tmp_path / "source", holes=holes)
        by_cp, by_import = (seen(mountpoint / each, holes=holes) for each in ("cp", "import"))
        assert difference(by_import, by_cp) == {}
        assert difference(by_import, source) == {}
        subprocess.run(["cp", "-a", mountpoint / "import", tmp_path / "cp out"], check=True)
        for path in ("cp out", "export of cp", "export of import"):
            assert difference(seen(tmp_path / path, holes=holes), source) == {}, path
        for path in ("cp", "import"):
            both = [mountpoint / path, tmp_path / f"export of {path}", tmp_path / "source"]
            assert len({(os.stat(each).st_mode, os.stat(each).st_mtime_ns) for each in both}) == 1


def test_readers_share_a_vault_with_a_read_only_mount(tmp_path: Path, run: Run) -> None:
    spec = MountSpec("native")
    require_fuse(spec)
    with mounted(spec) as mount:
        (mount.mountpoint / "file").write_text("content")
        mount.unmount()
        mount.spec = MountSpec("native", options="ro")
        mount.start()
        assert run("cat", mount.vault_dir, "file").out == "content"
        assert run("export", mount.vault_dir, tmp_path / "out").code == 0
        assert run("rm", mount.vault_dir, "file").code == 40
        assert (mount.mountpoint / "file").read_text() == (tmp_path / "out" / "file").read_text()
