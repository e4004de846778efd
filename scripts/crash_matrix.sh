#!/bin/sh
# Kills a tiny training at every file event of its run folder and continues it with the same command, with the tool
# ckpt-chaos (PyPI, MIT). Needs `pip install ckpt-chaos` beside Terminus. The table in docs/failures.md is its output.
#
#     scripts/crash_matrix.sh [WORK_FOLDER]
set -eu
work=${1:-$(mktemp -d)}
mkdir -p "$work"
python=${PYTHON:-python}
export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1

cat > "$work/recipe.yaml" <<YAML
run: {dir: $work/unused}
model: {start: nano}
data:
  store: $work/data
  sources: [{kind: embedded, styles: [3d], backgrounds: 1, limit: 60}]
  resolution: 64
  validation_fraction: 0.2
objective: {kind: diffusion}
training:
  images: 12
  micro_batch: 1
  accumulation: 2
  precision: fp32
  loader_threads: 0
  learning_rate: {max: 1.0e-4, min: 1.0e-5}
  checkpoints: {every_images: 4, keep: 9}
  validation: {every_images: 100, images: 2}
YAML
$python -m terminus prepare "$work/recipe.yaml"

# What must come out the same: the last checkpoint's tensors and the finished model's, byte for byte.
cat > "$work/result.sh" <<'SH'
cd "$1" && cat checkpoints/images-000000000012/*.safetensors model/unet/*.safetensors | sha256sum
SH
exec $python -m ckpt_chaos run --work "$work/matrix" --timeout 300 --max-points "${MAX_POINTS:-400}" \
    --jobs "${JOBS:-2}" --modes "${MODES:-before,torn,term,unsynced}" --grace 60 \
    --checkpoint-glob "{out}/checkpoints/images-*" --step-regex 'continuing at (\d+) images' \
    --result-cmd "sh $work/result.sh {out}" --summary "$work/summary.md" \
    --fail-on HARD_FAIL,SILENT_DIVERGENCE,LOST_WORK,CONTROL_FAIL \
    -- $python -m terminus train "$work/recipe.yaml" "run.dir={out}"
