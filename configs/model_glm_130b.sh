# GLM-130B in FP16 on 8 GPUs: 32.2 GB of weights on each.
CHECKPOINT_PATH="${CHECKPOINT_PATH:-/path/to/glm-130b-sat}" # the folder with the file "latest"
MP_SIZE="${MP_SIZE:-8}"
MODEL_ARGS=(--model glm-130b --fp16)
