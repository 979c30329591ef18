# GLM-515M. Its checkpoint is $CHECKPOINT_PATH/glm-515m; the vocabulary lies there or in $TOKENIZER_PATH.
MODEL_TYPE="blocklm-515M"
MODEL_ARGS=(--block-lm --num-layers 30 --hidden-size 1152 --num-attention-heads 18 --max-position-embeddings 512
    --tokenizer-type BertWordPieceTokenizer
    --tokenizer-path "${TOKENIZER_PATH:-$CHECKPOINT_PATH/glm-515m}" --load-pretrained "$CHECKPOINT_PATH/glm-515m")
