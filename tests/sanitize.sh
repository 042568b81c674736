#!/bin/sh
# Builds the native kernels with the address and undefined-behaviour sanitizers, and runs the kernels' tests over them.
# usage: sh tests/sanitize.sh [pytest arguments]   (takes some minutes; run it from the project's folder)
set -eu
PYTHON="${PYTHON:-.venv/bin/python}"
HERE="$(cd "$(dirname "$PYTHON")" && pwd)/$(basename "$PYTHON")" # not where its link leads: nanobind is in this environment
BUILD="build/sanitize"
"$PYTHON" -m pip install --disable-pip-version-check -q -c constraints.txt nanobind
cmake -S csrc -B "$BUILD" -DPython_EXECUTABLE="$HERE" -DCMAKE_BUILD_TYPE=Release -DR1_SANITIZE=ON >"$BUILD.log" 2>&1 || { tail -5 "$BUILD.log"; exit 1; }
cmake --build "$BUILD" -j 2 >>"$BUILD.log" 2>&1 || { grep -m5 error "$BUILD.log"; exit 1; }
# Python itself is not built for them: the runtime comes first, and what Python never frees is not reported.
R1_TEST_NATIVE="$(ls "$PWD/$BUILD"/_native*.so)" LD_PRELOAD="$(c++ -print-file-name=libasan.so) $(c++ -print-file-name=libubsan.so)" \
    ASAN_OPTIONS=detect_leaks=0 "$PYTHON" -m pytest -q -p no:cacheprovider tests/unit/kernels "$@"
