# shellcheck shell=bash
# What the boots of the trial share. Sourced by packaging/systemd-trial/run, inside of the booted system.

failed=0

say() { printf -- '--- %s\n' "$*"; }

# check WHAT COMMAND...: run it, and note whether it succeeds. The trial goes on, to show all that is wrong.
check() {
    local what="$1" output
    shift
    if output="$("$@" 2>&1)"; then
        printf 'ok      %s\n' "$what"
    else
        printf 'FAILED  %s\n' "$what"
        printf '%s\n' "$output" | sed 's/^/        /'
        failed=1
    fi
}

finish() { return "$failed"; }

# is TEXT COMMAND...: whether a command prints just this.
is() {
    local wanted="$1" found
    shift
    found="$("$@")" || true
    [ "$found" = "$wanted" ] || {
        printf 'wanted: %s\nfound:  %s\n' "$wanted" "$found"
        return 1
    }
}

# has PATTERN COMMAND...: whether a command prints a line like this.
has() {
    local pattern="$1" found
    shift
    found="$("$@" 2>&1)" || true
    grep -q -e "$pattern" <<<"$found" || {
        printf 'no line like: %s\nfound:\n%s\n' "$pattern" "$(tail -15 <<<"$found")"
        return 1
    }
}

fails() { ! "$@"; }

# soon SECONDS COMMAND...: until a command succeeds.
soon() {
    local until=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        if [ "$SECONDS" -ge "$until" ]; then
            "$@"
            return
        fi
        sleep 0.1
    done
}

# ana COMMAND...: as the user ana, in no session; she lingers, so that she has a service manager.
ana() {
    runuser -u ana -- env -i HOME=/home/ana USER=ana LOGNAME=ana LANG=C.UTF-8 PATH=/usr/bin:/bin \
        XDG_RUNTIME_DIR=/run/user/1000 DBUS_SESSION_BUS_ADDRESS=unix:path=/run/user/1000/bus "$@"
}

services() { ana systemctl --user "$@"; }
state() { services show -P "$1" "$2"; } # of a unit of ana: state ActiveState UNIT

# login COMMAND...: in a session of its own, by ssh, until the command has ended.
login() { ssh -q -i /root/.ssh/id_ed25519 -o BatchMode=yes -o StrictHostKeyChecking=no ana@127.0.0.1 "$@"; }

# log_in: a session that lasts until `log_out`; its number is in $session.
log_in() {
    mkfifo /run/session
    login bash </run/session >/run/session.out 2>&1 &
    client=$!
    exec 7>/run/session
    rm /run/session
    # shellcheck disable=SC2016 # for the shell there
    tell 'echo "$XDG_SESSION_ID" >~/session'
    # shellcheck disable=SC2034 # for the boots
    session="$(cat /home/ana/session)"
}

# tell COMMAND: run it in the session of log_in; its exit code.
tell() {
    rm -f /home/ana/code
    printf '%s; echo "$?" >~/code\n' "$1" >&7
    soon 30 test -s /home/ana/code && return "$(cat /home/ana/code)"
}

# log_out: as a person who ends the shell.
log_out() {
    exec 7>&-
    wait "$client" || true
}

is_mounted() { grep -q " $1 fuse.cryptfs " /proc/self/mounts; } # root may not look at a mount of ana
is_gone() { ! is_mounted "$1"; }

# is_closed VAULT: nobody has it open: its lock is free.
is_closed() { [ ! -e "$1/cryptfs.lock" ] || flock --nonblock --exclusive "$1/cryptfs.lock" true; }

write_passphrase() { install -m 600 -o "$2" -g "$2" /dev/stdin "$1" <<<'five random words'; }

cat_of_ana() { ana cat "/home/ana/$1"; }

has_other_process() { # than the one given; of cryptfs@photos, and it is ready
    [ "$(state ActiveState cryptfs@photos)" = active ] && [ "$(state MainPID cryptfs@photos)" != "$1" ]
}

list_sessions_of_ana() { loginctl list-sessions --no-legend | grep ' ana ' || true; }

# session_path NUMBER: as logind writes a number in a path of D-Bus.
session_path() { printf '_3%s%s' "${1:0:1}" "${1:1}"; }
