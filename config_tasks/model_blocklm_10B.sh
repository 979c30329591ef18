# GLM-10B. Its checkpoint is $CHECKPOINT_PATH/glm-10b; the vocabulary lies there or in $TOKENIZER_PATH.
MODEL_TYPE="blocklm-10B"
MODEL_ARGS=(--block-lm --num-layers 48 --hidden-size 4096 --num-attention-heads 64 --max-position-embeddings 1024
    --tokenizer-type GPT2BPETokenizer --task-mask
    --tokenizer-path "${TOKENIZER_PATH:-$CHECKPOINT_PATH/glm-10b}" --load-pretrained "$CHECKPOINT_PATH/glm-10b")
