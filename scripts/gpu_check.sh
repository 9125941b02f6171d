#!/bin/sh
# Everything that has to be seen on a GPU, in one call: build, tests, sanitizers, profiler,
# benchmarks; one JSON file comes out. `scripts/gpu_check.sh --help` lists the options, PYTHON names
# the Python that has torch (python3).
exec "${PYTHON:-python3}" "$(dirname "$0")/gpu_check.py" "$@"
