# GLM-10B-Chinese. Its checkpoint is $CHECKPOINT_PATH/glm-10b-chinese; the vocabulary lies there or in $TOKENIZER_PATH.
MODEL_TYPE="blocklm-10B_chinese"
MODEL_ARGS=(--block-lm --num-layers 48 --hidden-size 4096 --num-attention-heads 64 --max-position-embeddings 1024
    --tokenizer-type ChineseSPTokenizer --task-mask
    --tokenizer-path "${TOKENIZER_PATH:-$CHECKPOINT_PATH/glm-10b-chinese}" --load-pretrained "$CHECKPOINT_PATH/glm-10b-chinese")
