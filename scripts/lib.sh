# shellcheck shell=bash
# What the scripts share: installing what is missing, and nothing when nothing is.
# Sourced, never run. Sets `root` (the repository) and `venv` (its Python environment).
# `python -I`: without it Python imports what lies in the directory in which somebody started the script.

set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
venv="${CRYPTFS_VENV:-$root/.venv}"
apt_updated=no

say() { printf '%s\n' "$*" >&2; }

die() {
    say "${0##*/}: $*"
    exit 1
}

as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    else
        sudo "$@"
    fi
}

is_installed() {
    # "install ok installed" and nothing else: removed packages are known to dpkg as well.
    [ "$(dpkg-query -W -f '${Status}' "$1" 2>/dev/null)" = "install ok installed" ]
}

# need_packages PACKAGE...: have these Debian packages, or say which are missing.
need_packages() {
    local missing=() package
    if ! command -v dpkg-query >/dev/null; then
        say "This is no Debian or Ubuntu: please see to it that what these packages hold is there: $*"
        return 0
    fi
    for package in "$@"; do
        is_installed "$package" || missing+=("$package")
    done
    [ "${#missing[@]}" -gt 0 ] || return 0
    if [ "$(id -u)" -ne 0 ] && ! command -v sudo >/dev/null; then
        die "these Debian packages are missing: ${missing[*]}; as root: apt-get install ${missing[*]}"
    fi
    say "Installing Debian packages: ${missing[*]}"
    if [ "$apt_updated" = no ]; then
        # One source that fails must not stop us: what we need may be in another.
        as_root apt-get update -qq >&2 || say "apt-get update had errors; going on with what is known"
        apt_updated=yes
    fi
    as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends "${missing[@]}" >&2 ||
        die "apt-get could not install: ${missing[*]}"
}

# is_new_enough PYTHON, is_optimized PYTHON (by cryptfs/interpreter.py: built with PGO), makes_venvs PYTHON.
is_new_enough() { "$1" -I -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }
is_optimized() { "$1" -I "$root/cryptfs/interpreter.py" 2>/dev/null; }
makes_venvs() { "$1" -I -c 'import ensurepip, venv' 2>/dev/null; }

# A python3 that is new enough, on stdout: CRYPTFS_PYTHON, else the first optimized one, else the first. The system's is
# tried first, because all users can run it. One without ensurepip, as Debian's is without python3-venv, counts where
# this user can install that, and else only if there is no other.
find_python() {
    local candidate first='' last=''
    if [ -n "${CRYPTFS_PYTHON:-}" ] && is_new_enough "$CRYPTFS_PYTHON"; then
        printf '%s\n' "$CRYPTFS_PYTHON"
        return 0
    fi
    for candidate in /usr/bin/python3 python3 python3.13 python3.12 python3.11; do
        is_new_enough "$candidate" || continue
        last="${last:-$candidate}"
        makes_venvs "$candidate" || [ "$(id -u)" -eq 0 ] || command -v sudo >/dev/null || continue
        first="${first:-$candidate}"
        if is_optimized "$candidate"; then
            first="$candidate"
            break
        fi
    done
    first="${first:-$last}"
    [ -n "$first" ] && printf '%s\n' "$first"
}

# An environment of an earlier time may have a slow Python though the machine has a better one.
advise_python() {
    local better
    if ! is_optimized "$venv/bin/python" && better="$(find_python)" && is_optimized "$better"; then
        say "The Python in $venv was built without PGO. A mount is faster on $better: delete $venv, and start again"
    fi
}

# need_venv EXTRA: the environment with the package installed from this tree; EXTRA is '' or 'dev'.
need_venv() {
    local extra="$1" python stamp wanted
    stamp="$venv/.cryptfs-installed"
    wanted="$root ${extra:-plain} $(cksum <"$root/pyproject.toml")"
    if [ -x "$venv/bin/python" ] && [ -f "$stamp" ]; then
        # What has been installed for development serves for running too.
        case "$(cat "$stamp")" in
        "$wanted" | "$root dev $(cksum <"$root/pyproject.toml")")
            advise_python
            return 0
            ;;
        esac
    fi
    python="$(find_python)" || {
        need_packages python3
        python="$(find_python)" || die "Python 3.11 or newer is needed; set CRYPTFS_PYTHON to one"
    }
    if ! "$venv/bin/python" -I -m pip --version >/dev/null 2>&1; then
        # Debian's python3 has venv without ensurepip until python3-venv is there.
        makes_venvs "$python" || need_packages python3-venv
        say "Making a Python environment in $venv"
        "$python" -I -m venv "$venv" || die "cannot make a Python environment in $venv"
    fi
    say "Installing cryptfs and what it needs into $venv"
    rm -f "$stamp"
    "$venv/bin/python" -I -m pip install --quiet --disable-pip-version-check \
        --editable "$root${extra:+[$extra]}" >&2 || die "pip could not install what pyproject.toml asks for"
    printf '%s\n' "$wanted" >"$stamp"
}

# FUSE: the library, the program that mounts for ordinary users, and the device.
need_fuse() {
    if [ "$(uname -s)" = Linux ]; then
        need_packages fuse3 # and with it the library, under whatever name this release gives it
        [ -e /dev/fuse ] || die "/dev/fuse is missing: load the module (modprobe fuse), or in a container pass" \
            "the device through (docker run --device /dev/fuse --cap-add SYS_ADMIN)"
    fi
}
