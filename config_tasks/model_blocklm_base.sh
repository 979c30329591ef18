# GLM-Base (110M). Its checkpoint is $CHECKPOINT_PATH/glm-base; the vocabulary lies there or in $TOKENIZER_PATH.
MODEL_TYPE="blocklm-base"
MODEL_ARGS=(--block-lm --num-layers 12 --hidden-size 768 --num-attention-heads 12 --max-position-embeddings 512
    --tokenizer-type BertWordPieceTokenizer
    --tokenizer-path "${TOKENIZER_PATH:-$CHECKPOINT_PATH/glm-base}" --load-pretrained "$CHECKPOINT_PATH/glm-base")
