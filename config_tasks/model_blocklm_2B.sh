# GLM-2B. Its checkpoint is $CHECKPOINT_PATH/glm-2b; the vocabulary lies there or in $TOKENIZER_PATH.
MODEL_TYPE="blocklm-2B"
MODEL_ARGS=(--block-lm --num-layers 36 --hidden-size 2048 --num-attention-heads 32 --max-position-embeddings 1024
    --tokenizer-type GPT2BPETokenizer --task-mask
    --tokenizer-path "${TOKENIZER_PATH:-$CHECKPOINT_PATH/glm-2b}" --load-pretrained "$CHECKPOINT_PATH/glm-2b")
