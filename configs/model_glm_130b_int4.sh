# GLM-130B in INT4 on 4 GPUs: 16.8 GB of weights on each, from a checkpoint that was quantised and resharded before.
CHECKPOINT_PATH="${CHECKPOINT_PATH:-/path/to/glm-130b-sat-int4}" # the folder with the file "latest"
MP_SIZE="${MP_SIZE:-4}"
MODEL_ARGS=(--model glm-130b --fp16 --quantization-bit-width 4 --from-quantized-checkpoint)
