# What Snakemake runs, in the folder of the workflow, within a conda environment that it has made from cpu.yaml.
set -euo pipefail
python -m pip install --quiet "$(grep '^torch==' envs/cpu.lock)"
python -m pip install --quiet --no-deps -r envs/cpu.lock
python -m pip install --quiet --no-deps --no-build-isolation --editable .
