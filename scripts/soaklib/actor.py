"""The outside actor: plain file operations in the vault, by cipher paths, with authentic other versions."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

from soaklib.model import DIRECTORY, Track
from soaklib.sealed import Sealer, replace, replace_with_inode, rewrite

HEADER = 256


class Actor:
    """Changes the vault behind its mount, and tells the model.

    Args: aside: a directory on the same filesystem, for what is put into another place.
          content: makes a new content for a path.
          moved: told of an old and a new path of a file that is renamed: handles on it go with it.
    """

    def __init__(
        self,
        sealer: Sealer,
        tracks: dict[str, Track],
        dice: random.Random,
        aside: Path,
        content: Callable[[str], bytes],
        moved: Callable[[str, str], None],
    ) -> None:
        self.moved = moved
        self.sealer = sealer
        self.tracks = tracks
        self.dice = dice
        self.aside = aside
        self.content = content
        self.history: dict[str, list[tuple[bytes, bytes]]] = {}  # versions of a path: content, ciphertext
        self.freed: list[int] = []
        self.removed: dict[str, Path] = {}  # directories that are aside

    def backing(self, path: str) -> Path | None:
        """The backing path; None where a directory above is gone."""
        try:
            return self.sealer.entry(path)
        except OSError:
            return None

    def raw(self, path: str) -> bytes | None:
        """The ciphertext of a path, where a closed file stands there, whole."""
        backing = self.backing(path)
        try:
            raw = backing.read_bytes() if backing is not None else b"-"
        except OSError:
            return None
        return raw if self.sealer.settled(raw) else None

    def _note(self, path: str, content: bytes, raw: bytes) -> None:
        self.history.setdefault(path, []).append((content, raw))
        del self.history[path][:-8]

    def _placed(self, track: Track, content: bytes, raw: bytes) -> None:
        track.change(content, outside=True)
        track.placed = raw
        self._note(track.path, content, raw)

    def step(self, path: str) -> str:
        """One change of a path; returns what was done."""
        track, backing = self.tracks[path], self.backing(path)
        if backing is None:
            return "nothing: no directory"
        if backing.is_dir():
            return self.back_to_file(track, backing)
        if not backing.exists():
            return self.create(track, backing)
        raw = self.raw(path)
        actions: list[Callable[[Track, Path, bytes], str]] = [
            self.replace,
            self.replace,
            self.delete,
            self.old,
        ]
        if raw is None:
            return self.replace(track, backing, b"")
        if not track.last.damaged and track.exists and self.sealer.content(raw) == track.certain:
            actions += [self.in_place, self.in_place, self.old_in_place, self.append, self.cut, self.touch]
            actions += [self.away_and_back, self.to_directory, self.reuse]
            if not track.written_now:
                actions += [self.over_another, self.swap]
        return self.dice.choice(actions)(track, backing, raw)

    # ---- whole files

    def _sealed(self, content: bytes, raw: bytes) -> bytes:
        return self.sealer.seal(content, like=raw, new_epoch=self.dice.random() < 0.5)

    def _write(self, backing: Path, raw: bytes) -> str:
        """By temp and rename, with a freed inode number where one is to be had."""
        if self.freed and self.dice.random() < 0.7:
            number = self.freed.pop()
            return " in a used inode" if replace_with_inode(backing, raw, number, 60) else ""
        replace(backing, raw)
        return ""

    def create(self, track: Track, backing: Path) -> str:
        """A new file, or an old one that comes back."""
        versions = self.history.get(track.path)
        if versions and self.dice.random() < 0.5:
            content, raw = self.dice.choice(versions)
        else:
            content = self.content(track.path)
            raw = self.sealer.seal(content)
        how = self._write(backing, raw)
        self._placed(track, content, raw)
        return "create" + how

    def replace(self, track: Track, backing: Path, raw: bytes) -> str:
        """Another machine's newer version."""
        content = self.content(track.path)
        sealed = self._sealed(content, raw)
        how = self._write(backing, sealed)
        self._placed(track, content, sealed)
        return "replace" + how

    def old(self, track: Track, backing: Path, raw: bytes) -> str:
        """An older copy is restored."""
        if track.path not in self.history:
            return self.replace(track, backing, raw)
        content, sealed = self.dice.choice(self.history[track.path])
        replace(backing, sealed)
        self._placed(track, content, sealed)
        return "restore an older copy"

    def delete(self, track: Track, backing: Path, raw: bytes) -> str:
        """It is gone; its inode number is free."""
        self.freed.append(backing.stat().st_ino)
        backing.unlink()
        track.change(None, outside=True)
        return "delete"

    def over_another(self, track: Track, backing: Path, raw: bytes) -> str:
        """It is renamed over another name."""
        other = self.dice.choice([t for t in self.tracks.values() if t.path != track.path])
        target = self.backing(other.path)
        if other.busy or target is None or target.is_dir() or os.path.dirname(other.path) == other.path:
            return self.replace(track, backing, raw)
        content = track.certain
        assert content is not None
        backing.rename(target)
        self.moved(track.path, other.path)
        track.change(None, outside=True)
        other.origins |= track.origins
        self._placed(other, content, raw)
        return f"rename over {other.path}"

    def swap(self, track: Track, backing: Path, raw: bytes) -> str:
        """Two files change places."""
        choice = [t for t in self.tracks.values() if t is not track and t.exists and not t.busy]
        other = self.dice.choice(choice) if choice else None
        theirs = self.raw(other.path) if other is not None else None
        target = self.backing(other.path) if other is not None else None
        if other is None or theirs is None or target is None or self.sealer.content(theirs) != other.certain:
            return self.replace(track, backing, raw)
        mine, content = track.certain, other.certain
        assert mine is not None and content is not None
        backing.rename(self.aside / "swap")
        target.rename(backing)
        (self.aside / "swap").rename(target)
        self.moved(track.path, other.path)
        self.moved(other.path, track.path)
        track.origins |= other.origins
        other.origins |= track.origins
        self._placed(track, content, theirs)
        self._placed(other, mine, raw)
        return f"swap with {other.path}"

    def away_and_back(self, track: Track, backing: Path, raw: bytes) -> str:
        """It is put into another place and back."""
        content = track.certain
        assert content is not None
        backing.rename(self.aside / "away")
        (self.aside / "away").rename(backing)
        self._placed(track, content, raw)
        return "away and back"

    def reuse(self, track: Track, backing: Path, raw: bytes) -> str:
        """It is deleted, and another file's newer version gets its inode number."""
        choice = [t for t in self.tracks.values() if t is not track and t.exists and not t.busy]
        other = self.dice.choice(choice) if choice else None
        theirs = self.raw(other.path) if other is not None else None
        target = self.backing(other.path) if other is not None else None
        if other is None or theirs is None or target is None:
            return self.delete(track, backing, raw)
        content = self.content(other.path)
        sealed = self._sealed(content, theirs)
        number = backing.stat().st_ino
        backing.unlink()
        track.change(None, outside=True)
        again = replace_with_inode(target, sealed, number, 100)
        self._placed(other, content, sealed)
        return f"delete, and {other.path} gets {'its' if again else 'another'} inode"

    # ---- in place

    def _rewrite(self, backing: Path, before: bytes, raw: bytes, *, block: int = 0) -> None:
        """As `rsync --inplace -X`: a version with another file_id comes without the xattrs of this one."""
        other = not before or not raw or self.sealer.header(before).file_id != self.sealer.header(raw).file_id
        rewrite(backing, raw, block=block)
        for name in os.listxattr(backing) if other else ():
            os.removexattr(backing, name)

    def in_place(self, track: Track, backing: Path, raw: bytes) -> str:
        """rsync --inplace: whole, or by blocks."""
        content = self.content(track.path)
        sealed = self._sealed(content, raw)
        block = self.dice.choice((0, 700, 4096))
        self._rewrite(backing, raw, sealed, block=block)
        self._placed(track, content, sealed)
        return f"in place, blocks of {block}"

    def old_in_place(self, track: Track, backing: Path, raw: bytes) -> str:
        """An older copy, in place."""
        if track.path not in self.history:
            return self.in_place(track, backing, raw)
        content, sealed = self.dice.choice(self.history[track.path])
        self._rewrite(backing, raw, sealed)
        self._placed(track, content, sealed)
        return "an older copy in place"

    def append(self, track: Track, backing: Path, raw: bytes) -> str:
        """Bytes come behind the end."""
        if not raw:
            return self.replace(track, backing, raw)
        with backing.open("ab") as file:
            file.write(self.dice.randbytes(self.dice.choice((1, 64, 4096, 49_152))))
        track.change(track.certain, outside=True, damaged=True)
        return "append bytes"

    def cut(self, track: Track, backing: Path, raw: bytes) -> str:
        """It is cut: to nothing, the header, a chunk boundary or oddly."""
        record = self.sealer.geometry.record_size
        sizes = [0, HEADER, HEADER + record, self.dice.randrange(len(raw) + 1)]
        size = self.dice.choice([size for size in sizes if size < len(raw)] or [0])
        if not raw or self.sealer.content(raw) == b"":
            return self.replace(track, backing, raw)
        os.truncate(backing, size)
        for name in os.listxattr(backing) if size < HEADER else ():
            os.removexattr(backing, name)  # sealed for the file_id, which went with the header: EIO for good
        track.change(*((b"",) if size == 0 else ()), outside=True, damaged=True)
        return f"cut to {size}"

    def touch(self, track: Track, backing: Path, raw: bytes) -> str:
        """Mode and times."""
        backing.chmod(self.dice.choice((0o555, 0o700, 0o755)))
        os.utime(backing, ns=(10**18, 10**18 + self.dice.randrange(10**9)))
        assert track.certain is not None
        self._placed(track, track.certain, raw)
        return "chmod and utimens"

    def to_directory(self, track: Track, backing: Path, raw: bytes) -> str:
        """A file becomes a directory."""
        self.freed.append(backing.stat().st_ino)
        backing.unlink()
        self.sealer.new_directory(backing)
        track.change(DIRECTORY, outside=True)
        return "becomes a directory"

    def back_to_file(self, track: Track, backing: Path) -> str:
        """And back."""
        content = self.content(track.path)
        sealed = self.sealer.seal(content)
        shutil.rmtree(backing)
        replace(backing, sealed)
        self._placed(track, content, sealed)
        return "becomes a file again"

    # ---- directories

    def _below(self, directory: str) -> list[Track]:
        return [track for path, track in self.tracks.items() if path.startswith(directory + "/")]

    def directory_step(self, directory: str) -> str:
        """A directory goes, comes back, or is made anew; the tracks below it are told."""
        backing = self.backing(directory)
        if any(track.busy for track in self._below(directory)) or backing is None:
            return "nothing: busy"
        if not backing.exists():
            return self._directory_back(directory, backing)
        for track in self._below(directory):
            if track.exists and self.raw(track.path) is None:
                return "nothing: being written"
        saved = self.aside / f"saved{len(self.removed)}{self.dice.randrange(10**9)}"
        copy_tree(backing, saved)
        shutil.rmtree(backing)
        before = {track.path: track.last for track in self._below(directory)}
        for track in self._below(directory):
            track.change(None, outside=True)
        self.removed[directory] = saved
        if self.dice.random() < 0.5:
            return "remove the directory"
        copy_tree(saved, backing)
        for track in self._below(directory):
            state = before[track.path]
            track.change(*state.contents, outside=True, damaged=state.damaged)
        return "remove and restore the directory"

    def _directory_back(self, directory: str, backing: Path) -> str:
        self.removed.pop(directory, None)
        self.sealer.new_directory(backing)
        for track in self._below(directory):
            if track.path.count("/") == directory.count("/") + 1 and self.dice.random() < 0.5:
                self.create(track, self.sealer.entry(track.path))
        return "make the directory anew"

    def heal(self) -> None:
        """Every damaged file gets an intact version, every directory comes back."""
        for path, track in self.tracks.items():
            backing = self.backing(path)
            if backing is not None and (track.last.damaged or backing.is_dir()):
                if backing.is_dir():
                    self.back_to_file(track, backing)
                else:
                    self.replace(track, backing, b"")


def copy_tree(source: Path, target: Path) -> None:
    """A copy with times, as rsync -a makes one: other inodes, the same content."""
    hidden = target.with_name(f".outside.{os.urandom(6).hex()}")
    shutil.copytree(source, hidden, copy_function=shutil.copy2)
    hidden.rename(target)
