#!/usr/bin/env bash
# An environment beside the project's: its packages, plus the peers that are measured.
# torchvision comes without its dependencies, so that it does not replace the CPU build of torch (see peers.py).
set -euo pipefail
cd "$(dirname "$0")/.."
bench=.venv-bench
if [ ! -e "$bench/installed" ]; then
    .venv/bin/python -m venv "$bench"
    .venv/bin/python -c "import sysconfig; print(sysconfig.get_paths()['purelib'])" \
        > "$("$bench/bin/python" -c "import sysconfig; print(sysconfig.get_paths()['purelib'])")/project.pth"
    "$bench/bin/python" -m pip install --quiet --no-deps \
        torchvision==0.28.0 lightly==1.6.0 lightly_utils pytorch_lightning lightning_utilities torchmetrics
    touch "$bench/installed"
fi
export OMP_NUM_THREADS=1 PYTHONPATH=.
"$bench/bin/python" benchmarks/losses.py
"$bench/bin/python" benchmarks/views.py
"$bench/bin/python" benchmarks/step.py
"$bench/bin/python" benchmarks/moco.py
"$bench/bin/python" benchmarks/pdcr.py
"$bench/bin/python" benchmarks/swin.py
