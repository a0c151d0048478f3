"""INIT: what the native engine asks for, masked by what the kernel offers."""

from __future__ import annotations

import socket

import pytest

from cryptfs.errors import MountError
from cryptfs.mount.native import structs
from cryptfs.mount.native.connection import MAX_REQUEST, WANTED, Connection
from cryptfs.mount.native.structs import Cap
from cryptfs.mount.opcodes import Op
from cryptfs.mount.options import parse_options
from tests.mount.native_kernel import init_request, make_requests
from tests.support import BareVault

ALL = 2**64 - 1


def negotiated(vault: BareVault, options: str, request: bytes) -> tuple[int, ...]:
    """The fields of the reply to an INIT request: fuse_init_out, with flags2 above flags."""
    parsed = parse_options(options)
    requests = make_requests(vault, parsed)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        ours.settimeout(5)
        ours.sendall(request)
        try:
            Connection(theirs.fileno(), requests, parsed, lambda: None).negotiate()
            reply = ours.recv(1000)
        finally:
            requests.close()
    assert len(reply) == 80
    size, code, unique = structs.OUT_HEADER.unpack_from(reply)
    assert (size, code, unique) == (80, 0, 1)
    fields = list(structs.INIT_OUT.unpack_from(reply, 16))
    fields[3] |= fields[10] << 32
    return tuple(fields[:10])


def chosen(vault: BareVault, options: str, offered: int = ALL) -> Cap:
    return Cap(negotiated(vault, options, init_request(flags=offered))[3])


@pytest.mark.parametrize(
    ("options", "extra"),
    [
        ("nowriteback", Cap.DONT_MASK),
        ("writeback", Cap.WRITEBACK_CACHE | Cap.DONT_MASK),
        ("nowriteback,allow_other", Cap.POSIX_ACL | Cap.DONT_MASK),
        ("writeback,allow_other", Cap.WRITEBACK_CACHE | Cap.POSIX_ACL | Cap.DONT_MASK),
        ("nowriteback,allow_other,noxattrs", Cap(0)),
        ("nowriteback,allow_other,no_default_permissions", Cap.DONT_MASK),
        ("nowriteback,default_permissions", Cap.POSIX_ACL | Cap.DONT_MASK),
    ],
)
def test_what_the_options_ask_for(vault: BareVault, options: str, extra: Cap) -> None:
    optional = Cap.WRITEBACK_CACHE | Cap.POSIX_ACL | Cap.DONT_MASK
    assert chosen(vault, options) & optional == extra
    assert chosen(vault, options) & WANTED == WANTED


@pytest.mark.parametrize("missing", list(Cap))
def test_nothing_is_taken_that_is_not_offered(vault: BareVault, missing: Cap) -> None:
    every = chosen(vault, "allow_other")
    flags2 = 0xFFFFFFFF if missing is Cap.INIT_EXT else 0xFFFFFFFFFFFFFFFF  # without it there are none
    assert chosen(vault, "allow_other", ALL & ~missing) == every & ~missing & flags2


@pytest.mark.parametrize("offered", [0, 1, 0xFFFFFFFF, ALL & ~Cap.INIT_EXT, ALL])
def test_the_reply_is_within_the_offer(vault: BareVault, offered: int) -> None:
    seen = chosen(vault, "allow_other", offered)
    assert seen & ~offered == 0
    if not offered & Cap.INIT_EXT:
        assert seen >> 32 == 0  # such a kernel reads no flags2


def test_a_kernel_before_7_36_sends_a_shorter_init(vault: BareVault) -> None:
    body = structs.INIT_IN.pack(7, 31, 4096, 0xFFFFFFFF)  # even where it claims an extension
    header = structs.IN_HEADER.pack(40 + len(body), Op.INIT, 1, 0, 0, 0, 0, 0, 0)
    fields = negotiated(vault, "", header + body)
    assert fields[:2] == (7, 31)
    assert fields[3] >> 32 == 0


@pytest.mark.parametrize(("minor", "answer"), [(31, 31), (36, 36), (38, 38), (45, 38), (1000, 38)])
def test_the_minor_that_both_know(vault: BareVault, minor: int, answer: int) -> None:
    assert negotiated(vault, "", init_request(minor))[:2] == (7, answer)


def test_sizes_and_limits(vault: BareVault) -> None:
    _, _, readahead, _, background, congestion, max_write, time_gran, max_pages, _ = negotiated(
        vault, "", init_request()
    )
    assert max_write == MAX_REQUEST == max_pages * 4096
    assert readahead >= MAX_REQUEST
    assert 0 < congestion <= background
    assert time_gran == 1  # nanoseconds


@pytest.mark.parametrize(("major", "minor"), [(7, 30), (7, 0), (6, 99), (8, 0)])
def test_another_protocol_is_refused_by_name(vault: BareVault, major: int, minor: int) -> None:
    with pytest.raises(MountError, match=rf"FUSE {major}\.{minor}; this engine needs 7\.31: use --engine"):
        negotiated(vault, "", init_request(minor, major=major))
