# GLM-130B on 8 V100 of 32 GB: FP16 weights leave no room there, so INT8, and one rank after the other reads its part.
CHECKPOINT_PATH="${CHECKPOINT_PATH:-/path/to/glm-130b-sat}" # the folder with the file "latest"
MP_SIZE="${MP_SIZE:-8}"
MODEL_ARGS=(--model glm-130b --fp16 --quantization-bit-width 8 --sequential-initialization)
