# GLM-Large-Chinese (335M). Its checkpoint is $CHECKPOINT_PATH/glm-large-chinese; the vocabulary lies there or in $TOKENIZER_PATH.
MODEL_TYPE="blocklm-large_chinese"
MODEL_ARGS=(--block-lm --num-layers 24 --hidden-size 1024 --num-attention-heads 16 --max-position-embeddings 1024
    --tokenizer-type ChineseSPTokenizer --fix-command-token --task-mask
    --tokenizer-path "${TOKENIZER_PATH:-$CHECKPOINT_PATH/glm-large-chinese}" --load-pretrained "$CHECKPOINT_PATH/glm-large-chinese")
