# The embedded demonstration model, English and Chinese; runs on a laptop's CPU.
CHECKPOINT_PATH="${CHECKPOINT_PATH:-$REPOSITORY/checkpoints/glm-small}"
MP_SIZE="${MP_SIZE:-1}"
MODEL_ARGS=()
