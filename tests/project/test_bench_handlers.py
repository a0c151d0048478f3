"""scripts/bench --handlers: the engine of a tree, asked over a socket, and what each request cost it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from benchlib import handlers, markdown, report, results
from benchlib.handlers import EngineServer, measure
from benchlib.material import ROOT
from benchlib.options import parse, workloads_of
from benchlib.results import Handler, Results
from cryptfs.mount.opcodes import Op

pytestmark = pytest.mark.serial

SLOW = """
_Requests = Requests

class Requests(_Requests):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        asked = self.handlers[Op.GETATTR]
        def slowly(request):
            sum(range(200_000))
            return asked(request)
        self.handlers[Op.GETATTR] = slowly
"""


def a_tree(place: Path, *, appended: str = "", name: str = "mount/native/engine.py") -> Path:
    """A copy of this checkout's package, with code behind that of a file."""
    shutil.copytree(ROOT / "cryptfs", place / "cryptfs", ignore=shutil.ignore_patterns("__pycache__"))
    with (place / "cryptfs" / name).open("a") as file:
        file.write(appended)
    return place


def children() -> set[str]:
    """Processes that this one has started and not waited for."""
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


def test_each_kind_of_request_has_its_cost_and_nothing_is_left(tmp_path: Path) -> None:
    before = children()
    turns: list[int] = []
    found = measure([ROOT], tmp_path, rounds=2, count=8, advance=lambda: turns.append(1))
    assert len(turns) == 3
    assert {
        "create",
        "lookup",
        "open",
        "read, 4 KiB",
        "write, 4 KiB over old content",
        "unlink",
    } <= found.keys()
    assert all(len(costs) == 1 and len(costs[0]) == 2 for costs in found.values())
    assert all(cost > 0 for costs in found.values() for cost in costs[0])
    assert list(tmp_path.iterdir()) == []
    assert children() == before


def test_a_slower_tree_is_seen_at_the_request_that_is_slower(tmp_path: Path) -> None:
    other = a_tree(tmp_path / "other", appended=SLOW)
    place = tmp_path / "place"
    place.mkdir()
    found = measure([ROOT, other], place, rounds=2, count=20)
    rows = [Handler(title=title, ours=costs[0], theirs=costs[1]) for title, costs in found.items()]
    ratios = {row.title: row.ratio for row in rows if row.ratio is not None}
    assert min(ratios, key=ratios.__getitem__) == "getattr"
    assert ratios["getattr"] < 0.1


def test_a_tree_that_does_not_start_is_named(tmp_path: Path) -> None:
    other = a_tree(tmp_path / "other", appended="raise RuntimeError('broken')\n", name="vfs/vault.py")
    with pytest.raises(RuntimeError, match=f"the engine of {other} does not start"):
        measure([other], tmp_path, rounds=1, count=8)


def test_another_cryptfs_than_the_one_that_was_asked_for_is_refused(tmp_path: Path) -> None:
    """Without a package there, the installed one would be imported."""
    (tmp_path / "empty").mkdir()
    with pytest.raises(RuntimeError, match=f"the engine of {tmp_path}/empty does not start: .* was imported"):
        measure([tmp_path / "empty"], tmp_path, rounds=1, count=8)


def test_an_error_that_nobody_wanted_ends_it(tmp_path: Path) -> None:
    server = EngineServer(ROOT, tmp_path / "vault")
    try:
        with pytest.raises(RuntimeError, match="answered with No such file or directory"):
            server.ask([(Op.UNLINK, 1, b"nothing\0")])
        with pytest.raises(RuntimeError, match="answered with no error"):
            server.ask([(Op.STATFS, 1, b"")], refused=True)
    finally:
        server.close()


def test_costs_with_ratios_in_every_form(tmp_path: Path) -> None:
    row = Handler(title="create", ours=[10.0, 14.0, 12.0], theirs=[20.0, 16.0, 24.0])
    assert row.ratio == 0.6
    assert row.ratios == [0.5, 0.875, 0.5]
    made = Results(machine={}, focus="cryptfs", subjects=[], handlers=[row])
    results.save(made, tmp_path / "file.json")
    assert results.load(tmp_path / "file.json") == made
    console = Console(width=120)
    with console.capture() as captured:
        report.show(made, console)
    assert "12.0 (10.0-14.0)" in captured.get() and "0.60 (0.50-0.88)" in captured.get()
    line = "| create | 12.0 (10.0-14.0) | 20.0 (16.0-24.0) | 0.60 (0.50-0.88) |"
    assert line in list(markdown.lines(made))
    made.handlers = [Handler(title="create", ours=[10.0])]
    assert list(markdown.lines(made))[-1] == "| create | 10.0 |"


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = parse(["--handlers", "--against", str(ROOT)])
    assert (options.handlers, options.against, workloads_of(options)) == (True, ROOT, [])
    assert len(workloads_of(parse(["--handlers", "--workload", "git"]))) == 1
    for words, complaint in (
        (["--against", str(ROOT)], "--against goes with --handlers"),
        (["--handlers", "--against", str(tmp_path)], f"{tmp_path} is no checkout of cryptfs"),
    ):
        with pytest.raises(SystemExit):
            parse(words)
        assert complaint in capsys.readouterr().err


def test_a_message_fits_into_every_user_s_socket() -> None:
    """net.core.wmem_max is 208 KiB unless somebody changed it, and counts double."""
    assert handlers.LARGE + 4096 < handlers._SOCKET_BUFFER // 2
