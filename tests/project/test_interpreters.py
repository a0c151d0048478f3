"""Which Python is optimized, and which one the scripts take."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from cryptfs.interpreter import this_interpreter

ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / "cryptfs" / "interpreter.py"

BUILDS = {
    "plain": ({"CONFIG_ARGS": "'--prefix=/opt' '--enable-shared'", "PY_CFLAGS": "-O3 -Wall"}, False, False),
    "asked for": ({"CONFIG_ARGS": "'--enable-optimizations' '--with-lto'"}, True, True),
    "asked for with a value": ({"CONFIG_ARGS": "'--enable-optimizations' '--with-lto=thin'"}, True, True),
    "PGO alone": ({"CONFIG_ARGS": "'--enable-optimizations' '--with-lto=no'"}, True, False),
    "refused": ({"CONFIG_ARGS": "'--without-lto'"}, False, False),
    "by flags": ({"PY_CORE_CFLAGS": "-fprofile-use", "PY_CORE_LDFLAGS": "-flto -g"}, True, True),
    "by flags of Clang": ({"PY_CFLAGS": "-O2 -fprofile-instr-use=code.profclangd"}, True, False),
    "flags that it could have used": ({"PGO_PROF_USE_FLAG": "-fprofile-use"}, False, False),
    "nothing is known": ({}, False, False),
}


@pytest.mark.parametrize(("variables", "pgo", "lto"), BUILDS.values(), ids=list(BUILDS))
def test_what_sysconfig_says(
    variables: dict[str, str], pgo: bool, lto: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sysconfig, "get_scheme_names", lambda: ("posix_prefix", "venv"))
    monkeypatch.setattr(sysconfig, "get_config_var", variables.get)
    found = this_interpreter()
    assert (found.pgo, found.lto) == (pgo, lto)
    assert (found.version, found.path) == (".".join(map(str, sys.version_info[:3])), sys.executable)


@pytest.mark.parametrize(("prefix", "optimized"), [("/usr", True), ("/opt/python", False)])
def test_debian_describes_another_build_than_its_program(
    prefix: str, optimized: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    variables, _, _ = BUILDS["plain"]
    monkeypatch.setattr(sysconfig, "get_scheme_names", lambda: ("deb_system", "posix_local"))
    monkeypatch.setattr(sysconfig, "get_config_var", variables.get)
    monkeypatch.setattr(sys, "base_prefix", prefix)
    assert this_interpreter().pgo is optimized


def test_it_is_a_program_as_well() -> None:
    done = subprocess.run([sys.executable, "-I", PROGRAM], capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0 if this_interpreter().pgo else 1, b"", b"")


# ---- the choice of scripts/lib.sh


class Machine:
    """Programs that answer lib.sh as a Python would. PATH has them alone, and the tools that lib.sh needs."""

    def __init__(self, base: Path) -> None:
        self.bin, self.venv = base / "bin", base / "venv"
        for directory in (self.bin, self.venv / "bin"):
            directory.mkdir(parents=True)
        for tool in ("bash", "dirname"):
            (self.bin / tool).symlink_to(f"/bin/{tool}" if tool == "bash" else f"/usr/bin/{tool}")
        self._program(self.bin / "id", "echo 1000")

    @staticmethod
    def _program(path: Path, text: str) -> None:
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)

    def python(self, name: str, *, new: bool = True, pgo: bool = False, venvs: bool = True) -> None:
        """One that is installed. venvs: it has ensurepip."""
        codes = {"version_info": new, "interpreter.py": pgo, "ensurepip": venvs}
        cases = " ".join(f"*{word}*) exit {0 if good else 1} ;;" for word, good in codes.items())
        self._program(self.bin / name if "/" not in name else Path(name), f'case "$*" in {cases} esac')

    def says(self, command: str, **environment: str) -> str:
        """What a function of lib.sh says. /usr/bin/python3 is read as the one in `bin` called system."""
        text = (ROOT / "scripts" / "lib.sh").read_text().replace("/usr/bin/python3", "system")
        copy = self.bin.parent / "scripts" / "lib.sh"
        copy.parent.mkdir(exist_ok=True)
        copy.write_text(text)
        done = subprocess.run(
            ["bash", "-c", f'source "{copy}"; {command}'],
            env={"PATH": str(self.bin), "CRYPTFS_VENV": str(self.venv), **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        return (done.stdout + done.stderr).strip()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_an_optimized_python_comes_first(machine: Machine) -> None:
    machine.python("system")
    machine.python("python3")
    machine.python("python3.13", pgo=True)
    machine.python("python3.12", pgo=True)
    assert machine.says("find_python") == "python3.13"


def test_the_system_s_python_comes_before_a_private_one(machine: Machine) -> None:
    machine.python("python3", pgo=True)
    machine.python("system", pgo=True)
    assert machine.says("find_python") == "system"
    machine.python("python3")
    machine.python("system")
    assert machine.says("find_python") == "system"
    machine.python("system", new=False)
    assert machine.says("find_python") == "python3"


def test_one_without_ensurepip_is_taken_where_it_can_be_had(machine: Machine) -> None:
    machine.python("system", pgo=True, venvs=False)
    assert machine.says("find_python") == "system", "there is no other"
    machine.python("python3.12")
    assert machine.says("find_python") == "python3.12"
    machine.python("sudo")
    assert machine.says("find_python") == "system"


def test_a_person_s_choice_wins(machine: Machine) -> None:
    machine.python("system", pgo=True)
    machine.python("mine", venvs=False)
    assert machine.says("find_python", CRYPTFS_PYTHON="mine") == "mine"
    machine.python("mine", new=False)
    assert machine.says("find_python", CRYPTFS_PYTHON="mine") == "system"


def test_there_is_none(machine: Machine) -> None:
    machine.python("python3", new=False)
    assert machine.says("find_python || echo none") == "none"


def test_an_environment_with_a_slow_python_is_reported(machine: Machine) -> None:
    python = str(machine.venv / "bin" / "python")
    machine.python("system", pgo=True)
    machine.python(python)
    assert "built without PGO. A mount is faster on system: delete" in machine.says("advise_python")
    machine.python(python, pgo=True)
    assert machine.says("advise_python") == ""
    machine.python(python)
    machine.python("system")
    assert machine.says("advise_python") == "", "there is no better one"


def test_the_scripts_ask_real_pythons(tmp_path: Path) -> None:
    questions = 'is_new_enough "$1" && makes_venvs "$1" || exit 3; is_optimized "$1" && echo yes || echo no'
    done = subprocess.run(
        ["bash", "-c", f'source "{ROOT}/scripts/lib.sh"; {questions}', "-", sys.executable],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout.strip()) == (0, "yes" if this_interpreter().pgo else "no")
