"""The Debian package without a build; scripts/package builds it, and packaging/try-package tries it."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from cryptfs.version import VERSION

ROOT = Path(__file__).parents[2]
LOCKS = sorted((ROOT / "packaging").glob("*.lock"))


def locked(file: Path) -> dict[str, str]:
    """Versions by normal names. Every line has a hash."""
    found = {}
    for line in file.read_text().splitlines():
        if not line.startswith("#"):
            match = re.fullmatch(r"([\w.-]+)==([\w.]+) --hash=sha256:[0-9a-f]{64}", line)
            assert match is not None, line
            found[re.sub(r"[-_.]+", "-", match[1]).lower()] = match[2]
    return found


@pytest.mark.parametrize("file", LOCKS, ids=lambda path: path.name)
def test_each_wheel_has_a_hash(file: Path) -> None:
    assert locked(file)


def test_all_that_cryptfs_needs_is_locked() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"]
    wanted = [*project["project"]["dependencies"], *extras["desktop"], *extras["fido2"], *extras["hpke"]]
    versions = locked(ROOT / "packaging" / "wheels.lock")
    for each in wanted:
        name, least = re.match(r"([\w.-]+)>=([\d.]+)", each).groups()  # type: ignore[union-attr]
        have = [int(part) for part in versions[name.lower()].split(".")]
        assert have >= [int(part) for part in least.split(".")], each
    assert "hatchling" in locked(ROOT / "packaging" / "wheels-build.lock")


def test_the_package_has_the_version_of_the_program() -> None:
    first = (ROOT / "debian" / "changelog").read_text().splitlines()[0]
    assert re.match(rf"cryptfs \({re.escape(VERSION)}-\d+\) ", first)


def test_nobody_else_gets_the_mail_of_the_project() -> None:
    """It has no address; README.source says why there is one in the package."""
    field = re.search(r"^Maintainer: (.*)$", (ROOT / "debian" / "control").read_text(), re.MULTILINE)
    assert field is not None
    assert re.fullmatch(r"[\w ]+ <no-reply@\w+\.example>", field[1])
    signed = re.findall(r"^ -- (.*)  ", (ROOT / "debian" / "changelog").read_text(), re.MULTILINE)
    assert set(signed) == {field[1]}
    assert "RFC 2606" in (ROOT / "debian" / "README.source").read_text()


def test_each_override_has_a_reason() -> None:
    lines = (ROOT / "debian" / "cryptfs.lintian-overrides").read_text().splitlines()
    reasons = [above for above, line in zip(["", *lines], lines, strict=False) if not line.startswith("#")]
    assert reasons
    assert all(reason.startswith("# ") for reason in reasons)


def test_the_launcher_takes_nothing_from_its_surroundings() -> None:
    """PYTHONPATH, the current directory, and what a user installed: mount(8) may run it as root."""
    assert (ROOT / "debian" / "launcher").read_text().startswith("#!/usr/bin/python3 -IP\n")
