"""The `-o` string: what is understood, what is refused, and that commas and backslashes survive."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryptfs.mount.options import (
    MountOptions,
    OptionItem,
    duration,
    escape_value,
    parse_options,
    split_options,
)


def test_nothing_is_the_default() -> None:
    assert parse_options("") == MountOptions()


def test_each_kind_of_option() -> None:
    parsed = parse_options(
        "ro,allow_other,noxattrs,nowriteback,attr_timeout=2.5,max_threads=3,fsname=a b,nosuid"
    )
    assert parsed == MountOptions(
        read_only=True,
        allow_other=True,
        xattrs=False,
        writeback=False,
        attr_timeout=2.5,
        max_threads=3,
        fsname="a b",
        extra=("nosuid",),
    )


def test_the_last_one_wins() -> None:
    assert parse_options("ro,rw").read_only is False
    assert parse_options("noxattrs,xattrs").xattrs is True
    assert parse_options("noatime,nodev,noatime").extra == ("nodev", "noatime")


def test_what_fstab_adds_is_ignored() -> None:
    text = "defaults,noauto,nofail,user,_netdev,x-systemd.automount,X-mount.mkdir=755,comment=mine,relatime"
    assert parse_options(text) == MountOptions()


def test_every_option_of_mount_8_that_no_filesystem_may_refuse() -> None:
    """mount(8), FILESYSTEM-INDEPENDENT MOUNT OPTIONS; but `context=`, which only SELinux has, and remount."""
    text = """
        async atime noatime auto noauto defaults dev nodev diratime nodiratime dirsync exec noexec group
        iversion noiversion mand nomand _netdev nofail relatime norelatime strictatime nostrictatime lazytime
        nolazytime suid nosuid silent loud owner ro rw sync user nouser users nosymfollow symfollow
    """
    for name in text.split():
        parse_options(name)


def test_options_are_laid_over_others() -> None:
    base = MountOptions(read_only=True, extra=("nodev",))
    assert parse_options("noexec", base) == MountOptions(read_only=True, extra=("nodev", "noexec"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("colour=blue", "unknown mount option 'colour'"),
        ("ro=1", "'ro' takes no value"),
        ("fsname", "'fsname' needs a value"),
        ("attr_timeout=soon", "attr_timeout needs a number"),
        ("attr_timeout=nan", "attr_timeout must be from 0 to"),
        ("entry_timeout=-1", "entry_timeout must be from 0 to"),
        ("max_threads=2.5", "max_threads needs a whole number"),
        ("max_threads=0", "max_threads must be from 1 to"),
        ("engine=steam", "no engine 'steam'"),
        ("ro,\\", "lone backslash"),
        ("=5", "no name"),
    ],
)
def test_refusals_name_the_option(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_options(text)


def test_permissions_are_checked_by_the_kernel_only_with_others() -> None:
    assert not MountOptions().kernel_checks_permissions
    assert MountOptions(allow_other=True).kernel_checks_permissions
    assert not parse_options("allow_other,no_default_permissions").kernel_checks_permissions
    assert parse_options("default_permissions").kernel_checks_permissions


def test_escapes() -> None:
    assert split_options("fsname=/a\\,b\\\\c=d,ro") == [
        OptionItem("fsname", "/a,b\\c=d"),
        OptionItem("ro", None),
    ]


@given(st.text(alphabet=st.characters(blacklist_characters="\0", blacklist_categories=["Cs"])))
def test_any_value_survives_escaping(value: str) -> None:
    assert split_options(f"fsname={escape_value(value)},ro") == [
        OptionItem("fsname", value),
        OptionItem("ro", None),
    ]


@given(st.text())
def test_any_text_is_split_or_refused(text: str) -> None:
    try:
        items = split_options(text)
    except ValueError:
        return
    assert all(item.name for item in items)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("90s", 90),
        ("1.5s", 1.5),
        ("10m", 600),
        ("1h30m", 5400),
        ("2D", 172_800),
        (" 1h1s ", 3601),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert duration(text) == seconds
    assert parse_options(f"idle={text}").idle == seconds


@pytest.mark.parametrize("text", ["", "m", "10 m", "1m1h", "-5s", "1.5m", "ten", "1e3", "٣m", "nan", "inf"])
def test_no_durations(text: str) -> None:
    with pytest.raises(ValueError, match="is not a time; write for example"):
        duration(text)


def test_reasons_to_unmount() -> None:
    assert parse_options(r"unmount_on=sleep:lock,detach_busy").unmount_on == ("sleep", "lock")
    assert parse_options(r"unmount_on=lock\,Logout\,lock").unmount_on == ("lock", "logout")
    for text, why in (
        ("unmount_on=lunch", "unmount_on takes sleep, lock, logout, not 'lunch'"),
        ("unmount_on=:", "not ''"),
        ("idle=0s", "idle must be from 1 second to 30 days"),
        ("idle=31d", "idle must be from 1 second to 30 days"),
        ("after_mount='", "after_mount: No closing quotation"),
        ("before_unmount= ", "before_unmount: the command is empty"),
        ("before_unmount", "needs a value"),
    ):
        with pytest.raises(ValueError, match=why):
            parse_options(text)
