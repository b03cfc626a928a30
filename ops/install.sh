#!/bin/sh
# Install kvorum from this clone into .venv/, with what it takes to run it (`run`) or to test it too (`test`).
#
# What the machine lacks is installed with apt-get, and only that: Python 3.11 with venv and headers, a C compiler,
# nghttp2, OpenSSL and zlib with their headers, and to test with: curl, and Debian's etcdctl.
# Nothing outside .venv/ and those packages is touched. Done again, it does nothing: a stamp in .venv/ remembers the state
# of everything that the installation depends on.
set -eu
cd "$(dirname "$0")/.."
what=${1:-run}

say() { echo "kvorum: $*" >&2; }

apt() {
    command -v apt-get > /dev/null || { say "this machine lacks $*, and has no apt-get to install it with"; exit 1; }
    as_root=
    [ "$(id -u)" = 0 ] || as_root=sudo
    say "installing what this machine lacks: apt-get install $*"
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "$@" > /dev/null || {
        $as_root apt-get update -qq
        $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "$@" > /dev/null
    }
}

# $KVORUM_PYTHON, or a Python of at least 3.11: the distribution's own if it is one, since distributions build it with
# profile-guided optimisation and pyenv, by default, does not: 12 to 18 % less time for the work of a put or a txn.
find_python() {
    for name in ${KVORUM_PYTHON:-/usr/bin/python3 python3 python3.14 python3.13 python3.12 python3.11}; do
        if command -v "$name" > /dev/null && "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
            python=$name
            return 0
        fi
    done
    return 1
}

# What is on the path of a request, as C; nothing to do if that is there (native/compile.py).
compile() {
    .venv/bin/python -m native.compile || { say "compiling failed; everything would run interpreted, and slower"; exit 1; }
}

stamp=.venv/.kvorum-$what
depends="ops/install.sh setup.py pyproject.toml cluster/version.py native/build.py $(echo native/*.c native/*.h | tr ' ' '\n' |
    grep -v '^native/_' | tr '\n' ' ')"
# shellcheck disable=SC2086
state=$( (pwd; cat $depends) | cksum)
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$state" ] && [ -x .venv/bin/kvorum ] && ls native/_wal*.so native/_plain*.so native/_ends*.so native/_edge*.so > /dev/null 2>&1
then
    compile
    exit 0
fi

if [ ! -x .venv/bin/python ]; then
    find_python || { apt python3 && find_python; } || { say "Python 3.11 or newer is needed"; exit 1; }
    "$python" -c 'import ensurepip, venv' 2> /dev/null || apt "$(basename "$(readlink -f "$(command -v "$python")")")-venv"
    say "making .venv with $("$python" --version)"
    "$python" -m venv .venv
fi
command -v cc > /dev/null || command -v gcc > /dev/null || apt gcc libc6-dev
headers=$(.venv/bin/python -c 'import os, sysconfig; print(os.path.join(sysconfig.get_paths()["include"], "Python.h"))')
[ -f "$headers" ] || apt "$(basename "$(dirname "$headers")")-dev"
has_header() { echo "#include <$1>" | cc -E -x c - > /dev/null 2>&1; }
has_header nghttp2/nghttp2.h && has_header openssl/ssl.h && has_header zlib.h || apt libnghttp2-dev libssl-dev zlib1g-dev
[ "$what" != test ] || command -v curl > /dev/null || apt curl
# Its tests are left out where there is none: not every distribution has it.
[ "$what" != test ] || [ -x /usr/bin/etcdctl ] || ! apt-cache show etcd-client > /dev/null 2>&1 || apt etcd-client

say "installing kvorum and what it needs into .venv/ (a few minutes)"
target='.[compile]'
[ "$what" = test ] && target='.[compile,test]'
# A plain path entry for the clone: setuptools' import hook would cost every process of a node 2 MB and 20 ms.
.venv/bin/python -m pip install --quiet --disable-pip-version-check -e "$target" --config-settings editable_mode=compat
compile
echo "$state" > "$stamp"
