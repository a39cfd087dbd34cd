#!/bin/sh
# make install | make uninstall: the service on this machine, or in DESTDIR for whoever builds a package.
#
#   PREFIX/env-STAMP/       a virtual environment each installation; the one before stays, for a way back
#   PREFIX/current          which of them runs, after the next start: an upgrade never changes files under a running daemon
#   PREFIX/share/doc/       documents, the configuration with every default, dashboard and alert rules
#   /usr/local/…            the command, the man page, completions, and what systemd reads
#   /etc/metamusesd/, /var/lib/metamusesd/    yours: made when absent, never changed afterwards
#
# In the environment, or behind make: PREFIX DESTDIR PYTHON EXTRAS (of pyproject.toml) GPU=1 PURGE=1, and all of pip's.
set -eu
umask 022 # the service reads what root writes here
unset MODELS_DIR METAMUSESD_CONFIG # the checkout's own; the service has its file

NAME=metamusesd
PREFIX=${PREFIX:-/opt/$NAME} DESTDIR=${DESTDIR:-} PYTHON=${PYTHON:-python3} EXTRAS=${EXTRAS:-llamacpp,cache${GPU:+,gpu}}
SOURCE=$(cd "$(dirname "$0")/.." && pwd)
BASE=$DESTDIR$PREFIX LOCAL=$DESTDIR/usr/local UNITS=$DESTDIR/usr/local/lib/systemd/system
CONFIG=/etc/$NAME/$NAME.toml STATE=/var/lib/$NAME

fail() {
    echo "$NAME: $1" >&2
    exit 1
}

on_this_machine() { [ -z "$DESTDIR" ]; }

has_systemd() { on_this_machine && [ -d /run/systemd/system ]; }

refuse_what_cannot_work() {
    case $PREFIX in /?*) ;; *) fail "PREFIX=$PREFIX is not an absolute path; give one such as /opt/$NAME" ;; esac
    on_this_machine || return 0
    [ "$(id -u)" = 0 ] || fail "installing needs root; use sudo make $1, or DESTDIR=DIR to stage the files"
    [ "$1" = install ] || return 0
    home=$("$PYTHON" -c 'import sys; assert sys.version_info >= (3, 11); print(sys.base_prefix)') ||
        fail "PYTHON=$PYTHON is not a Python 3.11 or later; name one, such as PYTHON=/usr/bin/python3.11"
    case $home in
        /root* | /home/*) fail "PYTHON=$PYTHON lives in $home, where the service may not look; use PYTHON=/usr/bin/python3.11" ;;
    esac
}

# The environment

make_environment() {
    before=$(readlink "$BASE/current" || true) env=env-$(date -u +%Y%m%d%H%M%S)
    work=$(mktemp -d)
    trap 'rm -rf "$work"; [ -e "$BASE/$env/.complete" ] || rm -rf "${BASE:?}/$env"' EXIT
    echo "making $BASE/$env (compiles the engine when pip has no wheel of it: 4 to 9 minutes on two cores)"
    mkdir -p "$BASE"
    "$PYTHON" -m venv "$BASE/$env"
    # From a copy: setuptools writes beside what it builds.
    cp -R "$SOURCE/$NAME" "$SOURCE/pyproject.toml" "$SOURCE/README.md" "$SOURCE/LICENSE" "$work"
    "$BASE/$env/bin/python" -m pip install --quiet --disable-pip-version-check --no-warn-script-location \
        --constraint "$SOURCE/requirements.lock" "${work}[$EXTRAS]"
    on_this_machine || grep -rlI "$BASE/$env" "$BASE/$env/bin" "$BASE/$env/pyvenv.cfg" | xargs sed -i "s|$BASE/|$PREFIX/|g"
    touch "$BASE/$env/.complete"
    ln -sfn "$env" "$BASE/current.new"
    mv -T "$BASE/current.new" "$BASE/current"
    for old in "$BASE"/env-*; do
        case ${old##*/} in "$env" | "$before") continue ;; esac
        cat /proc/[0-9]*/cmdline /proc/[0-9]*/maps 2>/dev/null | grep -qa "$old/" || rm -rf "$old"
    done
}

# The files around it

put() { install -D -m 644 "$SOURCE/$1" "$2"; }

put_files() {
    for file in README.md CHANGELOG.md LICENSE docs/*.* docs/adr/* etc/*.* etc/*/*; do
        put "$file" "$BASE/share/doc/$NAME/$file"
    done
    mkdir -p "$LOCAL/bin"
    ln -sfn "$PREFIX/current/bin/$NAME" "$LOCAL/bin/$NAME"
    put docs/$NAME.1 "$LOCAL/share/man/man1/$NAME.1"
    complete_in bash "$LOCAL/share/bash-completion/completions/$NAME"
    complete_in zsh "$LOCAL/share/zsh/site-functions/_$NAME"
    put systemd/$NAME.sysusers "$LOCAL/lib/sysusers.d/$NAME.conf"
    put systemd/$NAME.tmpfiles "$LOCAL/lib/tmpfiles.d/$NAME.conf"
    put systemd/$NAME.service "$UNITS/$NAME.service"
    sed -i "s|/opt/$NAME|$PREFIX|g" "$UNITS/$NAME.service"
    [ -z "${GPU:-}" ] || put systemd/$NAME-gpu.conf "$UNITS/$NAME.service.d/gpu.conf"
}

complete_in() {
    mkdir -p "${2%/*}"
    "$BASE/current/bin/python" -I -m $NAME completion "$1" >"$2"
}

put_configuration() {
    kept=no
    if [ -e "$DESTDIR$CONFIG" ]; then kept=yes && return; fi
    put etc/$NAME.toml "$DESTDIR$CONFIG"
    # Written down, so that everybody's commands find the service, not only the service itself; from a checkout, too,
    # which has a directory of models of its own.
    sed -i -e "s|^#: state_dir = \"\"|state_dir = \"$STATE\"|" -e "s|^#: runtime_dir = \"\"|runtime_dir = \"/run/$NAME\"|" \
        -e "s|^#: models_dir = \"\"|models_dir = \"$STATE/models\"|" "$DESTDIR$CONFIG"
}

settle_in() {
    if on_this_machine; then
        systemd-sysusers "$LOCAL/lib/sysusers.d/$NAME.conf"
        systemd-tmpfiles --create "$LOCAL/lib/tmpfiles.d/$NAME.conf"
        chown "root:$NAME" "$CONFIG"
        chmod 640 "$CONFIG"
    fi
    if has_systemd; then systemctl daemon-reload; fi
}

say_what_next() {
    echo "installed $("$BASE/current/bin/python" -I -c "import $NAME; print('$NAME', $NAME.__version__)") in $PREFIX/current"
    if ! on_this_machine; then
        echo "staged in $DESTDIR; on its machine: systemd-sysusers, systemd-tmpfiles --create, systemctl daemon-reload"
    elif [ $kept = no ]; then
        echo "next:"
        echo "  runuser -u $NAME -- $NAME models fetch    # the demo models; or copy GGUF files into $STATE/models"
        echo "  editor $CONFIG         # every option is explained there; the defaults serve the demo model"
        echo "  $NAME check                             # says what is wrong, and what would be right"
        echo "  systemctl enable --now $NAME"
    else
        echo "kept $CONFIG (all of today's options: $PREFIX/share/doc/$NAME/etc/$NAME.toml)"
        "$BASE/current/bin/$NAME" check --quiet || echo "correct that before the next start"
        echo "next: systemctl restart $NAME    # back: ln -sfn ${before:-env-…} $PREFIX/current && systemctl restart $NAME"
    fi
}

# The end

uninstall() {
    if has_systemd; then
        systemctl disable --now --quiet $NAME 2>/dev/null || systemctl stop $NAME 2>/dev/null || true
    fi
    rm -rf "$BASE"/env-* "$BASE/current" "$BASE/share/doc/$NAME"
    rm -f "$LOCAL/bin/$NAME" "$LOCAL/share/man/man1/$NAME.1" "$LOCAL/share/bash-completion/completions/$NAME" \
        "$LOCAL/share/zsh/site-functions/_$NAME" "$LOCAL/lib/sysusers.d/$NAME.conf" "$LOCAL/lib/tmpfiles.d/$NAME.conf" \
        "$UNITS/$NAME.service" "$UNITS/$NAME.service.d/gpu.conf"
    rmdir "$UNITS/$NAME.service.d" "$BASE/share/doc" "$BASE/share" "$BASE" 2>/dev/null || true
    if has_systemd; then
        systemctl daemon-reload
        systemctl reset-failed $NAME 2>/dev/null || true
    fi
    if [ -z "${PURGE:-}" ]; then
        echo "uninstalled; left: /etc/$NAME, $STATE (jobs, answers, models), /etc/credstore/$NAME.*, the user $NAME."
        echo "To remove them as well: make uninstall PURGE=1"
        return
    fi
    rm -rf "${DESTDIR}/etc/${NAME:?}" "$DESTDIR$STATE" "$DESTDIR/etc/systemd/system/$NAME.service.d"
    rm -f "$DESTDIR/etc/credstore/$NAME".*
    if on_this_machine && id -u $NAME >/dev/null 2>&1; then userdel $NAME; fi
    echo "uninstalled, with configuration, secrets, jobs, answers, models and user"
}

case ${1:-} in
    install)
        refuse_what_cannot_work install
        cd "$SOURCE"
        make_environment
        put_files
        put_configuration
        settle_in
        say_what_next
        ;;
    uninstall)
        refuse_what_cannot_work uninstall
        uninstall
        ;;
    *) fail "use $0 install or $0 uninstall" ;;
esac
