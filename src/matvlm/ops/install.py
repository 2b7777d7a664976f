"""How to install the kernels, mamba-ssm and causal-conv1d: the one command, for whoever lacks them.

``python -m matvlm.ops.install`` prints it for the torch that is installed; envs/gpu.post-deploy.sh runs it.
"""

from __future__ import annotations

from matvlm.errors import UserError, one_line

TORCH = "2.11.0"  # with CUDA 13.0, the newest that these versions were seen working with
KERNELS = {"causal-conv1d": "1.7.0", "mamba-ssm": "2.3.2.post1"}
# What they need to build and to run. mamba-ssm's other requirements are for Mamba-3 and not installed.
NEEDS = ("einops", "ninja", "packaging", "setuptools", "wheel")


def install_command(torch_version: str, cuda: str | None) -> str:
    """One line that installs both kernels beside a torch that is already there.

    Args:
        torch_version: `torch.__version__`. cuda: `torch.version.cuda`, none in a build without CUDA.

    Returns:
        A shell command; without CUDA a sentence that says to install another torch first.
    """
    if cuda is None:
        return (
            f"torch {torch_version} has no CUDA, and the kernels need it: install a build that has first, as by "
            f"`python -m pip install --force-reinstall torch=={TORCH} "
            "--index-url https://download.pytorch.org/whl/cu130`"
        )
    # No isolation, since they compile against this torch; no cache, since pip's does not tell what a wheel was
    # compiled against, and one for another torch fails at import.
    kernels = " ".join(f"{name}=={version}" for name, version in KERNELS.items())
    return (
        f"python -m pip install {' '.join(NEEDS)} && "
        f"python -m pip install --no-build-isolation --no-deps --no-cache-dir {kernels}"
        f"  # for torch {torch_version}; compiles with nvcc of CUDA {cuda.split('.')[0]}"
    )


@one_line
def main() -> None:
    import torch  # here, so that whoever only wants the command need not wait for it

    command = install_command(torch.__version__, torch.version.cuda)
    if torch.version.cuda is None:
        raise UserError(command)
    print(command)


if __name__ == "__main__":
    raise SystemExit(main())
