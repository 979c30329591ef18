# GLM-130B in INT8 on 8 GPUs: 16.3 GB of weights on each, quantised while the FP16 checkpoint is loaded.
CHECKPOINT_PATH="${CHECKPOINT_PATH:-/path/to/glm-130b-sat}" # the folder with the file "latest"
MP_SIZE="${MP_SIZE:-8}"
MODEL_ARGS=(--model glm-130b --fp16 --quantization-bit-width 8)
