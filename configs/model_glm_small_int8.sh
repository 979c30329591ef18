# The embedded demonstration model in INT8, quantised while it is loaded.
CHECKPOINT_PATH="${CHECKPOINT_PATH:-$REPOSITORY/checkpoints/glm-small}"
MP_SIZE="${MP_SIZE:-1}"
MODEL_ARGS=(--quantization-bit-width 8)
