# Installs gpu.lock, this project and the kernels into the environment whose `python` is first in PATH, in this order:
# the kernels compile against the torch that is there. `make gpu` and gpu.def run it, and so does Snakemake, within a
# conda environment that it has made from gpu.yaml; always in the folder of the repository.
set -euo pipefail
pip() { python -m pip --disable-pip-version-check "$@"; }

# conda's compiler finds neither conda's headers nor its libraries by itself.
if [ -x "${CONDA_PREFIX:-/nowhere}/bin/nvcc" ]; then
  export CUDA_HOME="$CONDA_PREFIX"
  export CPATH="$CONDA_PREFIX/targets/x86_64-linux/include${CPATH:+:$CPATH}"
  export LIBRARY_PATH="$CONDA_PREFIX/lib${LIBRARY_PATH:+:$LIBRARY_PATH}"
fi

# Said before some GB are downloaded, not after. Whoever has wheels of the kernels names them in PIP_FIND_LINKS.
if [ -z "${PIP_FIND_LINKS:-}" ]; then
  wanted=$(sed -n 's/^cuda-toolkit==\([0-9]*\).*/\1/p' envs/gpu.lock)
  nvcc=$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)
  if [ -n "${CUDA_HOME:-}" ]; then nvcc=$CUDA_HOME/bin/nvcc; fi # comes first for torch, too
  found=$("$nvcc" --version 2>/dev/null | sed -n 's/.*release \([0-9]*\)\..*/\1/p' || true)
  if [ "$found" != "$wanted" ]; then
    echo "error: compiling the kernels takes the CUDA toolkit $wanted, as torch in envs/gpu.lock; $nvcc is" \
      "${found:+of CUDA }${found:-not there}. Load the toolkit (module load cuda/$wanted) or set CUDA_HOME." >&2
    exit 2
  fi
fi

rest=$(mktemp)
trap 'rm -f "$rest"' EXIT
grep -vE '^(causal-conv1d|mamba-ssm)==' envs/gpu.lock >"$rest"
pip install --quiet --no-deps -r "$rest"
pip install --quiet --no-deps --no-build-isolation --editable .
echo "compiling causal-conv1d and mamba-ssm (a quarter of an hour and more)"
command=$(python -m matvlm.ops.install)
bash -euc "$command"
python -c 'import causal_conv1d, mamba_ssm, torch; print("kernels installed for torch", torch.__version__)'
