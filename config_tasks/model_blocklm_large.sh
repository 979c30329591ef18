# GLM-Large (335M). Its checkpoint is $CHECKPOINT_PATH/glm-large; the vocabulary lies there or in $TOKENIZER_PATH.
MODEL_TYPE="blocklm-large"
MODEL_ARGS=(--block-lm --num-layers 24 --hidden-size 1024 --num-attention-heads 16 --max-position-embeddings 512
    --tokenizer-type BertWordPieceTokenizer
    --tokenizer-path "${TOKENIZER_PATH:-$CHECKPOINT_PATH/glm-large}" --load-pretrained "$CHECKPOINT_PATH/glm-large")
