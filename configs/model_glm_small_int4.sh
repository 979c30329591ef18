# The embedded demonstration model in INT4, quantised while it is loaded; so small a model needs a scale for every 32
# columns (docs/quantization.md).
CHECKPOINT_PATH="${CHECKPOINT_PATH:-$REPOSITORY/checkpoints/glm-small}"
MP_SIZE="${MP_SIZE:-1}"
MODEL_ARGS=(--quantization-bit-width 4 --quantization-group-size 32)
